"""What ci/book does beside executing: the cache's key, outputs put back into edited prose, pages tidied."""

import importlib.util
import json
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labkit.data.simulate.library import meaning

CI = Path(__file__).resolve().parents[2] / "ci"
if not (CI / "book.py").is_file():
    pytest.skip("the build is part of a checkout, not of an installed labkit", allow_module_level=True)


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


@pytest.fixture
def chapters(book):
    return sys.modules[book.Page.__module__]


@pytest.fixture
def cache(book):
    return sys.modules[book.digest.__module__]


def test_outputs_are_put_back_under_prose_that_changed(chapters):
    parameters = {"tags": ["parameters"]}
    source = new_notebook(cells=[new_markdown_cell("new words"), new_code_cell("n = 1", metadata=parameters),
                                 new_markdown_cell("more"), new_code_cell("n")])  # fmt: skip
    shown = [new_output("execute_result", {"text/plain": "2"}, execution_count=3)]
    executed = new_notebook(cells=[new_markdown_cell("old"), new_code_cell("n = 1", metadata=parameters),
                                   new_code_cell("n = 2", metadata={"tags": ["injected-parameters"]}),
                                   new_code_cell("n", outputs=shown, execution_count=3)])  # fmt: skip
    merged = chapters.merged(source, executed)
    assert [cell.source for cell in merged.cells] == ["new words", "n = 1", "n = 2", "more", "n"]
    assert merged.cells[-1].outputs == shown and merged.cells[-1].execution_count == 3
    nbformat.validate(merged)


def test_only_what_runs_is_part_of_the_key():
    first = meaning('def f(x):\n    """Words."""\n    return x  # why\n')
    assert meaning('def f(x):\n    """Other words."""\n\n    return x\n\n\n"""And more."""\n') == first
    assert meaning('def f(x):\n    """Words."""\n    return x + 1\n') != first


def test_a_folders_contents_are_part_of_the_key(book, tmp_path):
    (tmp_path / "a.nii").write_bytes(b"1")
    first = book.data_digest(str(tmp_path))
    (tmp_path / ".git").mkdir()
    for name in (".DS_Store", ".git/x.nii", "README"):
        (tmp_path / name).write_text("no scan")
    assert book.data_digest(str(tmp_path)) == first
    (tmp_path / "a.nii").write_bytes(b"2")
    assert book.data_digest(str(tmp_path)) != first
    assert book.data_digest("phantom") == "phantom"


def test_a_page_names_no_folder_of_the_machine_that_built_it(book, monkeypatch):
    own, work = str(book.ROOT.parent / "rätten"), book.ROOT / "build" / "book" / "x"
    said = f"in {work}/runs/a,\t{Path.home()}/b, \x1b[0m{book.ROOT}/c\n{own}/d"
    picture = f'<img src="data:image/png;base64,abc{Path.home()}xyz"> <p>{own}</p>'
    shown = [new_output("stream", text=said), new_output("display_data", {"text/html": picture, "image/png": own})]
    page = new_notebook(cells=[new_code_cell(f'cohort = "{own}"', outputs=shown)])
    (cell,) = book.without_paths(page, own, work).cells
    assert cell.source == 'cohort = "rätten"'
    assert cell.outputs[0].text == "in ./runs/a,\t~/b, \x1b[0m./c\nrätten/d"
    assert cell.outputs[1].data["text/html"] == picture.replace(own, "rätten")
    assert cell.outputs[1].data["image/png"] == own
    # a cohort above the repository does not hide the folders below it
    page = new_notebook(cells=[new_code_cell(f"{work}/runs and {book.ROOT.parent}/x")])
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    above = str(book.ROOT.parent)
    assert book.without_paths(page, above, work).cells[0].source == f"./runs and {book.ROOT.parent.name}/x"


def test_a_warning_on_a_page_names_no_file_of_the_kernel(book):
    file = f"{tempfile.gettempdir()}/ipykernel_4711/123456.py"
    said = f"{file}:3: UserWarning: 2 of 9 scans\n  scans = open_cohort()\n"
    cells = [new_code_cell("open()", outputs=[new_output("stream", name="stderr", text=said)])]
    (cell,) = book.without_paths(new_notebook(cells=cells), "phantom", book.ROOT / "build").cells
    assert cell.outputs[0].text == said.replace(file, "a cell above")


