"""How an atlas comes about: template, warps and brightness of all animals, and what the animals have in common.

:class:`AtlasLearner` takes steps until there are enough of them; :meth:`AtlasLearner.finish` makes the
:class:`labkit.atlas.Atlas`.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit import warps
from labkit.atlas import CHUNK, Adam, Atlas, AtlasEncoder, AtlasGenerator, annealed
from labkit.parallel import ALONE
from labkit.rendering import Geometry, expected, grain, resolutions, schedule
from labkit.variants import AtlasSettings, Scale

LEADING = 6
"""Animals for each mode that is taken as it was found."""

__all__ = ["AtlasFit", "AtlasLearner", "modes", "noise_level", "texture"]


class AtlasLearner:
    """Template, appearances and the numbers of every animal, while they are fitted.

    Parameters
    ----------
    scans : torch.Tensor
        (N, 1, X, Y, Z) in [0, 1], on the device that is to compute.
    settings : AtlasSettings
        All of them; :data:`ATLAS_SCALES` has some.
    seed : int
        Of the appearances' first coefficients.

    Examples
    --------
    >>> scans = torch.rand(3, 1, 16, 16, 16)
    >>> from labkit.variants import ATLAS_SCALES
    >>> learner, rng = AtlasLearner(scans, ATLAS_SCALES["smoke"]), torch.Generator().manual_seed(0)
    >>> sorted(learner.step(learner.draw(rng)))
    ['bending', 'loss', 'mse', 'speed']
    """

    def __init__(self, scans: Tensor, settings: AtlasSettings, seed: int = 0) -> None:
        self.scans, self.settings, self.device, self.team = scans, settings, scans.device, ALONE
        shape = tuple(scans.shape[2:])
        self.geometry = Geometry(shape, settings, self.device)
        self.levels = resolutions(self.geometry)
        # a step at full resolution costs as much as eight at half: larger scans get as many fewer of them
        coarse = 1 - (1 - settings.coarse_share) / self.geometry.unit
        self.schedule = schedule(settings.iterations, coarse, self.levels)
        self.pyramid = [F.adaptive_avg_pool3d(scans, level.shape) for level in self.levels[:-1]] + [scans]
        self.noise, self.black = noise_level(scans)
        n, sizes = len(scans), self.geometry.sizes
        start = torch.randn(n, settings.appearances, generator=torch.Generator().manual_seed(seed)).to(self.device)
        self.numbers = torch.cat([start.new_zeros(n, sum(sizes.values()) - settings.appearances), start], 1)
        mean = self.pyramid[0].mean(0, keepdim=True)
        self.template = (mean.square() - math.pi / 2 * self.noise**2).clamp_min(0).sqrt()
        self.appearances = mean.new_zeros(settings.appearances, *mean.shape[2:])
        self.order, self.iteration = torch.zeros(0, dtype=torch.long, device=self.device), 0
        self.of_numbers = Adam(self.numbers)
        self._on_grid(self.levels[0])

    def _on_grid(self, geometry: Geometry) -> None:
        """Bring template and appearances onto a geometry's grid, and begin their moments anew."""
        self.template = F.interpolate(self.template, size=geometry.template_shape, mode="trilinear")
        self.appearances = F.interpolate(self.appearances[:, None], size=geometry.shape, mode="trilinear")[:, 0]
        self.of_template, self.of_appearances = Adam(self.template), Adam(self.appearances)

    def draw(self, rng: torch.Generator) -> Tensor:
        """Animals of the next step: all in turn, in an order that `rng` draws anew when all have been seen."""
        batch = min(self.settings.batch_size, len(self.scans))
        place = self.iteration % (len(self.scans) // batch)
        if place == 0:
            self.order = torch.randperm(len(self.scans), generator=rng, device=rng.device).to(self.device)
        return self.order[place * batch : (place + 1) * batch]

    def step(self, animals: Tensor) -> dict[str, Tensor]:
        """Move template, appearances and the numbers of some animals; the terms of the loss, scalars on the device."""
        whole, animals = animals, self.team.part(animals)
        settings = self.settings
        level = next((k for k, part in enumerate(self.schedule) if self.iteration in part), -1)
        geometry, scans = self.levels[level], self.pyramid[level]
        if tuple(self.template.shape[2:]) != geometry.template_shape:
            self._on_grid(geometry)
        learned = [self.template, self.appearances, self.numbers[animals]]
        with torch.enable_grad():
            for part in learned:
                part.requires_grad_()
            seen = expected(geometry.render(*learned), self.noise)
            mse = (seen - scans[animals]).square().mean()
            priors = geometry.priors(learned[2])
            loss = 4 * mse + priors["prior"] + settings.grain / len(self.scans) * sum(map(grain, learned[:2]))
            gradients = torch.autograd.grad(loss, learned)
        self.team.average(gradients[:2])
        of_numbers = self.team.gathered(gradients[2] / self.team.size)  # a part's mean has a part's weight
        pace = annealed(self.iteration / settings.iterations)
        self.template, self.appearances = (part.detach() for part in learned[:2])
        self.of_template.step(self.template, gradients[0], pace * settings.lr_template)
        self.of_appearances.step(self.appearances, gradients[1], pace * settings.lr_template / 3)
        self.of_numbers.step(self.numbers, of_numbers, pace * geometry.rates, whole)
        self.numbers[whole] = geometry.without_affine(self.numbers[whole])
        if self.iteration % 10 == 9:
            # a mean velocity is the template's business, and must not drift; gently, as the template has to follow
            self.numbers -= 0.1 * self.numbers.mean(0)
        self.iteration += 1
        return {"loss": loss.detach(), "mse": mse.detach(), "bending": priors["bending"], "speed": priors["speed"]}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on bit for bit, but the scans and the state of `rng`: nested tensors and numbers."""
        return {
            "iteration": self.iteration, "order": self.order, "numbers": self.numbers, "template": self.template,
            "appearances": self.appearances, "of_numbers": self.of_numbers.state_dict(),
            "of_template": self.of_template.state_dict(), "of_appearances": self.of_appearances.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        for name in ("iteration", "order", "numbers", "template", "appearances"):
            value = state[name]
            setattr(self, name, value.clone() if isinstance(value, Tensor) else value)
        for name in ("of_numbers", "of_template", "of_appearances"):
            getattr(self, name).load_state_dict({key: value.clone() for key, value in state[name].items()})

    @torch.no_grad()
    def finish(self, animals: int = 48) -> Atlas:
        """The fitted model: modes of the numbers, and what they leave of up to `animals` scans, which noise has to be.

        Takes about half a second an animal on a CPU.
        """
        if tuple(self.template.shape[2:]) != self.geometry.template_shape:
            self._on_grid(self.geometry)
        weights = grey_weights(self.template, self.appearances, self.geometry)
        state = {
            "template": self.template, "appearances": self.appearances,
            "spread": self.template.new_zeros(1, 1, *self.geometry.shape),
            "shape": torch.tensor(self.geometry.full), "levels": torch.tensor([self.noise, self.black, 1e-3]),
            **modes(self.numbers, self.geometry, weights, self.settings.latent_dim),
        }  # fmt: skip
        atlas, scans = Atlas(self.settings, state), self.scans[:animals]
        codes = atlas.encode(scans, 12, start=atlas.codes(self.numbers[:animals]))
        return Atlas(self.settings, state | texture(atlas, scans, codes))


def noise_level(scans: Tensor) -> tuple[float, float]:
    """Standard deviation of the scanner's noise, and the intensity below which a scan is exactly 0.

    In air a magnitude is Rayleigh: its root mean square is the noise times the root of 2, its standard deviation 0.52
    of its mean. Scans (N, 1, X, Y, Z) without such air (cut out, stripped of the skull) have noise too, but it cannot
    be told from what a warp leaves unexplained: it is 0 here, and :func:`texture` has all of it.
    """
    # by the means of neighbourhoods: the darkest single voxels would be those that are dark by chance
    mean = F.avg_pool3d(scans.mean(0, keepdim=True), 3, 1, 1, count_include_pad=False).flatten()
    darkest = mean.argsort()[: max(8, len(mean) // 20)]
    air = scans.flatten(1)[:, darkest]
    ratio = (air.std() / air.mean().clamp_min(1e-12)).item()
    black = 0.0
    if (scans == 0).float().mean() > 0.02:
        inside = scans[scans > 0]
        low, middle = inside[:: max(1, len(inside) // 100_000)].quantile(inside.new_tensor([0.02, 0.5])).tolist()
        black = max(low / 2, middle / 20)  # edges that were resampled fade to nothing
    is_air = 0.35 < ratio < 0.75 and black == 0
    return ((air.square().mean() / 2).sqrt().item() if is_air else 0.0), black


def grey_weights(template: Tensor, appearances: Tensor, geometry: Geometry) -> Tensor:
    """How much each of an animal's numbers changes the scan, grey values a unit, (P,): the root of a sum of squares.

    It is the unit in which warps, poses and brightness can be compared. One weight for a kind, so that every transform
    within a kind leaves it as it is.
    """
    slopes = torch.stack(torch.gradient(template[0, 0])) * geometry.factor
    voxels, slope = math.prod(geometry.shape), slopes.square().mean()
    grey = {
        "velocity": slope * voxels / math.prod(geometry.knots),
        "pose": slope * voxels / 3,  # the far end of an axis moves by 1, the rest of it by less
        "brightness": template.square().mean() * voxels / math.prod(geometry.bright),
        "appearance": appearances.square().mean() * voxels if len(appearances) else slope,
    }
    return torch.cat([grey[name].sqrt().clamp_min(1e-6).expand(size) for name, size in geometry.sizes.items()])


def cosines(n: int) -> Tensor:
    """Discrete cosine transform along an axis, orthonormal, (n, n)."""
    k = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi * (k + 0.5) * k[:, None] / n) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def frequencies(numbers: Tensor, geometry: Geometry, back: bool = False) -> Tensor:
    """Velocity and brightness of numbers (N, P) as frequencies, or `back`; lengths stay as they are."""
    v, pose, g, a = geometry.split(numbers)
    out = []
    for values, shape in ((v, geometry.knots), (g, geometry.bright)):
        matrices = [cosines(n).to(values) for n in shape]
        out.append(warps.separable(values, [m.T for m in matrices] if back else matrices).flatten(1))
    return torch.cat([out[0], pose, out[1], a], 1)


def shrinkage(x: Tensor, n: int) -> Tensor:
    """By how much, 0 to 1, the covariances of centred `x` (N, P) of `n` animals are nearer the truth when shrunken."""
    gram, squares = x @ x.T, x.square()
    found = (gram.square().sum() - squares.sum(0).square().sum()) / (n - 1) ** 2
    spread = squares.sum(1).square().sum() - squares.square().sum()
    spread = (spread - (gram.square().sum() - squares.sum(0).square().sum()) / n) * n / (n - 1) ** 3
    return (spread / found.clamp_min(1e-20)).clamp(0, 1)


def modes(numbers: Tensor, geometry: Geometry, weights: Tensor, latent_dim: int) -> dict[str, Tensor]:
    """Centre, basis (Z, P) and weights of the Gaussian that the numbers (N, P) of all animals are drawn from.

    A hundred animals determine some modes well, but not thousands of numbers: what a sample has beyond its leading
    modes (one for :data:`LEADING` animals) is too narrow a choice of directions. That part of its covariance is
    shrunken towards one in which frequencies are independent, as in any field that is alike everywhere, by as much as
    makes the expected squared error smallest (Schäfer & Strimmer 2005, Stat Appl Genet Mol Biol 4:32, target D).
    The leading modes are left alone: they are what different kinds of numbers do together.
    """
    x = frequencies(numbers * weights, geometry)
    centre = x.mean(0)
    x = x - centre
    n, variance = max(2, len(x)), x.square().sum(0) / max(1, len(x) - 1)
    kept = variance.argsort(descending=True)[: 2 * latent_dim + 200].sort().values
    x = x[:, kept]
    # on the CPU: a GPU's solver did not converge for a thousand animals, and torch warned and took another
    leading = torch.linalg.svd(x.cpu(), full_matrices=False).Vh[: len(x) // LEADING].to(x.device)
    first = x @ leading.T
    rest = x - first @ leading
    rho = shrinkage(rest, n)
    variance = rest.square().sum(0) / (n - 1)
    covariance = leading.T @ (first.T @ first) @ leading / (n - 1) + (1 - rho) * (rest.T @ rest) / (n - 1)
    covariance.diagonal().add_(rho * variance)
    values, vectors = torch.linalg.eigh(covariance.double())
    values, vectors = values.flip(0)[:latent_dim].clamp_min(0), vectors.flip(1)[:, :latent_dim]
    basis = numbers.new_zeros(latent_dim, numbers.shape[1])  # directions that a small grid lacks move nothing
    basis[: len(values), kept] = (vectors * values.sqrt()).T.float()
    back = frequencies(torch.cat([centre[None], basis]), geometry, back=True) / weights
    return {"centre": back[0], "basis": back[1:].contiguous(), "weights": weights, "rho": rho[None]}


def texture(atlas: Atlas, scans: Tensor, codes: Tensor, lags: int = 5) -> dict[str, Tensor]:
    """What codes leave of their scans (N, 1, X, Y, Z) beyond the scanner's noise: how much, where, of which colour.

    Returns
    -------
    dict of str to torch.Tensor
        ``spread``, standard deviation at each voxel before the warp; ``filter_x``, ``filter_y``, ``filter_z``, matrices
        that colour white noise; ``levels`` with the mean squared difference.
    """
    geometry = atlas.geometry
    split, count = (torch.zeros_like(atlas.state["spread"]) for _ in range(2))
    left, moments = [], []
    for part, z in zip(scans.split(CHUNK), codes.split(CHUNK), strict=True):
        numbers = atlas.numbers(z)
        clean = geometry.render(atlas.state["template"], atlas.state["appearances"], numbers)
        rest = part - expected(clean, atlas.noise)
        rician = atlas.noise**2 * (1 - (math.pi / 2 - 1) * torch.exp(-clean.square() / (2 * atlas.noise**2 + 1e-12)))
        excess = (rest.square() - rician) / geometry.brightness(numbers).square()
        points = geometry.points(numbers)
        with torch.enable_grad():  # the transpose of sampling puts every voxel where it was found
            volume = torch.zeros_like(split).requires_grad_()
            seen = geometry.see(volume, points)
            split += torch.autograd.grad(seen, volume, excess, retain_graph=True)[0]
            count += torch.autograd.grad(seen, volume, torch.ones_like(excess))[0]
        left.append(rest)
        moments.append(rician)
    split, count = (F.avg_pool3d(volume, 3, 1, 1) for volume in (split, count))
    spread = (split / count.clamp_min(1e-3)).clamp_min(0).sqrt()
    rest, rician = torch.cat(left), torch.cat(moments)
    state = {"spread": spread, "levels": torch.tensor([atlas.noise, atlas.black, rest.square().mean().item()])}
    return state | colours(rest, rician, lags)


def colours(rest: Tensor, white: Tensor, lags: int) -> dict[str, Tensor]:
    """Matrices that give white noise the correlation of `rest` (N, 1, X, Y, Z), less its `white` variance, by axis."""
    filters = {}
    local = F.avg_pool3d(rest.square(), 3, 1, 1).sqrt().clamp_min(1e-6)
    scale = local.clamp_min(2 * float(local.mean()))  # where little is left, little counts
    u = rest / scale
    power = (u.square().mean() - (white / scale.square()).mean()).item()
    for axis, name in ((2, "x"), (3, "y"), (4, "z")):
        n = u.shape[axis]
        curve = torch.zeros(n, dtype=torch.float64)
        curve[0] = 1.0
        for lag in range(1, min(lags, n - 1) + 1):
            products = u.narrow(axis, 0, n - lag) * u.narrow(axis, lag, n - lag)
            if power > 0:
                curve[lag] = max(-0.9, min(0.9, products.mean().item() / power))
        index = torch.arange(n)
        values, vectors = torch.linalg.eigh(curve[(index[:, None] - index).abs()])
        root = vectors * values.clamp_min(0).sqrt() @ vectors.T
        filters[f"filter_{name}"] = (root / root.square().sum(1, keepdim=True).sqrt()).float().to(u.device)
    return filters


class AtlasFit(AtlasLearner):
    """An :class:`AtlasLearner` as :func:`labkit.training.train` takes it: of cubes, with what a run asks a learner for.

    `cubes` (N, 1, S, S, S) in [-1, 1] hold the scans in `box`; those at `labelled` have `labels`, uint8
    (M, 1, S, S, S), or there are none.
    """

    precision = "fp32"

    def __init__(
        self, cubes: Tensor, settings: AtlasSettings, scale: Scale, box: tuple[slice, ...], seed: int,
        labelled: list[int], labels: Tensor | None,
    ) -> None:  # fmt: skip
        super().__init__(((cubes[(..., *box)] + 1) / 2).contiguous(), settings, seed)
        self.variant, self.scale, self.box = settings, scale, box
        self.labelled, self.labels = labelled, None if labels is None else labels[(..., *box)].contiguous()
        self.scans_a_step = min(settings.batch_size, len(cubes))
        self._made: tuple[int, Atlas] | None = None

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Nothing: it computes in float32."""
        return contextlib.nullcontext()

    def step(self, animals: Tensor) -> dict[str, Tensor]:
        """As :meth:`AtlasLearner.step`, with the error named and scaled as everywhere: of scans in [-1, 1]."""
        terms = super().step(animals)
        return {
            "loss": terms["loss"],
            "rec_mse": 4 * terms["mse"],
            "bending": terms["bending"],
            "speed": terms["speed"],
        }

    def atlas(self) -> Atlas:
        """The atlas as it stands; before the last step by few animals and without labels, which take a while."""
        if self._made is None or self._made[0] != self.iteration:
            is_last = self.iteration >= self.settings.iterations
            atlas = self.finish() if is_last else self.finish(animals=4)
            if is_last and self.labels is not None:
                atlas = atlas.learn_labels(self.numbers[self.labelled], self.labels)
            self._made = self.iteration, Atlas(self.settings, atlas.state | {"numbers": self.numbers.clone()})
        return self._made[1]

    def finish(self, animals: int = 48) -> Atlas:
        """As :meth:`AtlasLearner.finish`, with the scans' place in the cube."""
        atlas = super().finish(animals)
        return Atlas(self.settings, atlas.state | {"place": torch.tensor([part.start for part in self.box])})

    def evaluators(self, scans: Tensor) -> dict[str, nn.Module]:
        """E, G for random codes, and G_encoded, as a GAN has them; `scans` are not needed."""
        atlas, size = self.atlas(), self.scale.size
        networks = AtlasEncoder(atlas), AtlasGenerator(atlas, size), AtlasGenerator(atlas, size, noise=False)
        return dict(zip(("E", "G", "G_encoded"), networks, strict=True))

    def in_use(self, scans: Tensor) -> dict[str, Any]:
        """What is kept for use: the atlas."""
        return {"atlas": self.atlas().state_dict()}

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"learner": self.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        self.load_state_dict(state["learner"])
