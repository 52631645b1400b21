"""Scans as the measures take them: cubes in [0, 1], on two scales, and features of them computed once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.data import volumes
from labkit.data.cohort import Cohort, Scan
from labkit.data.file_template import written_range
from labkit.evidence.brightness import white


class Sample:
    """Some scans of one source: cubes (N, 1, S, S, S) in [0, 1], of which scans of `shape` voxels are a part."""

    def __init__(self, cubes: Tensor, shape: tuple[int, ...]) -> None:
        self.cubes, self.shape = cubes, tuple(shape)
        self._cache: dict[Hashable, Any] = {}

    @classmethod
    def of(cls, scans: Iterable[Scan], size: int = 64, ranges: Sequence[tuple[float, float]] | None = None) -> Sample:
        """Scale scans to [0, 1] and pad them to cubes.

        Parameters
        ----------
        scans : iterable of Scan
            On one grid.
        size : int
            Side of the cubes, voxels.
        ranges : sequence of (float, float), optional
            Intensities that become 0 and 1; default :func:`labkit.data.file_template.written_range`: a scan's smallest
            and largest value, and of a generated scan what the generator's ends became.
        """
        scans = list(scans)
        shape = scans[0].image.shape
        out = torch.empty(len(scans), 1, size, size, size)
        for place, scan in enumerate(scans):
            low, high = ranges[place] if ranges else written_range(scan)
            cube = volumes.pad_to_cube(torch.from_numpy(np.array(scan.image))[None], volumes.cube_side(shape))
            out[place] = volumes.resize(((cube - low) / (high - low)).clamp_(0, 1), size)[0]
        return cls(out, shape)

    def __len__(self) -> int:
        return len(self.cubes)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where in the cube the scan is, without its padding."""
        return volumes.scanned_slices(self.shape, self.cubes.shape[-1])

    @property
    def scanned(self) -> Tensor:
        """The scans without padding, (N, 1, X, Y, Z): the paper's 40 slices."""
        return self.cubes[(..., *self.slices)]

    @cached_property
    def normalised(self) -> Tensor:
        """Cubes in [0, 1], scaled so that 1 is each scan's :func:`~labkit.evidence.brightness.white`."""
        level = white(self.scanned)[:, None, None, None, None]
        return (self.cubes / level).clamp_(0, 1)

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, computed the first time that `key` is asked for."""
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]

    def features(self, name: str, embed: Callable[[Tensor], np.ndarray]) -> np.ndarray:
        """(N, F), `embed` of :attr:`normalised`; computed once for a `name`."""
        return self.once(name, lambda: embed(self.normalised))

    def take(self, index: np.ndarray) -> Sample:
        """The scans at `index`; features are those of this sample, computed once for all its parts."""
        return _Part(self, index)

    @property
    def origin(self) -> tuple[Sample, np.ndarray]:
        """The sample that this one was taken from, itself where it was not, and the places there of its scans."""
        return self, np.arange(len(self))


class _Part(Sample):
    """Some scans of a whole, which are copied where their voxels are asked for, and not before."""

    def __init__(self, whole: Sample, index: np.ndarray) -> None:
        self._whole, self._index, self.shape = whole, index, whole.shape
        self._cache = {}

    def __len__(self) -> int:
        return len(self._index)

    @cached_property
    def cubes(self) -> Tensor:
        return self._whole.cubes[torch.from_numpy(self._index)]

    @cached_property
    def normalised(self) -> Tensor:
        return self._whole.normalised[torch.from_numpy(self._index)]

    def features(self, name: str, embed: Callable[[Tensor], np.ndarray]) -> np.ndarray:
        return self._whole.features(name, embed)[self._index]

    def take(self, index: np.ndarray) -> Sample:
        return _Part(self._whole, self._index[index])

    @property
    def origin(self) -> tuple[Sample, np.ndarray]:
        return self._whole, self._index


def of_pairs(
    name: str, x: Sample, y: Sample, first: np.ndarray, second: np.ndarray,
    compute: Callable[[Sample, Sample, np.ndarray, np.ndarray], Tensor], most: int = 32,
) -> np.ndarray:  # fmt: skip
    """What `compute` gives of pairs of scans, (m,): once for a pair, in whatever parts of a sample it comes again.

    Parameters
    ----------
    name : str
        Of the measure.
    x, y : Sample
        Where the pairs are from.
    first, second : numpy.ndarray
        (m,), places in `x` and in `y`.
    compute : callable
        Gives (k,) of two samples and places in them; `most` pairs at a time.
    """
    (of_x, at_x), (of_y, at_y) = x.origin, y.origin
    table = of_y.once((name, of_x), lambda: np.full((len(of_x), len(of_y)), np.nan))
    pairs = np.stack([at_x[first], at_y[second]], 1)
    unknown = np.unique(pairs[np.isnan(table[tuple(pairs.T)])], axis=0)
    for start in range(0, len(unknown), most):
        some = tuple(unknown[start : start + most].T)
        table[some] = compute(of_x, of_y, *some).double().numpy()
    return table[tuple(pairs.T)]


def at_resolution(sample: Sample, size: int) -> Sample:
    """The sample averaged to cubes of `size` and brought back: the best that a generator of that size could do."""
    full = sample.cubes.shape[-1]
    return Sample(volumes.resize(volumes.resize(sample.cubes, min(size, full)), full), sample.shape)


def first_scans(cohort: Cohort) -> list[int]:
    """Places of the first scan of each animal: several of one are no independent witnesses."""
    subjects = cohort.subjects
    return [subjects.index(subject) for subject in dict.fromkeys(subjects)]


def one_scan_an_animal(cohort: Cohort) -> Cohort:
    """The first scan of each animal."""
    first = first_scans(cohort)
    return cohort if len(first) == len(cohort) else cohort.subset(first)


def check_grid(real: Cohort, other: Cohort | None, name: str) -> None:
    """Refuse scans on another grid than the real ones, with a ValueError; `name` is what they are in its words."""
    if other is None:
        return
    zooms = other[0].zooms, real[0].zooms
    if other.shape != real.shape or not np.allclose(*zooms, rtol=0.01):
        raise ValueError(
            f"{name} scans have {other.shape} voxels of {zooms[0]} mm, real ones {real.shape} of {zooms[1]} mm: open "
            "both on one grid"
        )
