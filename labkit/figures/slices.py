"""Pictures of the scans themselves: planes, series of slices, mean and spread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from nibabel import orientations
from nibabel.affines import apply_affine

from labkit.data.cohort import Scan
from labkit.data.grids import STUDY_AXES, axis_change, grid_affine
from labkit.data.labels import TISSUE_NAMES
from labkit.evidence import describe
from labkit.evidence.brightness import intensity_window
from labkit.figures import style
from labkit.figures.style import PLANES, TISSUE_COLOURS, WIDTH

ROW, HEAD = 1.8, 0.25  # inches: one scan in three planes, the line above all


@style.drawn
def three_planes(
    scans: Iterable[Scan],
    window: tuple[float, float] | None = None,
    title: str = "",
    names: Sequence[str] | None = None,
) -> Figure:
    """A row a scan: sagittal, coronal and horizontal section through the middle of its brain, drawn by nilearn.

    Parameters
    ----------
    scans : iterable of Scan
        At least one; a cohort is one.
    window : tuple of float, optional
        Intensities shown black and white. Default: one window for all rows, :func:`.intensity_window`.
    title : str
        Over the rows; the window is always written there.
    names : sequence of str, optional
        Of the rows; default those of the scans.

    Returns
    -------
    matplotlib.figure.Figure
        Three axes a scan, in mm (world coordinates), left on the left.
    """
    from nilearn import plotting

    scans = _some(scans)
    low, high = intensity_window(scans) if window is None else window
    figure = plt.figure(figsize=(WIDTH, ROW * len(scans) + HEAD))
    height = ROW / figure.get_figheight()
    for row, scan in enumerate(scans):
        rectangle = (0, (len(scans) - 1 - row) * height, 1, height * 0.97)
        display = plotting.plot_anat(
            scan.nifti(), cut_coords=_middle(scan), display_mode="ortho", figure=figure, axes=rectangle, vmin=low,
            vmax=high, dim=0, draw_cross=False, annotate=False, black_bg=True, radiological=False, colorbar=False,
        )  # fmt: skip
        display.annotate(
            left_right=False, positions=True, decimals=1, size=9, scalebar=True, scale_size=5, scale_units="mm"
        )
        for direction, plane in zip("yxz", PLANES.values(), strict=True):
            _true_to_scale(display.axes[direction].ax)
            style.name_sides(display.axes[direction].ax, plane)
        name = names[row] if names else describe.scan_name(scan)
        # below the letters of the sides, which a long name would reach
        style.write_on(display.axes["x"].ax, 0.02, 0.88, name, ha="left", va="top", size=10)
    shown = f"intensity {style.number(low)} (black) to {style.number(high)} (white)"
    figure.suptitle(f"{title}: {shown}" if title else shown, y=1, va="top", fontsize=10)
    return figure


@style.drawn
def lies_otherwise(scan: Scan) -> Figure:
    """A scan as its header has it lie, above, and with the axes that fit the study's anatomy best, below.

    Parameters
    ----------
    scan : Scan
        One whose ``origin.better_axes`` names such axes: what :func:`labkit.open_cohort` warns of.

    Raises
    ------
    ValueError
        Its header fits.
    """
    best = scan.origin.better_axes
    if not best:
        raise ValueError(f"{describe.scan_name(scan)} lies as its header says: there are no axes that fit better")
    study = "".join(STUDY_AXES)
    image, zooms = np.asarray(scan.image), np.asarray(scan.zooms)
    for change in (axis_change(study, scan.origin.axes), axis_change(best, study)):
        image, moved = orientations.apply_orientation(image, change), np.empty(3)
        moved[change[:, 0].astype(int)] = zooms
        zooms = moved
    rows = {
        scan.origin.axes: (scan.image, scan.affine),
        best: (image, grid_affine(image.shape, tuple(zooms))),
    }
    low, high = intensity_window([scan])
    figure, grid = plt.subplots(2, 3, figsize=(WIDTH, 0.62 * WIDTH), squeeze=False, layout="compressed")
    for axes, (words, (array, affine)) in zip(grid, rows.items(), strict=True):
        for ax, (name, cut) in zip(axes, PLANES.items(), strict=True):
            style.show_section(ax, array, affine, cut, (array.shape[cut.axis] - 1) // 2, vmin=low, vmax=high)
            style.name_sides(ax, cut)
            ax.set_title(f"{name}, axes {words}", fontsize=9)
    style.bare(grid.flat)
    said = f"{describe.scan_name(scan)}: by its header ({scan.origin.axes}), and as it fits better ({best})"
    figure.suptitle(said, fontsize=10)
    return figure


@style.drawn
def slice_series(
    scan: Scan, plane: str = "coronal", n: int = 9, labels: bool = False, window: tuple[float, float] | None = None
) -> Figure:
    """Slices from one end of the head to the other, four a row.

    Parameters
    ----------
    scan : Scan
        One scan.
    plane : {"coronal", "sagittal", "horizontal"}
        Which sections.
    n : int
        How many, evenly over the field of view.
    labels : bool
        Colour CSF, grey and white matter; a scan without labels is drawn plain.
    window : tuple of float, optional
        Intensities shown black and white; default :func:`.intensity_window` of this scan.

    Returns
    -------
    matplotlib.figure.Figure
        One axes a slice, in mm, entitled with its position; where there are labels, a legend.
    """
    cut = style.plane_called(plane)
    depth = scan.image.shape[cut.axis]
    n = min(n, depth)
    chosen = np.unique(np.round((np.arange(n) + 0.5) * depth / n - 0.5).astype(int))
    low, high = intensity_window([scan]) if window is None else window
    positions = style.positions_mm(scan.affine, scan.image.shape, cut.axis)
    left, right, bottom, top = style.extent_mm(scan.affine, scan.image.shape, cut)
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, grid = style.picture_grid(rows, columns, 0.3 * rows + 0.4, (top - bottom) / (right - left))
    for ax, index in zip(grid.flat, chosen, strict=False):
        style.show_section(ax, scan.image, scan.affine, cut, index, vmin=low, vmax=high)
        if labels and scan.labels is not None:
            style.show_labels(ax, scan.labels, scan.affine, cut, index)
        ax.set_title(style.where_mm(cut.axis, positions[index]))
    style.label_first(grid, cut)
    if labels and scan.labels is not None and scan.labels.max() <= len(TISSUE_NAMES):
        handles = [Patch(color=TISSUE_COLOURS[name], label=name) for name in TISSUE_NAMES.values()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@style.drawn
def one_slice(
    scan: Scan,
    plane: str = "coronal",
    index: int | None = None,
    labels: bool = False,
    window: tuple[float, float] | None = None,
) -> Figure:
    """A single slice, large, with axes in mm; the title gives the position and the intensity window.

    `index` counts from 0, by default the middle slice; `labels` colours CSF, grey and white matter, where there are
    labels; `window` are the intensities shown black and white, default :func:`.intensity_window` of this scan.
    ValueError if there is no such plane or slice.
    """
    cut = style.plane_called(plane)
    depth = scan.image.shape[cut.axis]
    index = (depth - 1) // 2 if index is None else index
    if not 0 <= index < depth:
        raise ValueError(f"slice {index} does not exist: {plane} slices of this scan are 0 to {depth - 1}")
    low, high = intensity_window([scan]) if window is None else window
    figure, ax = plt.subplots(figsize=(4.6, 4.4), layout="constrained")
    style.show_section(ax, scan.image, scan.affine, cut, index, vmin=low, vmax=high)
    if labels and scan.labels is not None:
        style.show_labels(ax, scan.labels, scan.affine, cut, index)
    style.name_sides(ax, cut)
    where = style.where_mm(cut.axis, style.positions_mm(scan.affine, scan.image.shape, cut.axis)[index])
    ax.set(title=f"{where}; black {style.number(low)}, white {style.number(high)}", xlabel="mm", ylabel="mm")
    return figure


@style.drawn
def mean_and_sd(cohort: Sequence[Scan]) -> Figure:
    """Mean and standard deviation over the cohort, voxel by voxel, in three planes through the middle of the grid.

    Parameters
    ----------
    cohort : Cohort or sequence of Scan
        Scans on one grid, each scaled to [0, 1] (:func:`labkit.evidence.describe.mean_and_sd`).

    Returns
    -------
    matplotlib.figure.Figure
        A row of three axes for the mean, another for the standard deviation (missing for a single scan), each
        row with its colour bar.
    """
    scans = _some(cohort)
    mean, sd = describe.mean_and_sd(scans)
    maps = {"mean" if sd is not None else "scan": (mean, "gray")}
    if sd is not None:
        maps["SD"] = (sd, "cividis")
    affine, shape = scans[0].affine, mean.shape
    extents = [style.extent_mm(affine, shape, plane) for plane in PLANES.values()]
    widths = [right - left for left, right, _, _ in extents]
    tall = (WIDTH - 1.1) / sum(widths) * max(top - bottom for _, _, bottom, top in extents)
    size = (WIDTH, (tall + 0.15) * len(maps) + 0.7)
    figure, grid = plt.subplots(len(maps), 3, figsize=size, squeeze=False, layout="compressed", width_ratios=widths)
    for row, (what, (values, colours)) in zip(grid, maps.items(), strict=True):
        high = float(np.percentile(values, 99.8))
        for ax, plane in zip(row, PLANES.values(), strict=True):
            index = (shape[plane.axis] - 1) // 2
            image = style.show_section(ax, values, affine, plane, index, cmap=colours, vmin=0, vmax=high)
            style.name_sides(ax, plane)
        row[0].set_ylabel(what)
        figure.colorbar(image, ax=row, extend="max", shrink=0.8)
    for ax, name in zip(grid[0], PLANES, strict=True):
        ax.set_title(name)
    style.bare(grid.flat)
    figure.suptitle(f"{len(scans)} scan{'s' * (len(scans) > 1)}, each from 0 to 1", fontsize=10)
    return figure


def _some(scans: Iterable[Scan]) -> list[Scan]:
    scans = list(scans)
    if not scans:
        raise ValueError("no scans to draw: give at least one")
    return scans


def _true_to_scale(ax: Axes) -> None:
    """Stretch nilearn's picture to its voxels' outer edges: it reaches from centre to centre, 1 voxel in 40 short."""
    for image in ax.images:
        if image.get_array().ndim == 2:  # not the black ground
            rows, columns = image.get_array().shape
            left, right, bottom, top = image.get_extent()
            across, up = (right - left) / (columns - 1) / 2, (top - bottom) / (rows - 1) / 2
            image.set_extent((left - across, right + across, bottom - up, top + up))


def _middle(scan: Scan) -> tuple[float, ...]:
    """World position, mm, of the voxel in the middle of the box that holds the scan's brain (head, without labels)."""
    mask, _ = describe.region(scan)
    middle = [style.inside(mask, axis)[[0, -1]].mean() for axis in range(3)]
    return tuple(float(mm) for mm in apply_affine(scan.affine, np.round(middle)))