def test_a_folder_with_braces_is_no_template(chapters, tmp_path):
    from papermill.parameterize import parameterize_path

    path = tmp_path / "of {x} and }y{" / "a.ipynb"
    assert parameterize_path(chapters.literal(path), {}) == str(path)


def test_a_page_has_no_progress_of_a_training_and_keeps_what_was_said_beside_it(book):
    line = "iteration 5 of 9: mse 0.1, W 2; 3 iterations a second, 2 seconds left\n"
    texts = [line, f"before\n{line}{line}after\n", "iteration 5 is the best\n"]
    cells = [new_code_cell("train()", outputs=[new_output("stream", text=text) for text in texts])]
    (cell,) = book.without_paths(new_notebook(cells=cells), "phantom", book.ROOT / "build").cells
    assert [output.text for output in cell.outputs] == ["before\nafter\n", "iteration 5 is the best\n"]


def test_a_page_loads_plotly_if_it_draws_and_mathjax_if_it_has_equations(book):
    head = '<head><script src="_static/plotly/p.js?v=1"></script><script src="_static/mathjax/m.js"></script></head>'
    assert book.tidy(f"{head}<p>words</p>") == "<head></head><p>words</p>"
    body = '<span class="math notranslate">x</span><script defer src="_static/plotly/p.js"></script>'
    assert book.tidy(head + body) == f'<head><script src="_static/mathjax/m.js"></script></head>{body}'


def test_the_first_page_says_what_was_found_in_sentences(book, tmp_path):
    def run(model, six, copies):
        folder = tmp_path / model
        (folder / "segmentation" / "x").mkdir(parents=True)
        verdicts = {"the paper's six": six, "distributions": "10 of 31", "copies": copies}
        controls = {"mean": {"distributions": "3 of 31"}, "Gaussian": {"distributions": "30 of 31"}}
        (folder / "metrics.json").write_text(json.dumps({"verdicts": verdicts, "controls": controls}))
        return folder

    runs = {"sigmarat2": run("sigmarat2", "2 of 6", "2 of 2"), "atlas": run("atlas", "6 of 6", "1 of 4")}
    (runs["sigmarat2"] / "segmentation" / "x" / "conclusions.txt").write_text(
        "r100 against r100-plain, conventional augmentation: nothing that this design can see.\n"
        "white matter, r100+s200 against r100: −0.04 (−0.05 to −0.03, p = 0.006), published +0.0129: a loss.\n"
        "CSF, r100+s50 against r100: −0.01 (−0.02 to −0.00), published +0.0764: a loss. Smallest difference: 0.1.\n"
        "r100+a50 against r100, scans of an atlas with its own labels added: less.\n"
        "r5+a200 against r5, scans of an atlas with its own labels added: <b>CSF</b> +0.09.\n"
    )
    real, copied, useful = book.findings(runs, "laptop").splitlines()[4:]
    assert "Of 37 measures `atlas` is as good as real in 16, `sigmarat2` in 12; of what learned nothing" in real
    assert real.count(" in 30 ") == 1
    assert "No sign of it (`sigmarat2`); it seems so (`atlas`)" in copied
    theirs = "white matter −0.04 (−0.05 to −0.03; published +0.0129), CSF −0.01 (−0.02 to −0.00; published +0.0764)"
    assert f"An alpha-GAN's scans, labelled by a teacher, beside 100 % of the real ones: {theirs}" in useful
    assert "CSF" in useful and "<b>" not in useful
    assert "beside 5 % of the real ones" in useful and "less" not in useful
    assert book.findings({"adni": tmp_path / "none"}, "smoke") == ""


def test_header_cells_of_a_table_say_whether_they_are_of_a_column_or_of_a_row(book):
    head = '<table><thead><tr><th>a</th><th scope="colgroup">b</th></tr></thead>'
    table = head + '<tbody><tr><th class="x">c</th></tr></tbody>'
    expected = table.replace("<th>a", '<th scope="col">a').replace('<th class="x">', '<th scope="row" class="x">')
    assert book.tidy(f"<head></head>{table}</table><th>") == f"<head></head>{expected}</table><th>"


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


