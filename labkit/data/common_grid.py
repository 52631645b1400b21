"""The grid that a cohort's scans share: the study's, their own, one of the caller's, or one fitted to their heads."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes

from labkit.data import reading
from labkit.data.grids import (
    STUDY_SHAPE,
    STUDY_ZOOMS,
    ScanFaultError,
    corrected_affine,
    grid_affine,
    head_box,
    reorient,
)
from labkit.files import progress_bar

SIDES = (8, 256)
"""Fewest and most voxels along an axis; the largest cube the networks are built for has 256."""

MOST = 64
"""Voxels along the longest axis of a fitted grid, unless told otherwise: the networks' cube at the paper's scale."""

MULTIPLE = 8
"""What a fitted grid's sides are multiples of, so that networks can halve them three times."""

MARGIN = 0.06
"""What a fitted grid is longer than the longest head along each axis, both ends together."""

ALLOWED = (
    "'study', 'native', 'fitted' (or 'fitted:96', 96 voxels along the longest axis), matrix and voxel size in mm along "
    "right, superior, anterior, as text ('56x40x64@0.3', '64x64x40@0.375x0.375x0.5') or ((56, 40, 64), 0.3)"
)


@dataclass(frozen=True)
class Grid:
    """Matrix and voxel size, mm, of a grid with axes right, superior, anterior.

    Examples
    --------
    >>> grid = Grid.named("56x40x64@0.3")
    >>> grid.shape, grid.zooms, str(grid), str(Grid())
    ((56, 40, 64), (0.3, 0.3, 0.3), '56x40x64@0.3', 'study')
    """

    shape: tuple[int, ...] = STUDY_SHAPE
    zooms: tuple[float, ...] = STUDY_ZOOMS

    @classmethod
    def named(cls, text: str) -> Grid:
        """Inverse of ``str(grid)``; ValueError for any other text."""
        if text == "study":
            return cls()
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+)@([\d.]+)(?:x([\d.]+)x([\d.]+))?", text.strip().lower())
        if not found:
            raise ValueError(f"grid={text!r} is not known; allowed: {ALLOWED}")
        *sides, first, second, third = found.groups()
        return cls.of(sides, (first, second or first, third or first))

    @classmethod
    def of(cls, shape: Sequence[Any], zooms: Any) -> Grid:
        """A grid from three sides and one voxel size or three, checked; ValueError if they are none."""
        try:
            sides = tuple(int(side) for side in shape)
            sizes = tuple(round(float(size), 5) for size in (zooms if isinstance(zooms, list | tuple) else 3 * [zooms]))
            whole = sides == tuple(float(side) for side in shape)
        except (TypeError, ValueError):
            sides, sizes, whole = (), (), False
        fits = all(SIDES[0] <= side <= SIDES[1] for side in sides) and all(0 < size < 100 for size in sizes)
        if not (whole and len(sides) == len(sizes) == 3 and fits):
            raise ValueError(
                f"grid={(shape, zooms)!r}: three whole numbers of voxels, {SIDES[0]} to {SIDES[1]}, and a voxel size "
                "in mm or three, above 0, along right, superior, anterior, e.g. ((56, 40, 64), 0.3)"
            )
        return cls(sides, sizes)

    def __str__(self) -> str:
        if self.is_study:
            return "study"
        sizes = self.zooms[:1] if len(set(self.zooms)) == 1 else self.zooms
        return "x".join(map(str, self.shape)) + "@" + "x".join(f"{size:g}" for size in sizes)

    @property
    def is_study(self) -> bool:
        """Whether it is the study's, voxel sizes to 1 %."""
        return self.holds(STUDY_SHAPE, grid_affine())

    def holds(self, shape: Sequence[int], affine: np.ndarray) -> bool:
        """Whether an array with axes right, superior, anterior has this matrix and, to 1 %, this voxel size."""
        return tuple(shape) == self.shape and np.allclose(voxel_sizes(affine), self.zooms, rtol=0.01)

    def around_head(self, array: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """Affine of this grid centred on the head, inside the scan's field of view where that is larger.

        A field of view smaller than the grid is kept whole, in the middle. Where most voxels are exactly 0, as in a
        skull-stripped scan, nothing is known to be missing outside, and the head is in the middle whatever the field.
        """
        low, high = head_box(array, affine)
        centre = (low + high) / 2
        if not is_stripped(array):
            size = (np.asarray(self.shape) * self.zooms)[[0, 2, 1]]  # world order: right, anterior, superior
            ends = np.array(np.meshgrid(*[(-0.5, extent - 0.5) for extent in array.shape])).reshape(3, -1).T
            world = apply_affine(affine, ends)
            field_low, field_high = world.min(0), world.max(0)
            first, last = field_low + size / 2, field_high - size / 2
            centre = np.clip(centre, np.minimum(first, last), np.maximum(first, last))
            centre = np.where(first > last, (field_low + field_high) / 2, centre)
        return grid_affine(self.shape, self.zooms, tuple(centre))

    def written(self, said: Mapping[str, Any]) -> np.ndarray | None:
        """Where this grid was when labkit wrote a scan, from the JSON file beside it (``GridAffine``); None if unknown.

        A reconstruction has to lie where its scan does, and not where its own outline would have it.
        """
        try:
            affine = np.array(said["GridAffine"], float).reshape(4, 4)
        except (KeyError, TypeError, ValueError):
            return None
        return affine if self.holds(self.shape, affine) else None


def is_stripped(array: np.ndarray) -> bool:
    """Whether most voxels are exactly 0, as around a brain that was cut out: then there is no air, and no noise in it.

    >>> import numpy as np
    >>> is_stripped(np.pad(np.ones((4, 4, 4)), 2)), is_stripped(np.ones((4, 4, 4)))
    (True, False)
    """
    return bool(np.count_nonzero(array) < 0.5 * np.size(array))


def asked(grid: object) -> str:
    """What a caller gave as `grid`, as text that JSON and papermill hold; ValueError with what is allowed."""
    if isinstance(grid, Grid):
        return str(grid)
    if isinstance(grid, str):
        name = grid.strip().lower()
        if name == "native" or name == "fitted":
            return name
        if found := re.fullmatch(r"fitted:(\d+)", name):
            _check_most(int(found[1]))
            return name
        return str(Grid.named(grid))
    if isinstance(grid, list | tuple) and len(grid) == 2 and isinstance(grid[0], list | tuple):
        return str(Grid.of(*grid))
    raise ValueError(f"grid={grid!r} is not known; allowed: {ALLOWED}")


def _check_most(most: int) -> None:
    if most % MULTIPLE or not 2 * MULTIPLE <= most <= SIDES[1]:
        raise ValueError(f"grid='fitted:{most}': a multiple of {MULTIPLE} from {2 * MULTIPLE} to {SIDES[1]}")


@dataclass(frozen=True)
class Head:
    """What of a scan a grid is fitted to: the head's extent along right, superior, anterior, mm, and the voxel size."""

    extent: np.ndarray
    zooms: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray, affine: np.ndarray) -> Head:
        """Of an array with axes right, superior, anterior; ScanFaultError where no head can be that large."""
        low, high = head_box(array, affine)
        zooms = voxel_sizes(affine)
        return cls((high - low)[[0, 2, 1]] + zooms, zooms)  # from voxel's middle to middle, and one more


