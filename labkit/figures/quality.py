"""Figures of the quality chapter: what measures notice, distributions beside each other, copies looked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from labkit.evidence.metrics import faults
from labkit.evidence.metrics.compare import AUDITED, Comparison
from labkit.evidence.metrics.study import Study, short
from labkit.evidence.metrics.yardstick import Yardstick
from labkit.figures import frames, style
from labkit.figures.frames import Card, Cards
from labkit.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, WIDTH

if TYPE_CHECKING:
    import pandas as pd

NOTICED = 2.0  # standard deviations of the floor
REACH = 10.0
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#882255", "#999933", "#332288")
"""Of runs: Okabe and Ito's, but for the one that marks suspects, and three of Tol's muted ones."""
WATCHED = (
    ("RMSE", "paper"),
    ("MMD", "released"),
    ("MS-SSIM", "paper"),
    ("RBF-MMD", "PCA"),
    ("trace ratio", "PCA"),
    ("recall", "PCA"),
    ("classifier AUC", "PCA"),
)
ATTRIBUTES = (
    "brain volume, mm³", "head volume, mm³", "ventricles, mm³", "grey matter intensity, %", "white matter intensity, %",
    "dorsal / ventral", "pitch, °", "to the right, mm", "dorsal, mm",
)  # fmt: skip


@style.drawn
def fault_map(control: pd.DataFrame, strength: float = 1.0) -> Figure:
    """Which measure notices which fault.

    Parameters
    ----------
    control : pandas.DataFrame
        From :func:`labkit.evidence.metrics.faults.control`.
    strength : float
        Of the faults, one of those in `control`.

    Returns
    -------
    matplotlib.figure.Figure
        Measures down, faults across: how far the value moved towards worse (orange) or better (blue), in standard
        deviations of the floor; white within two of them, a question mark where the scans are too few for a floor's
        spread.
    """
    here = control[np.isclose(control["strength"], strength) & (control["metric"] != "Wasserstein")]
    if here.empty:
        raise ValueError(f"strength={strength} was not tried; tried were {sorted(control['strength'].unique())}")
    table = here.pivot(index=["metric", "flavour"], columns="fault", values="worse")
    table = table.loc[list(dict.fromkeys(zip(here["metric"], here["flavour"], strict=True))), here["fault"].unique()]
    values = table.to_numpy()
    figure, ax = plt.subplots(figsize=(WIDTH, 0.2 * len(table) + 1.7), layout="constrained")
    shown = np.where(np.abs(values) >= NOTICED, np.clip(values, -REACH, REACH), 0.0)  # NaN is no notice
    image = ax.imshow(shown, cmap="PuOr_r", vmin=-REACH * 1.3, vmax=REACH * 1.3, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:+.0f}".replace("-", "−") if abs(value) < REACH else ("≫" if value > 0 else "≪")
        text = "?" if np.isnan(value) else text if abs(value) >= NOTICED else "·"
        ax.text(column, row, text, ha="center", va="center", fontsize=8,
                color="white" if abs(value) >= 0.7 * REACH else "black")  # fmt: skip
    ax.set_xticks(range(table.shape[1]), table.columns, rotation=35, ha="right")
    ax.set_yticks(range(len(table)), [_called(*key) for key in table.index], fontsize=8)
    metrics = [key[0] for key in table.index]
    for row in np.flatnonzero(np.array(metrics[1:]) != np.array(metrics[:-1])):
        ax.axhline(row + 0.5, color="0.85", linewidth=0.5)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    bar = figure.colorbar(image, ax=ax, location="top", shrink=0.8, aspect=30)
    bar.set_ticks([-REACH, 0, REACH], labels=["taken for progress", "not noticed", "noticed"])
    bar.outline.set_visible(False)
    return figure


def _called(metric: str, flavour: str) -> str:
    return f"{flavour.split(',')[0]}, d" if metric == "Cohen's d" else f"{metric}, {flavour}"


def fault_cards(yardstick: Yardstick, control: pd.DataFrame, scan: int = 0) -> Cards:
    """A slider for each fault: one of the scans B as the fault grows, and what the measures say of all of them.

    At full strength to begin with; the stops are the strengths of `control`, which
    :func:`labkit.evidence.metrics.faults.control` made of the yardstick. Works in a built page and from a file, without
    a kernel.
    """
    scene = faults.Scene.of(yardstick.parts[1], yardstick.other, yardstick.seed)
    first = yardstick.parts[1][0]
    by_key = control.set_index(["fault", "strength", "metric", "flavour"]).sort_index()
    watched = [key for key in WATCHED if key in set(zip(control["metric"], control["flavour"], strict=True))]
    cards = []
    for fault in faults.possible(scene):
        pictures, words = [], []
        for strength in sorted(control["strength"].unique()):
            spoiled = faults.spoil(yardstick.other, fault, strength, scene)
            shown = min(scan, len(spoiled) - 1)
            view = frames.three_linked_planes(
                spoiled.cubes[shown, 0].numpy() * 2 - 1, shape=spoiled.shape, zooms=first.zooms, cross=False
            )
            rows = [by_key.loc[(fault.name, strength, *key)] for key in watched]
            pictures.append(_pixels(_fault_frame(view, watched, rows)))
            said = "; ".join(f"{_called(*key)} {_verdict(row)}" for key, row in zip(watched, rows, strict=True))
            words.append(f"{fault.name}, strength {100 * strength:.0f} % (at 100 % {fault.full}): {said}")
        cards.append(Card(pictures, words, fault.name, start=len(pictures) - 1))
    return Cards(cards, "fault")


def _verdict(row: pd.Series) -> str:
    if np.isnan(row["worse"]):
        return f"{short(row['value'])} (floor {short(row['floor'])}: too few scans to tell)"
    moved = "unmoved" if abs(row["worse"]) < NOTICED else "worse" if row["worse"] > 0 else "better"
    return f"{short(row['value'])} (floor {short(row['floor'])}: {moved})"


@style.drawn
def _fault_frame(view: np.ndarray, watched: list[tuple[str, str]], rows: list[pd.Series]) -> Figure:
    height = WIDTH * view.shape[0] / view.shape[1]
    figure = plt.figure(figsize=(WIDTH, height + 0.27 * len(rows) + 0.65))
    tall = figure.get_figheight()
    picture = figure.add_axes((0, 1 - height / tall, 1, height / tall))
    picture.imshow(view, cmap="gray", vmin=0, vmax=255, aspect="auto")
    picture.axis("off")
    ax = figure.add_axes((0.29, 0.42 / tall, 0.69, (0.27 * len(rows)) / tall))
    moved = np.nan_to_num([np.clip(row["worse"], -REACH, REACH) for row in rows])
    colours = [GREY if abs(m) < NOTICED else VERMILION if m > 0 else BLUE for m in moved]
    places = np.arange(len(rows))[::-1]
    ax.axvspan(-NOTICED, NOTICED, color="0.93", linewidth=0)
    ax.barh(places, moved, color=colours, height=0.7)
    for place, row, m in zip(places, rows, moved, strict=True):
        ax.text(m + (0.3 if m >= 0 else -0.3), place, short(row["value"]), va="center",
                ha="left" if m >= 0 else "right", fontsize=8)  # fmt: skip
    ax.set_yticks(places, [_called(*key) for key in watched])
    ax.set_xlim(-REACH - 3, REACH + 3)
    ax.set_xticks([-REACH, 0, REACH], ["called better", "floor", "called worse"])
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return figure


def _pixels(figure: Figure) -> np.ndarray:
    """A figure as a picture, uint8 (rows, columns, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(120)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@style.drawn
def attribute_distributions(study: Study) -> Figure:
    """Attributes of single animals, real and synthetic, as read off their voxels.

    Returns
    -------
    matplotlib.figure.Figure
        A panel an attribute, at most six; a row of points a source, real on top with its middle half shaded, a bar at
        each median.
    """
    yardstick = study.yardstick
    sources = {"real": (yardstick.anatomy(yardstick.reference), GREY)}
    for (name, comparison), colour in _coloured(study):
        sources[name] = yardstick.anatomy(comparison.made), colour
    names = [name for name in ATTRIBUTES if name in sources["real"][0]][:6]
    lines = -(-len(names) // 2)
    size = (WIDTH, lines * (0.28 * len(sources) + 0.85))
    figure, grid = plt.subplots(lines, 2, figsize=size, squeeze=False, layout="constrained", sharey=True)
    rng = np.random.default_rng(0)
    for ax, name in zip(grid.flat, names, strict=False):
        ax.axvspan(*np.quantile(sources["real"][0][name], (0.25, 0.75)), color="0.92", linewidth=0)
        for place, (table, colour) in enumerate(sources.values()):
            values = table[name].to_numpy()
            jitter = rng.uniform(-0.25, 0.25, len(values))
            ax.plot(values, place + jitter, ".", color=colour, markersize=4, alpha=0.7, markeredgewidth=0)
            ax.plot([np.median(values)] * 2, [place - 0.35, place + 0.35], color=colour, linewidth=2)
        ax.set_xlabel(name)
    for ax in list(grid.flat)[len(names) :]:
        ax.set_visible(False)
    grid[0, 0].set_yticks(range(len(sources)), list(sources))
    grid[0, 0].invert_yaxis()
    return figure


@style.drawn
def similarity_distributions(study: Study) -> Figure:
    """MS-SSIM of single pairs as cumulative distributions: within each source, and between real and synthetic.

    Raises
    ------
    ValueError
        The cubes are too small for three scales.
    """
    real, _ = study.yardstick.similar_pairs(study.yardstick.other)
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.2), layout="constrained", sharey=True, sharex=True)
    for ax in axes:
        ax.ecdf(real.values, color="black", linewidth=2, label="real, real")
    for (name, comparison), colour in _coloured(study):
        within, between = study.yardstick.similar_pairs(comparison.made)
        axes[0].ecdf(within.values, color=colour, label=name)
        axes[1].ecdf(between.values, color=colour, label=name)
    axes[0].set_title("pairs of one source")
    axes[1].set_title("a real and a synthetic animal")
    axes[0].set_ylabel("share of pairs below")
    for ax in axes:
        ax.set_xlabel("MS-SSIM")
    style.legend_outside(axes[0], "lower", 3)
    return figure


