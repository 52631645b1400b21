"""What all figures share: fonts, colours, sections in mm with their directions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, ParamSpec

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from nibabel.affines import apply_affine

from labkit.data.labels import TISSUE_NAMES

P = ParamSpec("P")

WIDTH = 5.4  # inches: on a page 480 px wide, 10 pt text is still about 11 px tall
STYLE = {
    "figure.facecolor": "white",  # also on a dark page
    "figure.dpi": 160,
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,  # "+5.432e1" at an axis is read by nobody
    "legend.frameon": False,
}

# Okabe and Ito's palette, which the common kinds of colour blindness keep apart
BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7"
GREY = "#555555"
TISSUE_COLOURS = {"CSF": SKY, "grey matter": ORANGE, "white matter": PURPLE, "brain": GREY}
LABEL_COLOURS = ListedColormap([TISSUE_COLOURS[name] for name in TISSUE_NAMES.values()])


class Plane(NamedTuple):
    """A section through a scan: the array axis it is cut across, those drawn across and up, and its four sides."""

    axis: int
    across: int
    up: int
    left: str
    right: str
    bottom: str
    top: str


PLANES = {
    "coronal": Plane(2, 0, 1, "L", "R", "V", "D"),
    "sagittal": Plane(0, 2, 1, "caudal", "rostral", "V", "D"),
    "horizontal": Plane(1, 0, 2, "L", "R", "caudal", "rostral"),
}
DIRECTIONS = (("left", "right"), ("ventral", "dorsal"), ("caudal", "rostral"))  # of array axes 0, 1, 2
_WORLD = (0, 2, 1)  # world axis along which array axes 0, 1, 2 run


def drawn(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the study's style and hand the figure over closed, so that a notebook shows it once, the cell's value."""

    @functools.wraps(function)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with plt.rc_context(STYLE):
            figure = function(*args, **kwargs)
        plt.close(figure)
        return figure

    return styled


def picture_grid(rows: int, columns: int, more: float = 0.0, tall: float = 1.0) -> tuple[Figure, np.ndarray]:
    """Axes (rows, columns) for pictures `tall` times as high as wide across a page, and `more` inches for writing."""
    size = (WIDTH, WIDTH / columns * tall * rows + more)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="compressed")


def legend_outside(ax: Axes, where: str, ncols: int, **options) -> None:
    """One legend for all panels of a figure, from one of them, at its ``"upper"`` or ``"lower"`` edge."""
    ax.figure.legend(*ax.get_legend_handles_labels(), loc=f"outside {where} center", ncols=ncols, **options)


def name_axes(grid: np.ndarray, x: str, y: str = "") -> None:
    """Name the axes of panels (rows, columns) once, at the lowest row and the first column."""
    for ax in grid[-1]:
        ax.set_xlabel(x)
    for ax in grid[:, 0] if y else ():
        ax.set_ylabel(y)


def plane_called(name: str) -> Plane:
    """The plane of that name; ValueError with the names there are."""
    if name not in PLANES:
        raise ValueError(f"no plane is called {name!r}; allowed: {', '.join(PLANES)}")
    return PLANES[name]


def positions_mm(affine: np.ndarray, shape: Sequence[int], axis: int) -> np.ndarray:
    """World coordinate, mm, of each slice across array axis `axis`, on the line through the middle of the grid."""
    index = np.tile((np.asarray(shape, float) - 1) / 2, (shape[axis], 1))
    index[:, axis] = np.arange(shape[axis])
    return apply_affine(affine, index)[:, _WORLD[axis]]


def where_mm(axis: int, mm: float) -> str:
    """A world coordinate along array axis `axis` in words: ``"2.5 mm caudal"``."""
    return "0.0 mm" if abs(mm) < 0.05 else f"{abs(mm):.1f} mm {DIRECTIONS[axis][int(mm > 0)]}"


def number(value: float) -> str:
    """An intensity for people: whole from 1000 on, four digits below."""
    return (f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}").replace("-", "−")


