"""What a run leaves behind while it trains: rows of losses, samples to look at, checkpoints, and what computed them.

The loop itself is :func:`labkit.training.train`. Here is what writes files and watches the clock around it, kept out of
the loop so that both can be read.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import platform
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit import __version__, cards, runs
from labkit.data.cohort import Cohort
from labkit.files import in_executed_notebook, load_state, located, save_state, watched, write_json, write_text
from labkit.registration import AtlasFit
from labkit.runs import Run, RunError
from labkit.samples import save_samples
from labkit.updates import CALIBRATION, Learner

FIXED_CODES, FIXED_SCANS, HELD_OUT = 8, 4, 16
"""Codes and scans followed from iteration 0 on, and held-out scans whose reconstruction is measured."""

SECONDS_A_LINE = 10
"""At least, between two lines of a training in a notebook that is executed."""

PICTURES = "fixed codes; scans beside reconstructions"
"""The samples' name on a TensorBoard."""

HELD_OUT_COLUMNS = ("held_out_mse", "mean_scan_mse", "held_out_code_sd")
"""Measured with the samples: error of held-out reconstructions, that of the mean training scan, spread of codes."""


class DivergedError(RuntimeError):
    """A loss became infinite or not a number; the last good checkpoint is untouched."""


class Recorder:
    """One sitting of a run: writes what the loop tells it, and hears when somebody asks to stop.

    `folder` is the run's, locked; `rng` draws for the loop, and its state belongs to a checkpoint; `scans` are the
    training scans on the device, (N, 1, S, S, S); of `held_out` (None where every animal is trained on) the
    reconstruction is watched; `seed` is that of the fixed codes. `asked_to_stop` holds the signals that came while
    :meth:`sitting` is open.
    """

    def __init__(
        self,
        folder: Path,
        learner: Learner | AtlasFit,
        rng: torch.Generator,
        scans: Tensor,
        held_out: Cohort | None,
        seed: int,
    ) -> None:
        self.folder, self.learner, self.rng, self.device = folder, learner, rng, learner.device
        self.team = learner.team
        self.known = scans[:CALIBRATION]
        self.is_held_out = held_out is not None
        watched_scans = held_out[:HELD_OUT].volumes(learner.scale.size) if held_out is not None else scans[:HELD_OUT]
        self.watched_scans = watched_scans.to(self.device)
        # what an encoder that learned nothing about the individual would reach: the mean of the training scans
        self.mean_scan_mse = (self.watched_scans - scans.mean(0)).square().mean().item()
        codes = torch.randn(FIXED_CODES, learner.variant.latent_dim, generator=torch.Generator().manual_seed(seed))
        self.codes = codes.to(self.device)
        self.names: list[str] = []
        self.pending: list[Tensor] = []  # terms since the last row, still on the device
        self.held_out_terms: dict[str, float] = {}
        self.asked_to_stop: list[int] = []
        self.started = time.perf_counter()
        self.row_began, self.seconds_apart = self.started, 0.0
        self.about = {"started": datetime.now(UTC).isoformat(timespec="milliseconds"), **provenance(self.device)}
        self.first = 0
        self._show: Callable[[int, Path], None] = lambda iteration, montage: None  # until a sitting has a board

    def resume(self) -> int:
        """Put the last checkpoint into learner and random state; gives the iteration it was made at, 0 if none."""
        path, iteration = self.folder / runs.CHECKPOINT, 0
        if path.exists():
            state = load_state(path, self.device)
            if state["device"] != self.device.type:  # random states of one kind of device mean nothing to another
                raise RunError(
                    f"{self.folder} was begun on {state['device']} and cannot go on bit for bit on {self.device.type}: "
                    f"pass device='{state['device']}', or choose another run_dir"
                )
            iteration, self.names = state["iteration"], state["names"]
            self.pending = list(state["pending"]) if state["pending"] is not None else []
            self.rng.set_state(state["rng"].cpu())
            self.learner.load(state)
        if self.team.first:
            cut_rows(self.folder / runs.LOSSES, iteration)  # those a killed sitting wrote past its checkpoint
        self.first = iteration
        return iteration

    def _warn_of_threads(self) -> None:
        """Sums over other numbers of threads are rounded otherwise."""
        path = self.folder / "provenance.json"
        before = Run(self.folder).provenance["sittings"][-1].get("threads") if path.exists() else None
        if self.first and before not in (None, self.about["threads"]) and self.device.type == "cpu":
            warnings.warn(
                f"{self.folder} was trained with {before} threads and goes on with {self.about['threads']}: its last "
                f"bits will not be those of a run left alone; OMP_NUM_THREADS={before} keeps them",
                stacklevel=3,
            )

    @contextlib.contextmanager
    def sitting(self) -> Iterator[None]:
        """Signals are collected instead of dying of them, so that an iteration ends and a checkpoint is written."""
        if not self.team.first:
            with _stop_signals(self.asked_to_stop):
                yield
            return
        self._warn_of_threads()
        with _stop_signals(self.asked_to_stop), self._progress() as self._bar, self._tensorboard() as self._board:
            self._note_sitting(self.first)
            self.held_out_terms = {}  # of iteration 0, which has no row
            self.row_began = time.perf_counter()
            yield

    def collect(self, terms: dict[str, Tensor]) -> None:
        """Keep an iteration's terms for the next row; nothing here waits for the device."""
        self.names = list(terms)
        self.pending.append(torch.stack(list(terms.values())))

    def row(self, iteration: int) -> None:
        """One row: means since the last one. The host waits for the device here, and for other processes in `stops`.

        Raises
        ------
        DivergedError
            A mean is infinite or not a number.
        """
        of_batch = torch.stack(self.pending).float().mean(0)
        self.team.average([of_batch])
        values = dict(zip(self.names, of_batch.tolist(), strict=True))
        bad = [name for name, value in values.items() if value - value != 0]  # infinite or not a number
        if bad:
            raise DivergedError(
                f"{', '.join(bad)} no longer finite by iteration {iteration}; the last good checkpoint is at "
                f"iteration {Run(self.folder).iteration} of {self.folder}. Try a smaller lr, or precision='fp32'."
            )
        if not self.team.first:
            self.pending = []
            return
        rate = len(self.pending) / max(time.perf_counter() - self.row_began - self.seconds_apart, 1e-9)
        row = {
            "iteration": iteration,
            **values,
            **{name: self.held_out_terms.get(name, float("nan")) for name in HELD_OUT_COLUMNS},
            "iterations_per_s": rate,
            "images_per_s": rate * self.learner.scans_a_step,
            "peak_memory_mib": peak_memory_mib(self.device),
        }
        append_rows(self.folder / runs.LOSSES, [row])
        self._bar(row)
        self._board(row)
        self.pending, self.held_out_terms = [], {}
        self.row_began, self.seconds_apart = time.perf_counter(), 0.0

    @torch.no_grad()
    def sample(self, iteration: int) -> None:
        """Fixed codes through the averaged generator, fixed scans through E and G; how well held-out ones come back."""
        began, parts = time.perf_counter(), self.learner.scale.batch_size
        networks = self.learner.evaluators(self.known)
        if not self.team.first:  # of an atlas, what is looked at goes on from the finer grid on which it was
            return
        with self.learner.autocast():
            random = networks["G"](self.codes)
            codes = torch.cat([networks["E"](part) for part in self.watched_scans.split(parts)])
            back = torch.cat([networks["G_encoded"](part) for part in codes.split(parts)])
        fixed = self.watched_scans[:FIXED_SCANS]
        zooms = Run(self.folder).file_template.cube_zooms(self.learner.scale.size)
        montage = save_samples(self.folder / "samples", iteration, random, fixed, back[:FIXED_SCANS], zooms)
        if montage is not None:
            self._show(iteration, montage)
        if self.is_held_out:  # a training scan's reconstruction must not pass for a held-out one's
            error = (back - self.watched_scans).square().mean().item()
            measured = (error, self.mean_scan_mse, codes.std().item())
            self.held_out_terms = dict(zip(HELD_OUT_COLUMNS, measured, strict=True))
        self.seconds_apart += time.perf_counter() - began

    def renew(self, iteration: int) -> None:
        """Write the networks in use anew where they are not those of the checkpoint, which was written before them.

        A sitting notes an iteration when both are written; killed in between, or on a full disk, it did not.
        """
        path = self.folder / "provenance.json"
        noted = Run(self.folder).provenance["sittings"][-1]["to"] if path.exists() else 0
        stale = bool(iteration) and (noted != iteration or not (self.folder / runs.MODELS).exists())
        if self.team.any(stale and self.team.first, self.device):  # who writes them decides, or others might come late
            in_use = self.learner.in_use(self.known)
            if self.team.first:
                save_state(self.folder / runs.MODELS, in_use)
                self._note_sitting(iteration)

    def checkpoint(self, iteration: int) -> None:
        """Write all that is needed to go on bit for bit, and the networks in use; rows not yet due are kept in it."""
        began = time.perf_counter()
        pending = torch.stack(self.pending) if self.pending else None
        if pending is not None:
            self.team.average([pending])  # of the whole batch, whoever goes on
        if not self.team.first:
            self.learner.in_use(self.known)
            return
        state = {
            "iteration": iteration,
            "names": self.names,
            "pending": pending,
            "device": self.device.type,
            "rng": self.rng.get_state(),
            **self.learner.state(),
        }
        save_state(self.folder / runs.CHECKPOINT, state)
        save_state(self.folder / runs.MODELS, self.learner.in_use(self.known))
        self._note_sitting(iteration)
        self.seconds_apart += time.perf_counter() - began

    def stops(self) -> bool:
        """Whether somebody asked any of the processes to stop."""
        asked = self.team.any(bool(self.asked_to_stop), self.device)
        if asked and not self.asked_to_stop:
            self.asked_to_stop.append(signal.SIGTERM)
        return asked

    def end_if_stopped(self, iteration: int) -> None:
        """Say where a run was stopped, and end as the signal that stopped it asks to."""
        if not self.asked_to_stop or iteration >= self.learner.scale.iterations:
            return
        if not self.team.first:
            raise SystemExit(0)
        print(f"stopped at iteration {iteration} with a checkpoint in {self.folder}", file=sys.stderr)
        if self.asked_to_stop[0] == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.asked_to_stop[0])

    def _note_sitting(self, iteration: int) -> None:
        """Keep in provenance.json what computed which iterations, and for how long."""
        path = self.folder / "provenance.json"
        sittings = Run(self.folder).provenance["sittings"] if path.exists() else []
        sittings = [sitting for sitting in sittings if sitting["started"] != self.about["started"]]
        seconds = round(time.perf_counter() - self.started, 1)
        mine = {**self.about, "from": self.first, "to": iteration, "seconds": seconds,
                "precision": self.learner.precision}  # fmt: skip
        mine |= {"processes": self.team.size} if self.team.size > 1 else {}
        write_json(path, {"sittings": [*sittings, mine]})

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Callable[[dict[str, float]], None]]:
        try:
            from tqdm import tqdm
        except ImportError:  # a bar is no reason not to train
            yield lambda row: None
            return
        bar = tqdm(total=self.learner.scale.iterations, initial=self.first, desc=self.folder.name, unit="it",
                   disable=not watched(), mininterval=1.0)  # fmt: skip

        lines, told = in_executed_notebook(), [time.perf_counter()]

        def show(row: dict[str, float]) -> None:
            bar.update(row["iteration"] - bar.n)
            words = {"mse": "rec_mse", "W": "wasserstein_D", "codes sd": "z_enc_sd"}
            said = ", ".join(f"{word} {row[key]:.3g}" for word, key in words.items() if key in row)
            bar.set_postfix_str(said)
            if lines and time.perf_counter() - told[0] > SECONDS_A_LINE:
                told[0] = time.perf_counter()
                pace = (row["iteration"] - self.first) / (told[0] - self.started)
                print(_line(int(row["iteration"]), self.learner.scale.iterations, pace, said), flush=True)

        with bar:
            yield show

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[Callable[[dict[str, float]], None]]:
        """Every row's numbers, held-out ones among them, the fixed samples, and settings to compare runs by."""
        try:
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams
        except ImportError:
            warnings.warn("tensorboard is not installed: losses go to losses.csv only", stacklevel=2)
            yield lambda row: None
            return
        with SummaryWriter(str(self.folder / "events"), purge_step=self.first + 1) as board:
            config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            settings = {
                "seed": config["seed"],
                "cohort": config["cohort"]["name"],
                **config["scale"],
                **config["variant"],
            }
            for summary in hparams(settings | {"scale": config["scale"]["name"]}, dict.fromkeys(HELD_OUT_COLUMNS, 0.0)):
                board.file_writer.add_summary(summary)  # the board takes the metrics from the curves of the same names

            def show(iteration: int, montage: Path) -> None:
                from PIL import Image

                with Image.open(montage) as image:
                    board.add_image(PICTURES, np.asarray(image), iteration, dataformats="HW")

            self._show = show

            def write(row: dict[str, float]) -> None:
                for name, value in row.items():
                    if name != "iteration" and value == value:
                        board.add_scalar(name, value, row["iteration"])

            yield write


