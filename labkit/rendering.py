"""From an animal's numbers to its scan: velocity, pose, brightness and appearance, and how fine each of them is.

:class:`Geometry` is the formula of `labkit.atlas`, without anything that is learned. :class:`AtlasHead` is the end of a
generator (`labkit.networks`) that moves an atlas by that formula instead of making every voxel.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit import warps
from labkit.layers import DenseLayer, UpsamplingConv3d, full_precision

if TYPE_CHECKING:
    from labkit.variants import AtlasSettings, Scale

Shape = tuple[int, ...]

USUAL_SIDE = 64
"""Voxels of a grid's longest side up to which :class:`labkit.variants.AtlasSettings` counts voxels as they are."""

SPACING = 4
"""Voxels between knots, which are the voxels of G two layers before its end."""

DEVIATIONS = 10.0, 3.0, 3.0, 3.0
"""Of the atlas's animals, for which a 1 of the layers stands that give velocity, brightness, weights of appearances and
residual: warps are what animals differ by most, and what is learned last where all move alike."""

KEPT = ("spread", "filter_x", "filter_y", "filter_z", "label_logits", "label_values")
SCANNER = (*KEPT, "levels", "shape", "place", "units")
"""What a head takes of an atlas and leaves as it is: noise, labels, where scans lie in their cube, and by how much
animals differ (:meth:`labkit.atlas.Atlas.units`)."""


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
        # settings count voxels of grids of up to 64 a side: what a warp is, and costs, does not depend on the grid
        self.unit = max(1.0, max(shape) / USUAL_SIDE)
        self.knots = warps.coarse_shape(shape, settings.knot_spacing * self.unit)
        self.bright = warps.coarse_shape(shape, settings.brightness_spacing * self.unit)
        self.sizes = {
            "velocity": 3 * math.prod(self.knots), "pose": 12, "brightness": math.prod(self.bright),
            "appearance": settings.appearances,
        }  # fmt: skip
        rates = {"velocity": self.unit, "pose": self.unit, "brightness": 0.04, "appearance": 0.3}
        self.rates = torch.cat(
            [torch.full((size,), settings.lr * rates[name]) for name, size in self.sizes.items()]
        ).to(device)  # (P,), step sizes
        coarse = warps.coarse_shape(shape, settings.flow_spacing * self.unit)

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
        v = v / self.unit
        bending, speed = roughness(v), v.square().mean()
        prior = self.settings.bending * bending + self.settings.speed * speed + 1e-3 * g.square().mean()
        return {"prior": prior + 1e-4 * a.square().sum(1).mean() / max(1, a.shape[1]),
                "bending": bending.detach(), "speed": speed.detach()}  # fmt: skip


def resolutions(finest: Geometry) -> list[Geometry]:
    """Geometries from the coarsest, of at most half of 64 voxels a side, by halves to that of the scans."""
    halvings, device = 1 + math.ceil(math.log2(finest.unit)), finest.rates.device
    coarser = [Geometry(finest.full, finest.settings, device, coarser=2**k) for k in range(halvings, 0, -1)]
    return [*coarser, finest]


def schedule(steps: int, coarse: float, levels: Sequence[Geometry]) -> list[range]:
    """Steps at each of several resolutions: the share `coarse` divided evenly among all but the last."""
    ends = [math.ceil(steps * coarse * k / (len(levels) - 1)) for k in range(len(levels))] + [steps]
    return [range(begin, end) for begin, end in itertools.pairwise(ends)]


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
    if not black:
        return scans
    # what is black has a slope all the same, or nothing that learns could ever light it
    return scans + (torch.where(clean < black, 0.0, scans) - scans).detach()


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


