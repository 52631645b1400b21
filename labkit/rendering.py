"""From an animal's numbers to its scan: velocity, pose, brightness and appearance, and how fine each of them is.

This is the formula of `labkit.atlas`, without anything that is learned.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from labkit import warps

if TYPE_CHECKING:
    from labkit.variants import AtlasSettings

Shape = tuple[int, ...]


class Geometry:
    """How an animal's numbers become warp and brightness on a grid: matrices, nothing learned.

    `shape` is the scans'; `coarser` of 2 renders them at half the resolution, from a template of half the resolution.
    A row of numbers is velocity (voxels), pose (voxels), brightness (natural logarithm), appearance; `sizes` says how
    many of each.
    """

    def __init__(self, shape: Shape, settings: AtlasSettings, device: torch.device, coarser: int = 1) -> None:
        self.full, self.squarings, self.settings = tuple(shape), settings.squarings, settings
        self.shape = tuple(max(min(n, 2), n // coarser) for n in shape)
        self.template_shape = tuple(n * settings.template_factor for n in self.shape)
        self.knots = warps.coarse_shape(shape, settings.knot_spacing)
        self.bright = warps.coarse_shape(shape, settings.brightness_spacing)
        self.sizes = {
            "velocity": 3 * math.prod(self.knots), "pose": 12, "brightness": math.prod(self.bright),
            "appearance": settings.appearances,
        }  # fmt: skip
        rates = {"velocity": 1.0, "pose": 1.0, "brightness": 0.04, "appearance": 0.3}
        self.rates = torch.cat(
            [torch.full((size,), settings.lr * rates[name]) for name, size in self.sizes.items()]
        ).to(device)  # (P,), step sizes
        coarse = warps.coarse_shape(shape, settings.flow_spacing)

        def matrices(make: Callable[[int, int], Tensor], out: Shape, given: Shape) -> list[Tensor]:
            return [make(n, m).float().to(device) for n, m in zip(out, given, strict=True)]

        def ratio(above: Shape, below: Shape) -> Tensor:
            values = [n / m for n, m in zip(above, below, strict=True)]
            return torch.tensor(values, device=device)[:, None, None, None]

        self.to_flow = matrices(warps.spline_matrix, coarse, self.knots)
        self.to_voxels = matrices(warps.spline_resampling, self.shape, coarse)
        self.to_bright = matrices(warps.spline_matrix, self.shape, self.bright)
        self.cell, self.scale = ratio(self.full, coarse), ratio(self.shape, self.full)
        self.factor = settings.template_factor
        self.middle = ratio(self.full, (2, 2, 2))
        knots = torch.cat([torch.ones(1, 1, *self.knots), warps.index_grid(torch.empty(self.knots))], 1).flatten(2)[0]
        self.affine = torch.linalg.qr(knots.T.double())[0].float().to(device)  # (K, 4), orthonormal
        corner = warps.index_grid(torch.empty(self.shape, device=device))
        self.centres = (corner + 0.5) * ratio(self.full, self.shape) - self.middle  # voxels from the scan's middle

    def split(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Velocity (B, 3, x, y, z), pose (B, 12), brightness (B, 1, x, y, z) and appearance (B, J) of (B, P)."""
        v, pose, g, a = numbers.split(list(self.sizes.values()), 1)
        return v.unflatten(1, (3, *self.knots)), pose, g.unflatten(1, (1, *self.bright)), a

    def without_affine(self, numbers: Tensor) -> Tensor:
        """Numbers (B, P) whose velocities shift, turn, scale and shear nothing: that is what poses are for."""
        size = self.sizes["velocity"]
        v = numbers[:, :size].unflatten(1, (3, -1))
        return torch.cat([(v - v @ self.affine @ self.affine.T).flatten(1), numbers[:, size:]], 1)

    def points(self, numbers: Tensor, guarded: bool = False) -> Tensor:
        """phi: where in the template each voxel is found, (B, 3, X, Y, Z), in voxels of :attr:`shape`.

        `guarded` warps fold nowhere: a velocity that would is weakened, as the simulator does.
        """
        v, pose, _, _ = self.split(numbers)
        return self._posed(pose, self.moved(v, guarded))

    def moved(self, v: Tensor, guarded: bool = False) -> Tensor:
        """Where velocities (B, 3, x, y, z) carry each voxel, (B, 3, X, Y, Z), voxels from the scan's middle."""
        velocity = warps.separable(v, self.to_flow) / self.cell
        flow = warps.diffeomorphism(velocity, self.squarings)[0] if guarded else warps.flow(velocity, self.squarings)
        return warps.separable(flow * self.cell, self.to_voxels) + self.centres

    def unposed(self, scans: Tensor, numbers: Tensor) -> Tensor:
        """Scans (B, C, X, Y, Z) as they would lie in the template's pose, their shape as it is."""
        pose = self.split(numbers)[1]
        return warps.sample(scans, self._posed(-pose, self.centres.expand(len(pose), -1, -1, -1, -1)))

    def _posed(self, pose: Tensor, places: Tensor) -> Tensor:
        """Places (B, 3, X, Y, Z), voxels from the scan's middle, moved by poses (B, 12): points of :attr:`shape`."""
        matrix = warps.affine_matrix(pose, self.full)
        return self.found((matrix[:, :, :3] @ places.flatten(2) + matrix[:, :, 3:]).view_as(places))

    def found(self, places: Tensor) -> Tensor:
        """Places, voxels from the scan's middle, as points for :meth:`see`."""
        return (places + self.middle) * self.scale - 0.5

    def see(self, volumes: Tensor, points: Tensor) -> Tensor:
        """Volumes (B or 1, C, ...) on the template's grid, or that of :attr:`shape`, warped: (B, C, X, Y, Z)."""
        if tuple(volumes.shape[2:]) != self.shape:
            points = (points + 0.5) * self.factor - 0.5
        return warps.sample(volumes.expand(len(points), -1, -1, -1, -1), points)

    def brightness(self, numbers: Tensor) -> Tensor:
        """exp(B g), (B, 1, X, Y, Z)."""
        return self.brightened(self.split(numbers)[2])

    def brightened(self, g: Tensor) -> Tensor:
        """exp(B g) of g (B, 1, x, y, z) at knots."""
        return warps.separable(g, self.to_bright).exp()

    def look(self, appearances: Tensor, numbers: Tensor) -> Tensor:
        """sum_j a_j A_j of each animal, (B, 1, X, Y, Z)."""
        return (self.split(numbers)[3] @ appearances.flatten(1)).view(-1, 1, *self.shape)

    def render(self, template: Tensor, appearances: Tensor, numbers: Tensor) -> Tensor:
        """The scan without its noise, (B, 1, X, Y, Z)."""
        points = self.points(numbers)
        seen = self.see(template, points)
        if len(appearances):
            seen = seen + self.see(self.look(appearances, numbers), points)
        return seen * self.brightness(numbers)

    def priors(self, numbers: Tensor) -> dict[str, Tensor]:
        """Terms that keep numbers small and velocities smooth; ``"prior"`` is their weighted sum."""
        v, _, g, a = self.split(numbers)
        bending, speed = roughness(v), v.square().mean()
        prior = self.settings.bending * bending + self.settings.speed * speed + 1e-3 * g.square().mean()
        return {"prior": prior + 1e-4 * a.square().sum(1).mean() / max(1, a.shape[1]),
                "bending": bending.detach(), "speed": speed.detach()}  # fmt: skip