def _line(iteration: int, iterations: int, pace: float, said: str) -> str:
    """Where a training stands, and how long the rest takes at this pace, iterations a second."""
    left = (iterations - iteration) / pace
    units = {"hours": 3600, "minutes": 60, "seconds": 1}
    unit = next((unit for unit, size in units.items() if left > 1.5 * size), "seconds")
    return (
        f"iteration {iteration} of {iterations}: {said}; {pace:.2g} iterations a second, "
        f"{left / units[unit]:.2g} {unit} left"
    )


def card(run: Run | str | os.PathLike, folder: str | os.PathLike | None = None) -> str:
    """Write the card of a run, or of a folder that it generated, as ``README.md``, and give its text (Markdown).

    Training, :func:`labkit.generate` and chapters 4 and 5 write them; this renews that of a folder which is older than
    what the chapters measured.

    Parameters
    ----------
    run : Run or path
        Trained.
    folder : path, optional
        A folder of :func:`labkit.generate`; default the run's own.

    Raises
    ------
    RunError
        The run has no weights yet.
    ValueError
        `folder` was not made by the run's present weights.

    Examples
    --------
    >>> text = labkit.card(run)
    >>> "## Training data" in text, text == (run.path / "README.md").read_text()
    (True, True)
    """
    run = run if isinstance(run, Run) else runs.load_run(run)
    if folder is None:
        return cards.write_card(run, run.fingerprint)
    made = cards.read_json(located(folder) / "dataset_description.json")
    if made.get("run_fingerprint") != run.fingerprint or "n" not in made:
        raise ValueError(f"{folder} is no folder that labkit.generate made with the present weights of {run.path.name}")
    return cards.write_card(run, run.fingerprint, located(folder), made)


