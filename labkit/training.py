"""The main job: train one variant on one cohort, watched, interruptible, continuing bit for bit.

The algorithm itself is :mod:`labkit.updates`; here is what stands around it: data on the device, what is written when,
and what happens when a run is stopped, killed, diverges or finds the disk full.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from labkit import bids, checkpoints, runs, samples
from labkit.augment import AUGMENTATIONS, augment
from labkit.capture import Captured
from labkit.cohort import Cohort
from labkit.likeness import Likeness
from labkit.losses import draw_weights
from labkit.places import located, runs_folder
from labkit.progress import watched
from labkit.runs import Run, RunError
from labkit.sources import PAPER_N, open_cohort
from labkit.updates import CALIBRATION, Draws, Learner
from labkit.variants import Scale, Variant, resolve

PAPER_TRAIN = 174
"""Real scans the paper trains on; the other 36 of its 210 are held out."""

FIXED_CODES, FIXED_SCANS, HELD_OUT = 8, 4, 16
"""Codes and scans followed from iteration 0 on, and held-out scans whose reconstruction is measured."""

HELD_OUT_COLUMNS = ("held_out_mse", "mean_scan_mse", "held_out_code_sd")
"""Measured with the samples: error of held-out reconstructions, that of the mean training scan, spread of codes."""


class DivergedError(RuntimeError):
    """A loss became infinite or not a number; the last good checkpoint is untouched."""


def train(
    model: str,
    cohort: Cohort | str,
    scale: str = "auto",
    run_dir: str | Path | None = None,
    iterations: int | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = True,
    n_train: int | None = None,
    **overrides: Any,
) -> Run:
    """Train a variant on a cohort, or go on with a run where it stopped.

    Parameters
    ----------
    model : str
        A name of :data:`labkit.variants.VARIANTS`.
    cohort : Cohort or str
        What to train on; a name or folder is opened.
    scale : str
        A name of :data:`labkit.variants.SCALES`, or ``"auto"``: paper on a GPU, laptop otherwise.
    run_dir : path, optional
        Where everything is kept; default ``runs/<model>-<cohort>-<scale>-s<seed>``.
    iterations : int, optional
        Instead of the scale's; a finished run can be given more.
    seed : int
        Of initial weights and every draw.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    resume : bool
        Go on with a run that is there; False refuses such a folder, so that nothing is overwritten.
    n_train : int, optional
        Animals to train on, the others are held out; default 174 in 210, as in the paper, and all of fewer than five.
    **overrides
        Any field of :class:`labkit.variants.Variant` or :class:`labkit.variants.Scale`.

    Returns
    -------
    labkit.runs.Run

    Raises
    ------
    ValueError
        Unknown model, scale, device or setting.
    RunError
        The folder is busy, or holds a run with another configuration or other data.
    DivergedError
        A loss is no longer finite.
    """
    device = choose_device(device)
    scale = choose_scale(scale, device)
    if iterations is not None:
        overrides = {**overrides, "iterations": iterations}
    variant, size = resolve(model, scale, **overrides)
    cohort = cohort if isinstance(cohort, Cohort) else open_cohort(cohort)
    given = {key: value for key, value in overrides.items() if key not in ("iterations",)}
    folder = located(run_dir) if run_dir else default_folder(variant, cohort, size, seed, given)
    train_part, held_out = _split(cohort, n_train)
    config = _config(variant, size, seed, cohort, train_part, held_out)
    with runs.locked(folder):
        runs.check_config(folder, config)
        if not resume and (folder / runs.CHECKPOINT).exists():
            raise RunError(f"{folder} holds a run already, and resume=False: choose another run_dir, or remove it")
        bids.write_json(folder / "config.json", config)
        bids.write_json(folder / runs.LIKENESS, Likeness.of(train_part).to_json())
        _Training(folder, variant, size, train_part, held_out, seed, device).go_on()
    return Run(folder)


def choose_device(name: str) -> torch.device:
    """``"auto"`` is a GPU if there is one.

    Raises
    ------
    ValueError
        The device is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not known: allowed are 'auto', 'cpu', 'cuda', 'cuda:<number>'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch finds no GPU here: use 'auto' or 'cpu'")
    return device


def choose_scale(name: str, device: torch.device) -> str:
    """``"auto"`` is the paper's scale on a GPU and the laptop's elsewhere; other names stay as they are."""
    return ("paper" if device.type == "cuda" else "laptop") if name == "auto" else name


def default_folder(variant: Variant, cohort: Cohort, scale: Scale, seed: int, overrides: dict[str, Any]) -> Path:
    """``runs/<model>-<cohort>-<scale>-s<seed>``, with what was overridden behind it."""
    changed = "".join(f"-{key}={value}" for key, value in sorted(overrides.items()))
    return runs_folder() / f"{variant.name}-{cohort.name}-{scale.name}-s{seed}{changed}".replace("/", "_")


def _split(cohort: Cohort, n_train: int | None) -> tuple[Cohort, Cohort | None]:
    animals = len(set(cohort.subjects))
    if n_train is None:
        if animals < 5:
            return cohort, None
        n_train = round(animals * PAPER_TRAIN / PAPER_N)
    # always the same animals, whatever the run's seed, so that variants and seeds can be compared on one held-out set
    return (cohort, None) if n_train == animals else cohort.split(n_train, seed=0)