def roughness(velocity: Tensor) -> Tensor:
    """Mean squared second difference between knots, over the axes."""
    return torch.stack([velocity.diff(n=2, dim=axis).square().mean() for axis in (2, 3, 4)]).sum()


def grain(volumes: Tensor) -> Tensor:
    """Mean squared difference between neighbours of (..., X, Y, Z), over the axes; 0 where there is nothing."""
    if not volumes.numel():
        return volumes.sum()
    return torch.stack([volumes.diff(dim=axis).square().mean() for axis in (-3, -2, -1)]).sum()


def scanned(
    clean: Tensor, spread: Tensor | None, noise: Tensor | None, state: Mapping[str, Tensor], sd: float, black: float
) -> Tensor:
    """What a scanner makes of a signal, (B, 1, X, Y, Z): magnitudes with noise, or without any their mean.

    Parameters
    ----------
    clean : torch.Tensor
        (B, 1, X, Y, Z), the signal.
    spread : torch.Tensor or None
        Standard deviation of what a warp leaves unexplained, of the same shape; needed with `noise`.
    noise : torch.Tensor or None
        N(0, 1), (B, 3, X, Y, Z).
    state : mapping of str to torch.Tensor
        With ``filter_x``, ``filter_y``, ``filter_z``: matrices that colour what `spread` scales.
    sd, black : float
        The scanner's noise, and the signal below which scans are 0.
    """
    if noise is None:
        scans = expected(clean, sd)
    else:
        texture, real, imaginary = noise.split(1, 1)
        signal = clean + spread * warps.separable(texture, [state[f"filter_{axis}"] for axis in "xyz"])
        # torch.hypot has no slope at 0, which scans without air reach
        scans = ((signal + sd * real).square() + (sd * imaginary).square() + 1e-12).sqrt()
    return torch.where(clean < black, 0.0, scans) if black else scans


def noise_of(z: Tensor, shape: Shape) -> Tensor:
    """Standard normal numbers (B, 3, X, Y, Z) for :func:`scanned`, which follow from codes (B, Z) alone."""
    rows = []
    for code in z.detach().cpu().contiguous():
        seed = int.from_bytes(hashlib.sha256(code.numpy().tobytes()).digest()[:8], "little") >> 1
        rows.append(torch.randn((3, *shape), generator=torch.Generator().manual_seed(seed)))
    return torch.stack(rows).to(z.device)


def expected(clean: Tensor, noise: float) -> Tensor:
    """Mean of the magnitude of a signal with complex noise of standard deviation `noise`: exact in air and far above.

    Between the two it is at most a tenth of the noise too high.
    """
    return (clean.square() + (math.pi / 2 * noise**2 + 1e-12)).sqrt()  # not 0, where a root has no slope
