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

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.rendering import Geometry, Shape, expected, noise_of, resolutions, scanned, schedule

if TYPE_CHECKING:
    from labkit.variants import AtlasSettings

__all__ = ["Adam", "Atlas", "AtlasEncoder", "AtlasGenerator", "annealed"]

BETAS = 0.8, 0.99
"""Of all moments: an animal is seen a few dozen times in all, fewer than a longer memory would reach back."""

CHUNK = 8
"""Animals at a time."""


class Adam:
    """Adam of rows of a tensor: those of animals that are not in a batch wait, with their moments."""

    def __init__(self, like: Tensor) -> None:
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.counts = torch.zeros(len(like), device=like.device)

    def step(self, values: Tensor, gradient: Tensor, rate: Tensor | float, rows: Tensor | slice = slice(None)) -> None:
        """Move `values`[`rows`] in place against their gradient."""
        b1, b2 = BETAS
        whole = isinstance(rows, slice)  # then all of it is done in place: copies of a template take their time
        first, second, counts = (part if whole else part[rows] for part in (self.first, self.second, self.counts))
        first.lerp_(gradient, 1 - b1)
        second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        counts += 1
        count = counts.view(-1, *[1] * (values.ndim - 1))
        move = (second / (1 - b2**count)).sqrt_().add_(1e-8).reciprocal_().mul_(first)
        move.mul_(-rate / (1 - b1**count))
        if whole:
            values += move
        else:
            self.first[rows], self.second[rows], self.counts[rows] = first, second, counts
            values[rows] += move

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
    >>> from labkit.variants import ATLAS_SCALES
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

    def _parts(self, z: Tensor, noise: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        parts = list(z.split(CHUNK))
        return list(zip(parts, [None] * len(parts) if noise is None else noise.split(CHUNK), strict=True))

    def _decode(self, z: Tensor, noise: Tensor | None, labelled: bool = False) -> tuple[Tensor, Tensor]:
        state, numbers = self.state, self.numbers(z)
        points = self.geometry.points(numbers, guarded=True)
        fine = self._template_and_labels if labelled else state["template"]
        plain = self.geometry.look(state["appearances"], numbers)
        if noise is not None:
            plain = torch.cat([plain, state["spread"].expand_as(plain)], 1)
        seen, more = self.geometry.see(fine, points), self.geometry.see(plain, points)
        bright = self.geometry.brightness(numbers)
        clean = (seen[:, :1] + more[:, :1]) * bright
        scans = scanned(clean, more[:, 1:] * bright, noise, state, self.noise, self.black)
        if not labelled:
            return scans, scans
        # argmax along an axis that is not the last in memory takes eight times as long as max
        return scans, state["label_values"][seen[:, 1:].max(1, keepdim=True).indices]

    @property
    def _label_logits(self) -> Tensor:
        if "label_logits" not in self.state:
            raise ValueError("this atlas has no labels yet: give it some with learn_labels")
        return self.state["label_logits"]

    @cached_property
    def _template_and_labels(self) -> Tensor:
        """Both in one look-up, channels last in memory: finding eight neighbours takes longer than reading them."""
        both = torch.cat([self.state["template"], self._label_logits], 1)
        return both.contiguous(memory_format=torch.channels_last_3d)

    def encode(self, scans: Tensor, steps: int = 40, start: Tensor | None = None, *, coarse: bool = False) -> Tensor:
        """Scans (N, 1, X, Y, Z) in [0, 1] to their most probable codes, (N, Z), by gradient descent.

        Parameters
        ----------
        scans : torch.Tensor
            On the grid of the fit.
        steps : int
            Of Adam, the first two thirds at half the resolution; of more than 64 voxels a side at a quarter before.
        start : torch.Tensor, optional
            Codes to begin with, (N, Z); then all steps are at full resolution.
        coarse : bool
            No step at full resolution: a third of the time, for codes that are compared with each other alone.
        """
        if tuple(scans.shape[2:]) != self.geometry.full:
            raise ValueError(f"scans of {tuple(scans.shape[2:])} voxels; this atlas was fitted to {self.geometry.full}")
        levels = self._levels(steps, 1.0 if coarse else 2 / 3 if start is None else 0.0)
        found = []
        for place, part in enumerate(scans.split(CHUNK)):
            z = part.new_zeros(len(part), self.latent_dim) if start is None else start[place * CHUNK :][: len(part)]
            z, moments = z.clone(), Adam(z)
            for geometry, some in levels:
                z = self._descend(geometry, part, z, moments, some, steps)
            found.append(z)
        return torch.cat(found) if found else scans.new_zeros(0, self.latent_dim)

    @torch.no_grad()
    def register(self, scans: Tensor, steps: int = 60) -> Tensor:
        """Scans (N, 1, X, Y, Z) in [0, 1] to numbers, (N, P), that no mode holds back.

        As the fit found those of its animals, with template and appearances as they are. A code knows only how the
        animals of the fit differ, which of few animals is too little to lay labels over a new one.
        """
        levels, found = self._levels(steps, 0.5), []
        for part in scans.split(CHUNK):
            numbers = self.state["centre"].repeat(len(part), 1)
            moments = Adam(numbers)
            for geometry, some in levels:
                template, looks, target = self._at(geometry, part)
                for step in some:
                    with torch.enable_grad():
                        numbers.requires_grad_()
                        seen = expected(geometry.render(template, looks, numbers), self.noise)
                        loss = 4 * (seen - target).square().mean() + geometry.priors(numbers)["prior"]
                        (gradient,) = torch.autograd.grad(loss, numbers)
                    numbers = numbers.detach()
                    moments.step(numbers, gradient, geometry.rates * annealed(step / steps))
            found.append(numbers)
        return torch.cat(found)

    def _levels(self, steps: int, coarse: float) -> list[tuple[Geometry, range]]:
        """Resolutions, and the steps at each."""
        levels = resolutions(self.geometry)
        return list(zip(levels, schedule(steps, coarse, levels), strict=True))

    def _at(self, geometry: Geometry, scans: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Template, appearances and scans at the resolution of a geometry."""
        looks, target = (F.adaptive_avg_pool3d(part, geometry.shape) for part in (self.state["appearances"], scans))
        return F.adaptive_avg_pool3d(self.state["template"], geometry.template_shape), looks, target

    @torch.no_grad()
    def labels_of(self, numbers: Tensor) -> Tensor:
        """The template's labels under the warps of numbers (N, P): uint8 (N, 1, X, Y, Z)."""
        found = []
        for part in numbers.split(CHUNK):
            seen = self.geometry.see(self._label_logits, self.geometry.points(part, guarded=True))
            found.append(self.state["label_values"][seen.max(1, keepdim=True).indices])
        return torch.cat(found)

    def _descend(self, geometry: Geometry, scans: Tensor, z: Tensor, moments: Adam, some: range, steps: int) -> Tensor:
        """Some of the steps that make codes more probable: squared differences, and N(0, I)."""
        template, looks, target = self._at(geometry, scans)
        voxels = math.prod(self.geometry.shape) / (2 * self.misfit * math.prod(geometry.shape))
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
        """What each entry of a code moves, tensors (Z,).

        ``"share"`` is that of all variance of grey values; ``"velocity"``, ``"pose"``, ``"brightness"`` and
        ``"appearance"`` say how much of it they make, and add up to 1.
        """
        parts = (self.state["basis"] * self.state["weights"]).square().split(list(self.geometry.sizes.values()), 1)
        energy = torch.stack([part.sum(1) for part in parts])
        total = energy.sum(0).clamp_min(1e-12)
        return {"share": total / total.sum(), **dict(zip(self.geometry.sizes, energy / total, strict=True))}

    @torch.no_grad()
    def units(self, animals: int = 32) -> Tensor:
        """By how much new animals differ, (4,): displacement (voxels), log-brightness, weights of appearances.

        Standard deviations over some animals and all voxels; and last what a code leaves unexplained of a scan, the
        root of its mean square in grey values of [0, 1].
        """
        z = torch.randn(animals, self.latent_dim, generator=torch.Generator().manual_seed(0))
        numbers = self.numbers(z.to(self.state["centre"]))
        kinds = self.geometry.points(numbers), self.geometry.brightness(numbers).log(), self.geometry.split(numbers)[3]
        sds = [(kind - kind.mean(0)).square().mean().sqrt() if kind.numel() else kind.new_zeros(()) for kind in kinds]
        return torch.stack([*sds, sds[0].new_tensor(self.misfit).sqrt()])

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
                seen = self.geometry.see(logits, points)
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
            self.geometry.see(logits, self.geometry.points(part, guarded=True))
            for part in numbers.split(CHUNK)
        ])  # fmt: skip
        kinds = logits.shape[1]
        wanted = target.flatten().bincount(minlength=kinds).double()
        offset = logits.new_zeros(1, kinds, 1, 1, 1)
        for _ in range(12):
            there = (seen + offset).max(1).indices.flatten().bincount(minlength=kinds).double()
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
        return noise_of(z, self.atlas.geometry.shape) if self.noise else None