@style.drawn
def embedding_map(study: Study, name: str = "PCA") -> Figure:
    """Real and synthetic scans on the first two features of an embedding of the yardstick's, a panel a run."""
    yardstick = study.yardstick
    if name not in yardstick.embedded:
        raise ValueError(f"no embedding is called {name!r}; there are {', '.join(yardstick.embedded)}")
    embed = yardstick.embedded[name]
    real = np.concatenate([side.features(name, embed) for side in (yardstick.reference, yardstick.other)])
    columns = min(len(study.comparisons), 4)
    rows = -(-len(study.comparisons) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, rows * WIDTH / max(columns, 2) + 0.6), squeeze=False,
                                layout="constrained", sharex=True, sharey=True)  # fmt: skip
    for ax in list(axes.flat)[len(study.comparisons) :]:
        ax.set_visible(False)
    for ax, ((run, comparison), colour) in zip(axes.flat, _coloured(study), strict=False):
        made = comparison.made.features(name, embed)
        ax.plot(*real[:, :2].T, "o", color="black", markersize=4, fillstyle="none", label="real")
        ax.plot(*made[:, :2].T, "o", color=colour, markersize=4, alpha=0.8, markeredgewidth=0, label=run)
        ax.set_title(run, fontsize=9)
    style.name_axes(axes, "1st component", "2nd component")
    figure.suptitle("open circles: real; dots: synthetic", fontsize=9)
    return figure


