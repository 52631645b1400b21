"""The three updates of an iteration: (E, G), then D, then C. This is the algorithm; the rest is around it.

Ferreira et al. 2022, section 2.3 and equations 1 to 6. x are scans (B, 1, S, S, S) in [-1, 1], z codes (B, Z).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import get_ema_multi_avg_fn, update_bn

from labkit import losses, networks, parallel
from labkit.layers import full_precision
from labkit.rendering import SCANNER, AtlasHead
from labkit.variants import Scale, Variant

CALIBRATION = 64
"""Scans or codes from which the batch norms of a network in use take their statistics."""


R1_EVERY = 16
"""Iterations from one penalty at real scans to the next, which weighs as much as all (Karras et al. 2020, arXiv
1912.04958)."""

SHIFT, BRIGHTER = 1 / 16, 0.2
"""By how much of its side a scan is shifted at most, and by how much brightened, before an augmented D sees it."""


class Draws(NamedTuple):
    """Everything random of one iteration: scans (B, 1, S, S, S), codes (B, Z), and places of penalties in [0, 1].

    Where G is a scanner's too, the noise of four batches of generated scans, N(0, 1); where D's view is augmented, what
    happens to five batches, uniform in [0, 1]. Both in the order in which D sees them.
    """

    x_real: Tensor  # of the update of (E, G)
    z_rand: Tensor
    x_critic: Tensor  # fresh ones for D
    z_critic: Tensor
    z_code: Tensor  # and for C
    mix_rec: Tensor  # (B, 1, 1, 1, 1), between x and G(z_enc)
    mix_rand: Tensor  # (B, 1, 1, 1, 1), between x and G(z_rand)
    mix_code: Tensor  # (B, 1), between z_enc and z_rand
    noise: Tensor | None = None  # (B, 4, 3, X, Y, Z)
    views: Tensor | None = None  # (B, 5, 5)

    def part(self, team: parallel.Team) -> Draws:
        """What one process of a team computes of it."""
        return Draws(*(None if value is None else team.part(value) for value in self))


class Learner:
    """Four networks, their optimisers, and the moving average of G, on a device.

    Initial weights are drawn by `seed` on the CPU, so that every device starts alike. `atlas` is what a G begins with
    that moves one (:class:`labkit.rendering.AtlasHead`).
    """

    def __init__(
        self, variant: Variant, scale: Scale, device: torch.device, seed: int = 0,
        atlas: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.variant, self.scale, self.device, self.team = variant, scale, device, parallel.ALONE
        self.precision = choose_precision(scale.precision, device)
        self.E, self.G, self.D, self.C = (n.to(device) for n in networks.build(variant, scale, seed, atlas))
        self.scanner = {name: atlas[name].cpu() for name in SCANNER if name in atlas} if atlas else {}
        self.networks: dict[str, nn.Module] = {"E": self.E, "G": self.G, "D": self.D, "C": self.C}
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[variant.optimiser]
        self.optimisers = {
            name: kind(weights_of(network, variant), lr=variant.lr, betas=(variant.beta1, variant.beta2),
                       eps=variant.eps, weight_decay=variant.weight_decay, fused=True)
            for name, network in self.networks.items()
        }  # fmt: skip
        # norms over the batch make a scan's value depend on its company, so those batches are never put together
        self.batch_free = {"G": variant.generator_norm != "batch", "D": variant.discriminator_norm != "batch"}
        self.scans_a_step = 2 * scale.batch_size  # of (E, G), and fresh ones for D
        self.average = copy.deepcopy(self.G).requires_grad_(False)
        self.averaged = 0
        self.learned_buffers = set(self.average.state_dict())  # others are what an atlas leaves as it is

    @property
    def penalised(self) -> bool:
        """Whether D is penalised in the next iteration: in every one, with R1 in every 16th (:data:`R1_EVERY`)."""
        return not self.variant.r1 or self.averaged % R1_EVERY == 0

    def autocast(self) -> torch.autocast:
        """Bfloat16 where the run computes in it."""
        # no weight's cast may outlive a recorded iteration, see labkit.capture
        kept = self.device.type != "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=kept)

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average of G's weights on by one step; its norm statistics are G's own."""
        self.averaged += 1
        # the first steps count less, so that the initial weights do not linger in short runs
        decay = min(self.scale.ema_decay, (1 + self.averaged) / (10 + self.averaged))
        get_ema_multi_avg_fn(decay)(list(self.average.parameters()), list(self.G.parameters()), None)
        for (name, mine), current in zip(self.average.named_buffers(), self.G.buffers(), strict=True):
            if name in self.learned_buffers:
                mine.copy_(current)

    @torch.no_grad()
    def evaluators(self, scans: Tensor) -> dict[str, nn.Module]:
        """Copies of E, G (the average, for random codes) and G_encoded (for E's codes), in evaluation mode.

        Random codes are decoded by the average of G. Encoded ones are not: codes drift while E and G train, and only
        the G of the same moment decodes them well. Batch norms carry statistics of what passed while training, codes
        of both kinds in turn; kinds so far apart have a mixture that fits neither, and the statistics are taken again
        for each by itself: of up to 64 training `scans`, (N, 1, S, S, S), and of as many random codes.
        """
        parts = scans[:CALIBRATION].split(self.scale.batch_size)
        generator = torch.Generator().manual_seed(0)  # one of its own: training's draws go on as if nothing had been
        random = torch.randn(CALIBRATION, self.variant.latent_dim, generator=generator).to(self.device)
        with self.autocast():
            encoder = calibrated(self.E, parts)
            encoded = [encoder(part) for part in parts]
            generator = calibrated(self.average, random.split(self.scale.batch_size))
            generator.noisy = True
            return {"E": encoder, "G": generator, "G_encoded": calibrated(self.G, encoded)}

    def in_use(self, scans: Tensor) -> dict[str, Any]:
        """What is kept for use: the weights of :meth:`evaluators`, and what is left as it was of an atlas."""
        weights = {name: network.state_dict() for name, network in self.evaluators(scans).items()}
        return weights | ({"scanner": self.scanner} if self.scanner else {})

    def state(self) -> dict[str, Any]:
        """Everything needed to go on: networks, average, optimisers."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "average": self.average.state_dict(),
            "averaged": self.averaged,
            "scanner": self.scanner,
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
        }

    @staticmethod
    def atlas_of(state: dict[str, Any]) -> dict[str, Tensor]:
        """What a learner has to be made with to take a :meth:`state` whose G moves an atlas."""
        learned = {name: state["networks"]["G"][f"head.{name}"] for name in ("template", "appearances")}
        return learned | state["scanner"]

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
            self.optimisers[name].load_state_dict(state["optimisers"][name])
        self.average.load_state_dict(state["average"])
        self.averaged = state["averaged"]

    def backward(self, loss: Tensor, *names: str) -> None:
        """Gradients of networks, of the whole batch however many processes share it."""
        loss.backward()
        self.team.average_gradients(self.networks[name] for name in names)

    def each(self, name: str, *batches: Tensor) -> tuple[Tensor, ...]:
        """Pass batches of equal size through G or D, as one batch where that changes nothing but the time it takes."""
        network = self.networks[name]
        if not self.batch_free[name]:
            return tuple(network(batch) for batch in batches)
        return network(torch.cat(batches)).chunk(len(batches))

    def generated(self, *codes: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        """Scans of codes, a batch of them for each, with `noise` (B, batches, ...) where G is a scanner's too."""
        if noise is None:
            return self.each("G", *codes)
        if not self.batch_free["G"]:
            return tuple(self.G(z, some) for z, some in zip(codes, noise.unbind(1), strict=True))
        return self.G(torch.cat(codes), noise.transpose(0, 1).flatten(0, 1)).chunk(len(codes))

    def viewed(self, views: Tensor | None, *batches: Tensor) -> tuple[Tensor, ...]:
        """Batches of scans as an augmented D sees them, the places of a scan in `views` (B, batches, 5)."""
        if views is None:
            return batches
        return tuple(view(batch, some) for batch, some in zip(batches, views.unbind(1), strict=True))

    @contextlib.contextmanager
    def updating(self, *names: str) -> Iterator[None]:
        """Let gradients reach only these networks, and compute each spectral norm once, for as long as it lasts."""
        for name, network in self.networks.items():
            network.requires_grad_(name in names)
            network.zero_grad(set_to_none=True)
        with parametrize.cached():
            yield