class AtlasEncoder(nn.Module):
    """An atlas in the place of E: cubes (B, 1, S, S, S) in [-1, 1] to codes (B, Z), by gradient descent."""

    def __init__(self, atlas: Atlas) -> None:
        super().__init__()
        self.atlas = atlas
        self.register_buffer("template", atlas.state["template"])
        self.box = tuple(slice(start, start + n) for start, n in zip(atlas.place, atlas.geometry.full, strict=True))

    def forward(self, cubes: Tensor, coarse: bool = False) -> Tensor:
        """(B, 1, S, S, S) -> (B, Z)."""
        return self.atlas.encode((cubes[(..., *self.box)] + 1) / 2, 30 if coarse else 40, coarse=coarse)

    def labels(self, cubes: Tensor) -> Tensor:
        """Cubes (B, 1, S, S, S) in [-1, 1] to their labels by registration, uint8 of the same shape."""
        found = cubes.new_zeros(cubes.shape, dtype=torch.uint8)
        scans = (cubes[(..., *self.box)] + 1) / 2
        found[(..., *self.box)] = self.atlas.labels_of(self.atlas.register(scans))
        return found

    @torch.no_grad()
    def unposed(self, cubes: Tensor, z: Tensor) -> Tensor:
        """Cubes (N, 1, S, S, S), any unit, with codes (N, Z), as they would lie in the template's pose."""
        out, geometry = cubes.clone(), self.atlas.geometry
        for place in range(0, len(cubes), CHUNK):
            part, numbers = cubes[place : place + CHUNK], self.atlas.numbers(z[place : place + CHUNK])
            out[(slice(place, place + CHUNK), slice(None), *self.box)] = geometry.unposed(
                part[(..., *self.box)].contiguous(), numbers
            )
        return out
