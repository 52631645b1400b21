"""The examples of the public functions run and give what they say; and each public function has one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import labkit

METHODS = ["Cohort.split", "Cohort.volumes", "Cohort.label_maps", "Cohort.write", "Scan.restore", "Run.cohort",
           "Run.held_out", "Run.generator", "Run.summary"]  # fmt: skip
PUBLIC = [
    name
    for name in labkit.__all__
    if inspect.isroutine(getattr(labkit, name)) or inspect.isclass(getattr(labkit, name))
]
PUBLIC = [name for name in PUBLIC if not name.endswith("Error")]
MODULES = ["labkit.layers", "labkit.published"]


@pytest.fixture(scope="module")
def around(tmp_path_factory):
    """What every example may use: labkit, eight simulated rats, two runs trained on them, an empty folder."""
    folder = tmp_path_factory.mktemp("examples")
    rats = labkit.open_cohort("phantom", n=8)
    run = labkit.train("sigmarat2", rats, "smoke", folder / "runs" / "first", n_train=6)
    atlas = labkit.train("atlas", rats, "smoke", folder / "runs" / "atlas", n_train=6)
    return {"labkit": labkit, "rats": rats, "run": run, "atlas": atlas, "folder": folder}


def named(name: str) -> object:
    found = labkit
    for part in name.split("."):
        found = getattr(found, part)
    return found


def check(thing: object, name: str, names: dict) -> int:
    """Run the examples of one docstring; how many there were."""
    finder = doctest.DocTestFinder(recurse=False)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    examples = finder.find(thing, name, globs=names)
    said: list[str] = []
    for example in examples:
        runner.run(example, out=said.append)
    assert runner.failures == 0, "".join(said)
    return runner.tries


@pytest.mark.parametrize("name", [*PUBLIC, *METHODS])
def test_an_example_gives_what_it_says(name, around):
    assert check(named(name), name, dict(around)) > 0, f"labkit.{name} has no example"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_begins_with_an_example_that_runs(name):
    module = importlib.import_module(name)
    assert check(module, name, dict(vars(module))) > 0


def with_examples() -> list[str]:
    """Modules in which something else than what labkit's facade shows has an example."""
    top = Path(labkit.__file__).parent
    paths = sorted(path for path in top.rglob("*.py") if "tests" not in path.relative_to(top).parts)
    return [
        ".".join(("labkit", *path.relative_to(top).with_suffix("").parts)).removesuffix(".__init__")
        for path in paths
        if ">>>" in path.read_text(encoding="utf-8")
    ]


@pytest.mark.parametrize("name", with_examples())
def test_examples_of_helpers_run_too(name, around):
    module, shown = importlib.import_module(name), {*PUBLIC, *METHODS}
    names = vars(module) | around
    tests = doctest.DocTestFinder().find(module, name, globs=names)
    runner, said = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), []
    for test in tests:
        if test.name.removeprefix(f"{name}.") not in shown:
            runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)


def test_the_page_of_ten_calls_runs_as_it_stands(tmp_path, monkeypatch):
    page = Path(__file__).parents[2] / "book" / "ten_calls.md"
    if not page.exists():
        pytest.skip("the book is not here: the package is installed apart from its repository")
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert failed == 0 and tried >= 19
