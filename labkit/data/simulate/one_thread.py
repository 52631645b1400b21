"""One thread for torch on the CPU, for work that is many small steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread, and as many as before afterwards.

    Threads that wait for each other at every step gain little on idle cores and lose several times the work on busy
    ones. It also takes the number of threads out of the rounding.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