@pytest.mark.parametrize("scale", ["smoke", "laptop", "reference", "paper"])
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


def test_a_chapter_that_fails_is_named_with_its_error(chapters, tmp_path, monkeypatch):
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    broken = new_notebook(cells=[new_code_cell("1 / 0")], metadata={"kernelspec": kernel})
    nbformat.write(broken, tmp_path / "x.ipynb")
    monkeypatch.setattr(chapters, "BOOK", tmp_path)
    page = chapters.Page("x", "x", {})
    with pytest.raises(SystemExit, match="(?s)x, cell 1, failed: ZeroDivisionError.*1 / 0"):
        chapters.execute(page, tmp_path, "key", 60)
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


def test_a_few_scans_are_for_simulated_cohorts(book):
    by_stem = {page.stem: page.parameters for page in book.pages("smoke", "phantom", None)}
    assert by_stem["02_train_adni"]["n"] == 8
    assert {page.stem: page.parameters for page in book.pages("smoke", "phantom", 5)}["01_explore"]["n"] == 5
    own = {page.stem: page.parameters for page in book.pages("smoke", "/scans", None)}
    assert "n" not in own["02_train_adni"] and own["07_judge"]["trials"] == 8


def test_a_chapter_says_how_to_run_it_live(book):
    page = book.Page("02_train_adni", "02_train", {})
    assert "`ci/live 02_train`" in book.launch(page, None, "main")
    links = book.launch(page, "someone/rats", "a/b")
    assert "https://mybinder.org/v2/gh/someone/rats/a%2Fb?labpath=book%2F02_train.ipynb" in links
    assert "https://colab.research.google.com/github/someone/rats/blob/a/b/book/02_train.ipynb" in links
    assert "pip install git+https://github.com/someone/rats@a/b" in links


@pytest.mark.parametrize("url, name", [
    ("https://github.com/someone/rat-brains.git", "someone/rat-brains"), ("git@github.com:a/b.c", "a/b.c"),
    ("https://example.org/a/b", None), ("/home/me/github.com/a/b", None),
    ("ssh://git@github.com/a/b/", "a/b"), ("", None),
])  # fmt: skip
def test_the_repository_is_the_one_on_github_if_it_is_there(book, monkeypatch, url, name):
    monkeypatch.setattr(book, "git", lambda *_: url)
    assert book.origin() == name


@pytest.mark.parametrize("words, said", [
    (["--n", "4"], "5 animals or more"), (["--cohort", "nowhere"], "a folder of NIfTI scans that is there"),
    (["--repository", "https://github.com/a/b"], "write OWNER/NAME"), (["--to", "."], "is not an empty folder"),
    (["--scale", "huge"], "smoke"), (["--models", "adni,vae"], "vae: allowed are adni"),
    (["--cohort", "mice", "--grid", "big"], "grid='big' is not known"),
    (["--sweep", "nowhere"], "holds no sweep.csv"),
])  # fmt: skip
def test_what_cannot_be_built_is_refused_before_any_work(book, monkeypatch, capsys, words, said):
    monkeypatch.setattr(sys, "argv", ["ci/book", "--here", str(CI), *words])
    monkeypatch.setattr(book, "assemble", lambda *_: pytest.fail("began to work"))
    with pytest.raises(SystemExit):
        book.main()
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("held_out, labelled, cohort, expected", [
    (36, True, "sigma", {}), (2, True, "sigma", {"04_quality": "fresh", "07_judge": "fresh"}),
    (2, True, "/scans", {"04_quality": "2 real animals that no model saw", "07_judge": "2 real animals"}),
    (4, True, "/scans", {}), (8, True, "sigma", {"04_quality": "fresh", "07_judge": "fresh"}),
    (36, False, "/scans", {"05_segmentation": "0 of 174 training scans"}),
])  # fmt: skip
def test_a_chapter_suits_the_cohort_or_is_left_out(chapters, monkeypatch, held_out, labelled, cohort, expected):
    class Run:
        config = {"held_out": {"subjects": [str(k) for k in range(held_out)]}}

    def experiment(run, seeds):
        if not labelled:
            raise ValueError("0 of 174 training scans have the study's labels")

    monkeypatch.setattr("labkit.load_run", lambda _: Run())
    monkeypatch.setattr("labkit.evidence.segmentation.experiment.Experiment", experiment)
    for page in chapters.pages("laptop", cohort, None):
        found = chapters.fitted(page, Path("run"), cohort)
        if page.stem not in expected:
            assert found is page
        elif expected[page.stem] == "fresh":
            assert found.parameters == page.parameters | {"cohort": "fresh"}
        else:
            assert isinstance(found, str) and expected[page.stem] in found


