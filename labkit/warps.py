"""Smooth, invertible deformations: velocities on a few knots, their flow, and volumes seen through it.

Displacements and points are in voxels of their own grid, channels in the order of the axes: (B, 3, X, Y, Z). A velocity
is integrated by scaling and squaring (Arsigny et al. 2006, MICCAI, LNCS 4190:924; Ashburner 2007, NeuroImage 38:95).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

JACOBIAN_FLOOR = 0.2  # a warp that squeezes tissue to less than a fifth is made gentler


def index_grid(like: Tensor) -> Tensor:
    """Coordinates of every point of a volume in points, (1, 3, X, Y, Z)."""
    axes = [torch.arange(n, device=like.device, dtype=torch.float32) for n in like.shape[-3:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def sample(volume: Tensor, points: Tensor) -> Tensor:
    """Trilinear interpolation of (B, C, X, Y, Z) at points (B, 3, x, y, z) -> (B, C, x, y, z).

    Points are counted in voxels, channels in the order of the axes; beyond its edge a volume keeps its edge's value.
    """
    normalised = points.permute(0, 2, 3, 4, 1) * _unit(tuple(volume.shape[-3:]), points.device, points.dtype) - 1
    return F.grid_sample(volume, normalised.flip(-1), mode="bilinear", padding_mode="border", align_corners=True)


@lru_cache(maxsize=64)
def _unit(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Of a voxel, in the coordinates of grid_sample, (3,); made once, as nothing can be copied into a recording."""
    return 2 / (torch.tensor(shape, device=device, dtype=dtype) - 1)


def flow(velocity: Tensor, steps: int = 6) -> Tensor:
    """Displacement reached by following a stationary velocity field for unit time, by scaling and squaring.

    Both are (B, 3, X, Y, Z) in points of their own grid, channels in the order of the axes: where the point at x is
    taken to, less x. The flow of the velocity divided by ``2**steps`` is composed with itself as often.
    """
    displacement = velocity / 2**steps
    for _ in range(steps):
        displacement = displacement + sample(displacement, index_grid(displacement) + displacement)
    return displacement


def jacobian(displacement: Tensor) -> Tensor:
    """Determinant of the Jacobian of x -> x + displacement(x): the local change of volume, (B, X, Y, Z)."""
    rows = [torch.stack(torch.gradient(displacement[:, i], dim=(1, 2, 3)), -1) for i in range(3)]
    matrix = torch.stack(rows, -2) + torch.eye(3, device=displacement.device)
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in matrix.unbind(-2))
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def diffeomorphism(velocity: Tensor, steps: int = 6) -> tuple[Tensor, Tensor]:
    """Flow of a velocity field (B, 3, X, Y, Z), points, the field weakened until the flow folds nowhere.

    With it comes the smallest Jacobian determinant of each, (B,), at least :data:`JACOBIAN_FLOOR`.
    """
    strength = torch.ones(len(velocity), 1, 1, 1, 1, device=velocity.device)
    while True:
        displacement = flow(velocity * strength, steps)
        smallest = jacobian(displacement).flatten(1).amin(1)
        folded = smallest < JACOBIAN_FLOOR
        if not folded.any():
            return displacement, smallest
        strength = torch.where(folded[:, None, None, None, None], 0.8 * strength, strength)


def coarse_shape(shape: Sequence[int], spacing: float) -> tuple[int, ...]:
    """Points of a grid about `spacing` voxels coarser along each axis, at least 4, and never more than voxels."""
    return tuple(min(n, max(4, math.ceil(n / spacing))) for n in shape)


def spline_matrix(n_out: int, n_in: int) -> Tensor:
    """Cubic B-spline basis along one axis, (n_out, n_in), float64: rows sum to 1; mirrored at the ends.

    Both grids divide the same extent into equal cells. The curve has two continuous derivatives.
    """
    centres = (torch.arange(n_out, dtype=torch.float64) + 0.5) * (n_in / n_out) - 0.5
    knots = torch.arange(-n_in, 2 * n_in, dtype=torch.float64)
    t = (centres[:, None] - knots).abs()
    basis = torch.where(t < 1, 2 / 3 - t.square() * (1 - t / 2), (2 - t).clamp_min(0) ** 3 / 6)
    before, inside, after = basis.split(n_in, 1)
    return inside + before.flip(1) + after.flip(1)


def spline_resampling(n_out: int, n_in: int) -> Tensor:
    """Interpolation of values by a cubic spline through them, (n_out, n_in), float64; identity on the same grid."""
    return spline_matrix(n_out, n_in) @ torch.linalg.inv(spline_matrix(n_in, n_in))


def separable(values: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """A matrix along each of the last three axes: (B, C, x, y, z) -> (B, C, X, Y, Z).

    As products of matrices this and its gradient are several times quicker on a CPU than F.interpolate.
    """
    along_x, along_y, along_z = matrices
    values = along_y @ (values @ along_z.T)
    return (along_x @ values.flatten(3)).unflatten(3, (len(along_y), len(along_z)))


def affine_matrix(numbers: Tensor, shape: Sequence[int]) -> Tensor:
    """Affine transforms of centred voxel coordinates from their logarithms: (B, 12) voxels -> (B, 3, 4).

    The first three numbers shift; the others are, for each axis that moves, by how much the far end of each axis moves.
    As exponentials of their generators they turn nothing inside out.
    """
    half = torch.tensor(shape, device=numbers.device, dtype=numbers.dtype) / 2
    generator = torch.cat([numbers[:, 3:].unflatten(1, (3, 3)) / half, numbers[:, :3, None]], 2)
    return torch.linalg.matrix_exp(F.pad(generator, (0, 0, 0, 1)))[:, :3]
