"""Distributions over a cohort: intensities, profile, tissue volumes, and who is on which side of a split."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from labkit.data.cohort import Cohort, Scan
from labkit.data.labels import TISSUE_NAMES, has_tissues
from labkit.evidence import describe
from labkit.figures import style
from labkit.figures.style import BLUE, GREY, ORANGE, TISSUE_COLOURS, VERMILION, WIDTH

ENOUGH_FOR_A_VIOLIN = 8  # animals; a smooth outline around fewer shows what is not there


@style.drawn
def intensity_histograms(cohort: Sequence[Scan], bins: int = 80) -> Figure:
    """How often each intensity occurs: as the files have it, as the networks see it, and by tissue.

    Returns
    -------
    matplotlib.figure.Figure
        Axes one under the other: the files' unit, a line a scan; scaled to [-1, 1] by each scan's own smallest and
        largest value, a line a scan; and, where labels are of tissues, the scaled intensities of CSF, grey and white
        matter, all scans together. Voxel counts, or shares, on the vertical axes.
    """
    scans = list(cohort)
    labelled = [scan for scan in scans if has_tissues(scan.labels, need_all=False)]
    rows = 3 if labelled else 2
    figure, axes = plt.subplots(rows, 1, figsize=(WIDTH, 1.55 * rows), layout="constrained")
    low, high = min(s.image.min() for s in scans), max(s.image.max() for s in scans)
    edges, unit = np.linspace(low, high, bins + 1), np.linspace(-1, 1, bins + 1)
    faint = {"color": BLUE, "linewidth": 0.8, "alpha": max(0.1, min(0.8, 4 / len(scans)))}
    for scan in scans:
        axes[0].stairs(np.histogram(scan.image, edges)[0], edges, **faint)
        axes[1].stairs(np.histogram(2 * describe.unit_range(scan) - 1, unit)[0], unit, **faint)
    plural = "s" if len(scans) > 1 else ""
    axes[0].set(
        title=f"as in the file{plural}: {len(scans)} scan{plural}" + (", a line each" if plural else ""),
        xlabel="intensity",
    )
    axes[1].set(title="as the networks see them: each scan from −1 to 1", xlabel="scaled intensity")
    for ax in axes[:2]:
        ax.set(yscale="log", ylabel="voxels")
    if labelled:
        _by_tissue(axes[2], labelled, unit)
    return figure


def _by_tissue(ax: Axes, scans: Sequence[Scan], edges: np.ndarray) -> None:
    middles = (edges[1:] + edges[:-1]) / 2
    for (label, name), line in zip(TISSUE_NAMES.items(), ("-", "--", ":"), strict=True):
        values = [2 * describe.unit_range(scan)[np.asarray(scan.labels) == label] - 1 for scan in scans]
        counts = np.histogram(np.concatenate(values), edges)[0]
        if counts.sum():
            ax.plot(middles, counts / counts.sum(), line, color=TISSUE_COLOURS[name], linewidth=2, label=name)
    ax.set(title="by tissue, all labelled scans together", xlabel="scaled intensity", ylabel="share of voxels")
    ax.set(xlim=(-1, 1), ylim=(0, None))
    ax.legend()


@style.drawn
def dorsal_ventral_profile(cohort: Sequence[Scan]) -> Figure:
    """Mean intensity from the top of the brain down to its base, a line a scan and their mean, of scans on one grid.

    Returns
    -------
    matplotlib.figure.Figure
        One axes: relative intensity across, mm below the top of the brain (head, without labels) downwards; the title
        gives the dorsal-to-ventral ratio of :func:`labkit.evidence.describe.dorsal_ventral_ratio`.
    """
    scans = list(cohort)
    profile = describe.intensity_profile(scans)
    where = " or ".join(sorted({describe.region(scan).name for scan in scans}))
    ratios = np.array([describe.dorsal_ventral_ratio(scan) for scan in scans])
    figure, ax = plt.subplots(figsize=(WIDTH, 3.6), layout="constrained")
    for name in range(profile.shape[1]):
        line = profile.iloc[:, name]
        ax.plot(line, line.index, color=BLUE, linewidth=0.8, alpha=max(0.15, min(0.8, 4 / len(scans))))
    if len(scans) > 1:
        counts = profile.notna().sum(axis=1)
        mean = profile.mean(axis=1)[counts > len(scans) / 2]  # where most animals still have brain
        ax.plot(mean, mean.index, color=VERMILION, linewidth=2.5, label=f"mean of {len(scans)}")
        ax.legend(loc="lower right")
    ax.axvline(1, color=GREY, linewidth=0.8, linestyle="--")
    ax.set(xlabel=f"intensity / mean of the {where}", ylabel=f"mm below the top of the {where}", xlim=(0, None))
    ax.set_ylim(float(profile.index.max()), 0)
    spread = f" ± {ratios.std(ddof=1):.2f}" if len(scans) > 1 else ""
    ax.set_title(f"upper quarter of the {where} over its lower quarter: {ratios.mean():.2f}{spread}")
    return figure


@style.drawn
def tissue_volumes(cohort: Sequence[Scan], seed: int = 0) -> Figure:
    """Volume of each tissue in each animal, with SIGMA's beside it; `seed` scatters the dots across a row.

    Returns
    -------
    matplotlib.figure.Figure
        A row of axes a tissue, mm3 across, a dot a scan, a violin around eight or more; of brains of a rat's size,
        dashed, the volume of the SIGMA maps; solid, on the study's grid, the part of it in the field of view.

    Raises
    ------
    ValueError
        If no scan has labels.
    """
    table = describe.tissue_volumes(cohort)
    shown = [name for name in TISSUE_COLOURS if table[name].notna().any()]
    references = describe.sigma_volumes(cohort)
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(WIDTH, 1.05 * len(shown) + 0.7), squeeze=False, layout="constrained"
    )
    scatter = np.random.default_rng(seed).uniform(-0.2, 0.2, len(table))
    for ax, name in zip(axes[:, 0], shown, strict=True):
        values = table[name].dropna().to_numpy()
        if len(values) >= ENOUGH_FOR_A_VIOLIN and values.std() > 0:
            body = ax.violinplot(values, orientation="horizontal", positions=[0], widths=0.8, showextrema=False)
            body["bodies"][0].set(facecolor=TISSUE_COLOURS[name], alpha=0.4)
        ax.scatter(values, scatter[: len(values)], s=14, color=TISSUE_COLOURS[name], edgecolor="black", linewidth=0.4)
        looks = ({"color": GREY, "linestyle": "--"}, {"color": "black"})
        for known, look in zip(references.values(), looks, strict=False):
            ax.axvline(known[name], linewidth=1.2, **look)
        spread = f" ± {values.std(ddof=1):.0f} mm³, CV {100 * values.std(ddof=1) / values.mean():.1f} %"
        what = "whole brain" if name == "brain" else name
        ax.set_title(f"{what}: {values.mean():.0f}{spread if len(values) > 1 else ' mm³'}", loc="left")
        ax.set(yticks=[], ylim=(-0.5, 0.5))
        ax.spines["left"].set_visible(False)
        ax.margins(x=0.08)
    axes[-1, 0].set_xlabel("volume, mm³ (each row has its own scale)")
    if references:
        figure.legend(list(axes[0, 0].lines), list(references), loc="outside upper center", ncols=2)
    return figure


@style.drawn
def split_diagram(train: Cohort, held_out: Cohort) -> Figure:
    """A square an animal, in the order of their names: which ones train, which ones are held out.

    Parameters are what :func:`labkit.data.splits.split` or :meth:`labkit.data.cohort.Cohort.split` gives.

    Returns
    -------
    matplotlib.figure.Figure
        One axes with a rectangle an animal, held-out ones hatched as well as of another colour, and a legend with the
        sides' names in the paper's notation, D_r^N, N counting scans.
    """
    animals, inside = sorted({*train.subjects, *held_out.subjects}), set(train.subjects)
    columns = min(30, len(animals))
    rows = -(-len(animals) // columns)
    figure, ax = plt.subplots(figsize=(WIDTH, WIDTH * rows / max(columns, 12) + 0.9), layout="constrained")
    looks = {True: {"facecolor": BLUE}, False: {"facecolor": ORANGE, "hatch": "////"}}
    for place, animal in enumerate(animals):
        corner = (place % columns, rows - 1 - place // columns)
        ax.add_patch(Rectangle(corner, 0.88, 0.88, edgecolor="white", **looks[animal in inside]))
    ax.set(xlim=(-0.1, max(columns, 12)), ylim=(-0.1, rows), aspect="equal")
    ax.axis("off")
    sides = {True: ("train", train), False: ("held out", held_out)}
    handles = [
        Patch(edgecolor="white", **looks[key], label=f"$D_r^{{{len(side)}}}$ {name}: {_counted(side)}")
        for key, (name, side) in sides.items()
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return figure


def _counted(cohort: Cohort) -> str:
    animals, scans = len(set(cohort.subjects)), len(cohort)
    return f"{animals} animal{'s' if animals > 1 else ''}" + (f", {scans} scans" if scans > animals else "")