def _config(variant: Variant, scale: Scale, seed: int, cohort: Cohort, train: Cohort, held_out: Cohort | None) -> dict:
    return {
        "variant": dataclasses.asdict(variant),
        "scale": dataclasses.asdict(scale),
        "seed": seed,
        "cohort": {"name": cohort.name, "fingerprint": cohort.fingerprint, "n": len(cohort), "recipe": cohort.recipe},
        "train": {"fingerprint": train.fingerprint, "subjects": list(train.subjects), "digests": list(train.digests)},
        "held_out": {
            "fingerprint": held_out.fingerprint if held_out else None,
            "subjects": list(held_out.subjects) if held_out else [],
        },
    }


class _Training:
    """One sitting of a run."""

    def __init__(
        self,
        folder: Path,
        variant: Variant,
        scale: Scale,
        cohort: Cohort,
        held_out: Cohort | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.folder, self.scale, self.device = folder, scale, device
        self.learner = Learner(variant, scale, device, seed)
        self.advance = Captured(self.learner)
        self.rng = torch.Generator(device).manual_seed(seed)
        # the whole cohort lies on the device, and augmentation happens there: no loader, no copies while training
        self.scans = cohort.volumes(scale.size).to(device)
        held = (held_out or cohort).subset(range(min(HELD_OUT, len(held_out or cohort))))
        self.held_out = held.volumes(scale.size).to(device)
        self.known = self.scans[:CALIBRATION]
        self.is_held_out = held_out is not None
        # what an encoder that learned nothing about the individual would reach: the mean of the training scans
        self.mean_scan_mse = (self.held_out - self.scans.mean(0)).square().mean().item()
        self.augmentation = dataclasses.replace(AUGMENTATIONS[variant.augmentation], voxel_mm=cohort[0].zooms)
        codes = torch.randn(FIXED_CODES, variant.latent_dim, generator=torch.Generator().manual_seed(seed))
        self.codes = codes.to(device)
        self.iteration = 0
        self.pending: list[torch.Tensor] = []
        self.names: list[str] = []
        self.started = time.perf_counter()
        self.aside = 0.0  # seconds since the last row that went into samples and checkpoints
        self.sitting = {"started": datetime.now(UTC).isoformat(timespec="milliseconds"), **runs.provenance(device)}
        self._load()

    def go_on(self) -> None:
        """Train up to the scale's iterations, or until asked to stop."""
        scale = self.scale
        runs.cut_rows(self.folder / runs.LOSSES, self.iteration)
        if self.iteration >= scale.iterations:
            return
        if self.iteration == 0:
            self._sample()
        first = self.iteration
        self._note_sitting(first)
        with _stop_signals() as stop, self._progress() as bar, self._tensorboard() as board:
            began, last = time.perf_counter(), False
            while self.iteration < scale.iterations and not stop:
                terms = self.advance(self._draw())
                self.iteration += 1
                self.names = list(terms)
                self.pending.append(torch.stack(list(terms.values())))
                last = self.iteration == scale.iterations
                extra = {}
                if last or self.iteration % scale.sample_every == 0:
                    extra = self._aside(self._sample)
                if last or self.iteration % scale.log_every == 0:
                    row = self._log(extra, time.perf_counter() - began - self.aside)
                    began, self.aside = time.perf_counter(), 0.0
                    bar(row)
                    board(row)
                if last or self.iteration % scale.checkpoint_every == 0:
                    self._aside(lambda: self._checkpoint(first))
            if stop and not last:
                self._checkpoint(first)  # rows not yet due are kept in it, so that stopping leaves no trace
        if stop and self.iteration < scale.iterations:
            print(f"stopped at iteration {self.iteration} with a checkpoint in {self.folder}", file=sys.stderr)
            if stop[0] == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + stop[0])

    def _draw(self) -> Draws:
        """Everything random of one iteration, in a fixed order."""
        n, rng = self.scale.batch_size, self.rng

        def scans() -> torch.Tensor:
            order = torch.randperm(len(self.scans), generator=rng, device=self.device)
            chosen = order[:n] if len(order) >= n else order.repeat(-(-n // len(order)))[:n]
            return augment(self.scans[chosen], generator=rng, augmentation=self.augmentation)

        def codes() -> torch.Tensor:
            return torch.randn(n, self.codes.shape[1], generator=rng, device=self.device)

        x_real, z_rand, x_critic, z_critic, z_code = scans(), codes(), scans(), codes(), codes()
        mixes = (draw_weights(like, rng) for like in (x_critic, x_critic, z_code))
        return Draws(x_real, z_rand, x_critic, z_critic, z_code, *mixes)

    def _log(self, extra: dict[str, float], seconds: float) -> dict[str, float]:
        """One row: means since the last one. The only place where the host waits for the device."""
        means = torch.stack(self.pending).float().mean(0).tolist()
        values = dict(zip(self.names, means, strict=True))
        bad = [name for name, value in values.items() if value - value != 0]  # infinite or not a number
        if bad:
            raise DivergedError(
                f"{', '.join(bad)} no longer finite by iteration {self.iteration}; the last good checkpoint is at "
                f"iteration {Run(self.folder).iteration} of {self.folder}. Try a smaller lr, or precision='fp32'."
            )
        rate = len(self.pending) / max(seconds, 1e-9)
        row = {
            "iteration": self.iteration,
            **values,
            **{name: extra.get(name, float("nan")) for name in HELD_OUT_COLUMNS},
            "iterations_per_s": rate,
            "images_per_s": rate * 2 * self.scale.batch_size,
            "peak_memory_mib": runs.peak_memory_mib(self.device),
        }
        runs.append_rows(self.folder / runs.LOSSES, [row])
        self.pending = []
        return row

    @torch.no_grad()
    def _sample(self) -> dict[str, float]:
        """Fixed codes through the averaged generator, fixed scans through E and G; how well held-out ones come back."""
        parts = self.scale.batch_size
        networks = self.learner.evaluators(self.known)
        with self.learner.autocast():
            random = networks["G"](self.codes)
            codes = torch.cat([networks["E"](part) for part in self.held_out.split(parts)])
            back = torch.cat([networks["G_encoded"](part) for part in codes.split(parts)])
        samples.save_samples(
            self.folder / "samples", self.iteration, random, self.held_out[:FIXED_SCANS], back[:FIXED_SCANS]
        )
        error = (back - self.held_out).square().mean().item()
        # a training scan's reconstruction must not pass for a held-out one's
        measured = (error, self.mean_scan_mse, codes.std().item())
        return dict(zip(HELD_OUT_COLUMNS, measured, strict=True)) if self.is_held_out else {}

    def _aside(self, work) -> Any:
        began = time.perf_counter()
        result = work()
        self.aside += time.perf_counter() - began
        return result

    def _checkpoint(self, first: int) -> None:
        pending = torch.stack(self.pending) if self.pending else None
        state = {
            "iteration": self.iteration,
            "names": self.names,
            "pending": pending,
            "device": self.device.type,
            "rng": self.rng.get_state(),
            **self.learner.state(),
        }
        checkpoints.save_state(self.folder / runs.CHECKPOINT, state)
        in_use = {name: network.state_dict() for name, network in self.learner.evaluators(self.known).items()}
        checkpoints.save_state(self.folder / runs.MODELS, in_use)
        self._note_sitting(first)

    def _load(self) -> None:
        path = self.folder / runs.CHECKPOINT
        if not path.exists():
            return
        state = checkpoints.load_state(path, self.device)
        if state["device"] != self.device.type:  # random states of one kind of device mean nothing to another
            raise RunError(
                f"{self.folder} was begun on {state['device']} and cannot go on bit for bit on {self.device.type}: "
                f"pass device='{state['device']}', or choose another run_dir"
            )
        self.iteration, self.names = state["iteration"], state["names"]
        self.pending = list(state["pending"]) if state["pending"] is not None else []
        self.rng.set_state(state["rng"].cpu())
        self.learner.load(state)

    def _note_sitting(self, first: int) -> None:
        """Keep in provenance.json what computed which iterations, and for how long."""
        path = self.folder / "provenance.json"
        sittings = Run(self.folder).provenance["sittings"] if path.exists() else []
        sittings = [sitting for sitting in sittings if sitting["started"] != self.sitting["started"]]
        seconds = round(time.perf_counter() - self.started, 1)
        mine = {**self.sitting, "from": first, "to": self.iteration, "seconds": seconds,
                "precision": self.learner.precision}  # fmt: skip
        bids.write_json(path, {"sittings": [*sittings, mine]})

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Any]:
        try:
            from tqdm import tqdm
        except ImportError:  # a bar is no reason not to train
            yield lambda row: None
            return
        bar = tqdm(total=self.scale.iterations, initial=self.iteration, desc=self.folder.name, unit="it",
                   disable=not watched(), mininterval=1.0)  # fmt: skip

        def show(row: dict[str, float]) -> None:
            bar.update(row["iteration"] - bar.n)
            bar.set_postfix_str(
                f"mse {row['rec_mse']:.3f}, W {row['wasserstein_D']:.3g}, codes sd {row['z_enc_sd']:.2f}"
            )

        with bar:
            yield show

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[Any]:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            warnings.warn("tensorboard is not installed: losses go to losses.csv only", stacklevel=2)
            yield lambda row: None
            return
        with SummaryWriter(str(self.folder / "events"), purge_step=self.iteration + 1) as board:

            def write(row: dict[str, float]) -> None:
                for name, value in row.items():
                    if name != "iteration" and value == value:
                        board.add_scalar(name, value, row["iteration"])

            yield write


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them, so that the iteration ends and a checkpoint is written."""
    asked: list[int] = []
    if not hasattr(signal, "SIGTERM"):
        yield asked
        return
    before = {}
    with contextlib.suppress(ValueError):  # handlers belong to the main thread; elsewhere signals stay as they are
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda which, frame: asked.append(which))
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
