"""Features of scans for measures of distributions: computed here, from real scans alone, without downloads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from labkit.data import volumes
from labkit.data.cohort import Cohort
from labkit.evidence import describe

Embedding = Callable[[Tensor], np.ndarray]
"""(N, 1, S, S, S) in [0, 1] -> (N, F) float64."""

Box = tuple[slice, ...]
"""Part of a cube."""

COMPONENTS = 32
SIDE = 32  # principal components of more voxels are the same components with more noise


def brain_box(cohort: Cohort, size: int, margin_mm: float = 0.75) -> Box:
    """The box that holds every brain of a cohort (head, without labels), as slices of a cube of `size`.

    With `margin_mm` on each side, inside the field of view. The cohort is of real scans: the box must not depend on
    what is judged.
    """
    side = volumes.cube_side(cohort.shape)
    inside = np.zeros(cohort.shape, bool)
    for scan in cohort:
        inside |= describe.region(scan).mask
    slices = []
    for axis, ((before, _), zoom) in enumerate(zip(volumes.padding(cohort.shape, side), cohort[0].zooms, strict=True)):
        found = np.flatnonzero(inside.any(tuple(a for a in range(3) if a != axis)))
        margin = round(margin_mm / zoom)
        first = max(0, found[0] - margin) + before
        last = min(inside.shape[axis], found[-1] + 1 + margin) + before
        slices.append(slice(int(first * size / side), -int(-last * size // side)))
    return tuple(slices)


def pca(real: Tensor, box: Box, components: int = COMPONENTS) -> Embedding:
    """Principal components of the voxels in the brain box, found from real cubes (N, 1, S, S, S); at most N - 1."""
    from sklearn.decomposition import PCA

    model = PCA(min(components, len(real) - 1), svd_solver="full")
    model.fit(voxels(real, box))
    return lambda cubes: model.transform(voxels(cubes, box)).astype(np.float64)


def voxels(cubes: Tensor, box: Box) -> np.ndarray:
    """The voxels of the box, averaged down to a grid of :data:`SIDE` a cube: (N, 1, S, S, S) -> (N, F), float32."""
    factor = max(1, cubes.shape[-1] // SIDE)
    part = cubes[(..., *box)].float()
    smaller = torch.nn.functional.avg_pool3d(part, factor, ceil_mode=True) if factor > 1 else part
    return smaller.flatten(1).numpy()


def regions(box: Box, cells: int = 4) -> Embedding:
    """Mean and standard deviation of the intensity in each of `cells`^3 equal parts of the box: (N, 2 cells^3)."""

    def features(cubes: Tensor) -> np.ndarray:
        part = cubes[(slice(None), slice(None), *box)].double()
        mean = torch.nn.functional.adaptive_avg_pool3d(part, cells)
        square = torch.nn.functional.adaptive_avg_pool3d(part.square(), cells)
        spread = (square - mean.square()).clamp_min(0).sqrt()
        return torch.cat([mean.flatten(1), spread.flatten(1)], 1).numpy()

    return features


BANDS = {"over 8 voxels": 1 / 8, "8 to 4": 1 / 4, "4 to 2.7": 3 / 8, "under 2.7": 1.0}
"""Wavelengths, and the highest frequency of each, cycles a voxel; the lowest frequency is a box's width."""


def powers(box: Box) -> Embedding:
    """Mean power of the box in each of :data:`BANDS`, without the mean and with edges faded out: (N, 4)."""

    def features(cubes: Tensor) -> np.ndarray:
        part = cubes[(..., *box)]
        window = torch.ones(())
        for axis, n in enumerate(part.shape[2:]):
            window = window * torch.hann_window(n, periodic=False).view(-1, *[1] * (2 - axis))
        frequency = torch.meshgrid(*(torch.fft.fftfreq(n).abs() for n in part.shape[2:]), indexing="ij")
        band = torch.bucketize(torch.stack(frequency).norm(dim=0), torch.tensor(list(BANDS.values())))
        found = []
        for scan in part:  # one at a time: a cohort's spectrum would be as large as the cohort eight times over
            weighed = (scan - (scan * window).sum() / window.sum()) * window
            power = torch.fft.fftn(weighed.double(), dim=(1, 2, 3)).abs().square()[0]
            found.append([power[band == place].mean().item() for place in range(len(BANDS))])
        return np.array(found)

    return features