def test_the_default_book_is_of_the_runs_that_come_trained_and_other_animals_are_trained_on(
    book, chapters, monkeypatch
):
    monkeypatch.setattr(book, "BOOK", Path("nowhere"))
    asked = lambda *words: (monkeypatch.setattr(sys, "argv", ["ci/book", *words]), book.arguments())[1]  # noqa: E731
    default = asked()
    assert default.scale == "reference" and {"sigmarat2", "atlas"} <= set(default.models) <= set(chapters.MODELS)
    pages = chapters.pages("reference", "phantom", None, default.models)
    assert [page.parameters["run_dir"] for page in pages if page.notebook == "02_train"] == [
        f"reference/{model}" for model in default.models
    ]
    for words in (["--cohort", "sigma"], ["--n", "20"], ["--scale", "laptop"]):
        other = asked(*words)
        assert (other.scale, tuple(other.models)) == ("laptop", chapters.MODELS)
    assert asked("--scale", "reference", "--n", "20").models == list(chapters.MODELS)  # none of these come trained
    trained = [page for page in chapters.pages("reference", "phantom", 20, ["atlas"]) if page.notebook == "02_train"]
    assert trained[0].parameters["run_dir"].startswith("runs/")


def test_an_experiment_of_hours_on_a_run_that_came_trained_is_left_out_until_it_is_done(
    chapters, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (page,) = (page for page in chapters.pages("reference", "phantom", None, ["atlas"]) if page.stem[:2] == "05")
    missing = [("r100", 0)]

    class Experiment:
        def __init__(self, run, seeds):
            self.missing = lambda: missing

    monkeypatch.setattr("labkit.evidence.segmentation.experiment.Experiment", Experiment)
    found = chapters.fitted(page, Path("reference/atlas"), "phantom")
    assert isinstance(found, str) and "train its 1 networks: papermill" in found
    missing.clear()
    assert chapters.fitted(page, Path("reference/atlas"), "phantom") is page


def test_what_is_folded_is_folded_once(book):
    assert book.folded(["figure"]) == ["figure", "hide-input"]
    assert book.folded(["figure", "hide-output", "x"]) == ["figure", "x", "hide-cell"]


def test_the_time_that_is_left_follows_from_what_was_taken(book, monkeypatch, capsys):
    clock = iter([0.0, 90.0, 400.0, 400.0])
    monkeypatch.setattr(book.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(book, "SECONDS", {"reference": {"01": 45, "04": 100, "06": 5}})
    left = book.TimeLeft("reference", ["01_explore", "04_quality", "06_latent"])
    for stem in ("01_explore", "04_quality", "06_latent"):
        left.tell(stem)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "  01_explore: done, chapters take about 4 min more",  # 105 of 150 are left, and 45 took 90 s
        "  04_quality: done, chapters take about 1 min more",
    ]
    book.TimeLeft("smoke", ["01_explore"]).tell("01_explore")  # of which nothing is known
    assert capsys.readouterr().out == ""


@pytest.fixture
def tree(cache, chapters, tmp_path, monkeypatch):
    """A repository of a few files: tree(name, text) writes one and gives the name of the run that it makes."""
    for module in (cache, chapters):
        monkeypatch.setattr(module, "ROOT", tmp_path)

    def written(name, text, **what):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        pages = chapters.pages("laptop", "phantom", None, ["adni"], **what)
        return pages[1].parameters["run_dir"]

    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "constraints.txt").write_text("jupyterlab==4.0\ntorch==2.6\ntorchmetrics==1\n")
    return written