class AtlasHead(nn.Module):
    """The end of a G that moves a template instead of making every voxel.

    ::

        x = | exp(B g) (T + sum_j a_j A_j) o exp(v) + r + noise |

    Velocity v and log-brightness g come from G's features a quarter as fine as the scan, weights a of appearances from
    these as well, the residual r, which stays within a bound, from G's own last layer. Template T and appearances A are
    trained on; they begin as the atlas's, and all that G says of an animal begins at nothing: every code gives T.

    Parameters
    ----------
    features, channels : int
        Channels a quarter as fine as the scan, and before the last layer.
    scale : Scale
        Size.
    settings : AtlasSettings
        Of the warp and of brightness; as many appearances as there are in `atlas`.
    residual : float
        Bound of r, grey values of [0, 1].
    atlas : mapping of str to torch.Tensor
        :meth:`labkit.atlas.Atlas.state_dict` of the training scans in a cube of this size.
    """

    def __init__(
        self, features: int, channels: int, scale: Scale, settings: AtlasSettings, residual: float,
        atlas: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        super().__init__()
        self.template, self.appearances = (nn.Parameter(atlas[name].clone()) for name in ("template", "appearances"))
        for name in KEPT:
            self.register_buffer(name, atlas[name].clone() if name in atlas else None, persistent=False)
        self.shape, self.size, self.residual_bound = tuple(atlas["shape"].tolist()), scale.size, residual
        self.noise, self.black, _ = atlas["levels"].tolist()
        self.unexplained = atlas["units"][3].item()  # standard deviation of grey values, from animal to animal
        self.units = [many * unit for many, unit in zip(DEVIATIONS, atlas["units"].tolist(), strict=True)]
        self.place = tuple(slice(a, a + n) for a, n in zip(atlas["place"].tolist(), self.shape, strict=True))
        before = [(scale.size - side) // 2 for side in scale.sides]  # the box that networks see is in the cube's middle
        self.box = tuple(slice(p.start - b, p.stop - b) for p, b in zip(self.place, before, strict=True))
        self.settings, count = settings, len(self.appearances)
        self.grid = tuple(side // SPACING for side in scale.sides)
        self.field = nn.Conv3d(features, 4, kernel_size=3, padding=1)
        self.weights = DenseLayer(features * math.prod(self.pooled), count) if count else None
        self.residual = UpsamplingConv3d(channels, 1)
        for layer in (self.field, self.weights, self.residual):
            for parameter in () if layer is None else layer.parameters():
                nn.init.zeros_(parameter)
        self._geometries: dict[torch.device, tuple[Geometry, list[Tensor]]] = {}

    @property
    def pooled(self) -> tuple[int, ...]:
        """Sides of the features that weights of appearances are made of."""
        return tuple(min(4, side) for side in self.grid)

    def geometry(self) -> tuple[Geometry, list[Tensor]]:
        """How knots become a warp, on the device that the template is on, and matrices from features to these knots."""
        device = self.template.device
        if device not in self._geometries:
            geometry = Geometry(self.shape, self.settings, device)
            parts = zip(self.box, geometry.knots, self.grid, strict=True)
            self._geometries[device] = geometry, [_resampling(*part).to(device) for part in parts]
        return self._geometries[device]

    def forward(
        self, features: Tensor, last: Tensor, noise: Tensor | None = None, labelled: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Cubes (B, 1, S, S, S) in [-1, 1], and their labels, uint8, where these are asked for.

        In evaluation warps fold nowhere: a velocity that would is weakened, as in an atlas. `noise` is N(0, 1),
        (B, 3, X, Y, Z), of the scans' voxels without padding; None gives the mean over all noise.
        """
        with full_precision(features):
            return self._move(features.float(), last, noise, labelled)

    def _move(
        self, features: Tensor, last: Tensor, noise: Tensor | None, labelled: bool
    ) -> tuple[Tensor, Tensor | None]:
        geometry, to_knots = self.geometry()
        # Adam moves all weights of a layer by the same step: divided by the root of their number, and in units of what
        # animals differ by, all that comes of them moves by small steps, and none of it ahead of the others
        field = warps.separable(self.field(features / math.sqrt(27 * features.shape[1])), to_knots)
        of_velocity, of_brightness, of_appearance, of_residual = self.units
        points = geometry.found(geometry.moved(of_velocity * field[:, :3], guarded=not self.training))
        bright = geometry.brightened(of_brightness * field[:, 3:])
        plain = self.spread.expand(len(features), -1, -1, -1, -1)
        if self.weights is not None:
            some = F.adaptive_avg_pool3d(features, self.pooled).flatten(1)
            a = of_appearance * self.weights(some / math.sqrt(some.shape[1]))
            look = (a @ self.appearances.flatten(1)).view(-1, 1, *self.shape)
            plain = torch.cat([look, plain], 1)
        fine = torch.cat([self.template, self.label_logits], 1) if labelled else self.template
        seen, more = geometry.see(fine, points), geometry.see(plain, points)
        clean = (seen[:, :1] + (more[:, :1] if self.weights is not None else 0)) * bright
        r = self.residual(last.float() / math.sqrt(27 * last.shape[1]))
        r = self.residual_bound * torch.tanh(r * (of_residual / max(self.residual_bound, 1e-6)))
        clean = clean + r[(..., *self.box)]
        spread, filters = more[:, -1:] * bright, dict(self.named_buffers())
        scans = scanned(clean, spread, noise, filters, self.noise, self.black)
        labels = self._in_cube(self.label_values[seen[:, 1:].max(1, keepdim=True).indices], 0) if labelled else None
        return self._in_cube(2 * scans - 1, -1.0), labels

    def _in_cube(self, scans: Tensor, padding: float) -> Tensor:
        """Scans among padding: (B, 1, X, Y, Z) -> (B, 1, S, S, S)."""
        around = [extent for part in reversed(self.place) for extent in (part.start, self.size - part.stop)]
        return F.pad(scans, around, value=padding)


def no_atlas(scale: Scale, appearances: int) -> dict[str, Tensor]:
    """What an :class:`AtlasHead` begins with, all of it zero, for many scans of the study's proportions."""
    shape = [min(side, n) for side, n in zip(scale.sides, (scale.size, scale.size, scale.size * 5 // 8), strict=True)]
    place = torch.tensor([(scale.size - n) // 2 for n in shape])
    return {
        "template": torch.zeros(1, 1, *(2 * n for n in shape)),
        "appearances": torch.zeros(appearances, *shape), "spread": torch.zeros(1, 1, *shape),
        "levels": torch.zeros(3), "shape": torch.tensor(shape), "place": place, "units": torch.ones(4),
        **{f"filter_{axis}": torch.eye(side) for axis, side in zip("xyz", shape, strict=True)},
    }  # fmt: skip


def _resampling(part: slice, knots: int, cells: int) -> Tensor:
    """Linear interpolation from cells of :data:`SPACING` voxels to knots over a part of them, (knots, cells)."""
    voxels = part.start + (torch.arange(knots) + 0.5) * ((part.stop - part.start) / knots)
    places = (voxels / SPACING - 0.5).clamp(0, cells - 1)
    return (1 - (places[:, None] - torch.arange(cells)).abs()).clamp_min(0)