def weights_of(network: nn.Module, variant: Variant) -> list[dict[str, Any]]:
    """A network's parameters as an optimiser takes them; grey values of an atlas apart, by steps in a unit of theirs.

    Adam moves all by equal steps, whether a gradient means something or not. Steps as large as a weight's would make a
    voxel of the template wander further than its neighbours differ, and decay would make it black.
    """
    head, every = getattr(network, "head", None), list(network.parameters())
    if not isinstance(head, AtlasHead):
        return [{"params": every}]
    voxels = [head.template, head.appearances]
    others = [p for p in every if not any(p is voxel for voxel in voxels)]
    return [{"params": others}, {"params": voxels, "lr": variant.lr * head.unexplained, "weight_decay": 0.0}]


def view(x: Tensor, draws: Tensor) -> Tensor:
    """Shift, mirror along the first axis, and brighten cubes (B, 1, S, S, S) by draws (B, 5) in [0, 1].

    Whole voxels, by products with matrices of zeros and ones: nothing is blurred, and gradients are products too.
    """
    with full_precision(x):
        return _view(x, draws)


def _view(x: Tensor, draws: Tensor) -> Tensor:
    size, places = x.shape[-1], torch.arange(x.shape[-1], device=x.device)
    shift = ((2 * draws[:, :3] - 1) * SHIFT * size).round()[:, :, None, None]
    wanted = (places[:, None] - places == shift).to(x.dtype)  # (B, 3, S, S): row i takes voxel i - shift
    mirrored = torch.where(draws[:, 3, None, None] < 0.5, wanted[:, 0].flip(2), wanted[:, 0])
    above = (x + 1)[:, 0]  # what is shifted in is background, -1
    above = (mirrored @ above.flatten(2)).view_as(above)
    above = wanted[:, None, 1] @ above @ wanted[:, None, 2].transpose(2, 3)
    factor = 1 + BRIGHTER * (2 * draws[:, 4, None, None, None] - 1)
    return (above * factor - 1)[:, None]