def test_a_run_is_named_after_all_that_makes_it_and_nothing_else(tree):
    first = tree("labkit/training.py", "def train():\n    return 1\n")
    assert re.fullmatch("runs/adni-[0-9a-f]{8}", first)
    assert tree("labkit/training.py", 'def train():\n    """Words."""\n    return 1  # why\n') == first
    assert tree("labkit/figures/slices.py", "x = 1\n") == tree("labkit/evidence/metrics/a.py", "x = 1\n") == first
    assert tree("ci/constraints.txt", "jupyterlab==4.1\ntorch==2.6\ntorchmetrics==2\n") == first
    names = {
        first,
        tree("labkit/figures/a.py", "", data="other scans"),
        tree("ci/constraints.txt", "torch==2.7\n"),
        tree("data_manifest/sigma.toml", "sha256 = 1\n"),
        tree("labkit/data/simulate/scanner.py", "x = 1\n"),
        tree("labkit/evidence/segmentation/network.py", "x = 1\n"),
        tree("labkit/training.py", "def train():\n    return 2\n"),
    }
    assert len(names) == 7


def test_a_book_of_mice_takes_all_of_them_on_the_grid_that_is_asked_for(book):
    pages = {page.stem: page for page in book.pages("smoke", "mice", None, ["adni"], grid="40x32x64@0.31")}
    for stem in ("01_explore", "02_train_adni"):
        assert {"cohort": "mice", "grid": "40x32x64@0.31"}.items() <= pages[stem].parameters.items()
        assert "n" not in pages[stem].parameters
    assert not any("grid" in page.parameters for page in pages.values() if page.after)


def test_of_chosen_models_all_chapters_are_made_and_the_others_have_no_page(book, tmp_path):
    pages = {page.stem: page for page in book.pages("smoke", "phantom", None, ["sigmarat1", "adni"])}
    assert {stem for stem in pages if stem.startswith("02")} == {"02_train_sigmarat1", "02_train_adni"}
    assert pages["03_inspect"].parameters["run_dir"] == pages["02_train_adni"].parameters["run_dir"]
    assert pages["04_quality"].parameters["run_dirs"].count(",") == 1
    book.assemble(tmp_path / "source", ["sigmarat1", "adni"], "phantom")
    for name in ("_toc.yml", "intro.md"):
        text = (tmp_path / "source" / name).read_text()
        assert "02_train_adni" in text and "02_train_sigmarat2" not in text and "02_train_atlas" not in text
    assert "A scan that no model saw, one by `adni`, and" in text and "one by the model atlas" not in text
    assert book.pictured(["sigmarat2", "atlas"]) == ["sigmarat2", "atlas"] and book.pictured(["atlas"]) == ["atlas"]
    assert book.pictured(list(book.MODELS)) == ["sigmarat2", "sigmarat3", "atlas"]


def test_pages_say_which_animals_they_show(book, tmp_path):
    said = {}
    for cohort in ("phantom", "mice", "/data/our voles"):
        book.assemble(tmp_path / "source", ["atlas"], cohort)
        said[cohort] = (tmp_path / "source" / "intro.md").read_text().split("```{note}")[1].split("```")[0]
    assert "simulated rats" in said["phantom"] and "no animal was scanned" in said["phantom"]
    assert "mice, not rats" in said["mice"] and "GPL-3.0" in said["mice"] and "cerebellum" in said["mice"]
    assert "`our voles`" in said["/data/our voles"] and "/data" not in said["/data/our voles"]
    assert set(book.COHORTS) == set(book.NAMED)


def test_the_arms_of_an_atlas_wait_for_it(book):
    pages = {page.stem: page for page in book.pages("smoke", "phantom", None)}
    assert "02_train_atlas" in pages["05_segmentation"].after


def test_the_packages_that_compute_are_pinned(cache):
    pins = (cache.ROOT / "ci" / "constraints.txt").read_text()
    assert all(f"\n{name}==" in pins for name in cache.COMPUTING)


