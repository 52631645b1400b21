"""Scans as the measures take them: cubes in [0, 1], on two scales, and features of them computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from labkit.data import volumes
from labkit.data.cohort import Scan
from labkit.data.file_template import written_range
from labkit.evidence.attributes import white


class Sample:
    """Some scans of one source.

    Parameters
    ----------
    cubes : torch.Tensor
        float32 (N, 1, S, S, S) in [0, 1], as the networks see scans, from [-1, 1].
    shape : tuple of int
        Voxels of a scan, of which the cube is the padded form.
    """

    def __init__(self, cubes: Tensor, shape: tuple[int, int, int]) -> None:
        self.cubes, self.shape = cubes, tuple(shape)
        self._features: dict[str, np.ndarray] = {}
        self.kept: dict[tuple, object] = {}  # what else is dear and asked for twice

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
    def slices(self) -> tuple[slice, slice, slice]:
        """Where in the cube the scan is, without its padding."""
        return scanned_slices(self.shape, self.cubes.shape[-1])

    @property
    def scanned(self) -> Tensor:
        """The scans without padding, (N, 1, X, Y, Z): the paper's 40 slices."""
        return self.cubes[(..., *self.slices)]

    @cached_property
    def even(self) -> Tensor:
        """Cubes scaled so that 1 is each scan's white (:func:`~labkit.evidence.attributes.white`), one voxel aside."""
        level = white(self.scanned)[:, None, None, None, None]
        return (self.cubes / level).clamp_(0, 1)

    def features(self, name: str, embed: Callable[[Tensor], np.ndarray]) -> np.ndarray:
        """(N, F), `embed` of :attr:`even`; kept under `name`."""
        if name not in self._features:
            self._features[name] = embed(self.even)
        return self._features[name]


def scanned_slices(shape: tuple[int, int, int], size: int) -> tuple[slice, slice, slice]:
    """Where in a cube of `size` a scan of `shape` voxels is, without its padding."""
    side = volumes.cube_side(shape)
    return tuple(
        slice(before * size // side, max(1, (before + extent) * size // side))
        for (before, _), extent in zip(volumes.padding(shape, side), shape, strict=True)
    )
