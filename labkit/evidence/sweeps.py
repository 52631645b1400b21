"""The table of a sweep, many trainings that differ in some settings: opened, averaged over seeds, put in order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from labkit import markup
from labkit.fields import known
from labkit.files import located
from labkit.sharing import REPOSITORY

if TYPE_CHECKING:
    import pandas as pd

SWEEP, SUMMARY, SAMPLES = "sweep.csv", "sweep.md", "samples"
"""What a sweep's folder holds: a row a point, means over seeds, and a picture of each point's samples."""

NAME = "name"
"""Column of what a grid calls points."""

TRAINED = "trained"
"""Column of iterations done; what differs between points stands before it, what came of them behind."""

MEASURES = {
    "Fréchet distance, PCA": "lower",
    "RBF-MMD, regions": "lower",
    "classifier AUC, PCA": "lower",
    "classifier AUC, regions": "lower",
    "precision, regions": "higher",
    "recall, regions": "higher",
    "trace ratio, PCA": "floor",
    "copies p, synthetic": "higher",
    "MS-SSIM, paper": "floor",
    "RMSE, reconstruction": "lower",
    "held_out_mse": "lower",
}
"""Of chapter 4, and the last of chapter 2, what a table of many points has room for, and which way is better."""

PARTS = {"": "value", " low": "ci_low", " high": "ci_high", " floor": "floor"}
"""Columns of a measure: endings of their names, and what chapter 4 calls them."""


def read_sweep(folder: str | os.PathLike | None = None) -> tuple[pd.DataFrame, Path]:
    """Table and folder of a sweep.

    Parameters
    ----------
    folder : path, optional
        What ``ci/sweep`` wrote; default the one in the repository, about the gradient difference loss.

    Returns
    -------
    pandas.DataFrame, pathlib.Path
        A row a point: its name, what differs, iterations done, losses, measures with their intervals and floors.

    Raises
    ------
    ValueError
        The folder holds no such table, or an empty one.
    """
    import pandas as pd

    place = located(folder) if folder else REPOSITORY.parent / "sweep"
    path = place / SWEEP
    if not path.exists():
        raise ValueError(f"{place} holds no {SWEEP}: give a folder that ci/sweep wrote, such as runs/sweeps/seeds")
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    if TRAINED not in table or table.empty:
        raise ValueError(f"{path} is no table of a sweep, or has no point yet: ci/sweep writes it anew")
    return table, place


def settings(table: pd.DataFrame, seeds: bool = True) -> list[str]:
    """What differs between points, the seed if one asks; where a grid gives names, what differs within these."""
    names = [name for name in table.columns[1 : list(table.columns).index(TRAINED)] if seeds or name != "seed"]
    if NAME not in names:
        return names
    within = table.groupby(NAME, dropna=False)
    return [NAME, *(n for n in names if n != NAME and (n == "seed" or within[n].nunique(dropna=False).max() > 1))]


def measured(table: pd.DataFrame) -> list[str]:
    """Measures that the table has."""
    return [name for name in MEASURES if name in table and table[name].notna().any()]


def arms(table: pd.DataFrame) -> pd.Series:
    """What differs in each point, its seed apart, in words: points of one arm are trainings of one configuration."""
    names = settings(table, seeds=False)
    words = [said({name: row[name] for name in names}) for _, row in table.iterrows()]
    return table["point"].map(dict(zip(table["point"], words, strict=True)))


def said(varied: Mapping[str, object]) -> str:
    """What differs in a point, in words; settings that it does not have are left out."""
    known = {name: value for name, value in varied.items() if value == value}
    # a whole number that other points do not have comes as a fraction
    whole = {name: int(value) for name, value in known.items() if isinstance(value, float) and value.is_integer()}
    return (
        ", ".join(str(v) if name == NAME else f"{name} {v}" for name, v in (known | whole).items())
        or "as the grid has it"
    )


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Arms by measures, and the hours of a training; mean ± standard deviation over points, where there are several."""
    names = measured(table)
    groups = table.assign(hours=table["seconds"] / 3600).groupby(arms(table), sort=False)[[*names, "hours"]]
    mean, spread, n = groups.mean(), groups.std(), groups.size()
    text = mean.map(_brief)
    several = spread.notna() & mean.notna()
    text = text.where(~several, text + " ± " + spread.map("{:.1g}".format))
    text.insert(0, "trainings", n.astype(str))
    floors = {name: _floor(table[f"{name} floor"]) for name in names if f"{name} floor" in table}
    if floors:
        text.loc["real"] = {name: floors.get(name, "") for name in text}
    return text.rename(columns={name: f"{name} ({MEASURES[name]})" for name in names})


def summary(table: pd.DataFrame) -> str:
    """The same as a Markdown table, measures down and arms across."""
    found = over_seeds(table).T
    return markup.table([[str(name), *row] for name, row in zip(found.index, found.values.tolist(), strict=True)],
                        "", *map(str, found.columns))  # fmt: skip


def _brief(value: float) -> str:
    """As many digits as a few trainings can tell apart."""
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.2g}"


def _floor(values: pd.Series) -> str:
    """Floors of all points: one number where they are measured alike, else from the smallest to the largest."""
    low, high = _brief(values.min()), _brief(values.max())
    return low if low == high else f"{low} to {high}"


def chosen(table: pd.DataFrame, by: str | None = None) -> str:
    """The measure that puts points in order: the one that is asked for, or the first that the table has.

    ValueError for a measure that the table does not have, or a table without any.
    """
    if not (there := measured(table)):
        raise ValueError(
            "the sweep measured nothing: its grid needs [chapters.04_quality], or animals that are held out"
        )
    return known("best_by", by or there[0], there)


def best(table: pd.DataFrame, by: str, n: int = 3) -> pd.DataFrame:
    """The points with the best values of a measure, best first."""
    value = table[by]
    order = {"lower": value, "higher": -value}.get(MEASURES[by])
    if order is None:
        order = (value - table[f"{by} floor"]).abs()
    return table.assign(order=order).dropna(subset="order").sort_values("order").drop(columns="order").head(n)
