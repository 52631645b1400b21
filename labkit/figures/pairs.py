"""Real beside synthetic: series of slices, mean and spread, reconstructions, contact sheets, a viewer for pages."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from labkit.data import bids
from labkit.data.cohort import Scan
from labkit.evidence import describe
from labkit.evidence.brightness import intensity_window
from labkit.figures import frames, style
from labkit.figures.frames import Card, Cards
from labkit.figures.slices import _some, _true_to_scale
from labkit.figures.style import PLANES, WIDTH

COLOUR_MAPS = {False: "gray", True: "cividis"}  # cividis: bright means bright for the colour-blind, too
NILEARN_MODE = {"sagittal": "x", "coronal": "y", "horizontal": "z"}


@style.drawn
def slice_pairs(real: Scan, synthetic: Scan, plane: str = "coronal", n: int = 5, colour: bool = False) -> Figure:
    """Slices of a real scan above those of a synthetic one, at the same positions, in one window, drawn by nilearn.

    Parameters
    ----------
    real, synthetic : Scan
        On one grid.
    plane : {"coronal", "sagittal", "horizontal"}
        Which sections.
    n : int
        How many, evenly over the real brain (head, without labels) but for its outermost 5 %.
    colour : bool
        In colour with a bar, which shows smooth differences of brightness that grey hides; else grey.

    Returns
    -------
    matplotlib.figure.Figure
        Two rows of n axes, in mm; the title states the window.
    """
    from nilearn import plotting

    cut = style.plane_called(plane)
    low, high = intensity_window([real, synthetic])
    positions = style.positions_mm(real.affine, real.image.shape, cut.axis)
    inside = style.inside(describe.region(real)[0], cut.axis)
    first, last = inside[0] + np.array([0.05, 0.95]) * (inside[-1] - inside[0])
    chosen = positions[np.unique(np.round(np.linspace(first, last, n)).astype(int))]
    left, right, bottom, top = style.extent_mm(real.affine, real.image.shape, cut)
    height = WIDTH / len(chosen) * (top - bottom) / (right - left)
    figure = plt.figure(figsize=(WIDTH, 2 * height + (0.9 if colour else 0.3)))
    tall = figure.get_figheight()
    for row, (name, scan) in enumerate((("real", real), ("synthetic", synthetic))):
        bottom_edge = (tall - 0.28 - (row + 1) * height) / tall
        display = plotting.plot_img(
            scan.nifti(), cut_coords=[float(mm) for mm in chosen], display_mode=NILEARN_MODE[plane], figure=figure,
            axes=(0, bottom_edge, 1, height * 0.97 / tall), vmin=low, vmax=high, cmap=COLOUR_MAPS[colour],
            draw_cross=False, annotate=False, black_bg=True, radiological=False, colorbar=False,
        )  # fmt: skip
        display.annotate(left_right=False, positions=True, decimals=1, size=8)
        axes = [display.axes[key].ax for key in sorted(display.axes)]
        for ax in axes:
            _true_to_scale(ax)
        if not row:
            style.name_sides(axes[-1], cut)
        style.write_on(axes[0], 0.03, 0.97, name, ha="left", va="top", size=9)
        if row:
            style.scale_bar(axes[-1])
    window = f"{style.number(low)} to {style.number(high)}"
    figure.suptitle(f"{plane} sections, positions in mm, one window: {window}", y=1, va="top", fontsize=10)
    if colour:
        bar = figure.add_axes((0.2, 0.36 / tall, 0.6, 0.09 / tall))
        mapped = plt.cm.ScalarMappable(plt.Normalize(low, high), COLOUR_MAPS[True])
        figure.colorbar(mapped, cax=bar, orientation="horizontal", label="intensity, the files' unit")
    return figure


@style.drawn
def mean_and_variance(real: Sequence[Scan], synthetic: Sequence[Scan], plane: str = "coronal") -> Figure:
    """Voxel-wise mean and variance of two cohorts, and the difference.

    Parameters
    ----------
    real, synthetic : Cohort or sequence of Scan
        Two scans or more each, on one grid, in one unit. Scans are not scaled one by one: the brightest voxel of
        each would set its scale, and smooth scans would seem bright.
    plane : {"coronal", "sagittal", "horizontal"}
        Section through the middle of the grid.

    Returns
    -------
    matplotlib.figure.Figure
        Rows mean and variance; columns real, synthetic, synthetic minus real. Real and synthetic share a colour scale;
        1 is the median of the real scans' brightest voxels.
    """
    cut = style.plane_called(plane)
    if min(len(real), len(synthetic)) < 2:
        raise ValueError(f"a variance needs two scans or more, got {len(real)} real and {len(synthetic)} synthetic")
    pairs = [describe.mean_and_sd(scans, scaled=False) for scans in (real, synthetic)]
    unit = float(np.median([scan.origin.high for scan in real]))  # so that numbers are about 0 to 1
    rows = {
        "mean": ([mean / unit for mean, _ in pairs], "gray"),
        "variance": ([(sd / unit) ** 2 for _, sd in pairs if sd is not None], "cividis"),
    }
    affine, shape = real[0].affine, pairs[0][0].shape
    index = (shape[cut.axis] - 1) // 2
    figure, grid = plt.subplots(2, 3, figsize=(WIDTH, WIDTH * 0.9), layout="compressed")
    for axes, (name, (maps, colours)) in zip(grid, rows.items(), strict=True):
        high = max(float(np.percentile(values, 99.8)) for values in maps)
        difference = maps[1] - maps[0]
        reach = max(float(np.percentile(np.abs(difference), 99.8)), 1e-9)
        for ax, values, title in zip(axes, maps, ("real", "synthetic"), strict=False):
            image = style.show_section(ax, values, affine, cut, index, cmap=colours, vmin=0, vmax=high)
            ax.set_title(f"{name}, {title}")
        figure.colorbar(image, ax=axes[:2], location="bottom", shrink=0.6, extend="max")
        apart = style.show_section(axes[2], difference, affine, cut, index, cmap="RdBu_r", vmin=-reach, vmax=reach)
        axes[2].set_title("synthetic − real")
        figure.colorbar(apart, ax=axes[2], location="bottom", shrink=0.9, extend="both")
    style.label_first(grid, cut)
    return figure


@style.drawn
def reconstruction_errors(real: Sequence[Scan], back: Sequence[Scan], plane: str = "coronal") -> Figure:
    """Scans, their reconstructions, and where they differ, in the section through the middle of the scans' own grid.

    The same animals in the same order, at most four are drawn; each pair scaled by the real scan's range, [0, 1].

    Returns
    -------
    matplotlib.figure.Figure
        Columns scans; rows scan, reconstruction, difference with a colour bar; each column entitled with the root mean
        square difference of all voxels.
    """
    if [bids.label(scan.subject) for scan in real] != [bids.label(scan.subject) for scan in back]:
        raise ValueError("scans and reconstructions are not of the same animals in the same order")
    cut = style.plane_called(plane)
    count = min(4, len(real))
    figure, grid = style.picture_grid(3, count, 0.9)
    for column in range(count):
        low, high = real[column].origin.low, real[column].origin.high
        pair = [(scans[column].image.astype(np.float32) - low) / (high - low) for scans in (real, back)]
        difference = pair[1] - pair[0]
        index = (pair[0].shape[cut.axis] - 1) // 2
        affine = real[column].affine
        for ax, values in zip(grid[:2, column], pair, strict=True):
            style.show_section(ax, values, affine, cut, index, vmin=0, vmax=0.8)
        looks = {"cmap": "RdBu_r", "vmin": -0.5, "vmax": 0.5}
        image = style.show_section(grid[2, column], difference, affine, cut, index, **looks)
        grid[0, column].set_title(f"animal {describe.scan_name(real[column])}")
        grid[2, column].set_title(f"RMSE {np.sqrt((difference**2).mean()):.3f}")
    for ax, name in zip(grid[:, 0], ("scan", "reconstruction", "difference"), strict=True):
        ax.set_ylabel(name)
    style.label_first(grid, cut)
    figure.colorbar(image, ax=grid[2], location="bottom", shrink=0.6, label="too dark (blue), too bright (red)",
                    extend="both")  # fmt: skip
    return figure


@style.drawn
def cohort_sheet(cohort: Sequence[Scan], plane: str = "sagittal", most: int = 40) -> Figure:
    """The middle section of each scan of a cohort, those that differ most from the others first, named in red.

    Parameters
    ----------
    cohort : sequence of Scan
        All of them, as what is usual is learned from them (:func:`labkit.evidence.describe.outliers`).
    plane : {"coronal", "sagittal", "horizontal"}
        Which sections.
    most : int
        Scans that are shown at most.

    Notes
    -----
    Each scan has a window of its own, so that anatomy is seen whatever the gain; an odd brightness is named.
    """
    scans = _some(cohort)
    first, cut = describe.outliers(scans)[:most], style.plane_called(plane)
    columns = min(8, len(first))
    left, right, bottom, top = style.extent_mm(scans[0].affine, scans[0].image.shape, cut)
    figure, grid = style.picture_grid(-(-len(first) // columns), columns, 0.5, 1.25 * (top - bottom) / (right - left))
    for ax, (name, row) in zip(grid.flat, first.iterrows(), strict=False):
        scan = scans[row["place"]]
        low, high = intensity_window([scan])
        index = (scan.image.shape[cut.axis] - 1) // 2
        style.show_section(ax, scan.image, scan.affine, cut, index, vmin=low, vmax=high)
        why = ", ".join(words.split()[0] for words in row["apart"].split("; ") if words)
        ax.set_title(
            f"{name}\n{why}" if first["apart"].any() else name, fontsize=8, pad=2, color="firebrick" if why else "black"
        )
    style.bare(grid.flat)
    for ax in list(grid.flat)[len(first) :]:
        ax.set_visible(False)
    of = f"the {len(first)} of {len(scans)} that differ most" if len(first) < len(scans) else f"all {len(scans)}"
    figure.suptitle(f"{plane}, {cut.left} on the left, {cut.top} on top: {of}, each in its own window", fontsize=10)
    return figure


@style.drawn
def contact_sheet(scans: Sequence[Scan], plane: str = "coronal", columns: int = 4) -> Figure:
    """The section through the middle of the grid of each scan, in one window."""
    scans = _some(scans)
    cut = style.plane_called(plane)
    low, high = intensity_window(scans)
    columns = min(columns, len(scans))
    left, right, bottom, top = style.extent_mm(scans[0].affine, scans[0].image.shape, cut)
    tall = (top - bottom) / (right - left)
    figure, grid = style.picture_grid(-(-len(scans) // columns), columns, 0.4, tall)
    for ax, scan in zip(grid.flat, scans, strict=False):
        index = (scan.image.shape[cut.axis] - 1) // 2
        style.show_section(ax, scan.image, scan.affine, cut, index, vmin=low, vmax=high)
    for ax in list(grid.flat)[len(scans) :]:
        ax.set_visible(False)
    style.label_first(grid, cut)
    figure.suptitle(f"one window: {style.number(low)} to {style.number(high)}", fontsize=10)
    return figure


def viewer(real: Scan, synthetic: Scan, planes: Sequence[str] = tuple(PLANES)) -> Cards:
    """Every slice of a real scan beside the same slice of a synthetic one, in one window, a card a plane.

    Works in a built page and from a file, without a kernel.
    """
    low, high = intensity_window([real, synthetic])
    cards = []
    for name in planes:
        cut = style.plane_called(name)
        positions = style.positions_mm(real.affine, real.image.shape, cut.axis)
        left, right, bottom, top = style.extent_mm(real.affine, real.image.shape, cut)
        pictures = []
        for index in range(len(positions)):
            pair = [frames.grey(style.section(s.image, cut, index)[::-1], low, high) for s in (real, synthetic)]
            pictures.append(np.hstack([pair[0], np.full((len(pair[0]), 1), 255, np.uint8), pair[1]]))
        drawn = f"real, synthetic, each {right - left:.0f} mm wide from {cut.left} to {cut.right}, {cut.top} on top"
        window = f"window {style.number(low)} to {style.number(high)}"
        words = [
            f"{name} slice {index + 1} of {len(positions)}, {style.where_mm(cut.axis, mm)}: {drawn}, {window}"
            for index, mm in enumerate(positions)
        ]
        size = (top - bottom, 2 * (right - left) * pictures[0].shape[1] / (pictures[0].shape[1] - 1))
        cards.append(Card(pictures, words, f"{name} slice", size_mm=size))
    return Cards(cards, "plane")
