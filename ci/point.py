"""A point of a sweep as a job computes it: chapter 2 with its parameters, then further chapters on the run.

A file of its own because jobs import it by name, wherever they run; ci/sweep.py lays points out and collects them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import psutil

BOOK = Path(__file__).resolve().parents[1] / "book"
POINT, FAILED, RUN = "point.json", "failed.txt", "run"

GRACE = 60
"""Seconds that a training has to write its checkpoint when its job is to end."""


class Work:
    """What one job does: points side by side, of which each goes on where it was left. submitit pickles it."""

    def __init__(self, folders: list[str], gpu: str | None = None) -> None:
        self.folders, self.gpu = folders, gpu

    def __call__(self) -> None:
        """Compute; SIGTERM lets trainings write their checkpoints first."""
        if self.gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpu
        self.running: list[Future[None]] = []
        self.stopping = threading.Event()
        signal.signal(signal.SIGTERM, self._terminated)
        with ThreadPoolExecutor(len(self.folders)) as pool:
            self.running += [pool.submit(compute, Path(folder), self.stopping) for folder in self.folders]
            for one in self.running:
                one.result()

    def checkpoint(self) -> Any:
        """Called by submitit where the job's time ends or it is pre-empted: what to queue again."""
        from submitit.helpers import DelayedSubmission

        self.stop()
        return DelayedSubmission(Work(self.folders, self.gpu))

    def _terminated(self, number: int, frame: object) -> None:
        self.stop()
        sys.exit(128 + number)

    def stop(self) -> None:
        """End the kernels, those that train with a checkpoint; one that is just starting is seen a moment later."""
        if not hasattr(self, "stopping"):
            return
        self.stopping.set()
        end, asked = time.monotonic() + GRACE, set()
        while wait(self.running, 0.2).not_done:
            late = time.monotonic() > end
            for kernel in kernels():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if late:
                        kernel.kill()
                    elif kernel.pid not in asked:
                        kernel.terminate()
                asked.add(kernel.pid)


def kernels() -> list[psutil.Process]:
    """Processes of notebooks that this one executes."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            found += [process] if any("ipykernel" in word for word in process.cmdline()) else []
    return found


def compute(folder: Path, stopping: threading.Event) -> None:
    """Execute the chapters of a point that are not yet; one that fails leaves its reason, and ends nothing else."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    from labkit.files import write_text

    for stem, parameters in json.loads((folder / POINT).read_text(encoding="utf-8"))["chapters"].items():
        part, done = folder / f".{stem}.part.ipynb", folder / f"{stem}.ipynb"
        if done.exists():
            continue
        if stopping.is_set():
            return
        try:
            papermill.execute_notebook(
                literal(BOOK / done.name), literal(part), parameters, kernel_name="python3", progress_bar=False,
                log_output=False, extra_arguments=["--IPKernelApp.log_level=ERROR"],
            )  # fmt: skip
        except Exception as error:
            own = isinstance(error, PapermillExecutionError)
            # no fault of the point, which is tried again: clusters signal kernels beside their jobs
            signalled = own and error.ename in ("SystemExit", "KeyboardInterrupt")
            if stopping.is_set() or signalled or "Kernel died" in str(error):
                raise
            told = f"{error.ename}: {error.evalue}" if own else f"{type(error).__name__}: {error}"
            write_text(folder / FAILED, f"{stem}: {told}\n")
            return
        part.rename(done)


def literal(path: Path) -> str:
    """A path as papermill takes it, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def paces(asked: list[tuple[str, str, dict[str, Any], str]], threads: int | None = None) -> list[float]:
    """Seconds an iteration of each (model, scale, settings, device), timed here with so many threads."""
    sys.path.insert(0, str(Path(__file__).parent))
    import bench_atlas
    import bench_training
    import torch

    from labkit.runs import choose_device
    from labkit.variants import VARIANTS, resolve

    torch.set_num_threads(threads or torch.get_num_threads())
    found = []
    for model, scale, settings, device in asked:
        variant, size = resolve(model, scale, **settings)
        where = choose_device(device)
        if model in VARIANTS:
            size = size.fitted((size.size, size.size, size.size * 5 // 8))  # as the study's scans
            found.append(bench_training.seconds_an_iteration(variant, size, where))
        else:
            found.append(60 * bench_atlas.measured(size.size, 20, where, variant)["minutes"] / variant.iterations)
    return found
