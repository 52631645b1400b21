"""What ci/book does beside executing: the cache's key, outputs put back into edited prose, pages tidied."""

import importlib.util
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

CI = Path(__file__).resolve().parents[2] / "ci"


@pytest.fixture(scope="module")
def book():
    sys.path.insert(0, str(CI))
    try:
        spec = importlib.util.spec_from_file_location("ci_book", CI / "book.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(CI))


def test_outputs_are_put_back_under_prose_that_changed(book):
    parameters = {"tags": ["parameters"]}
    source = new_notebook(cells=[new_markdown_cell("new words"), new_code_cell("n = 1", metadata=parameters),
                                 new_markdown_cell("more"), new_code_cell("n")])  # fmt: skip
    shown = [new_output("execute_result", {"text/plain": "2"}, execution_count=3)]
    executed = new_notebook(cells=[new_markdown_cell("old"), new_code_cell("n = 1", metadata=parameters),
                                   new_code_cell("n = 2", metadata={"tags": ["injected-parameters"]}),
                                   new_code_cell("n", outputs=shown, execution_count=3)])  # fmt: skip
    merged = book.merged(source, executed)
    assert [cell.source for cell in merged.cells] == ["new words", "n = 1", "n = 2", "more", "n"]
    assert merged.cells[-1].outputs == shown and merged.cells[-1].execution_count == 3
    nbformat.validate(merged)


def test_only_what_runs_is_part_of_the_key(book, tmp_path):
    path = tmp_path / "a.py"
    path.write_text('def f(x):\n    """Words."""\n    return x  # why\n')
    first = book.meaning(path)
    path.write_text('def f(x):\n    """Other words."""\n\n    return x\n')
    assert book.meaning(path) == first
    path.write_text('def f(x):\n    """Words."""\n    return x + 1\n')
    assert book.meaning(path) != first


def test_a_folders_contents_are_part_of_the_key(book, tmp_path):
    (tmp_path / "a.nii").write_bytes(b"1")
    first = book.data_digest(str(tmp_path))
    (tmp_path / "a.nii").write_bytes(b"2")
    assert book.data_digest(str(tmp_path)) != first
    assert book.data_digest("phantom") == "phantom"


def test_scripts_stand_on_a_page_once_and_none_is_for_another_host(book):
    page = (
        '<head><script>const THEBE_JS_URL = "https://x"</script><script defer="defer" src="m.js"></script>'
        '<script>a()</script><script src="m.js"></script><script>a()</script></head><script>a()</script>'
        '<div role="list" class="citation-list">'
    )
    expected = (
        '<head><script defer="defer" src="m.js"></script><script>a()</script></head><script>a()</script>'
        '<div class="citation-list">'
    )
    assert book.tidy(page) == expected


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_every_chapter_is_a_page_and_comes_after_what_it_needs(book, scale):
    pages = book.pages(scale, "phantom", None)
    stems = [page.stem for page in pages]
    assert {page.notebook for page in pages} == {path.stem for path in book.BOOK.glob("[0-9]*.ipynb")}
    assert all(stems.index(other) < stems.index(page.stem) for page in pages for other in page.after)
    assert set(stems) <= book.toc_stems()
    for page in pages:
        notebook = nbformat.read(book.BOOK / f"{page.notebook}.ipynb", 4)
        (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
        assert all(f"{name}:" in cell.source for name in page.parameters)


def test_a_chapter_that_fails_is_named_with_its_error(book, tmp_path, monkeypatch):
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    broken = new_notebook(cells=[new_code_cell("1 / 0")], metadata={"kernelspec": kernel})
    nbformat.write(broken, tmp_path / "x.ipynb")
    monkeypatch.setattr(book, "BOOK", tmp_path)
    page = book.Page("x", "x", {})
    with pytest.raises(SystemExit, match="(?s)x, cell 1, failed: ZeroDivisionError.*1 / 0"):
        book.execute(page, tmp_path, "key", 60)
    assert not (tmp_path / "executed" / "x.json").exists()  # and is executed again next time


def test_what_was_fetched_has_to_be_what_is_listed(book, tmp_path, monkeypatch):
    monkeypatch.setattr(book.vendor, "KEPT", tmp_path)
    monkeypatch.setattr(book.vendor.shutil, "which", lambda _: "npm")

    def pack(command, cwd, **_):
        (Path(cwd) / "other.tgz").write_bytes(b"not it")
        return type("Done", (), {"returncode": 0, "stdout": "", "stderr": ""})

    monkeypatch.setattr(book.vendor.subprocess, "run", pack)
    with pytest.raises(SystemExit, match="sha256 .* not used"):
        book.vendor.fetch("mathjax")
    assert not (tmp_path / "mathjax").exists()
