"""Where relative paths begin."""

from __future__ import annotations

import os
from pathlib import Path

CHAPTER = "02_train.ipynb"
"""By which the folder of the chapters is known."""


def located(path: str | os.PathLike) -> Path:
    """A path as given, or, from within the folder of the chapters, as seen from the top of the repository.

    Jupyter and VS Code start a notebook's kernel in the notebook's own folder, papermill where it is called: without
    this a run that one of them trained would be out of sight of the other.

    Parameters
    ----------
    path : str or path
        ``~`` is the home folder. What is there is taken as it is, and so is what begins at the root.

    Returns
    -------
    pathlib.Path
    """
    path = Path(path).expanduser()
    if path.is_absolute() or path.exists() or not (Path.cwd().name == "book" and Path(CHAPTER).exists()):
        return path
    return Path.cwd().parent / path