@contextlib.contextmanager
def _stop_signals(asked: list[int]) -> Iterator[None]:
    """Collect SIGINT, SIGTERM and, unless somebody waits for it, SIGUSR2 in `asked`: clusters warn by these."""
    before: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # handlers belong to the main thread; elsewhere signals stay as they are
        free = signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
        for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR2] if free else [])):
            before[number] = signal.signal(number, lambda which, frame: asked.append(which))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def append_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Append rows to a CSV, with a header when it is new."""
    if not rows:
        return
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        if fresh:
            writer.writeheader()
        writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)


def cut_rows(path: Path, iteration: int) -> None:
    """Drop rows after `iteration`: those a killed sitting wrote past its last checkpoint."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as handle:
        lines = handle.read().splitlines()
    kept = [line for line in lines[1:] if line.split(",")[0].isdigit() and int(line.split(",")[0]) <= iteration]
    whole = [line for line in kept if line.count(",") == lines[0].count(",")]
    write_text(path, "\n".join([lines[0], *whole]) + "\n")


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def provenance(device: torch.device) -> dict[str, Any]:
    """Commit, versions and device of this process."""
    import nibabel

    here = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        commit = answer.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = "unknown (not a git checkout)"
    on_cuda = device.type == "cuda"
    return {
        "commit": commit,
        "labkit": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "nibabel": nibabel.__version__,
        "device": torch.cuda.get_device_name(device) if on_cuda else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def peak_memory_mib(device: torch.device) -> float:
    """Most memory this process has held: allocated by torch on a GPU, resident on a CPU, MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's peak may be the parent process's
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
