"""Pictures of a latent space: what a direction does, the way between two animals, and the same as cards for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from labkit.evidence.latent import LatentSpace
from labkit.figures import frames, style
from labkit.figures.frames import Card, Cards
from labkit.figures.style import WIDTH

REACH = 3.0
"""Standard deviations to either side that strips, cards and sliders go."""


class View(NamedTuple):
    """A place in code space: its volume (1, S, S, S), its picture (uint8), and what there is to say of it."""

    volume: Tensor
    picture: np.ndarray
    words: str


def view(
    space: LatentSpace, code: Tensor, kind: str, at: Sequence[float] = (0.5, 0.5, 0.5), cross: bool = False
) -> View:
    """Decode a code (Z,) and look at it: the one function behind sliders and pages.

    `at` and `cross` as in :func:`labkit.figures.frames.three_linked_planes`.
    """
    volume = space.volume(code, kind)
    near = space.nearest(volume)
    scan = space.train[0]
    picture = frames.three_linked_planes(volume[0].numpy(), at, scan.image.shape, scan.zooms, cross)
    readings = []
    if space.gauges is not None:
        gauge = space.gauges[1]
        readings = [f"{n.split(',')[0]} {_three_digits(v)}{_unit(n)}" for n, v in zip(
            gauge.names, gauge(volume[None])[0].tolist(), strict=True)]  # fmt: skip
    nearest = f"nearest training scan: animal {near.subject} at {near.distance:.3f}"
    usual = (
        f"held-out animals: {space.usual_distance:.3f}" if space.has_held_out else "no animals held out to compare with"
    )
    return View(volume, picture, "; ".join([f"{nearest} ({usual})", *readings]))


def _three_digits(value: float) -> str:
    return (f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "−")


def _unit(name: str) -> str:
    unit = name.partition(", ")[2]
    return f" {unit}" if unit else ""


def direction_cards(space: LatentSpace, code: Tensor, kind: str, steps: int = 13) -> Cards:
    """A card for each direction: an animal (code (Z,)) moved along it, for pages without a kernel.

    Coronal, sagittal and horizontal sections with a bar of 5 mm, `steps` pictures a card, up to :data:`REACH` standard
    deviations to either side; odd numbers have the unmoved rat in the middle.
    """
    directions, cards = space.directions[kind], []
    for name in directions.names:
        places = np.linspace(-REACH, REACH, steps)
        views = [view(space, directions.move(code, {name: float(place)}), kind) for place in places]
        moved = [f"{place:+.1f} SD".replace("-", "−") for place in places]
        words = [f"{how_far}; {seen.words}" for how_far, seen in zip(moved, views, strict=True)]
        cards.append(Card([seen.picture for seen in views], words, f"{name}, {kind} code"))
    return Cards(cards, "direction")


@style.drawn
def traversals(space: LatentSpace, code: Tensor, kind: str) -> Figure:
    """A row for each direction: an animal (code (Z,)) moved along it, and the change from end to end.

    Returns
    -------
    matplotlib.figure.Figure
        Five coronal sections a row, up to :data:`REACH` standard deviations to either side, window [-1, 1]; at the end,
        last minus first in red and blue.
    """
    directions, places = space.directions[kind], np.linspace(-REACH, REACH, 5)
    figure, grid = style.picture_grid(len(directions.names), 6, 0.6)
    for row, name in zip(grid, directions.names, strict=True):
        codes = torch.stack([directions.move(code, {name: float(place)}) for place in places])
        cubes = space.volumes(codes, kind)[:, 0].numpy()
        for ax, cube in zip(row, cubes, strict=False):
            ax.imshow(_coronal(space, cube), cmap="gray", vmin=-1, vmax=1, aspect=_aspect(space))
        image = row[5].imshow(
            _coronal(space, cubes[-1] - cubes[0]), cmap="RdBu_r", vmin=-1, vmax=1, aspect=_aspect(space)
        )
        row[0].set_ylabel(name.split(",")[0].replace(" ", "\n", 1), fontsize=8)
    for ax, place in zip(grid[0], [*(f"{p:+.1f} SD" for p in places), "change"], strict=True):
        ax.set_title(place.replace("-", "−"), fontsize=9)
    style.bare(grid.flat)
    figure.colorbar(image, ax=grid, location="bottom", shrink=0.4, aspect=30, label="change over [−1, 1]")
    return figure


def _coronal(space: LatentSpace, cube: np.ndarray) -> np.ndarray:
    scan = space.train[0]
    part, _ = frames.crop(cube, scan.image.shape, scan.zooms)
    return part[:, :, part.shape[2] // 2].T[::-1]


def _aspect(space: LatentSpace) -> float:
    return space.train[0].zooms[1] / space.train[0].zooms[0]


@style.drawn
def film_strip(space: LatentSpace, codes: Tensor, kind: str, columns: int = 2) -> Figure:
    """Scans along a way through code space, codes (n, Z) as of :func:`labkit.generation.interpolate`, in three planes.

    Each is entitled with its place on the way and its distance to the nearest training scan.
    """
    rows = -(-len(codes) // columns)
    seen = [view(space, code, kind) for code in codes]
    height, width = seen[0].picture.shape
    size = WIDTH / columns * height / width + 0.28
    figure, grid = plt.subplots(rows, columns, figsize=(WIDTH, size * rows), squeeze=False, layout="constrained")
    for place, (ax, one) in enumerate(zip(grid.flat, seen, strict=False)):
        ax.imshow(one.picture, cmap="gray", vmin=0, vmax=255)
        share = place / max(1, len(codes) - 1)
        ax.set_title(f"{100 * share:.0f} %, nearest {space.nearest(one.volume).distance:.3f}", fontsize=8)
    for ax in list(grid.flat)[len(seen) :]:
        ax.set_visible(False)
    style.bare(grid.flat)
    return figure


@style.drawn
def effects(table: pd.DataFrame) -> Figure:
    """What each direction does to each attribute, as a table in colour.

    Parameters
    ----------
    table : pandas.DataFrame
        From :meth:`labkit.evidence.latent.LatentSpace.effects`.

    Returns
    -------
    matplotlib.figure.Figure
        Directions down, attributes across, standard deviations of real animals for a step of one standard deviation;
        where no attribute can be read, how much the picture changes.
    """
    columns = [name for name in table.columns if name not in ("image", "right way", "r", "share")]
    unit = "SD of real animals" if columns else "RMS over [−1, 1]"
    columns = columns or ["image"]
    values = table[columns].to_numpy(float)
    reach = max(0.2, float(np.abs(values).max()))
    figure, ax = plt.subplots(figsize=(WIDTH, 0.36 * len(table) + 1.5), layout="constrained")
    image = ax.imshow(values, cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        dark = abs(value) > 0.6 * reach
        shown = f"{value:+.2f}".replace("-", "−") if abs(value) >= 0.005 else "0"
        ax.text(column, row, shown, ha="center", va="center", fontsize=8,
                color="white" if dark else "black")  # fmt: skip
    ax.set_xticks(range(len(columns)), [name.split(",")[0] for name in columns], rotation=35, ha="right")
    ax.set_yticks(range(len(table)), [name.split(",")[0] for name in table.index])
    ax.spines[:].set_visible(False)
    figure.colorbar(image, ax=ax, label=f"{unit}\nfor a step of 1 SD")
    return figure
