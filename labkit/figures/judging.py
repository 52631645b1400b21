"""Figures of judgements: who was right how often, how sure, and when; ratings and preferences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from labkit.evidence.judging.answers import SURE
from labkit.evidence.judging.results import RIGHT_OR_WRONG, Results
from labkit.evidence.judging.session import Session
from labkit.evidence.judging.trials import QUESTIONS, REAL
from labkit.figures import style
from labkit.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, WIDTH

if TYPE_CHECKING:
    import pandas as pd

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY)
MARKS = "osD^vP"


@style.drawn
def judged_scans(session: Session, n: int = 4) -> Figure:
    """What raters see: the middle slice of `n` scans a source; of scans in no trial, where there are enough."""
    names, middle = list(session.sources), session.shape[0] // 2
    figure, grid = style.picture_grid(len(names), n, 0.2)
    height, width = session.sources[REAL].size_mm
    for row, name in zip(grid, names, strict=True):
        first = max(0, min(session.needed.get(name, 0), len(session.sources[name]) - n))
        for index, ax in enumerate(row, first):
            if index < len(session.sources[name]):
                ax.imshow(session.sources[name].slices(index)[middle], cmap="gray", vmin=0, vmax=255,
                          extent=(0, width, 0, height), interpolation="bilinear")  # fmt: skip
            else:
                ax.set_visible(False)
        style.write_on(row[0], 0.03, 0.97, name, ha="left", va="top")
    style.label_first(grid, style.PLANES["coronal"])
    return figure


@style.drawn
def rater_scores(results: Results) -> Figure:
    """Share right of every rater, overall and for each source, with Wilson intervals; a line where guessing is."""
    overall, parts = results.scores(), results.by_source()
    sources = sorted(parts["shown"].unique(), key=lambda name: (name != REAL, name))
    figure, ax = plt.subplots(
        figsize=(WIDTH, 0.9 + 0.22 * len(results.raters) * (len(sources) + 2)), layout="constrained"
    )
    rows: list[tuple[str, pd.Series, str, str]] = []
    for rater in results.raters:
        rows.append((rater, overall.loc[rater].rename({"accuracy": "share"}), GREY, "s"))
        own = parts[parts["rater"] == rater].set_index("shown")
        for index, source in enumerate(sources):
            if source in own.index:
                rows.append((f"  {source}", own.loc[source], COLOURS[index % 6], "o"))
    _forest(ax, rows)
    ax.axvline(0.5, color=GREY, linestyle=":", linewidth=1)
    ax.set(xlim=(-0.03, 1.03), xlabel="share right, 95 % interval (dotted: guessing)")
    return figure


@style.drawn
def confidence_and_learning(results: Results) -> Figure:
    """Share right by how sure the rater was, and by part of the session, with Wilson intervals."""
    panels = {"confidence": results.by_confidence(), "part": results.learning()}
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.9), sharey=True, layout="constrained")
    for ax, (column, table) in zip(axes, panels.items(), strict=True):
        for index, rater in enumerate(results.raters):
            own = table[table["rater"] == rater]
            _error_bars(ax, own[column] + 0.06 * (index - (len(results.raters) - 1) / 2), own, index, rater)
        ax.axhline(0.5, color=GREY, linestyle=":", linewidth=1)
    axes[0].set(ylim=(-0.03, 1.03), ylabel="share right", xlabel="how sure", xlim=(0.6, 3.4))
    axes[0].set_xticks(list(SURE), [words.replace(" ", "\n") for words in SURE.values()])
    axes[1].set(xlabel="part of the session", xticks=(1, 2, 3, 4), xlim=(0.6, 4.4))
    style.legend_outside(axes[1], "lower", 2)
    return figure


@style.drawn
def rating_marks(results: Results) -> Figure:
    """Mean rating of each source on each question, with 95 % intervals over scans; higher is better."""
    table = results.ratings()
    sources = sorted(table["source"].unique(), key=lambda name: (name != REAL, name))
    figure, ax = plt.subplots(figsize=(WIDTH, 3.0), layout="constrained")
    for index, source in enumerate(sources):
        own = table[table["source"] == source].set_index("question").reindex(QUESTIONS)
        own = own.rename(columns={"mean": "share"})
        _error_bars(ax, np.arange(len(QUESTIONS)) + 0.14 * (index - (len(sources) - 1) / 2), own, index, source, "")
    ax.set_xticks(range(len(QUESTIONS)), QUESTIONS)
    ax.set(ylim=(0.8, 5.2), ylabel="mean mark, 1 to 5")
    style.legend_outside(ax, "lower", 4)
    return figure


@style.drawn
def preference_strengths(results: Results) -> Figure:
    """Bradley-Terry strengths with 95 % intervals: one log odds apart is preferred in 73 % of comparisons."""
    table = results.preference().rename(columns={"strength": "share"})
    figure, ax = plt.subplots(figsize=(WIDTH, 0.9 + 0.35 * len(table)), layout="constrained")
    _forest(ax, [(name, row, GREY if name == REAL else BLUE, "o") for name, row in table.iterrows()])
    ax.axvline(0, color=GREY, linestyle=":", linewidth=1)
    ax.set(xlabel="strength, log odds (dotted: mean of all)")
    return figure


def result_figures(results: Results) -> Iterable[tuple[str, Figure]]:
    """What there is to show of some answers, each with words for those who do not see it."""
    if results.task in RIGHT_OR_WRONG:
        yield "Share of right answers, overall and by source, with 95 % intervals", rater_scores(results)
        yield "Share of right answers by confidence and by part of the session", confidence_and_learning(results)
    elif results.task == "rating":
        yield "Mean rating of each source on four questions, with 95 % intervals", rating_marks(results)
    else:
        yield "Strength of each source in preference, with 95 % intervals", preference_strengths(results)


def _forest(ax: Axes, rows: list[tuple[str, pd.Series, str, str]]) -> None:
    for y, (_, row, colour, mark) in enumerate(rows):
        ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.5)
        ax.plot(row["share"], y, mark, color=colour, markersize=5)
    ax.set_yticks(range(len(rows)), [name for name, *_ in rows])
    ax.invert_yaxis()


def _error_bars(ax: Axes, x: np.ndarray, own: pd.DataFrame, index: int, name: str, line: str = "-") -> None:
    bars = np.clip([own["share"] - own["low"], own["high"] - own["share"]], 0, None)
    colour, mark = COLOURS[index % 6], MARKS[index % 6]
    ax.errorbar(x, own["share"], bars, fmt=mark + line, color=colour, label=name, linewidth=1, markersize=4, capsize=2)
