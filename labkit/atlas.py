"""The fourth model, ours: every scan is one template, warped, brightened and scanned; new animals are new warps.

::

    x_i = | exp(B g_i) (T + sum_j a_ij A_j) o phi_i + noise |      phi_i = pose_i o exp(v_i)
    z_i = whitened modes of [v_i, pose_i, g_i, a_i]                new animals: z ~ N(0, I)

No network and no adversary: the template T, appearances A_j and every animal's numbers are fitted together by gradient
descent on squared differences and smoothness, which is `labkit.registration`; here is what comes of it. Scans are
float32 (N, 1, X, Y, Z) in [0, 1] on their own grid, without padding. Ancestors: Ashburner et al. 2019 (Med Image Anal
55:197), Cootes et al. 2001 (IEEE PAMI 23:681).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit import warps
from labkit.fields import check, number, one_of

__all__ = ["ATLAS_SCALES", "Adam", "Atlas", "AtlasSettings", "Geometry"]

Shape = tuple[int, ...]
BETAS = 0.8, 0.99
"""Of all moments: an animal is seen a few dozen times in all, fewer than a longer memory would reach back."""

CHUNK = 8
"""Animals at a time."""


@dataclass(frozen=True, kw_only=True)
class AtlasSettings:
    """How fine the atlas is, and how long it is fitted.

    Attributes
    ----------
    name : str
        Key in :data:`ATLAS_SCALES` these settings come from.
    latent_dim : int
        Length of a code; 500 as in SigmaRat1 and SigmaRat2.
    iterations, batch_size : int
        Steps of the fit, and scans a step.
    coarse_share : float
        Share of the steps at half the scans' resolution, which settles most of every warp at an eighth of the cost.
    template_factor : int
        Voxels of the template along a voxel of the scans, 1 or 2.
    knot_spacing, flow_spacing, brightness_spacing : int
        Voxels between knots of velocity, between points at which its flow is integrated, and between knots of
        brightness.
    squarings : int
        Of scaling and squaring.
    appearances : int
        Number of A_j.
    lr, lr_template : float
        Step size of Adam for velocities, voxels, and for the template, grey values in [0, 1].
    bending, speed : float
        Weights of the mean squared second difference between knots and of the mean squared velocity, voxels.

    Raises
    ------
    ValueError
        Says which field was given what, and what is allowed.
    """

    name: str
    latent_dim: int = number(1, default=500)
    iterations: int = number(1)
    batch_size: int = number(1, default=4)
    coarse_share: float = number(0, 1, default=0.4)
    template_factor: int = one_of(1, 2, default=1)
    knot_spacing: int = number(1, default=4)
    flow_spacing: int = number(1, default=3)
    brightness_spacing: int = number(1, default=8)
    squarings: int = number(1, 10, default=4)
    appearances: int = number(0, 20, default=8)
    lr: float = number(1e-6, 1, default=0.1)
    lr_template: float = number(1e-6, 1, default=4e-3)
    bending: float = number(0, default=0.004)
    speed: float = number(0, default=8e-5)

    def __post_init__(self) -> None:
        check(self)


ATLAS_SCALES: dict[str, AtlasSettings] = {
    settings.name: settings
    for settings in (
        AtlasSettings(name="smoke", latent_dim=32, iterations=120, coarse_share=0.5, appearances=2, knot_spacing=3),
        AtlasSettings(name="laptop", iterations=2000),
        AtlasSettings(name="paper", iterations=6000, template_factor=2, appearances=16),
    )
}
"""Settings by name: seconds for tests, minutes on a processor, without hurry."""


class Geometry:
    """How an animal's numbers become warp and brightness on a grid: matrices, nothing learned.

    `shape` is the scans'; `coarser` of 2 renders them at half the resolution, from a template of half the resolution.
    A row of numbers is velocity (voxels), pose (voxels), brightness (natural logarithm), appearance; `sizes` says how
    many of each.
    """

    def __init__(self, shape: Shape, settings: AtlasSettings, device: torch.device, coarser: int = 1) -> None:
        self.full, self.squarings = tuple(shape), settings.squarings
        self.shape = tuple(max(min(n, 2), n // coarser) for n in shape)
        self.template_shape = tuple(n * settings.template_factor for n in self.shape)
        self.knots = warps.coarse_shape(shape, settings.knot_spacing)
        self.bright = warps.coarse_shape(shape, settings.brightness_spacing)
        self.sizes = {
            "velocity": 3 * math.prod(self.knots), "pose": 12, "brightness": math.prod(self.bright),
            "appearance": settings.appearances,
        }  # fmt: skip
        coarse = warps.coarse_shape(shape, settings.flow_spacing)

        def matrices(make: Callable[[int, int], Tensor], out: Shape, given: Shape) -> list[Tensor]:
            return [make(n, m).float().to(device) for n, m in zip(out, given, strict=True)]

        def ratio(above: Shape, below: Shape) -> Tensor:
            values = [n / m for n, m in zip(above, below, strict=True)]
            return torch.tensor(values, device=device)[:, None, None, None]

        self.to_flow = matrices(warps.spline_matrix, coarse, self.knots)
        self.to_voxels = matrices(warps.spline_resampling, self.shape, coarse)
        self.to_bright = matrices(warps.spline_matrix, self.shape, self.bright)
        self.cell, self.fine = ratio(self.full, coarse), ratio(self.template_shape, self.full)
        self.middle = ratio(self.full, (2, 2, 2))
        corner = warps.index_grid(torch.empty(self.shape, device=device))
        self.centres = (corner + 0.5) * ratio(self.full, self.shape) - self.middle  # voxels from the scan's middle

    def split(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Velocity (B, 3, x, y, z), pose (B, 12), brightness (B, 1, x, y, z) and appearance (B, J) of (B, P)."""
        v, pose, g, a = numbers.split(list(self.sizes.values()), 1)
        return v.unflatten(1, (3, *self.knots)), pose, g.unflatten(1, (1, *self.bright)), a

    def points(self, numbers: Tensor, guarded: bool = False) -> Tensor:
        """phi: where in the template each voxel is found, (B, 3, X, Y, Z), voxels of the template.

        `guarded` warps fold nowhere: a velocity that would is weakened, as the simulator does.
        """
        v, pose, _, _ = self.split(numbers)
        velocity = warps.separable(v, self.to_flow) / self.cell
        if guarded:
            moved, _ = warps.diffeomorphism(velocity, self.squarings)
        else:
            moved = warps.flow(velocity, self.squarings)
        places = warps.separable(moved * self.cell, self.to_voxels) + self.centres
        matrix = warps.affine_matrix(pose, self.full)
        places = (matrix[:, :, :3] @ places.flatten(2) + matrix[:, :, 3:]).view_as(places)
        return (places + self.middle) * self.fine - 0.5

    def brightness(self, numbers: Tensor) -> Tensor:
        """exp(B g), (B, 1, X, Y, Z)."""
        return warps.separable(self.split(numbers)[2], self.to_bright).exp()

    def volumes(self, template: Tensor, appearances: Tensor, numbers: Tensor) -> Tensor:
        """T + sum_j a_j A_j of each animal, (B, 1, X', Y', Z')."""
        a = self.split(numbers)[3]
        return template + (a @ appearances.flatten(1)).view(-1, *template.shape[1:])

    def render(self, template: Tensor, appearances: Tensor, numbers: Tensor) -> Tensor:
        """The scan without its noise, (B, 1, X, Y, Z)."""
        volumes = self.volumes(template, appearances, numbers)
        return warps.sample(volumes, self.points(numbers)) * self.brightness(numbers)