@style.drawn
def triplets(comparison: Comparison, source: str = AUDITED[0], n: int = 4) -> Figure:
    """The `n` synthetic scans that look most like copies, beside their nearest training and nearest held-out scan.

    `source` is one of :data:`~labkit.evidence.metrics.compare.AUDITED`: the generator's scans, or a positive control.
    """
    found = comparison.triplets(source, n)
    cut = style.PLANES["coronal"]
    scan = comparison.yardstick.held_out[0]
    left, right, bottom, top = style.extent_mm(scan.affine, scan.image.shape, cut)
    figure, grid = style.picture_grid(len(found), 3, 0.5, (top - bottom) / (right - left))
    for axes, triplet in zip(grid, found, strict=True):
        notes = ("", f"distance {triplet.to_train:.2f}", f"distance {triplet.to_held_out:.2f}")
        for ax, cube, note in zip(axes, triplet[:3], notes, strict=True):
            part, _ = frames.crop(cube.numpy(), scan.image.shape, scan.zooms)
            index = (part.shape[cut.axis] - 1) // 2
            ax.imshow(style.section(part, cut, index), origin="lower", cmap="gray", vmin=0, vmax=1,
                      extent=(left, right, bottom, top))  # fmt: skip
            if note:
                style.write_on(ax, 0.97, 0.03, note, ha="right", va="bottom", size=8)
    first = "synthetic" if source == AUDITED[0] else "copy planted"
    for ax, title in zip(grid[0], (first, "nearest training", "nearest held-out"), strict=True):
        ax.set_title(title)
    style.bare(grid.flat)
    style.name_sides(grid[0, 0], cut)
    return figure


@style.drawn
def copy_distances(study: Study) -> Figure:
    """Each synthetic scan's distance to its nearest training and its nearest held-out scan, and the positive control.

    Returns
    -------
    matplotlib.figure.Figure
        Runs down; left the generator's scans, then the same with 30 % copies and with one copy planted. Far below the
        line lie copies; suspects are ringed.
    """
    count = len(study.comparisons)
    figure, grid = plt.subplots(count, 3, figsize=(WIDTH, 1.9 * count + 0.3), squeeze=False, layout="constrained",
                                sharex=True, sharey=True)  # fmt: skip
    for axes, ((name, comparison), colour) in zip(grid, _coloured(study), strict=True):
        for ax, source in zip(axes, AUDITED, strict=True):
            audit = comparison.audits[source]
            x, y = audit.distances[:, 1], audit.distances[:, 0]
            ax.plot(x, y, ".", color=colour, markersize=5, alpha=0.7, markeredgewidth=0)
            ax.axline((x.mean(), x.mean()), slope=1, color="0.6", linewidth=1)
            ax.plot(x[audit.suspects], y[audit.suspects], "o", color=VERMILION, markersize=6, fillstyle="none")
            title = name if source == AUDITED[0] else source.removesuffix(" planted")
            ax.set_title(f"{title}\np = {audit.p:.3f}, {len(audit.suspects)} suspects", fontsize=8)
        axes[0].set_ylabel("to training")
    figure.supxlabel("distance to nearest held-out animal", fontsize=9)
    return figure


def _coloured(study: Study) -> Iterator[tuple[tuple[str, Comparison], str]]:
    return zip(study.comparisons.items(), itertools.cycle(COLOURS), strict=False)
