"""The main job: train one variant on one cohort, watched, interruptible, continuing bit for bit (on a CPU).

An iteration is :func:`labkit.updates.step`; what a run writes is :mod:`labkit.recording`'s; here is the loop. Several
processes can share a batch, see :mod:`labkit.parallel`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labkit import parallel, runs, sharing
from labkit.capture import Captured
from labkit.data import volumes
from labkit.data.augment import AUGMENTATIONS, Augmentation, augment
from labkit.data.cohort import Cohort
from labkit.data.file_template import FileTemplate
from labkit.data.sources import GRIDS, PAPER_N, SIMULATED, open_cohort
from labkit.data.splits import PAPER_TRAIN, split
from labkit.files import load_state, located, runs_folder, sweep, write_json
from labkit.losses import draw_mix
from labkit.recording import DivergedError, Recorder, card
from labkit.registration import AtlasFit
from labkit.runs import Run, RunError, choose_device
from labkit.updates import Draws, Learner
from labkit.variants import AtlasSettings, Scale, Variant, resolve

__all__ = ["DivergedError", "atlas_iterations", "choose_scale", "draw", "train"]

SCANS_AN_APPEARANCE = 16
"""Training scans for each appearance of an atlas, unless one asks for more: of fewer it would be a picture of single
animals, and stand in the way of their warps (25 mice, 17 of them trained on: labels by registration on the others reach
a Dice of 0.79 with one or two, 0.77 with eight)."""


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
    fold: int = 0,
    **overrides: Any,
) -> Run:
    """Train a variant on a cohort, or go on with a run where it stopped.

    Parameters
    ----------
    model : str
        A name of :data:`labkit.variants.MODELS`.
    cohort : Cohort or str
        What to train on; a name or folder is opened. Of their labels, an atlas takes those that there are.
    scale : str
        A name of :data:`labkit.variants.SCALES`, or ``"auto"``: paper on a GPU, laptop otherwise.
    run_dir : path, optional
        Where everything is kept; default ``runs/<model>-<cohort>-<scale>-s<seed>`` with whatever else was not as
        usual behind it (how the cohort was opened, `n_train`, `fold`, settings). A packed run
        (:mod:`labkit.sharing`) is opened where it has done what is asked for.
    iterations : int, optional
        Instead of the scale's, which an atlas of more than the paper's 174 scans has as many times more of; a finished
        run can be given more. A packed one has what it has.
    seed : int
        Of initial weights and every draw.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    resume : bool
        Go on with a run that is there; False refuses such a folder, so that nothing is overwritten.
    n_train : int, optional
        Animals to train on, the others are held out; default :func:`labkit.data.splits.default_n_train`: 174 in 210, as
        in the paper, of small cohorts fewer, so that there is something to measure with.
    fold : int
        Which animals are held out. The first :func:`labkit.data.splits.folds` hold every animal out once, so that
        chapter 4 can measure with all animals of a small cohort: give it a run of each.
    **overrides
        Any field of :class:`labkit.variants.Variant`, or of :class:`labkit.variants.AtlasSettings` for an atlas, or of
        :class:`labkit.variants.Scale`.

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

    Examples
    --------
    >>> run = labkit.train("adni", rats, "smoke", folder / "adni", iterations=5)
    >>> run.iteration
    5
    >>> labkit.train("adni", rats, "smoke", folder / "adni", iterations=8).iteration  # goes on
    8
    """
    device = parallel.own_device(choose_device(device))
    asked = overrides if iterations is None else {**overrides, "iterations": iterations}
    variant, size = resolve(model, choose_scale(scale, device), **asked)
    cohort = cohort if isinstance(cohort, Cohort) else open_cohort(cohort)
    named = overrides | ({"fold": fold} if fold else {}) | ({"n_train": n_train} if n_train is not None else {})
    packed = sharing.packed_run(run_dir) if run_dir else None
    if packed is not None:
        run_dir = sharing.unpacked(packed, runs.MODELS)
        if iterations is None:  # as many as it has
            size = replace(size, iterations=max(1, Run(located(run_dir)).iteration))
    folder = located(run_dir) if run_dir else default_run_folder(variant, cohort, size, seed, named)
    train_part, held_out = split(cohort, n_train, fold)
    if held_out is None and n_train is None:
        warnings.warn(_nothing_unseen(len(set(cohort.subjects))), stacklevel=2)
    if isinstance(variant, AtlasSettings) and isinstance(model, str) and "iterations" not in asked and packed is None:
        steps = atlas_iterations(variant.iterations, len(train_part))
        variant, size = resolve(model, choose_scale(scale, device), **asked | {"iterations": steps})
    if isinstance(variant, AtlasSettings) and "appearances" not in overrides:
        variant = replace(variant, appearances=min(variant.appearances, len(train_part) // SCANS_AN_APPEARANCE))
    team = _team(variant, size, device, len(train_part))
    size = _fitted(variant, size, train_part)
    config = _config(variant, size, seed, cohort, train_part, held_out)
    with runs.locked(folder) if team.first else contextlib.nullcontext():
        for own in (folder, folder / "samples") if team.first else ():
            sweep(own, 0)  # who holds the lock writes there alone
        team.wait()
        config = _agreed(folder, config, cohort, resume)
        if (folder / runs.MODELS).exists() and not (folder / runs.CHECKPOINT).exists():
            return runs.finished(folder, size.iterations)
        if team.first:
            write_json(folder / "config.json", config)
            write_json(folder / runs.FILE_TEMPLATE, FileTemplate.of(train_part, train_part.label_names).to_json())
        team.wait()

        # the whole cohort lies on the device, and augmentation happens there: no loader, no copies while training
        scans = train_part.volumes(size.size).to(device)
        rng = torch.Generator(device).manual_seed(seed)
        if isinstance(variant, AtlasSettings):
            learner, step = _atlas(variant, size, train_part, scans, seed, rng, team)
        else:
            atlas = None
            if variant.generator_head == "atlas":
                which = len(set(train_part.subjects)) if held_out is None else n_train  # one warning is enough
                same = {"seed": seed, "resume": resume, "n_train": which, "fold": fold}
                atlas = _own_atlas(folder, cohort, size, team, device, same)
            learner, step = _networks(variant, size, train_part, scans, seed, rng, team, atlas)
        recorder = Recorder(folder, learner, rng, scans, held_out, seed)

        iteration = recorder.resume()
        # nothing is written before all have read what is there
        seen = (iteration, int(config["train"]["fingerprint"][:12], 16))
        team.check_alike(seen, "iterations done, or in their scans", device)
        recorder.renew(iteration)
        if iteration == 0:
            recorder.sample(iteration)
        last = iteration >= size.iterations
        with contextlib.nullcontext() if last else recorder.sitting():
            while not (last or recorder.stops()):
                recorder.collect(step())
                iteration += 1
                last = iteration == size.iterations
                if last or iteration % size.sample_every == 0:
                    recorder.sample(iteration)
                if last or iteration % size.log_every == 0:
                    recorder.row(iteration)
                if last or iteration % size.checkpoint_every == 0:
                    recorder.checkpoint(iteration)
            if not last:
                recorder.checkpoint(iteration)  # asked to stop: rows not yet due are kept in it
        if team.first:
            card(Run(folder))
        team.wait()
        recorder.end_if_stopped(iteration)
    return Run(folder)


def atlas_iterations(usual: int, scans: int) -> int:
    """How many iterations an atlas of so many scans makes, where nobody asks for a number.

    A scan's numbers move when it is visited: at the usual 1 200 iterations those of a thousand stay where they began.
    """
    return round(usual * max(1.0, scans / PAPER_TRAIN))


def _fitted(variant: Variant | AtlasSettings, scale: Scale, train: Cohort) -> Scale:
    """The scale with a box for these scans; ValueError where a generator that moves whole scans would cut them."""
    scale = scale.fitted(volumes.extents(train.shape, scale.size))
    scanned = [part.stop - part.start for part in volumes.scanned_slices(train.shape, scale.size)]
    moves = isinstance(variant, Variant) and variant.generator_head == "atlas"
    if moves and any(side < n for side, n in zip(scale.sides, scanned, strict=True)):
        raise ValueError(
            f"box is {scale.box}, and scans are {'x'.join(map(str, scanned))} in a cube of {scale.size}: a generator "
            "that moves an atlas makes whole scans; take fitted or cube"
        )
    return scale


def _agreed(folder: Path, config: dict[str, Any], cohort: Cohort, resume: bool) -> dict[str, Any]:
    """The run's configuration, in the words of the one that the folder holds; RunError where that is another run."""
    if (folder / "config.json").exists():
        config |= _as_there(Run(folder), config, cohort)
    runs.check_config(folder, config)
    if not resume and (folder / runs.CHECKPOINT).exists():
        raise RunError(f"{folder} holds a run already, and resume=False: choose another run_dir, or remove it")
    return config


