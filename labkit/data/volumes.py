"""Scans as network input, and back: zero padding to a cube, [-1, 1], other sizes without aliasing.

The paper's pre-processing (Ferreira et al. 2022) is constant zero padding of 64 x 64 x 40 to 64^3, then a per-scan
min-max to [-1, 1]. Everything here is a pure function of tensors; nothing knows files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def cube_side(shape: tuple[int, ...]) -> int:
    """Smallest side 16 * 2^k, at least 64, that holds a scan of `shape` voxels (64 for the study's 64 x 64 x 40)."""
    side = 64
    while side < max(shape):
        side *= 2
    return side


def padding(shape: tuple[int, ...], side: int) -> list[tuple[int, int]]:
    """Voxels added (before, after) along each axis to make a cube; 12 and 12 on the study's third axis."""
    if max(shape) > side:
        raise ValueError(f"a scan of {tuple(shape)} voxels does not fit a cube of side {side}; side must be >= shape")
    return [((side - extent) // 2, side - extent - (side - extent) // 2) for extent in shape]


def scanned_slices(shape: tuple[int, ...], size: int) -> tuple[slice, ...]:
    """Where in a cube of `size` a scan of `shape` voxels is, without its padding."""
    side = cube_side(shape)
    return tuple(
        slice(before * size // side, max(1, (before + extent) * size // side))
        for (before, _), extent in zip(padding(shape, side), shape, strict=True)
    )


def extents(shape: tuple[int, ...], size: int) -> tuple[float, ...]:
    """Sides of the box about the middle of a cube of `size` that holds a scan of `shape` voxels, fractions included."""
    side = cube_side(shape)
    ends = ((side / 2 - before, before + extent - side / 2)
            for (before, _), extent in zip(padding(shape, side), shape, strict=True))  # fmt: skip
    return tuple(2 * max(pair) * size / side for pair in ends)


def cube_zooms(shape: Sequence[int], zooms: Sequence[float], size: int) -> tuple[float, ...]:
    """Voxel size, mm, of a cube of `size` that stands for scans of `shape` voxels of `zooms` mm."""
    side = cube_side(tuple(shape))
    return tuple(float(zoom) * side / size for zoom in zooms)


def pad_to_cube(images: torch.Tensor, side: int) -> torch.Tensor:
    """Zero-pad scans (N, X, Y, Z), any unit and dtype, to cubes (N, 1, side, side, side)."""
    (x0, x1), (y0, y1), (z0, z1) = padding(tuple(images.shape[1:]), side)
    return F.pad(images, (z0, z1, y0, y1, x0, x1)).unsqueeze(1)


def crop_from_cube(cubes: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Inverse of :func:`pad_to_cube`: (N, 1, S, S, S) -> (N, X, Y, Z)."""
    (x0, _), (y0, _), (z0, _) = padding(tuple(shape), cubes.shape[-1])
    return cubes[:, 0, x0 : x0 + shape[0], y0 : y0 + shape[1], z0 : z0 + shape[2]]


def to_unit_range(cubes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per-scan min-max of cubes (N, 1, S, S, S) to [-1, 1], with each scan's minimum and maximum, (N,).

    A constant scan becomes -1 throughout.
    """
    flat = cubes.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    span = (high - low).clamp_min(torch.finfo(cubes.dtype).tiny)
    unit = (flat - low[:, None]) / span[:, None] * 2 - 1
    return unit.clamp_(-1, 1).view_as(cubes), low, high


def from_unit_range(volumes: torch.Tensor, low: torch.Tensor | float, high: torch.Tensor | float) -> torch.Tensor:
    """Inverse of :func:`to_unit_range`: (N, ...) in [-1, 1] to intensities between `low` and `high`, (N,) or scalar."""
    low, high = (torch.as_tensor(v, dtype=volumes.dtype, device=volumes.device) for v in (low, high))
    low, high = (v.reshape(-1, *[1] * (volumes.ndim - 1)) if v.ndim else v for v in (low, high))
    return low + (volumes + 1) * 0.5 * (high - low)


def resize(cubes: torch.Tensor, size: int) -> torch.Tensor:
    """Resample cubes (N, C, S, S, S) to another side: area mean when smaller (no aliasing), trilinear when larger."""
    side = cubes.shape[-1]
    if size < 1:
        raise ValueError(f"size={size}: a cube has a side of at least 1 voxel")
    if size == side:
        return cubes
    if size < side:
        return F.adaptive_avg_pool3d(cubes, size)
    return F.interpolate(cubes, size=(size,) * 3, mode="trilinear", align_corners=False)


def resize_labels(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Resample label maps by majority: every label's share is resampled as an image is, the largest share wins.

    uint8 (N, 1, S, S, S) -> (N, 1, size, size, size), only labels that `maps` holds; ties go to the smaller label.
    """
    if size == maps.shape[-1]:
        return maps
    if len(maps) > 1:  # one by one: shares of a thousand maps would take 4 GB and more
        return torch.cat([resize_labels(one, size) for one in maps.split(1)])
    best_share = maps.new_full((len(maps), 1, size, size, size), -1, dtype=torch.float32)
    best = torch.zeros_like(best_share, dtype=torch.uint8)
    for label in torch.unique(maps).tolist():
        share = resize((maps == label).float(), size)
        best = torch.where(share > best_share, torch.as_tensor(label, dtype=torch.uint8, device=maps.device), best)
        best_share = torch.maximum(share, best_share)
    return best
