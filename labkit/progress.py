"""Progress on the terminal and in a live notebook, nothing where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def in_live_kernel() -> bool:
    """Whether somebody sits at the kernel, so that a bar is seen and a slider would be moved.

    Jupyter and VS Code allow a running cell to ask for keyboard input; papermill, nbclient and Jupyter Book, which
    execute for later, do not. Outside a kernel it is False.
    """
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython.get_ipython(), "kernel", None) if ipython else None
    return bool(getattr(kernel, "_allow_stdin", False))  # what a front end sent with the cell that runs


def watched() -> bool:
    """Whether standard error is read as it is written: a terminal, or a live notebook."""
    return in_live_kernel() or (sys.stderr is not None and sys.stderr.isatty())


def progress_bar(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` with a plain text bar on standard error; silent where that is no terminal or notebook.

    Parameters
    ----------
    items : iterable
        What to go through.
    what : str
        Said before the bar, e.g. ``"reading rats"``.
    total : int, optional
        How many, where `items` has no length.
    """
    try:
        from tqdm import tqdm  # not tqdm.auto: its widgets add megabytes to a built page
    except ImportError:  # a bar is no reason not to go on
        return iter(items)
    # a bar that would come and go within a second is noise
    return iter(tqdm(items, what, total, leave=False, disable=not watched(), delay=1.0, mininterval=0.5))