def calibrated(network: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """A copy of the network in evaluation mode, its batch norms, if any, with the statistics of `batches`."""
    network = copy.deepcopy(network)
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        update_bn([batch for batch in batches if len(batch) > 1], network)
    return network.eval()


def choose_precision(wanted: str, device: torch.device) -> str:
    """``"auto"`` is bfloat16 where the device has instructions for it, and float32 elsewhere."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # without such instructions a processor only emulates bfloat16, slower than float32
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if device.type == "cpu" and supported() else "fp32"


def step(learner: Learner, draws: Draws) -> dict[str, Tensor]:
    """One iteration; gives what is logged, scalars on the device that nothing here waits for."""
    logged = three_updates(learner, draws)
    learner.update_average()
    return logged


def three_updates(learner: Learner, draws: Draws) -> dict[str, Tensor]:
    """An update of (E, G), one of D, one of C; the average of G, whose weight changes every iteration, is `step`'s."""
    noise, views = (
        [None, None] if part is None else part.split(n, 1) for part, n in ((draws.noise, (2, 2)), (draws.views, (2, 3)))
    )
    logged = update_encoder_generator(learner, draws.x_real, draws.z_rand, noise[0], views[0])
    mixes = draws.mix_rec, draws.mix_rand
    of_critic, z_enc = update_discriminator(learner, draws.x_critic, draws.z_critic, *mixes, noise[1], views[1])
    of_code = update_code_discriminator(learner, z_enc, draws.z_code, draws.mix_code)
    return logged | of_critic | of_code


def update_encoder_generator(
    learner: Learner, x_real: Tensor, z_rand: Tensor, noise: Tensor | None = None, views: Tensor | None = None
) -> dict[str, Tensor]:
    """Make L_G smaller: equation 2, 5 or 6."""
    variant = learner.variant
    with learner.updating("E", "G"):
        with learner.autocast():
            z_enc = learner.E(x_real)
            x_rec, x_rand = learner.generated(z_enc, z_rand, noise=noise)
            d_rec, d_rand = learner.each("D", *learner.viewed(views, x_rec, x_rand))
            c_enc = learner.C(z_enc)
        terms = losses.reconstruction_terms(
            x_real, x_rec, variant.reconstruction_weights, variant.gdl_reduction, variant.gdl_gradient
        )
        if variant.gdl_reduction == "sum" and "gdl" in terms:
            terms["gdl"] = terms["gdl"] * learner.team.size  # a sum over a part, and parts are averaged
        loss = losses.generator_loss(d_rec, d_rand, c_enc, sum(terms.values()))  # (2), (5), (6)
        learner.backward(loss, "E", "G")
    learner.optimisers["E"].step()
    for _ in range(variant.generator_steps):  # paper: 1; the release steps twice on the same gradients
        learner.optimisers["G"].step()
    with torch.no_grad():
        return {
            "loss_EG": loss.detach(),
            "adversarial": losses.adversarial_loss(d_rec, d_rand),
            "code": -c_enc.mean(),
            **{f"weighted_{name}": value.detach() for name, value in terms.items()},
            "rec_l1": F.l1_loss(x_rec, x_real),
            "rec_mse": F.mse_loss(x_rec, x_real),
            "z_enc_mean": z_enc.mean(),
            "z_enc_sd": z_enc.std(),
            "grad_E": gradient_norm(learner.E),
            "grad_G": gradient_norm(learner.G),
        }


def update_discriminator(
    learner: Learner,
    x_real: Tensor,
    z_rand: Tensor,
    mix_rec: Tensor,
    mix_rand: Tensor,
    noise: Tensor | None = None,
    views: Tensor | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Make L_D smaller: equation 4. Also returns the encoded codes, for C."""
    variant = learner.variant
    with learner.updating("D"):
        with learner.autocast():
            with torch.no_grad():
                z_enc = learner.E(x_real)
                x_rec, x_rand = learner.generated(z_enc, z_rand, noise=noise)
                x_rec, x_rand, x_real = learner.viewed(views, x_rec, x_rand, x_real)
            d_rec, d_rand, d_real = learner.each("D", x_rec, x_rand, x_real)
            weight = variant.r1 or variant.lambda1
            if variant.r1:
                penalty = d_real.new_zeros(())
                if learner.penalised:
                    penalty = R1_EVERY * losses.zero_norm_penalty(learner.D.input_gradient(x_real))
            else:
                points = losses.points_between(x_real, x_rec, mix_rec), losses.points_between(x_real, x_rand, mix_rand)
                if learner.batch_free["D"]:
                    # the sum of two penalties, each a mean over its half of this batch
                    penalty = 2 * losses.unit_norm_penalty(learner.D.input_gradient(torch.cat(points)))
                else:
                    penalty = sum(losses.unit_norm_penalty(learner.D.input_gradient(x)) for x in points)
        loss = losses.critic_loss(d_real, d_rec, d_rand, penalty, weight)  # (4)
        learner.backward(loss, "D")
    learner.optimisers["D"].step()
    with torch.no_grad():
        logged = {
            "loss_D": loss.detach(),
            "penalty_D": penalty.detach(),
            "wasserstein_D": d_real.mean() - (d_rec.mean() + d_rand.mean()) / 2,
            "grad_D": gradient_norm(learner.D),
        }
    return logged, z_enc


def update_code_discriminator(learner: Learner, z_enc: Tensor, z_rand: Tensor, mix: Tensor) -> dict[str, Tensor]:
    """Make L_C smaller: equation 3."""
    if learner.variant.sphere_codes:
        z_rand = networks.on_sphere(z_rand)
    with learner.updating("C"):
        with learner.autocast():
            # two calls: C may hold a batch norm, and is small enough for it not to matter
            c_enc, c_rand = learner.C(z_enc), learner.C(z_rand)
            penalty = losses.unit_norm_penalty(learner.C.input_gradient(losses.points_between(z_enc, z_rand, mix)))
        loss = losses.code_critic_loss(c_enc, c_rand, penalty, learner.variant.lambda1)  # (3)
        learner.backward(loss, "C")
    learner.optimisers["C"].step()
    with torch.no_grad():
        return {
            "loss_C": loss.detach(),
            "penalty_C": penalty.detach(),
            "wasserstein_C": c_rand.mean() - c_enc.mean(),
            "grad_C": gradient_norm(learner.C),
        }


def gradient_norm(network: nn.Module) -> Tensor:
    """Length of a network's gradient over all its parameters, float32 scalar on its device."""
    return torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
