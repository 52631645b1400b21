"""Which way an animal lies in its array, by how well the embedded anatomy fits each of the 24 ways there are.

Headers of animal scanners are often written for a person lying down: then sections are exchanged, or half of the brain
is cut off. A scan is looked at coarsely, centred and scaled by its own moments, and held against the mean of simulated
rats, with and without what is around the brain. Left and right are alike, so that a mirrored scan cannot be told.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import cache
from importlib import resources

import numpy as np
from nibabel import orientations

from labkit.data.grids import STUDY_AXES, axis_change

SIDE, REACH = 28, 2.3
"""Voxels of the cubes that are compared, and how far they reach from the middle, in standard deviations of place."""

SYMMETRY = 0.5
"""What being like one's mirror image from left to right counts beside a correlation: 0.94 to 0.99 in rats and mice,
along other axes 0.79 to 0.93. A head in a wide field, on thick slices, is like the reference from four sides else."""

SHIFT = 3
"""Voxels that a scan's middle may be apart from the reference's."""

CLEARLY = 0.03
"""By how much another way has to fit better to be believed. Of 23 wrong ways each of 8 rats of either simulator, with
and without skull, with noise, with the coil below, of 25 mice and of a real rat, 93 to 100 % were told, all with the
right axes first, and no right one was doubted."""

LEAST = 0.75
"""Correlation below which an image is like no head that is known here, and nothing is said of it: of plain ellipsoids
it is 0.73, of a real rat on 24 thick slices 0.78, of mice 0.88."""

FILE = "orientation.npy"
"""Mean head and mean brain of simulated rats, uint8 (2, S, S, S), written by :func:`references`."""


def fits(image: np.ndarray, zooms: Iterable[float], stored_axes: str) -> list[str]:
    """The axes that fit a stored array best, of an image (X, Y, Z) with axes right, superior, anterior by its header.

    `stored_axes` are those of the file's array by that header, and the whole answer where no other way fits clearly
    better. The best is first; behind it are those that are hardly worse, where sections alone cannot tell: mostly which
    end is rostral.
    """
    turns, cube = _turns(), coarse(image, tuple(zooms))
    found = _correlations(cube)
    like = found.max()
    found += SYMMETRY * _symmetries(cube)[[order[0] for order, _ in turns]]
    header = float(found[turns.index(((0, 1, 2), (1, 1, 1)))])
    if like < LEAST or found.max() - header < CLEARLY:
        return [stored_axes]
    near = [place for place in np.argsort(-found) if found.max() - found[place] < CLEARLY]
    if len(near) > 2:  # what is alike from many sides says nothing
        return [stored_axes]
    return [_axes_of(stored_axes, turns[place]) for place in near]


def coarse(image: np.ndarray, zooms: tuple[float, ...]) -> np.ndarray:
    """A scan seen coarsely, (S, S, S) float32, centred on what is bright and scaled by its spread."""
    from scipy import ndimage

    values = np.clip(image.astype(np.float32) / max(float(np.percentile(image, 99.5)), 1e-12), 0, 1)
    weight = ndimage.binary_opening(values > 0.15) * values
    if not weight.any():
        weight = values
    if not weight.any():
        return np.zeros(3 * (SIDE,), np.float32)
    places, some = np.argwhere(weight > 0) * np.asarray(zooms), weight[weight > 0][:, None]
    centre = (places * some).sum(0) / some.sum()
    spread = np.sqrt(((places - centre) ** 2 * some).sum() / some.sum() / 3)
    step = 2 * REACH * spread / (SIDE - 1)
    blurred = ndimage.gaussian_filter(values, np.sqrt(np.maximum((step / np.asarray(zooms)) ** 2 - 1, 0)) / 2.355)
    line = spread * np.linspace(-REACH, REACH, SIDE)
    along = [(middle + line) / zoom for middle, zoom in zip(centre, zooms, strict=True)]
    return ndimage.map_coordinates(blurred, np.meshgrid(*along, indexing="ij"), order=1, mode="constant")


def references(scans: Iterable[tuple[np.ndarray, np.ndarray, tuple[float, ...]]]) -> np.ndarray:
    """What :data:`FILE` holds, of heads, their labels and voxel sizes."""
    both = [[coarse(part, zooms) for part in (image, np.where(labels > 0, image, 0))] for image, labels, zooms in scans]
    mean = np.mean(both, axis=0)
    return np.round(255 * mean / mean.max()).astype(np.uint8)


@cache
def _references() -> np.ndarray:
    """Fourier transforms of the references, conjugated."""
    with resources.files("labkit.data").joinpath(FILE).open("rb") as stream:
        kept = np.load(stream, allow_pickle=False)
    return np.conj(np.fft.fftn([_standard(cube) for cube in kept], axes=(1, 2, 3)))


def _standard(cube: np.ndarray) -> np.ndarray:
    centred = cube - cube.mean(dtype=np.float64)
    return centred / max(float(np.linalg.norm(centred)), 1e-12)


@cache
def _turns() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The 24 ways to turn a cube, as permutation of axes and their signs."""
    ways = itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3))
    return [(order, signs) for order, signs in ways if np.linalg.det(np.eye(3)[list(order)] * np.array(signs)) > 0]


def turned(array: np.ndarray, turn: tuple[tuple[int, ...], tuple[int, ...]]) -> np.ndarray:
    """An array, turned."""
    order, signs = turn
    return array.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]


def _correlations(cube: np.ndarray) -> np.ndarray:
    """Of each way to turn a cube the largest correlation with a reference, over small shifts; (24,)."""
    near = np.ix_(range(2), *[[*range(SHIFT + 1), *range(-SHIFT, 0)]] * 3)
    standard = _standard(cube)
    return np.array(
        [np.fft.ifftn(_references() * np.fft.fftn(turned(standard, turn)), axes=(1, 2, 3)).real[near].max()
         for turn in _turns()]
    )  # fmt: skip


def _symmetries(cube: np.ndarray) -> np.ndarray:
    """Along each axis, how like a cube is to its mirror image, wherever the mirror stands; (3,)."""
    standard = _standard(cube)
    spectrum, found = np.fft.fftn(standard), []
    for axis in range(3):
        moved = np.fft.ifftn(spectrum * np.conj(np.fft.fftn(np.flip(standard, axis)))).real
        moved = moved.max(axis, keepdims=True)
        found.append(float(moved.flat[0]))
    return np.array(found)


def _axes_of(stored_axes: str, turn: tuple[tuple[int, ...], tuple[int, ...]]) -> str:
    """The axes of a stored array which, taken for the header's and then turned, lies as the study's do."""
    study, probe = "".join(STUDY_AXES), np.arange(24).reshape(2, 3, 4)
    wanted = turned(orientations.apply_orientation(probe, axis_change(stored_axes, study)), turn)
    letters = itertools.product(itertools.permutations(("RL", "AP", "SI")), itertools.product((0, 1), repeat=3))
    for axes in ("".join(pair[place] for pair, place in zip(*way, strict=True)) for way in letters):
        given = orientations.apply_orientation(probe, axis_change(axes, study))
        if given.shape == wanted.shape and (given == wanted).all():
            return axes
    raise AssertionError("some axes give every way to lie")