def _as_there(run: Run, config: Mapping[str, Any], cohort: Cohort) -> dict[str, Any]:
    """What a run says of its scans, where they are these but for how another machine rounds; else nothing."""
    there, parts = run.config, ("train", "held_out")
    if there.get("cohort", {}).get("fingerprint") == config["cohort"]["fingerprint"]:
        return {}
    if any(there.get(part, {}).get("subjects") != config[part]["subjects"] for part in parts):
        return {}
    try:
        run.held_out(cohort)
    except (RunError, OSError):  # other scans, which is refused with all else that differs; or stopped as it began
        return {}
    return {part: there[part] for part in ("cohort", *parts)}


def _nothing_unseen(animals: int) -> str:
    """What a training that holds nobody out gives, and what it cannot."""
    some = f"{animals} animals are" if animals > 1 else "1 animal is"
    way = "hold some out all the same with n_train, or open 5 or more" if animals > 1 else "open 5 or more"
    return (
        f"{some} too few to hold any out: all are trained on. What comes is pictures, reconstructions of what was "
        "trained on and, from an atlas, labels; nothing can be measured on unseen animals (chapters 4, 5 and 7). To "
        f"measure, {way}"
    )


def _team(variant: Variant | AtlasSettings, scale: Scale, device: torch.device, scans: int) -> parallel.Team:
    """The processes that share the training; ValueError where they would train something else."""
    if isinstance(variant, AtlasSettings):
        return parallel.join(device, min(scale.batch_size, scans))
    team = parallel.join(device, scale.batch_size)
    if team.size > 1 and "batch" in variant.norms:
        raise ValueError(
            f"{variant.name} has batch norms, which average over a whole batch, and here it lies in {team.size} "
            "processes: train it in one, or sigmarat2, which has none"
        )
    return team


