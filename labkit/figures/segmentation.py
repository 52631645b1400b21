"""Figures of the segmentation experiment: its design, what adding scans did, and the labels themselves."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from labkit.data import volumes
from labkit.data.cohort import Scan
from labkit.data.labels import TISSUE_LABELS
from labkit.evidence.segmentation.arms import ARMS
from labkit.evidence.segmentation.experiment import Experiment
from labkit.evidence.segmentation.gains import PAPER_GAINS
from labkit.evidence.segmentation.network import confidence, full_labels, inputs, probabilities
from labkit.evidence.segmentation.sources import synthetic
from labkit.figures import style
from labkit.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, WIDTH

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

KINDS = {"none": ("real scans alone", BLUE), "teacher": ("+ synthetic", ORANGE), "gaussian": ("+ Gaussian", PURPLE),
         "elastic": ("+ random warps", GREY), "atlas": ("+ atlas, own labels", VERMILION),
         "own": ("+ generator's, own labels", "#882255"),
         "registered": ("+ real, labelled by atlas", SKY), "contrast": ("+ atlas, recoloured", "black"),
         "true": ("+ new simulated, true labels", GREEN)}  # fmt: skip


@style.drawn
def experiment_design(experiment: Experiment) -> Figure:
    """Who learns from whom, boxes and arrows; below, what every arm is trained on, a bar an arm."""
    arms = experiment.arms
    n, bare, tested = len(experiment.train), len(experiment.unlabelled), len(experiment.test)
    learners = f"{n + bare} real animals,\n{n if bare else 'all'} with labels"
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(WIDTH, 2.3 + 0.24 * len(arms) + 0.6), layout="constrained",
        height_ratios=(2.3, 0.24 * len(arms) + 0.6),
    )  # fmt: skip
    boxes = {
        "real": (0.0, 0.62, learners, BLUE), "generator": (0.36, 0.8, "generator", ORANGE),
        "teacher": (0.36, 0.42, "teacher", PURPLE), "synthetic": (0.7, 0.62, "synthetic scans\nwith labels", ORANGE),
        "network": (0.36, 0.04, "network of an arm", GREY),
        "test": (0.7, 0.04, f"test on {tested} animals\nnobody saw", SKY),
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
    real, added = (np.array([experiment.counts(arm)[k] for arm in arms]) for k in (0, 1))
    bottom.barh(places, real, color=BLUE, label="real")
    for source in tuple(KINDS)[1:]:
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
    n = len(experiment.train)
    whole = [arm for arm in experiment.arms if arm.real == 1]
    learned = [arm for arm in whole if arm.source in ("none", "teacher")]
    lines = {
        ("with augmentation", BLUE): [arm for arm in learned if arm.augmentation == "full"],
        ("without", ORANGE): [arm for arm in learned if arm.augmentation == "none"],
        ("atlas, own labels", VERMILION): [arm for arm in whole if arm.source == "atlas"],
        ("generator, own labels", "#882255"): [arm for arm in whole if arm.source == "own"],
        ("real, labelled by atlas", SKY): [arm for arm in whole if arm.source == "registered"],
        ("random warps", GREY): [arm for arm in whole if arm.source == "elastic"],
        ("Gaussian (control)", PURPLE): [arm for arm in whole if arm.source == "gaussian"],
        ("true labels (control)", GREEN): [arm for arm in whole if arm.source == "true"],
    }
    points = {line: [(experiment.counts(arm)[1], arm.name) for arm in arms] for line, arms in lines.items()}
    return _dice_panels(experiment, points, f"scans added to {n} real ones")


@style.drawn
def learning_curve(curve: pd.DataFrame, steps: int) -> Figure:
    """Dice against steps of training, a panel an arm, a line a tissue, the experiment's own number of `steps` marked.

    Of a table of :meth:`labkit.evidence.segmentation.experiment.Experiment.learning_curve`.
    """
    arms, at = curve["arm"].unique(), sorted(curve["steps"].unique())
    figure, axes = plt.subplots(1, len(arms), figsize=(WIDTH, 2.8), layout="constrained", sharey=True, squeeze=False)
    for ax, arm in zip(axes[0], arms, strict=True):
        tissues = curve[curve["arm"] == arm].groupby("tissue", sort=False)
        for colour, (tissue, part) in zip((GREY, PURPLE, ORANGE, SKY), tissues, strict=False):
            ax.plot(part["steps"], part["dice"], "o-", color=colour, markersize=4, label=tissue)
        ax.axvline(steps, color="0.7", linestyle=":")
        ax.set_xscale("log")
        ax.set_xticks(at, at)
        ax.minorticks_off()
        ax.set(title=arm, xlabel="steps of training")
    axes[0, 0].set_ylabel("Dice")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    return figure


@style.drawn
def low_data(experiment: Experiment) -> Figure:
    """Dice against the number of real scans, with and without added ones, a panel a tissue."""
    some = [arm for arm in experiment.arms if arm.real > 0]
    used = [
        arm for arm in some if arm.augmentation == "full" and (arm.added in (0.0, 2.0) or arm.source == "registered")
    ]
    points = {
        line: sorted((experiment.counts(arm)[0], arm.name) for arm in used if arm.source == source)
        for source, line in KINDS.items()
    }
    figure = _dice_panels(experiment, points, "real scans")
    counts = sorted({experiment.counts(arm)[0] for arm in some})
    for ax in figure.axes:
        ax.set_xscale("log")
        ax.set_xticks(counts, [str(count) for count in counts])
        ax.minorticks_off()
    return figure


def _dice_panels(experiment: Experiment, points: dict[tuple[str, str], list[tuple[int, str]]], xlabel: str) -> Figure:
    """A panel a tissue: mean Dice of lines, name and colour -> places and arms, with its intervals."""
    means = experiment.means().set_index(["arm", "tissue"])
    figure, grid = _panels(experiment.tissues, 2.3, sharex=True)
    for ax, tissue in zip(grid.flat, experiment.tissues, strict=False):
        for (name, colour), places in points.items():
            done = [(x, means.loc[(arm, tissue)]) for x, arm in places if (arm, tissue) in means.index]
            if done:
                ends = [[row["mean"] - row["ci_low"], row["ci_high"] - row["mean"]] for _, row in done]
                ax.errorbar([x for x, _ in done], [row["mean"] for _, row in done], np.maximum(ends, 0).T, fmt="o-",
                            color=colour, label=name, markersize=4, capsize=2, linewidth=1.2)  # fmt: skip
        ax.set_title(tissue)
    style.name_axes(grid, xlabel, "Dice")
    style.legend_outside(grid[0, 0], "upper", 3, fontsize=8)
    return figure


def _panels(tissues: Collection[str], height: float, **shared: bool) -> tuple[Figure, np.ndarray]:
    """Axes for a panel a tissue, two in a row, or three where there are many."""
    columns = 2 if len(tissues) <= 4 else 3
    rows = -(-len(tissues) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(WIDTH, height * rows), layout="constrained", squeeze=False, **shared
    )
    for ax in grid.flat[len(tissues) :]:
        ax.set_visible(False)
    return figure, grid


@style.drawn
def gains(table: pd.DataFrame, label: str = "Dice") -> Figure:
    """Every arm's difference in a score from its reference, beside the paper's gains, a panel a tissue.

    Of a table of :meth:`labkit.evidence.segmentation.experiment.Experiment.differences`. Bars are 95 % intervals,
    filled where the corrected p is below 0.05, diamonds the published gains, the grey band what the design cannot see.
    """
    tissues = list(table["tissue"].unique())
    arms = list(table["arm"].unique())
    figure, grid = _panels(tissues, 0.2 * len(arms) + 0.75, sharey=True)
    for ax, tissue in zip(grid.flat, tissues, strict=False):
        part = table[table["tissue"] == tissue].set_index("arm")
        for index, arm in enumerate(arms):
            row = part.loc[arm]
            colour = KINDS[ARMS[arm].source][1]
            ax.barh(index, 2 * row["detectable"], left=-row["detectable"], height=0.8, color="0.92")
            ax.plot([row["ci_low"], row["ci_high"]], [index, index], color=colour, linewidth=2)
            ax.plot(row["difference"], index, "o", color=colour, markersize=5,
                    fillstyle="full" if row["p_holm"] < 0.05 else "none")  # fmt: skip
            if label == "Dice" and (tissue, arm) in PAPER_GAINS:
                ax.plot(PAPER_GAINS[tissue, arm], index, "D", color="black", markersize=4)
        ax.axvline(0, color="0.4", linewidth=0.8)
        ax.set_title(tissue)
    reference = dict(zip(table["arm"], table["reference"], strict=True))
    grid[0, 0].set_yticks(range(len(arms)), [f"{arm} − {reference[arm]}" for arm in arms], fontsize=8)
    grid[0, 0].invert_yaxis()
    style.name_axes(grid, f"difference in {label}")
    return figure


@style.drawn
def predictions(experiment: Experiment, arm: str = "r100", seed: int = 0) -> Figure:
    """True and predicted labels of the best, the median and the worst test animal, by the mean Dice of its tissues."""
    scores = experiment.scores
    mine = scores[(scores["arm"] == arm) & (scores["seed"] == seed)]
    per_scan = mine.groupby(["subject", "session"], sort=False)["dice"].mean()
    order = np.argsort(-per_scan.to_numpy(), kind="stable")
    chosen = {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}
    places = {(scan.subject, scan.session): index for index, scan in enumerate(experiment.test)}
    network = experiment.network(arm, seed)
    figure, grid = plt.subplots(6, 3, figsize=(WIDTH, 8.6), layout="compressed")
    for pair, (name, which) in zip(grid.reshape(3, 2, 3), chosen.items(), strict=True):
        index = places[per_scan.index[which]]
        scan = experiment.test[index]
        images, box = inputs(experiment.test.subset([index]), experiment.plan)
        labels = full_labels(probabilities([network], images, box), scan.image.shape, experiment.plan)[0].numpy()
        for row, (what, drawn) in zip(pair, (("true", scan.labels), ("predicted", labels)), strict=True):
            for ax, plane in zip(row, style.PLANES.values(), strict=True):
                _overlay(ax, scan, np.asarray(drawn), plane)
            row[0].set_ylabel(what)
        pair[0, 1].set_title(f"{name}: animal {scan.subject}, mean Dice {per_scan.iloc[which]:.3f}", fontsize=9)
    style.bare(grid.flat)
    for ax, plane in zip(grid[0], style.PLANES.values(), strict=True):
        style.name_sides(ax, plane)
    if experiment.plan.labels == TISSUE_LABELS:
        figure.suptitle("CSF light blue, grey matter orange, white matter purple", fontsize=9)
    return figure


def _overlay(ax: Axes, scan: Scan, labels: np.ndarray, plane: style.Plane) -> None:
    """The slice through the middle of a scan's own labels, with labels over it."""
    inside = style.inside(np.asarray(scan.labels) > 0, plane.axis)
    index = int(inside[len(inside) // 2]) if len(inside) else scan.image.shape[plane.axis] // 2
    style.show_section(ax, scan.image, scan.affine, plane, index, vmin=0, vmax=float(np.percentile(scan.image, 99.5)))
    style.show_labels(ax, labels, scan.affine, plane, index)


@style.drawn
def teacher_labels(experiment: Experiment, arm: str = "r100+s200", seed: int = 0, n: int = 60) -> Figure:
    """Synthetic scans with their teacher's labels and the probability of the label that won.

    Of `n` scans the surest, the median and the least sure; the arm's reference has to be trained.
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
    figure, grid = style.picture_grid(3, 3, 0.5)
    for axes, (name, which) in zip(grid, rows.items(), strict=True):
        whole = [volumes.resize(part[which][None].float(), side) for part in (sample.normalised, winners)]
        image, sure = (volumes.crop_from_cube(part, shape)[0].numpy() for part in whole)
        index = (shape[cut.axis] - 1) // 2
        for ax in axes[:2]:
            style.show_section(ax, image, first.affine, cut, index, vmin=0, vmax=1)
        style.show_labels(
            axes[1], full_labels(chances[which][None], shape, experiment.plan)[0].numpy(), first.affine, cut, index
        )
        axes[0].set_ylabel(f"{name}: {certain[which]:.2f}")
        shown = style.show_section(
            axes[2], sure, first.affine, cut, index, cmap="cividis", vmin=1 / len(experiment.plan.labels), vmax=1
        )
    titles = ("synthetic scan", "teacher's labels", "probability of label")
    for ax, title in zip(grid[0], titles, strict=True):
        ax.set_title(title)
    figure.colorbar(shown, ax=grid[:, 2], location="bottom", shrink=0.9)
    style.bare(grid.flat)
    style.name_sides(grid[0, 0], cut)
    return figure