def roughness(velocity: Tensor) -> Tensor:
    """Mean squared second difference between knots, over the axes."""
    return torch.stack([velocity.diff(n=2, dim=axis).square().mean() for axis in (2, 3, 4)]).sum()


def expected(clean: Tensor, noise: float) -> Tensor:
    """Mean of the magnitude of a signal with complex noise of standard deviation `noise`: exact in air and far above.

    Between the two it is at most a tenth of the noise too high.
    """
    return (clean.square() + (math.pi / 2 * noise**2 + 1e-12)).sqrt()  # not 0, where a root has no slope


class Adam:
    """Adam of rows of a tensor: those of animals that are not in a batch wait, with their moments."""

    def __init__(self, like: Tensor) -> None:
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.counts = torch.zeros(len(like), device=like.device)

    def step(self, values: Tensor, gradient: Tensor, rate: Tensor | float, rows: Tensor | slice = slice(None)) -> None:
        """Move `values`[`rows`] in place against their gradient."""
        b1, b2 = BETAS
        first = self.first[rows].lerp(gradient, 1 - b1)
        second = self.second[rows].lerp(gradient.square(), 1 - b2)
        count = (self.counts[rows] + 1).view(-1, *[1] * (values.ndim - 1))
        self.first[rows], self.second[rows], self.counts[rows] = first, second, count.flatten()
        size = (second / (1 - b2**count)).sqrt_().add_(1e-8)
        values[rows] = values[rows] - rate * (first / (1 - b1**count)) / size

    def state_dict(self) -> dict[str, Tensor]:
        """Moments and counts."""
        return {"first": self.first, "second": self.second, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.first, self.second, self.counts = state["first"], state["second"], state["counts"]


def annealed(done: float) -> float:
    """Step size after a share of the steps: 1, and in the last 40 % down to almost nothing."""
    return min(1.0, (1 - done) / 0.4 + 0.02)


class Atlas:
    """A fitted atlas: codes to scans and labels, and back; tensors and settings, nothing else.

    Parameters
    ----------
    settings : AtlasSettings
        Those of the fit.
    state : mapping of str to torch.Tensor
        As :meth:`state_dict` gives it; its device is the one that computes.

    Examples
    --------
    >>> from labkit.registration import AtlasLearner
    >>> learner = AtlasLearner(torch.rand(5, 1, 16, 16, 16), ATLAS_SCALES["smoke"])
    >>> atlas = learner.finish()
    >>> z = torch.randn(2, atlas.latent_dim)
    >>> scans = atlas.decode(z, noise=torch.randn(atlas.noise_shape(2)))
    >>> tuple(scans.shape), tuple(atlas.encode(scans).shape) == tuple(z.shape)
    ((2, 1, 16, 16, 16), True)
    """

    def __init__(self, settings: AtlasSettings, state: Mapping[str, Tensor]) -> None:
        self.settings, self.state = settings, dict(state)
        shape = tuple(self.state["shape"].tolist())
        self.geometry = Geometry(shape, settings, self.state["template"].device)
        self.noise, self.black, self.misfit = self.state["levels"].tolist()
        self.place = self.state.get("place", torch.zeros(3, dtype=torch.long)).tolist()
        self.latent_dim = len(self.state["basis"])

    def state_dict(self) -> dict[str, Tensor]:
        """All that was learned, as tensors by name."""
        return dict(self.state)

    def noise_shape(self, n: int) -> Shape:
        """Of the standard normal numbers that :meth:`decode` takes for `n` scans: (n, 3, X, Y, Z)."""
        return (n, 3, *self.geometry.shape)

    def numbers(self, z: Tensor) -> Tensor:
        """Codes (N, Z) to the numbers of animals, (N, P): see :class:`Geometry`."""
        return self.state["centre"] + z @ self.state["basis"]

    def codes(self, numbers: Tensor) -> Tensor:
        """The nearest codes (N, Z) of numbers (N, P), without looking at a scan."""
        basis, weights = self.state["basis"], self.state["weights"]
        length = (basis * weights).square().sum(1).clamp_min(1e-12)
        return ((numbers - self.state["centre"]) * weights.square()) @ basis.T / length

    @torch.no_grad()
    def decode(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """Codes (N, Z) to scans, (N, 1, X, Y, Z), 0 or more, mostly below 1.

        Parameters
        ----------
        z : torch.Tensor
            Of new animals: N(0, I).
        noise : torch.Tensor, optional
            N(0, 1), :meth:`noise_shape`: what a warp does not explain, and the scanner's noise. None gives the mean
            over all noise, which is smoother than any scan.
        """
        return torch.cat([self._decode(*part)[0] for part in self._parts(z, noise)])

    @torch.no_grad()
    def decode_labelled(self, z: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :meth:`decode`, with the scans' labels, uint8 (N, 1, X, Y, Z)."""
        parts = [self._decode(*part, labelled=True) for part in self._parts(z, noise)]
        return torch.cat([scans for scans, _ in parts]), torch.cat([labels for _, labels in parts])

    def label(self, z: Tensor) -> Tensor:
        """Labels of codes (N, Z), uint8 (N, 1, X, Y, Z), in the numbers that :meth:`learn_labels` was given."""
        return self.decode_labelled(z)[1]

    def _parts(self, z: Tensor, noise: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        parts = list(z.split(CHUNK))
        return list(zip(parts, [None] * len(parts) if noise is None else noise.split(CHUNK), strict=True))

    def _decode(self, z: Tensor, noise: Tensor | None, labelled: bool = False) -> tuple[Tensor, Tensor]:
        state, numbers = self.state, self.numbers(z)
        more = [state["spread"]] if noise is not None else []
        more += [state["label_logits"]] if labelled else []
        volumes = [self.geometry.volumes(state["template"], state["appearances"], numbers)]
        volumes += [volume.expand(len(z), -1, -1, -1, -1) for volume in more]
        # one look-up for all: to find the eight neighbours takes longer than to read them
        seen = warps.sample(torch.cat(volumes, 1), self.geometry.points(numbers, guarded=True))
        bright = self.geometry.brightness(numbers)
        clean = seen[:, :1] * bright
        if noise is None:
            scans = expected(clean, self.noise)
        else:
            filters = [state[f"filter_{axis}"] for axis in "xyz"]
            texture, real, imaginary = noise.split(1, 1)
            signal = clean + seen[:, 1:2] * bright * warps.separable(texture, filters)
            scans = torch.hypot(signal + self.noise * real, self.noise * imaginary)
        if self.black:
            scans = torch.where(clean < self.black, 0.0, scans)
        if not labelled:
            return scans, scans
        return scans, state["label_values"][seen[:, 1 + (noise is not None) :].argmax(1, keepdim=True)]

    def encode(self, scans: Tensor, steps: int = 40, start: Tensor | None = None) -> Tensor:
        """Scans (N, 1, X, Y, Z) in [0, 1] to their most probable codes, (N, Z), by gradient descent.

        Parameters
        ----------
        scans : torch.Tensor
            On the grid of the fit.
        steps : int
            Of Adam, the first two thirds at half the resolution.
        start : torch.Tensor, optional
            Codes to begin with, (N, Z); then no step is at half the resolution.
        """
        if tuple(scans.shape[2:]) != self.geometry.full:
            raise ValueError(f"scans of {tuple(scans.shape[2:])} voxels; this atlas was fitted to {self.geometry.full}")
        coarse = Geometry(self.geometry.full, self.settings, scans.device, coarser=2)
        levels = [(coarse, 0.0, 2 / 3), (self.geometry, 2 / 3, 1.0)] if start is None else [(self.geometry, 0.0, 1.0)]
        found = []
        for place, part in enumerate(scans.split(CHUNK)):
            z = part.new_zeros(len(part), self.latent_dim) if start is None else start[place * CHUNK :][: len(part)]
            z, moments = z.clone(), Adam(z)
            for geometry, begin, end in levels:
                z = self._descend(geometry, part, z, moments, range(round(begin * steps), round(end * steps)), steps)
            found.append(z)
        return torch.cat(found) if found else scans.new_zeros(0, self.latent_dim)

    def _descend(self, geometry: Geometry, scans: Tensor, z: Tensor, moments: Adam, some: range, steps: int) -> Tensor:
        """Some of the steps that make codes more probable: squared differences, and N(0, I)."""
        size, shape = geometry.shape, geometry.template_shape
        template, looks = (F.adaptive_avg_pool3d(self.state[name], shape) for name in ("template", "appearances"))
        target = F.adaptive_avg_pool3d(scans, size)
        voxels = math.prod(self.geometry.shape) / (2 * self.misfit * math.prod(size))
        for step in some:
            with torch.enable_grad():
                z.requires_grad_()
                seen = expected(geometry.render(template, looks, self.numbers(z)), self.noise)
                energy = voxels * (seen - target).square().sum() + z.square().sum() / 2
                (gradient,) = torch.autograd.grad(energy, z)
            z = z.detach()
            moments.step(z, gradient, 0.3 * annealed(step / steps))
        return z

    @property
    def modes(self) -> dict[str, Tensor]:
        """What each entry of a code moves, (Z,): its ``"share"`` of all variance of grey values, and, adding up to 1, how
        much of that is ``"velocity"``, ``"pose"``, ``"brightness"`` and ``"appearance"``.
        """
        parts = (self.state["basis"] * self.state["weights"]).square().split(list(self.geometry.sizes.values()), 1)
        energy = torch.stack([part.sum(1) for part in parts])
        total = energy.sum(0).clamp_min(1e-12)
        return {"share": total / total.sum(), **dict(zip(self.geometry.sizes, energy / total, strict=True))}

    @torch.no_grad()
    def volume_change(self, z: Tensor) -> Tensor:
        """Jacobian determinants of the warps of codes (N, Z), (N, X, Y, Z): template's volume over the animal's."""
        points = (self.geometry.points(self.numbers(z), guarded=True) + 0.5) / self.geometry.fine
        return warps.jacobian(points - warps.index_grid(points))

    def learn_labels(self, numbers: Tensor, labels: Tensor, steps: int = 80) -> Atlas:
        """The same atlas with labels of some animals brought into the template.

        Parameters
        ----------
        numbers : torch.Tensor
            (M, P) of the labelled animals: the fit's, or :meth:`numbers` of their codes.
        labels : torch.Tensor
            Any whole numbers from 0 to 255, (M, 1, X, Y, Z).
        steps : int
            Of Adam, four animals each.

        Notes
        -----
        Log-probabilities of the template's voxels are fitted so that, warped, they give the labels. Averages of
        labels would lose what is thinner than the atlas is exact, CSF above all; what is left of that is mended by an
        offset of each label, so that the labelled animals' volumes come out as they are.
        """
        values = labels.unique()
        target = torch.searchsorted(values, labels.contiguous())[:, 0]
        logits = numbers.new_zeros(1, len(values), *self.geometry.template_shape)
        moments, order = Adam(logits), torch.arange(max(4, 4 * steps), device=labels.device) % len(labels)
        for step in range(steps):
            animals = order[4 * step : 4 * step + min(4, len(labels))]
            with torch.no_grad():
                points = self.geometry.points(numbers[animals], guarded=True)
            with torch.enable_grad():
                logits.requires_grad_()
                seen = warps.sample(logits.expand(len(animals), -1, -1, -1, -1), points)
                (gradient,) = torch.autograd.grad(F.cross_entropy(seen, target[animals]), logits)
            logits = logits.detach()
            moments.step(logits, gradient, 0.3 * annealed(step / steps))
        state = {"label_logits": logits, "label_values": values.to(torch.uint8)}
        state["label_logits"] = logits + self._offsets(logits, numbers[:16], target[:16])
        return Atlas(self.settings, self.state | state)

    @torch.no_grad()
    def _offsets(self, logits: Tensor, numbers: Tensor, target: Tensor) -> Tensor:
        """What to add to each label's log-probability so that labels take the volume they have, (1, K, 1, 1, 1)."""
        seen = torch.cat([
            warps.sample(logits.expand(len(part), -1, -1, -1, -1), self.geometry.points(part, guarded=True))
            for part in numbers.split(CHUNK)
        ])  # fmt: skip
        kinds = logits.shape[1]
        wanted = target.flatten().bincount(minlength=kinds).double()
        offset = logits.new_zeros(1, kinds, 1, 1, 1)
        for _ in range(12):
            there = (seen + offset).argmax(1).flatten().bincount(minlength=kinds).double()
            offset = offset + (wanted / there.clamp_min(1)).log().float().view(1, kinds, 1, 1, 1)
        return offset


class AtlasGenerator(nn.Module):
    """An atlas in the place of G: codes (B, Z) to cubes (B, 1, S, S, S) in [-1, 1], the padding black.

    With `noise` each scan has its own, which follows from its code alone: the same code gives the same scan.
    """

    def __init__(self, atlas: Atlas, size: int, noise: bool = True) -> None:
        super().__init__()
        self.atlas, self.size, self.noise = atlas, size, noise
        self.register_buffer("template", atlas.state["template"])  # tells the device
        self.box = tuple(slice(start, start + n) for start, n in zip(atlas.place, atlas.geometry.full, strict=True))

    @property
    def has_labels(self) -> bool:
        """Whether it was trained on scans with labels, so that :meth:`labelled` has some to give."""
        return "label_logits" in self.atlas.state

    def forward(self, z: Tensor) -> Tensor:
        """(B, Z) -> (B, 1, S, S, S)."""
        # by parts and with gradients, which directions of the latent space are made of
        scans = torch.cat([self.atlas._decode(*part)[0] for part in self.atlas._parts(z, self.noise_of(z))])
        return self.in_cube(scans * 2 - 1, -1.0).clamp(-1, 1)

    def labelled(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, with label maps, uint8 (B, 1, S, S, S)."""
        scans, labels = self.atlas.decode_labelled(z, self.noise_of(z))
        return self.in_cube(scans * 2 - 1, -1.0).clamp_(-1, 1), self.in_cube(labels, 0)

    def in_cube(self, scans: Tensor, padding: float) -> Tensor:
        """Scans in the middle of cubes."""
        cubes = scans.new_full((len(scans), 1, self.size, self.size, self.size), padding)
        cubes[(..., *self.box)] = scans
        return cubes

    def noise_of(self, z: Tensor) -> Tensor | None:
        """Standard normal numbers for :meth:`Atlas.decode`, by codes (B, Z), or None."""
        if not self.noise:
            return None
        rows = []
        for code in z.detach().cpu().contiguous():
            seed = int.from_bytes(hashlib.sha256(code.numpy().tobytes()).digest()[:8], "little") >> 1
            rows.append(torch.randn(self.atlas.noise_shape(1)[1:], generator=torch.Generator().manual_seed(seed)))
        return torch.stack(rows).to(z.device)


class AtlasEncoder(nn.Module):
    """An atlas in the place of E: cubes (B, 1, S, S, S) in [-1, 1] to codes (B, Z), by gradient descent."""

    def __init__(self, atlas: Atlas) -> None:
        super().__init__()
        self.atlas = atlas
        self.register_buffer("template", atlas.state["template"])
        self.box = tuple(slice(start, start + n) for start, n in zip(atlas.place, atlas.geometry.full, strict=True))

    def forward(self, cubes: Tensor) -> Tensor:
        """(B, 1, S, S, S) -> (B, Z)."""
        return self.atlas.encode((cubes[(..., *self.box)] + 1) / 2)
