"""Figures of the segmentation experiment: its design, what adding scans did, and the labels themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from labkit.data import volumes
from labkit.data.cohort import Scan
from labkit.evidence.segmentation.arms import ARMS
from labkit.evidence.segmentation.experiment import Experiment, synthetic
from labkit.evidence.segmentation.gains import PAPER_GAINS
from labkit.evidence.segmentation.labels import confidence
from labkit.evidence.segmentation.network import full_labels, inputs, probabilities
from labkit.evidence.segmentation.scores import TISSUES
from labkit.figures import style
from labkit.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, TISSUE_COLOURS, WIDTH

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

KINDS = {"none": ("real scans alone", BLUE), "teacher": ("+ synthetic", ORANGE),
         "true": ("+ new simulated, true labels", GREEN)}  # fmt: skip
LABEL_COLOURS = {1: TISSUE_COLOURS["CSF"], 2: TISSUE_COLOURS["grey matter"], 3: TISSUE_COLOURS["white matter"]}


@style.drawn
def experiment_design(experiment: Experiment) -> Figure:
    """Who learns from whom, and what every arm is trained on.

    Returns
    -------
    matplotlib.figure.Figure
        Boxes and arrows above; below a bar an arm, real and added scans.
    """
    arms = experiment.arms
    n, tested = len(experiment.train), len(experiment.test)
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(WIDTH, 2.3 + 0.24 * len(arms) + 0.6), layout="constrained",
        height_ratios=(2.3, 0.24 * len(arms) + 0.6),
    )  # fmt: skip
    boxes = {
        "real": (0.0, 0.62, f"{n} real rats\nwith labels", BLUE), "generator": (0.36, 0.8, "generator", ORANGE),
        "teacher": (0.36, 0.42, "teacher", PURPLE), "synthetic": (0.7, 0.62, "synthetic scans\nwith labels", ORANGE),
        "network": (0.36, 0.04, "network of an arm", GREY),
        "test": (0.7, 0.04, f"test on {tested} rats\nnobody saw", SKY),
    }  # fmt: skip
    for x, y, text, colour in boxes.values():
        top.add_patch(FancyBboxPatch((x, y), 0.27, 0.19, boxstyle="round,pad=0.01", facecolor="white", edgecolor=colour,
                                     linewidth=1.5))  # fmt: skip
        top.text(x + 0.135, y + 0.095, text, ha="center", va="center", fontsize=8)
    for start, end in (((0.28, 0.74), (0.35, 0.88)), ((0.28, 0.68), (0.35, 0.53)), ((0.64, 0.88), (0.72, 0.82)),
                       ((0.64, 0.53), (0.72, 0.61)), ((0.14, 0.61), (0.36, 0.2)), ((0.8, 0.61), (0.58, 0.24)),
                       ((0.64, 0.135), (0.69, 0.135))):  # fmt: skip
        top.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.4"})
    top.set_xlim(-0.02, 1)
    top.set_ylim(0, 1.02)
    top.axis("off")
    places = np.arange(len(arms))
    real, added = (np.array([arm.counts(n)[k] for arm in arms]) for k in (0, 1))
    bottom.barh(places, real, color=BLUE, label="real")
    for source in ("teacher", "true"):
        mine = np.array([arm.source == source for arm in arms])
        if mine.any():
            bottom.barh(places[mine], added[mine], left=real[mine], color=KINDS[source][1], label=KINDS[source][0][2:])
    bottom.set_yticks(places, [arm.name for arm in arms])
    bottom.invert_yaxis()
    bottom.set_xlabel("training scans")
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    return figure


@style.drawn
def dose_response(experiment: Experiment) -> Figure:
    """Dice against the number of synthetic scans added to all real ones, a panel a tissue."""
    means = experiment.means().set_index(["arm", "tissue"])
    n = len(experiment.train)
    figure, grid = plt.subplots(2, 2, figsize=(WIDTH, 4.6), layout="constrained", sharex=True)
    for ax, tissue in zip(grid.flat, TISSUES, strict=True):
        for suffix, name, colour in (("", "with augmentation", BLUE), ("-plain", "without", ORANGE)):
            arms = [arm for arm in experiment.arms if arm.real == 1 and arm.source != "true"
                    and (arm.augmentation == "none") == bool(suffix)]  # fmt: skip
            if arms:
                _line(ax, means, tissue, [(arm.counts(n)[1], arm.name) for arm in arms], name, colour)
        true = [arm for arm in experiment.arms if arm.real == 1 and arm.source == "true"]
        if true:
            _line(ax, means, tissue, [(arm.counts(n)[1], arm.name) for arm in true], "true labels (control)", GREEN)
        ax.set_title(tissue)
    for ax in grid[-1]:
        ax.set_xlabel(f"scans added to {n} real ones")
    for ax in grid[:, 0]:
        ax.set_ylabel("Dice")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, loc="outside upper center", ncols=3)
    return figure


@style.drawn
def low_data(experiment: Experiment) -> Figure:
    """Dice against the number of real scans, with and without added ones, a panel a tissue."""
    means = experiment.means().set_index(["arm", "tissue"])
    n = len(experiment.train)
    figure, grid = plt.subplots(2, 2, figsize=(WIDTH, 4.6), layout="constrained", sharex=True)
    for ax, tissue in zip(grid.flat, TISSUES, strict=True):
        for source, (name, colour) in KINDS.items():
            arms = [arm for arm in experiment.arms if arm.source == source and arm.augmentation == "full"
                    and arm.real > 0 and arm.added in (0.0, 2.0)]  # fmt: skip
            if arms:
                _line(ax, means, tissue, sorted((arm.counts(n)[0], arm.name) for arm in arms), name, colour)
        ax.set_title(tissue)
        ax.set_xscale("log")
        counts = sorted({arm.counts(n)[0] for arm in experiment.arms if arm.real > 0})
        ax.set_xticks(counts, [str(count) for count in counts])
        ax.minorticks_off()
    for ax in grid[-1]:
        ax.set_xlabel("real scans")
    for ax in grid[:, 0]:
        ax.set_ylabel("Dice")
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=8, loc="outside upper center", ncols=2)
    return figure


def _line(ax: Axes, means: pd.DataFrame, tissue: str, points: list[tuple[int, str]], name: str, colour: str) -> None:
    points = [(x, arm) for x, arm in points if (arm, tissue) in means.index]
    if not points:
        return
    rows = [means.loc[(arm, tissue)] for _, arm in points]
    y = np.array([row["mean"] for row in rows])
    ends = np.array([[row["mean"] - row["ci_low"], row["ci_high"] - row["mean"]] for row in rows]).T
    ax.errorbar([x for x, _ in points], y, np.maximum(ends, 0), fmt="o-", color=colour, label=name, markersize=4,
                capsize=2, linewidth=1.2)  # fmt: skip


@style.drawn
def gains(table: pd.DataFrame, label: str = "Dice") -> Figure:
    """Every arm's difference from its reference with its interval, beside the paper's gains.

    Parameters
    ----------
    table : pandas.DataFrame
        From :meth:`labkit.evidence.segmentation.experiment.Experiment.differences`.
    label : str
        Of the score.

    Returns
    -------
    matplotlib.figure.Figure
        A panel a tissue; bars are 95 % intervals, filled where the corrected p is below 0.05, diamonds the published
        gains, the grey band what the design cannot see.
    """
    tissues = list(table["tissue"].unique())
    arms = list(table["arm"].unique())
    size = (WIDTH, 2 * (0.2 * len(arms) + 0.75))
    figure, grid = plt.subplots(2, 2, figsize=size, layout="constrained", sharey=True)
    for ax, tissue in zip(grid.flat, tissues, strict=True):
        part = table[table["tissue"] == tissue].set_index("arm")
        for place, arm in enumerate(arms):
            row = part.loc[arm]
            colour = KINDS[ARMS[arm].source][1]
            ax.barh(place, 2 * row["detectable"], left=-row["detectable"], height=0.8, color="0.92")
            ax.plot([row["ci_low"], row["ci_high"]], [place, place], color=colour, linewidth=2)
            ax.plot(row["difference"], place, "o", color=colour, markersize=5,
                    fillstyle="full" if row["p_holm"] < 0.05 else "none")  # fmt: skip
            if label == "Dice" and (tissue, arm) in PAPER_GAINS:
                ax.plot(PAPER_GAINS[tissue, arm], place, "D", color="black", markersize=4)
        ax.axvline(0, color="0.4", linewidth=0.8)
        ax.set_title(tissue)
    reference = dict(zip(table["arm"], table["reference"], strict=True))
    grid[0, 0].set_yticks(range(len(arms)), [f"{arm} − {reference[arm]}" for arm in arms], fontsize=8)
    grid[0, 0].invert_yaxis()
    for ax in grid[-1]:
        ax.set_xlabel(f"difference in {label}")
    return figure


@style.drawn
def predictions(experiment: Experiment, arm: str = "r100", seed: int = 0) -> Figure:
    """Real and predicted labels of the best, the median and the worst test animal, by the mean Dice of its tissues.

    Returns
    -------
    matplotlib.figure.Figure
        Columns the three planes; rows true and predicted labels of each animal.
    """
    scores = experiment.scores
    mine = scores[(scores["arm"] == arm) & (scores["seed"] == seed)]
    per_scan = mine.groupby(["subject", "session"], sort=False)["dice"].mean()
    order = np.argsort(-per_scan.to_numpy(), kind="stable")
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    places = {(scan.subject, scan.session): place for place, scan in enumerate(experiment.test)}
    network = experiment.network(arm, seed)
    figure, grid = plt.subplots(6, 3, figsize=(WIDTH, 8.6), layout="compressed")
    for pair, (name, which) in zip(grid.reshape(3, 2, 3), chosen.items(), strict=True):
        place = places[per_scan.index[which]]
        scan = experiment.test[place]
        images, box = inputs(experiment.test.subset([place]), experiment.plan)
        labels = full_labels(probabilities([network], images, box), scan.image.shape)[0].numpy()
        for row, (what, drawn) in zip(pair, (("true", scan.labels), ("predicted", labels)), strict=True):
            for ax, plane in zip(row, style.PLANES.values(), strict=True):
                _overlay(ax, scan, np.asarray(drawn), plane)
            row[0].set_ylabel(what)
        pair[0, 1].set_title(f"{name}: rat {scan.subject}, mean Dice {per_scan.iloc[which]:.3f}", fontsize=9)
    style.bare(grid.flat)
    for ax, plane in zip(grid[0], style.PLANES.values(), strict=True):
        style.name_sides(ax, plane)
    figure.suptitle("CSF light blue, grey matter orange, white matter purple", fontsize=9)
    return figure


def _overlay(ax: Axes, scan: Scan, labels: np.ndarray, plane: style.Plane) -> None:
    inside = np.flatnonzero((np.asarray(scan.labels) > 0).any(tuple(a for a in range(3) if a != plane.axis)))
    index = int(inside[len(inside) // 2]) if len(inside) else scan.image.shape[plane.axis] // 2
    style.show_section(ax, scan.image, scan.affine, plane, index, vmin=0, vmax=float(np.percentile(scan.image, 99.5)))
    style.show_section(ax, _coloured(labels)[..., 3], scan.affine, plane, index, alpha=0)  # the axes' extent
    picture = np.stack([style.section(_coloured(labels)[..., c], plane, index) for c in range(4)], -1)
    ax.imshow(picture, origin="lower", extent=style.extent_mm(scan.affine, scan.image.shape, plane), aspect="equal",
              interpolation="nearest")  # fmt: skip


def _coloured(labels: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """(X, Y, Z) -> (X, Y, Z, 4) of red, green, blue, opacity."""
    from matplotlib.colors import to_rgb

    out = np.zeros((*labels.shape, 4))
    for label, colour in LABEL_COLOURS.items():
        out[labels == label] = (*to_rgb(colour), opacity)
    return out


@style.drawn
def teacher_labels(experiment: Experiment, arm: str = "r100+s200", seed: int = 0, n: int = 60) -> Figure:
    """Synthetic scans with their teacher's labels, and where it was unsure: the surest, the median and the least sure.

    Parameters
    ----------
    experiment : Experiment
        With the arm's reference trained.
    arm, seed : str, int
        Whose teacher.
    n : int
        Synthetic scans to choose from.

    Returns
    -------
    matplotlib.figure.Figure
        Columns scan, labels, probability of the label that won.
    """
    shape = experiment.train.shape
    sample = synthetic(experiment.run, n, seed, experiment.plan.size, shape)
    _, box = inputs(experiment.train.subset([0]), experiment.plan)
    chances = probabilities(experiment.teachers(ARMS[arm], seed), sample.normalised * 2 - 1, box)
    winners, labels = chances.max(1, keepdim=True)
    certain = confidence(winners, labels)
    order = np.argsort(-certain, kind="stable")
    rows = {"surest": order[0], "median": order[len(order) // 2], "least sure": order[-1]}
    first, cut = experiment.train[0], style.PLANES["coronal"]
    side = volumes.cube_side(shape)
    figure, grid = plt.subplots(3, 3, figsize=(WIDTH, WIDTH + 0.5), layout="compressed")
    for axes, (name, which) in zip(grid, rows.items(), strict=True):
        whole = [volumes.resize(part[which][None].float(), side) for part in (sample.normalised, winners)]
        image, sure = (volumes.crop_from_cube(part, shape)[0].numpy() for part in whole)
        coloured = _coloured(full_labels(chances[which][None], shape)[0].numpy())
        index = (shape[cut.axis] - 1) // 2
        for ax in axes[:2]:
            style.show_section(ax, image, first.affine, cut, index, vmin=0, vmax=1)
        picture = np.stack([style.section(coloured[..., c], cut, index) for c in range(4)], -1)
        extent = style.extent_mm(first.affine, shape, cut)
        axes[1].imshow(picture, origin="lower", extent=extent, interpolation="nearest")
        axes[0].set_ylabel(f"{name}: {certain[which]:.2f}")
        shown = style.show_section(axes[2], sure, first.affine, cut, index, cmap="cividis", vmin=0.25, vmax=1)
    titles = ("synthetic scan", "teacher's labels", "probability of label")
    for ax, title in zip(grid[0], titles, strict=True):
        ax.set_title(title)
    figure.colorbar(shown, ax=grid[:, 2], location="bottom", shrink=0.9)
    style.bare(grid.flat)
    style.name_sides(grid[0, 0], cut)
    return figure
