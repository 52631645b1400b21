"""Rows of a table of measures read: numbers for people, what passes, what is best."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def repeats(table: pd.DataFrame) -> np.ndarray:
    """Rows of the released flavour that are the paper's to the digit, and would count twice."""
    paper = table[table["flavour"] == "paper"].set_index(["model", "metric"])["value"]
    keys = zip(table["model"], table["metric"], table["flavour"], table["value"], strict=True)
    return np.array([f == "released" and paper.get((model, metric)) == v for model, metric, f, v in keys])


def passes(row: pd.Series) -> bool:
    """Whether a row says *as good as real*: its interval reaches the floor's, or lies beyond it."""
    if row["metric"].endswith(" p"):
        return bool(row["value"] > 0.05)
    low, high = (row["value"],) * 2 if np.isnan(row["ci_low"]) else (row["ci_low"], row["ci_high"])
    if np.isnan(row["floor_low"]):
        row = row.copy()
        row["floor_low"] = row["floor_high"] = row["floor"]
    not_above, not_below = low <= row["floor_high"], high >= row["floor_low"]
    return bool({"lower": not_above, "higher": not_below, "floor": not_above and not_below}[row["direction"]])


def shown(row: pd.Series, value: str = "value", low: str = "ci_low", high: str = "ci_high") -> str:
    """A number of a row with its interval, for people."""
    if np.isnan(row[low]):
        return short(row[value])
    return f"{short(row[value])} ({short(row[low])} to {short(row[high])})"


def short(value: float) -> str:
    """A number for people, two or three digits."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 or value == 0 else 3
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def separate_best(rows: pd.DataFrame) -> str:
    """The model of the best row, where its interval lies apart from every other's; else empty."""
    if len(rows) < 2 or rows["ci_low"].isna().any() or (rows["ci_low"] == rows["ci_high"]).all():
        return ""
    direction, floor = rows["direction"].iloc[0], rows["floor"].iloc[0]
    low, high = rows["ci_low"].to_numpy(), rows["ci_high"].to_numpy()
    if direction == "higher":
        low, high = -high, -low
    elif direction == "floor":
        ends = np.abs(np.stack([low - floor, high - floor]))
        low, high = np.where((low <= floor) & (floor <= high), 0.0, ends.min(0)), ends.max(0)
    best = int(np.argmin(high))
    others = np.delete(low, best)
    return str(rows["model"].iloc[best]) if high[best] < others.min() else ""
