"""What a run leaves behind while it trains: rows of losses, samples to look at, checkpoints, and what computed them.

The loop itself is :func:`labkit.training.train`. Here is what writes files and watches the clock around it, kept out of
the loop so that both can be read.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from labkit import runs
from labkit.data import nifti
from labkit.data.cohort import Cohort
from labkit.data.grids import STUDY_ZOOMS, grid_affine
from labkit.files import load_state, save_state, watched, whole_file, write_json
from labkit.runs import Run, RunError
from labkit.updates import CALIBRATION, Learner

FIXED_CODES, FIXED_SCANS, HELD_OUT = 8, 4, 16
"""Codes and scans followed from iteration 0 on, and held-out scans whose reconstruction is measured."""

HELD_OUT_COLUMNS = ("held_out_mse", "mean_scan_mse", "held_out_code_sd")
"""Measured with the samples: error of held-out reconstructions, that of the mean training scan, spread of codes."""

TILE = 96
"""Smallest side of a tile in a montage, pixels."""


class DivergedError(RuntimeError):
    """A loss became infinite or not a number; the last good checkpoint is untouched."""


class Recorder:
    """One sitting of a run: writes what the loop tells it, and hears when somebody asks to stop.

    Parameters
    ----------
    folder : pathlib.Path
        The run's, locked.
    learner : labkit.updates.Learner
        What is trained.
    rng : torch.Generator
        Of the loop's draws; its state belongs to a checkpoint.
    scans : torch.Tensor
        (N, 1, S, S, S), the training scans on the device.
    held_out : Cohort or None
        Scans whose reconstruction is watched; None where every animal is trained on.
    seed : int
        Of the fixed codes.

    Attributes
    ----------
    asked_to_stop : list of int
        Signals (SIGINT, SIGTERM) that came while :meth:`sitting` is open.
    """

    def __init__(
        self, folder: Path, learner: Learner, rng: torch.Generator, scans: Tensor, held_out: Cohort | None, seed: int
    ) -> None:
        self.folder, self.learner, self.rng, self.device = folder, learner, rng, learner.device
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
        self.about = {"started": datetime.now(UTC).isoformat(timespec="milliseconds"), **runs.provenance(self.device)}
        self.first = 0

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
        runs.cut_rows(self.folder / runs.LOSSES, iteration)  # those a killed sitting wrote past its checkpoint
        self.first = iteration
        return iteration

    @contextlib.contextmanager
    def sitting(self) -> Iterator[None]:
        """Signals are collected instead of dying of them, so that an iteration ends and a checkpoint is written."""
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
        """One row: means since the last one. The only place where the host waits for the device.

        Raises
        ------
        DivergedError
            A mean is infinite or not a number.
        """
        means = torch.stack(self.pending).float().mean(0).tolist()
        values = dict(zip(self.names, means, strict=True))
        bad = [name for name, value in values.items() if value - value != 0]  # infinite or not a number
        if bad:
            raise DivergedError(
                f"{', '.join(bad)} no longer finite by iteration {iteration}; the last good checkpoint is at "
                f"iteration {Run(self.folder).iteration} of {self.folder}. Try a smaller lr, or precision='fp32'."
            )
        rate = len(self.pending) / max(time.perf_counter() - self.row_began - self.seconds_apart, 1e-9)
        row = {
            "iteration": iteration,
            **values,
            **{name: self.held_out_terms.get(name, float("nan")) for name in HELD_OUT_COLUMNS},
            "iterations_per_s": rate,
            "images_per_s": rate * 2 * self.learner.scale.batch_size,
            "peak_memory_mib": runs.peak_memory_mib(self.device),
        }
        runs.append_rows(self.folder / runs.LOSSES, [row])
        self._bar(row)
        self._board(row)
        self.pending, self.held_out_terms = [], {}
        self.row_began, self.seconds_apart = time.perf_counter(), 0.0

    @torch.no_grad()
    def sample(self, iteration: int) -> None:
        """Fixed codes through the averaged generator, fixed scans through E and G; how well held-out ones come back."""
        began, parts = time.perf_counter(), self.learner.scale.batch_size
        networks = self.learner.evaluators(self.known)
        with self.learner.autocast():
            random = networks["G"](self.codes)
            codes = torch.cat([networks["E"](part) for part in self.watched_scans.split(parts)])
            back = torch.cat([networks["G_encoded"](part) for part in codes.split(parts)])
        fixed = self.watched_scans[:FIXED_SCANS]
        save_samples(self.folder / "samples", iteration, random, fixed, back[:FIXED_SCANS])
        if self.is_held_out:  # a training scan's reconstruction must not pass for a held-out one's
            error = (back - self.watched_scans).square().mean().item()
            measured = (error, self.mean_scan_mse, codes.std().item())
            self.held_out_terms = dict(zip(HELD_OUT_COLUMNS, measured, strict=True))
        self.seconds_apart += time.perf_counter() - began

    def checkpoint(self, iteration: int) -> None:
        """Write all that is needed to go on bit for bit, and the networks in use; rows not yet due are kept in it."""
        began = time.perf_counter()
        state = {
            "iteration": iteration,
            "names": self.names,
            "pending": torch.stack(self.pending) if self.pending else None,
            "device": self.device.type,
            "rng": self.rng.get_state(),
            **self.learner.state(),
        }
        save_state(self.folder / runs.CHECKPOINT, state)
        in_use = {name: network.state_dict() for name, network in self.learner.evaluators(self.known).items()}
        save_state(self.folder / runs.MODELS, in_use)
        self._note_sitting(iteration)
        self.seconds_apart += time.perf_counter() - began

    def end_if_stopped(self, iteration: int) -> None:
        """Say where a run was stopped, and end as the signal that stopped it asks to."""
        if not self.asked_to_stop or iteration >= self.learner.scale.iterations:
            return
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

        def show(row: dict[str, float]) -> None:
            bar.update(row["iteration"] - bar.n)
            bar.set_postfix_str(
                f"mse {row['rec_mse']:.3f}, W {row['wasserstein_D']:.3g}, codes sd {row['z_enc_sd']:.2f}"
            )

        with bar:
            yield show

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[Callable[[dict[str, float]], None]]:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            warnings.warn("tensorboard is not installed: losses go to losses.csv only", stacklevel=2)
            yield lambda row: None
            return
        with SummaryWriter(str(self.folder / "events"), purge_step=self.first + 1) as board:

            def write(row: dict[str, float]) -> None:
                for name, value in row.items():
                    if name != "iteration" and value == value:
                        board.add_scalar(name, value, row["iteration"])

            yield write


@contextlib.contextmanager
def _stop_signals(asked: list[int]) -> Iterator[None]:
    """Collect SIGINT and SIGTERM in `asked`."""
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # handlers belong to the main thread; elsewhere signals stay as they are
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda which, frame: asked.append(which))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def middle_sections(volume: np.ndarray) -> list[np.ndarray]:
    """Coronal, sagittal and horizontal sections through a cube's middle, (S, S) each, axes right, superior, anterior.

    First row on top: superior up (horizontal: anterior up), right to the right (sagittal: anterior to the right).
    """
    right, superior, anterior = (side // 2 for side in volume.shape)
    coronal, sagittal, horizontal = volume[:, :, anterior], volume[right], volume[:, superior]
    return [coronal.T[::-1], sagittal[::-1], horizontal.T[::-1]]


def montage(columns: list[np.ndarray]) -> np.ndarray:
    """Volumes (S, S, S) in [-1, 1] side by side, one a column, three planes each: uint8 (3 S', n S').

    0 stands for -1 and 255 for 1; S' is a whole multiple of S of at least :data:`TILE`.
    """
    rows = zip(*(middle_sections(volume) for volume in columns), strict=True)
    picture = np.vstack([np.hstack(row) for row in rows])
    grey = np.round((np.clip(picture, -1, 1) + 1) * 127.5).astype(np.uint8)
    times = -(-TILE // columns[0].shape[0])
    return grey.repeat(times, 0).repeat(times, 1)


def save_samples(
    folder: Path, iteration: int, random: torch.Tensor, real: torch.Tensor, reconstructed: torch.Tensor
) -> Path | None:
    """Write what G makes of the fixed codes (`random`) and, by way of E, of the fixed scans, as NIfTI and as montage.

    All are (n, 1, S, S, S) in [-1, 1]. The montage, whose path comes back, has random samples above and below them each
    scan beside its reconstruction. Without Pillow there is none, with a warning; the NIfTI files hold the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random, real, reconstructed = (t[:, 0].detach().float().cpu().numpy() for t in (random, real, reconstructed))
    stem = f"iteration-{iteration:06d}"
    for what, volumes in (("random", random), ("reconstructed", reconstructed)):
        nifti.save(_series(volumes), folder / f"{stem}_{what}.nii.gz")
    path = folder / f"{stem}.png"
    try:
        from PIL import Image
    except ImportError:
        warnings.warn(f"Pillow is not installed: no {path.name} beside the NIfTI files", stacklevel=2)
        return None
    pairs = [volume for pair in zip(real, reconstructed, strict=True) for volume in pair]
    upper, lower = montage(list(random)), montage(pairs)
    width = max(upper.shape[1], lower.shape[1])
    upper, lower = (np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in (upper, lower))
    rule = np.full((4, width), 255, np.uint8)
    with whole_file(path) as partial:
        Image.fromarray(np.vstack([upper, rule, lower])).save(partial, format="png", optimize=True)
    return path


def _series(volumes: np.ndarray) -> nib.Nifti1Image:
    """Cubes as one 4-D image, 16-bit with a scale factor, at the voxel size the cube stands for."""
    size = volumes.shape[-1]
    affine = grid_affine((size,) * 3, tuple(64 / size * zoom for zoom in STUDY_ZOOMS))
    image = nib.Nifti1Image(np.moveaxis(volumes, 0, -1), affine)
    image.set_data_dtype(np.int16)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"synthetic: made by a generator, not scanned"
    return image
