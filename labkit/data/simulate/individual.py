"""What differs between one rat and the next: size, shape, pose, ventricles and tissue contrast.

A rat's shape is the anatomy's, seen through a diffeomorphism: the flow of a smooth random stationary velocity field
(Arsigny et al. 2006, MICCAI, LNCS 4190:924; Ashburner 2007, NeuroImage 38:95), integrated by scaling and squaring.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Individual:
    """How much rats differ. Spreads are standard deviations of normals cut off at 2.5 standard deviations."""

    # of a rat's overall volume relative to the anatomy's (length: its cube root); the local growth and shrinkage of the
    # warp adds to it
    volume_cv: float = 0.04
    rotation_deg: float = 1.2  # about each axis; the cut-off keeps it within 3 degrees
    shift_mm: float = 0.2  # along each axis; the cut-off keeps it within 0.5 mm
    warp_mm: float = 0.35  # of the velocity field along each axis
    warp_length_mm: float = 2.5  # of the Gaussian that the velocity field is smoothed with
    ventricle_mm: float = 0.15  # velocity of ventricle walls, in or out, at the place where they move most
    density_cv: float = 0.02  # of each tissue's MR properties, relative, drawn for every tissue on its own
    t1_cv: float = 0.03
    t2star_cv: float = 0.05


@dataclass(frozen=True)
class Variation:
    """The random numbers of one rat, float32 on the CPU."""

    size: float  # length relative to the anatomy's
    rotation_deg: torch.Tensor  # (3,), about right, superior, anterior
    shift_mm: torch.Tensor  # (3,), along them
    velocity_mm: torch.Tensor  # (3, X, Y, Z), velocity field on the warp grid
    ventricle_mm: float  # positive widens the ventricles
    contrast: torch.Tensor  # (3, T), factors near 1 on density, T1 and T2* of each tissue


def random_stream(seed: int, index: int, purpose: str) -> torch.Generator:
    """A CPU generator that belongs to one rat of a seed and one purpose, whatever else has been drawn."""
    digest = hashlib.sha256(f"{seed}/{index}/{purpose}".encode()).digest()
    # torch's Mersenne twister takes its state from the lower 32 bits of a seed.
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def clipped_normal(*shape: int, generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers, those beyond 2.5 standard deviations brought back to 2.5."""
    return torch.randn(shape, generator=generator).clamp(-2.5, 2.5)


def draw_variation(individual: Individual, seed: int, index: int, n_tissues: int, shape: tuple[int, ...],
         spacing_mm: float) -> Variation:  # fmt: skip
    """Draw one rat of a cohort: `n_tissues` contrasts, and a warp on a grid of `shape` points `spacing_mm` apart."""
    stream = random_stream(seed, index, "individual")
    volume, rotation, shift, ventricle = clipped_normal(8, generator=stream).split([1, 3, 3, 1])
    spread = torch.tensor([individual.density_cv, individual.t1_cv, individual.t2star_cv])[:, None]
    contrast = 1 + spread * clipped_normal(3, n_tissues, generator=stream)
    return Variation(
        size=(1 + individual.volume_cv * volume.item()) ** (1 / 3),
        rotation_deg=individual.rotation_deg * rotation,
        shift_mm=individual.shift_mm * shift,
        velocity_mm=individual.warp_mm * smooth_noise(shape, individual.warp_length_mm / spacing_mm, stream),
        ventricle_mm=individual.ventricle_mm * ventricle.item(),
        contrast=contrast,
    )


def smooth_noise(shape: tuple[int, ...], length: float, generator: torch.Generator) -> torch.Tensor:
    """White noise smoothed with a Gaussian of `length` points, float32 (3, *shape), variance 1 even at its edges."""
    reach = max(1, int(3 * length + 0.5))
    noise = torch.randn(3, *(n + 2 * reach for n in shape), generator=generator)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / length) ** 2)
    taps = taps / taps.square().sum().sqrt()
    for axis, n in enumerate(shape, start=1):
        steps = torch.arange(n + 2 * reach)[:, None] - torch.arange(n)
        band = torch.where((steps >= 0) & (steps <= 2 * reach), taps[steps.clamp(0, 2 * reach)], 0.0)
        noise = (noise.movedim(axis, -1) @ band).movedim(-1, axis)
    return noise


def rotation_matrix(angles_deg: torch.Tensor) -> torch.Tensor:
    """Rotations about the first, then the second, then the third axis: (B, 3) degrees -> (B, 3, 3)."""
    angles = torch.deg2rad(angles_deg)
    matrix = torch.eye(3, device=angles.device).expand(len(angles), 3, 3)
    for axis in range(3):
        cosine, sine = angles[:, axis].cos(), angles[:, axis].sin()
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = torch.eye(3, device=angles.device).repeat(len(angles), 1, 1)
        turn[:, first, first] = turn[:, second, second] = cosine
        turn[:, first, second], turn[:, second, first] = -sine, sine
        matrix = turn @ matrix
    return matrix