def heads(paths: Iterable[Path], axes: str | None, voxel_mm: Sequence[float] | None) -> list[Head]:
    """Heads of files, as :func:`labkit.data.sources.open_cohort` is told of their axes, without those of no use."""
    found = []
    for path in progress_bar(paths, "fitting a grid"):
        with contextlib.suppress(ScanFaultError):
            stored, header = reading.read_array(path)
            found.append(Head.of(*reorient(stored, corrected_affine(header, stored.shape, axes, voxel_mm))))
    return found


def fitted(heads: Sequence[Head], text: str = "fitted") -> Grid:
    """The grid fitted to heads.

    Voxels are cubes, as small as the longest head allows with :data:`MOST` of them along an axis (or as many as `text`
    says, ``"fitted:96"``), rounded up to 0.01 mm, and not smaller than the scans' smallest; sides are multiples of
    :data:`MULTIPLE`.
    """
    most = int(text.partition(":")[2] or MOST)
    longest = np.max([head.extent for head in heads], axis=0) * (1 + MARGIN)
    finest = min(float(head.zooms.min()) for head in heads)
    voxel = max(np.ceil(100 * longest.max() / most - 1e-6) / 100, round(finest, 5))
    sides = np.ceil(longest / voxel / MULTIPLE - 1e-6).astype(int) * MULTIPLE
    return Grid.of(tuple(int(side) for side in sides.clip(2 * MULTIPLE, most)), float(voxel))