def _own_atlas(
    folder: Path, cohort: Cohort, scale: Scale, team: parallel.Team, device: torch.device, same: dict[str, Any]
) -> Mapping[str, Tensor]:
    """The atlas that a generator begins from: its checkpoint's, or one fitted now to the same training scans."""
    if (folder / runs.CHECKPOINT).exists():
        return Learner.atlas_of(load_state(folder / runs.CHECKPOINT, device))
    sizes: dict[str, Any] = {"size": scale.size} | ({"batch_size": team.size} if 4 % team.size else {})
    where = str(device) if team.size == 1 else device.type
    fitted = train("atlas", cohort, scale.name, folder / runs.OWN_ATLAS, device=where, **same, **sizes)
    its = fitted.encoder(device).atlas
    return its.state | {"units": its.units()}


Step = Callable[[], dict[str, Tensor]]
"""An iteration: gives what is logged, scalars on the device."""


def _networks(
    variant: Variant,
    scale: Scale,
    train: Cohort,
    scans: Tensor,
    seed: int,
    rng: torch.Generator,
    team: parallel.Team,
    atlas: Mapping[str, Tensor] | None = None,
) -> tuple[Learner | AtlasFit, Step]:
    """An alpha-GAN's four networks, and an iteration of them."""
    transforms = replace(AUGMENTATIONS[variant.augmentation], voxel_mm=train[0].zooms)
    learner = Learner(variant, scale, scans.device, seed, atlas)
    learner.team = team
    step = Captured(learner)  # labkit.updates.step, on a GPU recorded and played back
    noise = learner.G.noise_shape
    return learner, lambda: step(draw(scans, variant, scale, transforms, rng, noise).part(team))


def _atlas(
    settings: AtlasSettings,
    scale: Scale,
    train: Cohort,
    scans: Tensor,
    seed: int,
    rng: torch.Generator,
    team: parallel.Team,
) -> tuple[Learner | AtlasFit, Step]:
    """An atlas of the scans without their padding, with those labels that there are, and an iteration of its fit."""
    places = [place for place, scan in enumerate(train) if scan.labels is not None]
    labels = train.subset(places).label_maps(scale.size).to(scans.device) if places else None
    box = volumes.scanned_slices(train.shape, scale.size)
    learner = AtlasFit(scans, settings, scale, box, seed, places, labels)
    learner.team = team
    return learner, lambda: learner.step(learner.draw(rng))