def extent_mm(affine: np.ndarray, shape: Sequence[int], plane: Plane) -> tuple[float, float, float, float]:
    """Outer edges (left, right, bottom, top), mm, of a section."""
    edges = []
    for axis in (plane.across, plane.up):
        mm = positions_mm(affine, shape, axis)
        half = (mm[-1] - mm[0]) / (len(mm) - 1) / 2
        edges += [mm[0] - half, mm[-1] + half]
    return tuple(edges)


def section(array: np.ndarray, plane: Plane, index: int) -> np.ndarray:
    """Slice `index` of an array (X, Y, Z), as (up, across)."""
    cut = array[(slice(None),) * plane.axis + (index,)]  # keeps the other two axes in order, and a mask
    return cut.T if plane.across < plane.up else cut


def inside(mask: np.ndarray, axis: int) -> np.ndarray:
    """The slices across array axis `axis` in which a mask (X, Y, Z) has voxels."""
    return np.flatnonzero(mask.any(tuple(other for other in range(3) if other != axis)))


def show_section(ax: Axes, array: np.ndarray, affine: np.ndarray, plane: Plane, index: int, **image) -> AxesImage:
    """Draw a slice with axes in mm, voxel by voxel (no smoothing); `image` goes to matplotlib's imshow."""
    extent = extent_mm(affine, array.shape, plane)
    options = {"cmap": "gray", "interpolation": "nearest"} | image
    return ax.imshow(section(array, plane, index), origin="lower", extent=extent, aspect="equal", **options)


def show_labels(ax: Axes, labels: np.ndarray, affine: np.ndarray, plane: Plane, index: int) -> None:
    """A label map (X, Y, Z) in colour over a section, half transparent: tissues, or twenty colours for other labels."""
    shown, tissues = np.ma.masked_equal(labels, 0), np.max(labels, initial=0) <= len(TISSUE_NAMES)
    colours = LABEL_COLOURS if tissues else plt.get_cmap("tab20")
    show_section(ax, (shown - 1) % colours.N, affine, plane, index, cmap=colours, vmin=-0.5, vmax=colours.N - 0.5,
                 alpha=0.5)  # fmt: skip


def write_on(ax: Axes, x: float, y: float, text: str, **options) -> None:
    """White text with a thin dark edge, legible on dark and bright tissue; `x`, `y` are parts of the axes, [0, 1]."""
    edge = [patheffects.withStroke(linewidth=2, foreground="black")]
    ax.text(x, y, text, transform=ax.transAxes, path_effects=edge, **{"color": "white", "size": 9} | options)


def name_sides(ax: Axes, plane: Plane) -> None:
    """Write the four directions (L, R, D, V, rostral, caudal) inside the edges of a section."""
    write_on(ax, 0.02, 0.5, plane.left, ha="left", va="center", rotation=90 if len(plane.left) > 1 else 0)
    write_on(ax, 0.98, 0.5, plane.right, ha="right", va="center", rotation=90 if len(plane.right) > 1 else 0)
    write_on(ax, 0.5, 0.02, plane.bottom, ha="center", va="bottom")
    write_on(ax, 0.5, 0.98, plane.top, ha="center", va="top")


def scale_bar(ax: Axes) -> None:
    """Draw a bar of 5 mm into the lower right of a section, with its length over it."""
    mm = 5
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    end, height = right - 0.05 * (right - left), bottom + 0.05 * (top - bottom)
    ax.plot([end - mm, end], [height, height], color="white", linewidth=2, solid_capstyle="butt")
    middle = 0.95 - mm / 2 / (right - left)
    write_on(ax, middle, 0.065, f"{mm} mm", ha="center", va="bottom")


def bare(axes: Iterable[Axes]) -> None:
    """No ticks and frames around pictures that carry a scale bar; axes without a picture vanish."""
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)


def label_first(grid: np.ndarray, plane: Plane) -> None:
    """No ticks and frames around sections (rows, columns); the first has directions and a scale bar for all."""
    bare(grid.flat)
    name_sides(grid.flat[0], plane)
    scale_bar(grid.flat[0])
