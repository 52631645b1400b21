from pathlib import Path

import pytest

from labkit import runs
from labkit.files import located, runs_folder
from labkit.runs import RunError


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a run at its top, and the kernel in the folder of its chapters."""
    for folder in ("book", "labkit", "runs/one"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "book" / "02_train.ipynb").touch()
    monkeypatch.chdir(tmp_path / "book")
    return tmp_path


def test_a_kernel_in_the_folder_of_the_chapters_finds_what_papermill_made_at_the_top(repository, monkeypatch):
    assert located("runs/one") == repository / "runs" / "one" and runs_folder() == repository / "runs"
    assert located("new") == repository / "new", "and makes new things there"
    assert located("~") == Path.home() and located(repository / "x") == repository / "x"
    assert located("../runs/new") == Path("../runs/new"), "which is right as it stands"
    with pytest.raises(RunError, match=f"no trained run in {repository / 'runs'}:"):
        runs.load_run()
    monkeypatch.chdir(repository)
    assert located("runs/one") == Path("runs/one") and runs_folder() == Path("runs")


def test_what_is_there_is_meant_but_leftover_runs_hide_none(repository):
    for folder in ("mine", "runs"):
        (repository / "book" / folder).mkdir()
    assert located("mine") == Path("mine")
    assert runs_folder() == repository / "runs"


@pytest.mark.parametrize("missing", ["book/02_train.ipynb", "labkit"])
def test_another_folder_called_book_is_like_any_other(repository, missing):
    path = repository / missing
    path.unlink() if path.is_file() else path.rmdir()
    assert located("runs/one") == Path("runs/one") and runs_folder() == Path("runs")