def draw(
    scans: Tensor,
    variant: Variant,
    scale: Scale,
    transforms: Augmentation,
    rng: torch.Generator,
    noise_shape: tuple[int, ...] | None = None,
) -> Draws:
    """Everything random of one iteration, in a fixed order: scans, augmented, codes, the penalties' places, noise.

    `scans` are the training scans on the device, (N, 1, S, S, S) in [-1, 1]; fewer than a batch are repeated.
    """
    n = scale.batch_size

    def some_scans() -> Tensor:
        order = torch.randperm(len(scans), generator=rng, device=scans.device)
        chosen = order[:n] if len(order) >= n else order.repeat(-(-n // len(order)))[:n]
        return augment(scans[chosen], generator=rng, augmentation=transforms)

    def codes() -> Tensor:
        return torch.randn(n, variant.latent_dim, generator=rng, device=scans.device)

    x_real, z_rand, x_critic, z_critic, z_code = some_scans(), codes(), some_scans(), codes(), codes()
    mix_rec, mix_rand, mix_code = (draw_mix(like, rng) for like in (x_critic, x_critic, z_code))
    noise = torch.randn(n, 4, *noise_shape, generator=rng, device=scans.device) if noise_shape else None
    views = torch.rand(n, 5, 5, generator=rng, device=scans.device) if variant.critic_augmentation else None
    return Draws(x_real, z_rand, x_critic, z_critic, z_code, mix_rec, mix_rand, mix_code, noise, views)


def choose_scale(name: str, device: torch.device) -> str:
    """``"auto"`` is the paper's scale on a GPU and the laptop's elsewhere; other names stay as they are."""
    return ("paper" if device.type == "cuda" else "laptop") if name == "auto" else name


def default_run_folder(
    variant: Variant | AtlasSettings, cohort: Cohort, scale: Scale, seed: int, overrides: dict[str, Any]
) -> Path:
    """``runs/<model>-<cohort>-<scale>-s<seed>``, with what was asked for otherwise behind it, of the cohort first."""
    recipe = cohort.recipe or {}
    source = str(recipe.get("source"))
    usual = {"n": PAPER_N if source in SIMULATED else None, "grid": GRIDS.get(source, "study")}
    apart = {"source", "skip_bad", "departures"}  # named already, or of no account for which scans these are
    opened = {key: value for key, value in recipe.items() if key not in apart and value and value != usual.get(key)}
    if "seed" in opened:
        opened["rats"] = opened.pop("seed")  # of another seed than the training's
    changed = "".join(f"-{key}={_brief(value)}" for part in (opened, overrides) for key, value in sorted(part.items()))
    return runs_folder() / f"{variant.name}-{cohort.name}-{scale.name}-s{seed}{changed}".replace("/", "_")


def _brief(value: Any) -> str:
    """A setting as a part of a folder's name."""
    if isinstance(value, Mapping):
        return ",".join(f"{key}{_brief(part)}" for key, part in value.items())
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _config(
    variant: Variant | AtlasSettings, scale: Scale, seed: int, cohort: Cohort, train: Cohort, held_out: Cohort | None
) -> dict:
    return {
        "variant": asdict(variant),
        "scale": asdict(scale),
        "seed": seed,
        "cohort": {
            "name": cohort.name,
            "fingerprint": cohort.fingerprint,
            "n": len(cohort),
            "recipe": cohort.recipe,
            "about": _about(cohort, train, held_out),
        },
        "train": {"fingerprint": train.fingerprint, "subjects": list(train.subjects), "digests": list(train.digests)},
        "held_out": {
            "fingerprint": held_out.fingerprint if held_out else None,
            "subjects": list(held_out.subjects) if held_out else [],
        },
    }


def _about(cohort: Cohort, train: Cohort, held_out: Cohort | None) -> dict:
    """What a card says of the training scans: their data set's own words, and how many on either side have labels."""
    sides = {"train": train, "held_out": held_out or ()}
    labelled = {side: sum(scan.labels is not None for scan in part) for side, part in sides.items()}
    return {**cohort.about, "labelled": labelled}
