"""An anatomy made ready for scanning: what is the same for all rats, done once, and the coordinates it is found by.

Positions are mm right, superior, anterior of the anatomy's centre, which is the middle of the field of view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS
from labkit.warps import sample

from .anatomy import Anatomy
from .field import field_map

FINE = (2 * STUDY_SHAPE[0], 2 * STUDY_SHAPE[1], STUDY_SHAPE[2])
"""Points at which a rat is looked up: the study's grid, twice as fine in the plane of the slices."""
COARSE = (33, 33, 21)
"""Points at which everything smooth is worked out; the outermost are the outermost of the fine grid."""
WARP_MM, FIELD_MM = 1.0, 0.8


@dataclass(frozen=True)
class Head:
    """An anatomy on the device, with V voxels, T tissues."""

    anatomy: Anatomy
    shape: tuple[int, ...]  # of the anatomy's grid
    # (V, T), share of each tissue in a voxel's signal, texture included, averaged over a slice's thickness
    spins: torch.Tensor
    fractions: torch.Tensor  # (V, 3), fractions of CSF, grey and white matter, averaged likewise
    field: torch.Tensor  # (x, y, z), off-resonance in Hz, on a coarser grid over the same box
    # (3, x, y, z), velocity field that widens the ventricles, largest length 1, on the warp's grid
    ventricles: torch.Tensor
    label_weights: torch.Tensor  # (4,), see balanced_weights

    def index(self, points: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """From mm, (B, 3, ...), to points of a grid of `shape` whose cells fill the anatomy's box."""
        centre = np.linalg.inv(self.anatomy.affine) @ [*self.anatomy.centre_mm, 1]
        ratio = np.asarray(shape) / np.asarray(self.shape)
        scale, offset = ratio / np.asarray(spacing_of(self.anatomy)), (centre[:3] + 0.5) * ratio - 0.5
        scale, offset = (
            torch.tensor(values, dtype=torch.float32, device=points.device)[:, None, None, None]
            for values in (scale, offset)
        )
        return points * scale + offset

    def spacing(self, shape: tuple[int, ...]) -> tuple[float, ...]:
        """Voxel size of such a grid, mm."""
        fine = spacing_of(self.anatomy)
        return tuple(d * n / m for d, n, m in zip(fine, self.shape, shape, strict=True))


def prepare(anatomy: Anatomy, b0_tesla: float, device: torch.device) -> Head:
    """Make an anatomy ready for a field strength and a device; ValueError if its axes are not the study's."""
    spacing = spacing_of(anatomy)
    upright = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]]) * spacing
    if not np.allclose(anatomy.affine[:3, :3], upright, atol=1e-4):
        raise ValueError(
            f"the axes of anatomy {anatomy.name!r} do not run right, superior, anterior: {anatomy.affine.tolist()}; "
            "labkit.data.grids.grid_affine makes an affine that does"
        )
    maps, labels = anatomy.maps.to(device), anatomy.label_maps().to(device)
    coarse, warp = (_shape_at(anatomy, d) for d in (FIELD_MM, WARP_MM))
    solid, brain = (F.adaptive_avg_pool3d(m.sum(0)[None], coarse)[0] for m in (maps, labels))
    spins = maps if anatomy.texture is None else maps * anatomy.texture.to(device)
    head = Head(
        anatomy=anatomy,
        shape=tuple(anatomy.air.shape),
        spins=_slice_average(spins, spacing[2]).flatten(1).T.contiguous(),
        fractions=_slice_average(labels, spacing[2]).flatten(1).T.contiguous(),
        field=solid,
        ventricles=_ventricles(labels, spacing, warp),
        label_weights=torch.ones(4, device=device),
    )
    field = field_map(solid, brain, head.spacing(coarse), b0_tesla)
    return replace(head, field=field, label_weights=balanced_weights(shares(_average_rat(head))))


def shares(fractions: torch.Tensor) -> torch.Tensor:
    """Background, CSF, grey and white matter of every voxel, sum 1: (B, 3, X, Y, Z) -> (V, 4)."""
    return torch.cat([1 - fractions.sum(1, keepdim=True), fractions], 1).movedim(1, -1).flatten(0, -2)


