"""Which runs and which real scans a study takes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from labkit.data.cohort import Cohort
from labkit.data.sources import SIMULATED, CohortError, open_cohort
from labkit.runs import MODELS, Run, load_run

FRESH = "fresh"


def find_runs(runs: Sequence[Run | str | os.PathLike] | str | None = None) -> list[Run]:
    """Open runs by folder; see :class:`Study` for what may be given."""
    if isinstance(runs, str):
        runs = [part.strip() for part in runs.split(",") if part.strip()]
    elif isinstance(runs, Run | os.PathLike):
        runs = [runs]
    if runs is not None and not len(runs):
        raise ValueError(
            "no runs were named: give folders of trained runs, with commas between, or None for the newest"
        )
    if runs:
        return [run if isinstance(run, Run) else load_run(run) for run in runs]
    newest = load_run()
    siblings = {(_training(newest), newest.variant.name): newest}
    alike = [Run(path.parent) for path in newest.path.parent.glob(f"*/{MODELS}")]
    alike = [run for run in alike if (run.path / "config.json").exists()]
    for run in sorted(alike, key=lambda run: -(run.path / "config.json").stat().st_mtime):
        try:
            mine, theirs = newest.config, run.config
        except ValueError:  # half-copied
            continue
        scales = [config["scale"] for config in (mine, theirs)]
        if any(config["variant"]["name"] == "atlas" for config in (mine, theirs)):
            scales = [scale["name"] for scale in scales]  # an atlas has cubes of its own size
        same = theirs["train"]["fingerprint"] == mine["train"]["fingerprint"]
        others = {_training(one): one.config for one in siblings.values()}
        apart = _training(run) in others or are_folds([*others.values(), theirs])
        if (same or apart) and scales[0] == scales[1]:
            siblings.setdefault((_training(run), run.variant.name), run)
    models = sorted(model for part, model in siblings if part == _training(newest))
    parts = [
        part for part in dict.fromkeys(part for part, _ in siblings) if {(part, m) for m in models} <= set(siblings)
    ]
    return [siblings[part, model] for part in parts for model in models]


def _training(run: Run) -> str:
    return run.config["train"]["fingerprint"]


def are_folds(configs: Sequence[dict]) -> bool:
    """Whether runs were trained on one cohort and held other animals out each, so that they can be taken together."""
    held_out = [set(config["held_out"]["subjects"]) for config in configs]
    apart = all(held_out) and sum(map(len, held_out)) == len(set().union(*held_out))
    return apart and len({config["cohort"]["fingerprint"] for config in configs}) == 1


def by_fold(runs: list[Run]) -> list[list[Run]]:
    """Runs that were trained on the same scans together, in the order given; one list where they are no folds.

    ValueError where a model is missing in a fold.
    """
    parts: dict[str, list[Run]] = {}
    for run in runs:
        parts.setdefault(_training(run), []).append(run)
    if len(parts) < 2 or not are_folds([some[0].config for some in parts.values()]):
        return [runs]
    models = [sorted(run.variant.name for run in some) for some in parts.values()]
    if any(names != models[0] for names in models):
        listed = "; ".join(", ".join(names) for names in models)
        raise ValueError(
            f"runs of {len(parts)} folds, but not the same models in each ({listed}): train what is missing "
            "(fold in chapter 2), or leave the fold out"
        )
    return list(parts.values())


def named(runs: list[Run], names: Sequence[str] | str | None = None) -> dict[str, Run]:
    """Runs by name, none twice: those given, with commas or one by one; else as short as they tell the runs apart.

    That is the model where each run has another, or the model with the few settings that differ between the runs
    (``"sigmarat2 seed 1"``); otherwise the folder.
    """
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ValueError(f"the same run twice: {', '.join(run.path.name for run in runs)}; name each once")
    models, folders = [run.variant.name for run in runs], [run.path.name for run in runs]
    given = [part.strip() for part in names.split(",")] if isinstance(names, str) else list(names or ())
    if given and (len(set(given)) != len(runs) or len(given) != len(runs) or not all(given)):
        raise ValueError(f"names={names!r}: needed are {len(runs)} different names, of {', '.join(folders)} in turn")
    for words in (given, models, _by_settings(runs), folders):
        if words and len(set(words)) == len(words):
            return dict(zip(words, runs, strict=True))
    return {str(run.path): run for run in runs}


MANY_SETTINGS = 3
"""More settings than this say less of a run than its folder."""


def _by_settings(runs: list[Run]) -> list[str]:
    """Of each run its model, and the settings that differ between runs of that model."""
    flat = [{"seed": run.config["seed"], **run.config["scale"], **run.config["variant"]} for run in runs]
    words = []
    for own in flat:
        kin = [other for other in flat if other["name"] == own["name"]]  # the variant's, written over the scale's
        apart = [key for key in own if any(other.get(key) != own[key] for other in kin)]
        if len(apart) > MANY_SETTINGS:
            return []
        words.append(" ".join([own["name"], *(f"{key} {own[key]}" for key in apart)]))
    return words


def check_same_training(runs: dict[str, Run]) -> None:
    """Refuse runs that were trained on different scans: one table would compare cohorts, not models."""
    first, *others = runs.values()
    if not all(run.trained_as(first) for run in others):
        listed = ", ".join(f"{name}: {run.config['train']['fingerprint'][:12]}" for name, run in runs.items())
        raise ValueError(
            f"these runs were trained on different scans ({listed}), and one table would compare cohorts and not "
            "models: train them on one cohort with one seed of the split, or measure them one by one"
        )


def real_scans(run: Run, own: Cohort, real: Cohort | str | None, n: int, seed: int) -> Cohort:
    """The real scans of a :class:`labkit.evidence.metrics.study.Study`: held out, given, opened, or newly simulated."""
    if isinstance(real, Cohort):
        return real
    if real is None:
        held_out = run.held_out(own)
        if not len(held_out):
            raise ValueError(
                f"{run.path.name} held no animals out, so there is nothing to measure with: train with fewer "
                "(n_train), or pass scans it has not seen as cohort"
            )
        return held_out
    if real == FRESH:
        recipe = run.config["cohort"].get("recipe") or {}
        if recipe.get("source") not in SIMULATED:
            raise ValueError(
                f"cohort={FRESH!r} means new rats of the simulator, but {run.path.name} was trained on scanned animals"
            )
        departures = recipe.get("departures", ())
        return open_cohort(recipe["source"], n=2 * n, seed=recipe["seed"] + 1 + seed, departures=departures)
    try:
        return open_cohort(real, grid=run.file_template.grid)
    except CohortError as error:
        raise CohortError(f"{error}. Or {FRESH!r}: new rats of the simulator that the runs were trained on") from error
