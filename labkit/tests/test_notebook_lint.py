import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "ci" / "lint_notebooks.py"
if not SCRIPT.is_file():
    pytest.skip("the notebook lint is part of a checkout, not of an installed labkit", allow_module_level=True)
spec = importlib.util.spec_from_file_location("lint_notebooks", SCRIPT)
lint_notebooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lint_notebooks)

CAPTION = {"caption": "Rats differ in size, and not in kind."}
ALT = {"mystnb": {"image": {"alt": "Three planes through one rat's head, with a scale bar of 5 mm"}, "figure": CAPTION}}
PARAMETERS = 'cohort: str = "phantom"  # phantom | sigma | a folder\nn: int = 8  # animals'


def markdown(source: str, **metadata) -> dict:
    return {"cell_type": "markdown", "metadata": metadata, "source": source}


def code(source: str, outputs=(), execution_count=None, **metadata) -> dict:
    cell = {"cell_type": "code", "metadata": metadata, "source": source.splitlines(keepends=True)}
    return cell | {"outputs": list(outputs), "execution_count": execution_count}


def good_cells() -> list[dict]:
    return [
        markdown("# The data\n\nWhat does a rat look like?"),
        code(PARAMETERS, tags=["parameters"]),
        code("import labkit\nfrom labkit import figures\nfrom labkit.figures import montage as grid"),
        code("figures.three_planes(labkit.open_cohort(cohort, n=n)[0])", tags=["figure"], **ALT),
    ]


def faults_of(tmp_path, cells, **metadata) -> list[str]:
    path = tmp_path / "01_tiny.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    faults = lint_notebooks.lint(path)
    assert all(fault.startswith(f"{path}: ") for fault in faults)
    return [fault.removeprefix(f"{path}: ") for fault in faults]


def test_a_notebook_in_good_form_passes(tmp_path):
    assert faults_of(tmp_path, good_cells()) == []


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (code("x = 1", outputs=[{"output_type": "stream", "name": "stdout", "text": "1"}]), "saved outputs"),
        (code("1 / 0", outputs=[{"output_type": "error", "ename": "ZeroDivisionError"}]), "saved traceback"),
        (code("x = 1", execution_count=3), "execution count"),
        (code("\n\n".join(f"x{i} = {i}" for i in range(16))), "16 lines"),
        (code("def mean(x):\n    return x"), "defines `mean`"),
        (code("if True:\n    class Rat:\n        pass"), "defines `Rat`"),
        (code("square = lambda x: x * x"), "lambda"),
        (code("%matplotlib inline\nx = 1"), "%matplotlib inline"),
        (code("!ls"), "!ls"),
        (code("x = = 1"), "does not parse"),
        (code("path = '/" + "home/rat/scan.nii'"), "path of one machine"),
        (code("path = r'C:\\" + "Users\\rat'"), "path of one machine"),
        (markdown("It lies in /" + "tmp/out."), "path of one machine"),
        (markdown("text", origin="/" + "root/book"), "metadata holds a path"),
        (code("x = 1", tags=["figure"], mystnb={"figure": CAPTION}), "alt text"),
        (code("figures.histogram(x)", mystnb={"figure": CAPTION}), "alt text"),
        (code("labkit.figures.histogram(x)", mystnb={"figure": CAPTION}), "alt text"),
        (code("grid(x)", mystnb={"figure": CAPTION}), "alt text"),
        (code("from nilearn import plotting\nplotting.plot_anat(x)", mystnb={"figure": CAPTION}), "alt text"),
        (code("import matplotlib.pyplot as plt\nplt.plot(x)", mystnb={"figure": CAPTION}), "alt text"),
        (code("fig.show()", mystnb={"figure": CAPTION}), "alt text"),
        (code("fig.show()", mystnb={"image": {"alt": "a rat"}, "figure": CAPTION}), "alt text"),
        (code("fig.show()", mystnb={"image": ALT["mystnb"]["image"]}), "caption"),
        (code("fig.show()", mystnb={**ALT["mystnb"], "figure": {"caption": "Rats."}}), "caption"),
    ],
)
def test_a_cell_with_a_fault_is_named(tmp_path, cell, words):
    (fault,) = faults_of(tmp_path, [*good_cells(), cell])
    assert fault.startswith("cell 5: ") and words in fault


@pytest.mark.parametrize(
    "cell",
    [
        code("\n\n".join(f"x{i} = {i}" for i in range(15))),
        code("figures.header_table(cohort)", tags=["no-figure"]),
        code("link = 'https://example.org/home/rat'\nfolder = 'runs/" + "tmp/out'"),  # not at the root
        code("ordered = sorted(rats, key=lambda rat: rat.subject)"),
        markdown("A plot; see `figures.montage(x)`."),
    ],
)
def test_a_cell_in_good_form_is_let_through(tmp_path, cell):
    assert faults_of(tmp_path, [*good_cells(), cell]) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('cohort = "phantom"  # phantom | sigma', "no type"),
        ('cohort: str = "phantom"', "no comment"),
        ("n: int  # animals", "is no parameter"),
        ("import labkit", "is no parameter"),
        ("n: int = 8  # n=8 is quick", "equals sign"),
    ],
)
def test_a_parameter_with_a_fault_is_named(tmp_path, source, words):
    cells = good_cells()
    cells[1] = code(f"# comment\n{source}", tags=["parameters"])
    (fault,) = faults_of(tmp_path, cells)
    assert fault.startswith("cell 2: ") and "line 2" in fault and words in fault


def test_a_parameter_over_several_lines_has_its_comment_behind_the_last(tmp_path):
    cells = good_cells()
    cells[1] = code("overrides: dict = {\n}  # fields of the variant", tags=["parameters"])
    assert faults_of(tmp_path, cells) == []


@pytest.mark.parametrize("tagged", [0, 2])
def test_there_is_exactly_one_parameters_cell(tmp_path, tagged):
    cells = good_cells()
    cells[1:2] = [code(PARAMETERS, tags=["parameters"])] * tagged
    assert any(f"{tagged} cells are tagged `parameters`" in fault for fault in faults_of(tmp_path, cells))


def test_the_first_cell_is_the_title(tmp_path):
    for first in ([], [markdown("No title")], [code("x = 1")]):
        (fault,) = faults_of(tmp_path, [*first, *good_cells()[1:]])
        assert "title" in fault


def test_an_executed_copy_is_refused(tmp_path):
    assert faults_of(tmp_path, good_cells(), papermill={"duration": 3}) == [
        "an executed copy made by papermill; commit the source notebook"
    ]


def test_a_file_that_is_no_notebook_is_named(tmp_path):
    path = tmp_path / "broken.ipynb"
    path.write_text("{")
    (fault,) = lint_notebooks.lint(path)
    assert str(path) in fault


def test_the_exit_status_says_whether_there_were_faults(tmp_path, capsys):
    bad = tmp_path / "bad.ipynb"
    bad.write_text(json.dumps({"cells": [], "metadata": {}}))
    assert lint_notebooks.main([str(bad)]) == 1
    assert "1 notebooks, 2 faults" in capsys.readouterr().out
    good = tmp_path / "good.ipynb"
    good.write_text(json.dumps({"cells": good_cells(), "metadata": {}}))
    assert lint_notebooks.main([str(good)]) == 0