def most_likely(fractions: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Label of the largest weighted share: (B, 3, X, Y, Z), (4,) -> uint8 (B, X, Y, Z)."""
    best = (shares(fractions) * weights).max(1).indices
    return best.to(torch.uint8).unflatten(0, (fractions.shape[0], *fractions.shape[2:]))


def balanced_weights(shares: torch.Tensor, iterations: int = 60) -> torch.Tensor:
    """Weights (4,) in [0.2, 5] with which the labels' volumes are those of the fractions `shares` (V, 4).

    Plain majority loses what is thinner than a voxel, most of the CSF above all. Each tissue's weight is raised while
    it has too few labels and lowered while it has too many; the background's stays 1.
    """
    shares = shares[shares[:, 0] < 1]
    wanted = shares.sum(0)
    weights = torch.ones(4, device=shares.device)
    for _ in range(iterations):
        found = torch.bincount((shares * weights).max(1).indices, minlength=4)
        weights[1:] = (weights * (wanted / found.clamp(min=1)).sqrt()).clamp(0.2, 5)[1:]
    return weights


def coarse_spacing() -> tuple[float, ...]:
    """Spacing of the coarse grid, mm."""
    sizes = zip(STUDY_SHAPE, STUDY_ZOOMS, FINE, COARSE, strict=True)
    return tuple(n * zoom * (1 - 1 / fine) / (coarse - 1) for n, zoom, fine, coarse in sizes)


def coarse_points(device: torch.device) -> torch.Tensor:
    """Positions of the coarse grid, mm, (1, 3, 33, 33, 21)."""
    sizes = zip(COARSE, coarse_spacing(), strict=True)
    axes = [spacing * (torch.arange(n, device=device) - (n - 1) / 2) for n, spacing in sizes]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def upsample(coarse: torch.Tensor, shape: tuple[int, ...] = FINE) -> torch.Tensor:
    """Trilinear interpolation, (B, C, x, y, z) -> (B, C, *shape); the outermost points stay where they are."""
    return F.interpolate(coarse, shape, mode="trilinear", align_corners=True)


def spacing_of(anatomy: Anatomy) -> tuple[float, ...]:
    """Voxel size, mm."""
    return tuple(float(length) for length in np.linalg.norm(anatomy.affine[:3, :3], axis=0))


def _shape_at(anatomy: Anatomy, spacing_mm: float) -> tuple[int, ...]:
    sizes = zip(anatomy.air.shape, spacing_of(anatomy), strict=True)
    return tuple(max(4, round(n * d / spacing_mm)) for n, d in sizes)


def _average_rat(head: Head) -> torch.Tensor:
    """Fractions on the study's grid of the rat that is the anatomy itself, undistorted: (1, 3, 64, 64, 40)."""
    points = upsample(coarse_points(head.fractions.device))
    volume = head.fractions.unflatten(0, head.shape).movedim(-1, 0)[None]
    return F.avg_pool3d(sample(volume, head.index(points, head.shape)), (2, 2, 1))


def _slice_average(maps: torch.Tensor, spacing_mm: float) -> torch.Tensor:
    """Average over the thickness of a slice along the last axis: a box, its ends cut to fractions of voxels."""
    half = STUDY_ZOOMS[2] / spacing_mm / 2
    reach = max(0, math.ceil(half - 0.5))
    taps = [min(1.0, max(0.0, half + 0.5 - abs(i))) for i in range(-reach, reach + 1)]
    padded = F.pad(maps, (reach, reach, 0, 0), mode="replicate")
    return sum(tap / sum(taps) * padded.narrow(-1, i, maps.shape[-1]) for i, tap in enumerate(taps))


def _ventricles(labels: torch.Tensor, spacing_mm: tuple[float, ...], shape: tuple[int, ...]) -> torch.Tensor:
    """Direction towards the CSF that lies more than 1.5 mm deep in the brain, (3, *shape)."""
    surroundings = (labels.sum(0) < 0.5).to(labels.dtype)[None]
    for axis, spacing in enumerate(spacing_mm):
        reach = round(1.5 / spacing)
        kernel, padding = [1, 1, 1], [0, 0, 0]
        kernel[axis], padding[axis] = 2 * reach + 1, reach
        surroundings = F.max_pool3d(surroundings, kernel, 1, padding)
    deep = F.adaptive_avg_pool3d(labels[:1] * (1 - surroundings), shape)
    for _ in range(2):
        deep = F.avg_pool3d(F.pad(deep, (1,) * 6), 3, 1)
    direction = torch.stack(torch.gradient(deep[0]))
    return direction / direction.square().sum(0).max().sqrt().clamp(min=1e-6)
