"""Where relative paths begin."""

from __future__ import annotations

import os
from pathlib import Path

CHAPTER = "02_train.ipynb"
"""By which the folder of the chapters is known."""


def top() -> Path:
    """The working directory, or, if that is the folder of the chapters, the top of the repository above it.

    Jupyter and VS Code start a notebook's kernel in the notebook's own folder, papermill where it is called: without
    this a run that one of them trained would be out of sight of the other.

    Returns
    -------
    pathlib.Path
        ``.`` for the working directory.
    """
    here = Path.cwd()
    of_chapters = here.name == "book" and Path(CHAPTER).exists() and (here.parent / "labkit").is_dir()
    return here.parent if of_chapters else Path()


def located(path: str | os.PathLike) -> Path:
    """A path as given, or, from within the folder of the chapters, as seen from :func:`top`.

    Parameters
    ----------
    path : str or path
        ``~`` is the home folder. What is there is taken as it is, and so is what begins at the root or with ``..``.

    Returns
    -------
    pathlib.Path
    """
    path = Path(path).expanduser()
    return path if path.exists() or path.parts[:1] == ("..",) else top() / path


def runs_folder() -> Path:
    """Where runs are kept unless a folder is named: ``runs/`` at the :func:`top`, whatever lies beside the chapters."""
    return top() / "runs"
