"""Figures of a sweep: what its settings do to measures, and what the best points make."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill, shorten
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from labkit.evidence.sweeps import MEASURES, NAME, SAMPLES, arms, measured, said, settings
from labkit.figures import style
from labkit.figures.interactive import Interactive
from labkit.figures.style import BLUE, GREY, ORANGE, WIDTH

if TYPE_CHECKING:
    import pandas as pd

ACROSS = 7
"""Measures beside each other at most, so that their names can be read."""

COLUMNS, LABEL = 3, 22
"""Panels beside each other, and letters of a configuration's name on a line."""


def parallel_coordinates(table: pd.DataFrame, by: str) -> Interactive:
    """A line a point through its settings and measures, coloured by one of them; axes can be dragged and brushed.

    Parameters
    ----------
    table : pandas.DataFrame
        Of :func:`labkit.evidence.sweeps.read_sweep`.
    by : str
        The measure that colours the lines: dark is better.
    """
    import plotly.graph_objects as go

    names = settings(table)
    names += [by, *(name for name in measured(table) if name != by)][:ACROSS]
    axes, scaled = [], []
    for name in names:
        values = table[name]
        if name in MEASURES:
            numbers, ticks = values.astype(float), {}
        else:
            texts = [said({NAME: value}) if value == value else "as usual" for value in values]
            kinds = sorted(set(texts), key=lambda text: (len(text), text))
            numbers = values.index.to_series().map(dict(zip(values.index, map(kinds.index, texts), strict=True)))
            numbers = numbers.astype(float)
            ticks = {"tickvals": list(range(len(kinds))), "ticktext": [shorten(text, LABEL) for text in kinds]}
        axes.append({"label": name, "values": numbers.tolist(), **ticks})
        span = numbers.max() - numbers.min()
        scaled.append((numbers - numbers.min()) / span if span else numbers * 0 + 0.5)
    order = _goodness(table, by)
    line = {"color": order.tolist(), "colorscale": "Cividis", "showscale": False}
    figure = go.Figure(go.Parcoords(dimensions=axes, line=line, labelangle=-15, labelside="top"))
    figure.update_layout(height=420, margin={"l": 150, "r": 70, "t": 90, "b": 30}, template="plotly_white")
    with plt.rc_context(style.STYLE):
        still, ax = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
        lines = np.array(scaled).T
        for place in np.argsort(-order.to_numpy()):
            ax.plot(lines[place], color=plt.cm.cividis(order.iloc[place]), linewidth=1.2)
        for place, axis in enumerate(axes):
            ax.axvline(place, color=GREY, linewidth=0.6)
            ends = axis.get("ticktext") or [style.number(f(axis["values"])) for f in (np.nanmin, np.nanmax)]
            for height, text in zip(np.linspace(0, 1, len(ends)), ends, strict=True):
                ax.text(place, height, f" {text}", size=7, va="center")
        ax.set_xticks(range(len(names)), names, rotation=20, ha="right")
        ax.set_yticks([])
    plt.close(still)
    leading = table.loc[order.idxmin()]
    return Interactive(figure, still, f"A line for each of {len(table)} trainings through its settings and measures, "
                       f"dark where {by} is good; the best is {said(leading[settings(table)])}.")  # fmt: skip


def _goodness(table: pd.DataFrame, by: str) -> pd.Series:
    """Ranks from 0, the best, to 1."""
    value = table[by].astype(float)
    value = {"lower": value, "higher": -value}.get(MEASURES[by], (value - table.get(f"{by} floor", 0)).abs())
    return (value.rank() - 1).fillna(len(table) - 1) / max(1, len(table) - 1)


@style.drawn
def by_arm(table: pd.DataFrame) -> Figure:
    """A panel a measure: a dot a training, its interval, arms beneath each other; dashed, the floor of real scans."""
    names, groups = measured(table), arms(table)
    order = list(dict.fromkeys(groups))[::-1]
    rows, labels = -(-len(names) // COLUMNS), [fill(arm, LABEL) for arm in order]
    lines = max(2, *(label.count("\n") + 1 for label in labels))
    height = rows * (0.8 + 0.18 * lines * len(order))
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(WIDTH, height), layout="constrained", sharey=True, squeeze=False
    )
    for ax, name in zip(axes.flat, names, strict=False):
        for place, arm in enumerate(order):
            own = table[groups == arm]
            shift = np.linspace(-0.2, 0.2, len(own)) if len(own) > 1 else [0.0]
            at = place + np.asarray(shift)
            if f"{name} low" in table:
                ax.hlines(at, own[f"{name} low"], own[f"{name} high"], color=BLUE, alpha=0.35, linewidth=1)
            ax.plot(own[name], at, "o", color=BLUE, markersize=3.5)
            ax.plot([own[name].mean()] * 2, [place - 0.32, place + 0.32], color=ORANGE, linewidth=1.5)
            if f"{name} floor" in table:
                ax.plot([own[f"{name} floor"].mean()] * 2, [place - 0.5, place + 0.5], "--", color=GREY, linewidth=1)
        measure, _, kind = name.partition(", ")
        ax.set_title(f"{measure}\n{kind} ({MEASURES[name]})", loc="left", size=8)
        ax.set_yticks(range(len(order)), labels, size=8)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.set_ylim(-0.6, len(order) - 0.4)
    for ax in list(axes.flat)[len(names) :]:
        ax.set_axis_off()
    return figure


@style.drawn
def point_samples(table: pd.DataFrame, folder: Path) -> Figure:
    """The last samples of points, a picture each, three planes beneath each other; always the same random codes."""
    pictures = [plt.imread(folder / SAMPLES / f"{name}.png") for name in table["point"]]
    ratio = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    figure, axes = plt.subplots(len(pictures), 1, figsize=(WIDTH, len(pictures) * (WIDTH * ratio + 0.3)),
                                layout="constrained", squeeze=False)  # fmt: skip
    for ax, picture, (_, row) in zip(axes.flat, pictures, table.iterrows(), strict=True):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=1)
        ax.set_title(said(row[settings(table)]))
    style.bare(axes.flat)
    return figure