def test_a_folder_is_replaced_if_nothing_is_lost_with_it(book, tmp_path):
    assert book.replaceable(tmp_path) and not book.replaceable(tmp_path / "nowhere")
    (tmp_path / "thesis.tex").touch()
    assert not book.replaceable(tmp_path)
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "book.css").touch()
    assert book.replaceable(tmp_path)
    (tmp_path / ".git").mkdir()
    assert not book.replaceable(tmp_path)


def test_a_chapter_that_was_left_out_has_a_page_that_says_so(book, tmp_path):
    book.write_left_out("07_judge", "it needs more.", tmp_path)
    text = (tmp_path / "07_judge.md").read_text()
    assert text == "# Judge: can you tell?\n\nThis chapter was left out: it needs more.\n"


def test_another_choice_of_members_is_fetched_again(book, tmp_path, monkeypatch):
    import hashlib
    import tarfile

    vendor = book.vendor
    for name in ("a.js", "b.js"):
        (tmp_path / name).write_text(name)
    with tarfile.open(tmp_path / "it.tgz", "w:gz") as archive:
        for name in ("a.js", "b.js"):
            archive.add(tmp_path / name, f"package/{name}")
    packed = (tmp_path / "it.tgz").read_bytes()

    def pack(command, cwd, **_):
        (Path(cwd) / "it.tgz").write_bytes(packed)
        return type("Done", (), {"returncode": 0, "stdout": "", "stderr": ""})

    monkeypatch.setattr(vendor, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(vendor, "LIST", tmp_path / "list.toml")
    monkeypatch.setattr(vendor.shutil, "which", lambda _: "npm")
    monkeypatch.setattr(vendor.subprocess, "run", pack)
    for members in (["package/a.js"], ["package/a.js", "package/b.js"]):
        entry = (
            f'[x]\npackage = "x@1"\nsha256 = "{hashlib.sha256(packed).hexdigest()}"\nfrom = ""\nmembers = {members}\n'
        )
        (tmp_path / "list.toml").write_text(entry)
        assert len(list(vendor.fetch("x").iterdir())) == len(members)
    monkeypatch.setattr(vendor.subprocess, "run", None)
    assert vendor.fetch("x").is_dir(), "and is kept"


def test_reference_pages_show_names_and_sentences_as_they_are_written():
    napoleon = pytest.importorskip("sphinx.ext.napoleon")
    spec = importlib.util.spec_from_file_location("reference", CI.parent / "book" / "_ext" / "reference.py")
    extension = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(extension)

    def shown(what, text):
        lines = text.splitlines()
        extension.mend(None, what, "", None, None, lines)
        config = napoleon.Config(napoleon_use_ivar=True)
        lines = str(napoleon.NumpyDocstring(lines, config, what=what)).splitlines()
        extension.restore(None, what, "", None, None, lines)
        return "\n".join(lines)

    assert shown("property", "What was asked: model, scale.") == "What was asked: model, scale."
    text = "A pair.\n\nAttributes\n----------\na, b : float\n    Both: alike.\n\nNotes\n-----\nx, y : z\n"
    found = shown("class", text)
    assert ":ivar a,\u200bb: Both: alike." in found and "x, y : z" in found
    fields = type("Pair", (tuple,), {"a": property(lambda self: 0, doc="Alias for field number 0")})
    assert extension.pass_over(None, "class", "a", fields.a, False, None)
    assert extension.pass_over(None, "class", "b", Path.name, False, None) is None


def test_further_folds_are_trained_for_chapter_4_and_have_no_page(book):
    pages = {page.stem: page for page in book.pages("smoke", "mice", None, ["atlas"], folds=3)}
    hidden = [stem for stem, page in pages.items() if not page.in_book]
    assert hidden == ["02_train_atlas_fold1", "02_train_atlas_fold2"]
    trained = [page.parameters["run_dir"] for page in pages.values() if page.notebook == "02_train"]
    assert pages["04_quality"].parameters["run_dirs"].split(",") == trained and len(set(trained)) == 3
    assert pages["07_judge"].parameters["run_dirs"] == pages["06_latent"].parameters["run_dir"] == trained[0]
    assert set(pages["04_quality"].after) >= set(hidden)
