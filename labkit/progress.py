"""Progress on the terminal and in a live notebook, nothing where nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


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
    from tqdm import tqdm  # not tqdm.auto: its widgets add megabytes to a built page

    watched = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    # a bar that would come and go within a second is noise
    return iter(tqdm(items, what, total, leave=False, disable=not watched, delay=1.0, mininterval=0.5))
