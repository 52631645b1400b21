"""The paper's networks and training loop written plainly, the way its figures draw them. Read this first.

Nearest upsampling and then a 3x3x3 convolution, 4x4x4 convolutions of stride 2, every network called once for each of
the equations' batches, the critics' gradients by differentiating automatically twice, float32, no layout chosen. The
rest of labkit computes the same numbers faster: this file is what its tests compare with and what it is timed against,
and so it shares nothing with it but the settings.

>>> from labkit.variants import resolve
>>> variant, scale = resolve("sigmarat2", "smoke")
>>> networks = build(variant, scale)
>>> x = torch.rand(4, 1, 16, 16, 16) * 2 - 1
>>> losses = step(networks, optimisers(networks, variant), variant, x, x, draw(variant, scale, seed=0))
>>> sorted(losses)
['C.critic', 'C.penalty', 'D.critic', 'D.penalty', 'G.adversarial', 'G.code', 'G.gdl', 'G.mse']
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import cached

from labkit.variants import Scale, Variant


class Networks(NamedTuple):
    """Encoder, generator, discriminator, code discriminator."""

    E: nn.Sequential
    G: nn.Sequential
    D: nn.Sequential
    C: nn.Sequential


class Optimisers(NamedTuple):
    """One for each network."""

    E: torch.optim.Optimizer
    G: torch.optim.Optimizer
    D: torch.optim.Optimizer
    C: torch.optim.Optimizer


class Randomness(NamedTuple):
    """All that one iteration draws, so that two implementations can be given the same."""

    z_rand: Tensor  # (B, Z), the random codes of the three updates
    z_critic: Tensor
    z_code: Tensor
    mix_rec: Tensor  # (B, 1, 1, 1, 1), interpolation weights of D's two penalties
    mix_rand: Tensor
    mix_code: Tensor  # (B, 1), of C's


def draw(variant: Variant, scale: Scale, seed: int) -> Randomness:
    """Draw one iteration's codes and weights on the CPU, in the order of the fields."""
    g = torch.Generator().manual_seed(seed)
    b, z = scale.batch_size, variant.latent_dim
    z_rand, z_critic, z_code = (torch.randn(b, z, generator=g) for _ in range(3))
    mix_rec, mix_rand = (torch.rand(b, 1, 1, 1, 1, generator=g) for _ in range(2))
    return Randomness(z_rand, z_critic, z_code, mix_rec, mix_rand, torch.rand(b, 1, generator=g))


def group(layer: nn.Module, norm: str, spectral: bool, slope: float | None) -> list[nn.Module]:
    """Layer, norm, activation; no norm and no activation after a last layer (`slope` None)."""
    linear = isinstance(layer, nn.Linear)
    width = layer.out_features if linear else layer.out_channels
    parts: list[nn.Module] = [spectral_norm(layer) if spectral else layer]
    if norm == "batch":
        parts.append(nn.BatchNorm1d(width) if linear else nn.BatchNorm3d(width))
    elif norm == "instance":
        parts.append(nn.InstanceNorm3d(width))  # no affine parameters
    if slope is not None:
        parts.append(nn.LeakyReLU(slope) if slope else nn.ReLU())
    return parts


def generator(v: Variant, scale: Scale) -> nn.Sequential:
    """G: a code becomes 4^3 voxels, and is doubled and convolved until it is a scan."""
    widths, settings = scale.channels[::-1], (v.generator_norm, v.generator_spectral, v.generator_slope)
    parts = [nn.Unflatten(1, (v.latent_dim, 1, 1, 1))]
    parts += group(nn.ConvTranspose3d(v.latent_dim, widths[0], scale.coarsest, bias=False), *settings)
    for a, b in pairwise(widths):
        parts += [nn.Upsample(scale_factor=2), *group(nn.Conv3d(a, b, 3, padding=1, bias=False), *settings)]
    last = nn.Conv3d(widths[-1], 1, 3, padding=1, bias=False)
    return nn.Sequential(
        *parts, nn.Upsample(scale_factor=2), *group(last, "none", v.generator_spectral, None), nn.Tanh()
    )


def halving(scale: Scale, outputs: int, norm: str, spectral: bool, slope: float) -> nn.Sequential:
    """D and E: 4x4x4 convolutions of stride 2 down to 4^3, then one over all of it."""
    parts: list[nn.Module] = []
    for level, (a, b) in enumerate(pairwise((1, *scale.channels))):
        parts += group(nn.Conv3d(a, b, 4, stride=2, padding=1), norm if level else "none", spectral, slope)
    parts += group(nn.Conv3d(scale.channels[-1], outputs, scale.coarsest), "none", spectral, None)
    return nn.Sequential(*parts, nn.Flatten())


def code_discriminator(v: Variant, scale: Scale) -> nn.Sequential:
    """C: three linear layers."""
    width, settings = scale.code_channels, (v.code_norm, v.code_spectral, v.code_slope)
    parts = group(nn.Linear(v.latent_dim, width), *settings) + group(nn.Linear(width, width), *settings)
    return nn.Sequential(*parts, *group(nn.Linear(width, 1), "none", v.code_spectral, None))


def build(variant: Variant, scale: Scale, seed: int = 0) -> Networks:
    """Make the four networks with weights drawn by `seed`, on the CPU, float32; D and C give (B, 1)."""
    v = variant
    if v.generator_head != "voxels" or v.r1 or v.critic_augmentation or v.sphere_codes:
        raise ValueError(
            f"{v.name} has settings that no paper has: generator_head, r1, critic_augmentation or sphere_codes"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Networks(
            G=generator(v, scale),
            C=code_discriminator(v, scale),
            E=halving(scale, v.latent_dim, v.encoder_norm, v.encoder_spectral, v.encoder_slope),
            D=halving(scale, 1, v.discriminator_norm, v.discriminator_spectral, v.discriminator_slope),
        )


def optimisers(networks: Networks, variant: Variant) -> Optimisers:
    """Make one optimiser a network, parameter by parameter."""
    kind = torch.optim.AdamW if variant.optimiser == "adamw" else torch.optim.Adam
    betas, decay = (variant.beta1, variant.beta2), variant.weight_decay
    return Optimisers(
        *(
            kind(network.parameters(), variant.lr, betas, variant.eps, decay, foreach=False, fused=False)
            for network in networks
        )
    )


def gdl(x: Tensor, y: Tensor, reduction: str) -> Tensor:
    """Gradient difference of two batches of volumes."""
    a = x[:, :, 1:] - x[:, :, :-1], x[:, :, :, 1:] - x[:, :, :, :-1], x[..., 1:] - x[..., :-1]
    b = y[:, :, 1:] - y[:, :, :-1], y[:, :, :, 1:] - y[:, :, :, :-1], y[..., 1:] - y[..., :-1]
    squares = [(torch.abs(u) - torch.abs(v)) ** 2 for u, v in zip(a, b, strict=True)]
    return sum(s.sum() if reduction == "sum" else s.mean() for s in squares)


def penalty(critic: nn.Module, a: Tensor, b: Tensor, mix: Tensor) -> Tensor:
    """WGAN-GP penalty on points between two batches."""
    points = (mix * a + (1 - mix) * b).detach().requires_grad_()
    (g,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return ((torch.sqrt((g.flatten(1) ** 2).sum(1) + 1e-15) - 1) ** 2).mean()


def generator_losses(n: Networks, variant: Variant, x_real: Tensor, z_rand: Tensor) -> dict[str, Tensor]:
    """Loss of E and G by term, unsummed: equations 2, 5, 6."""
    z_enc = n.E(x_real)
    x_rec, x_rand = n.G(z_enc), n.G(z_rand)
    terms = {"adversarial": -n.D(x_rec).mean() - n.D(x_rand).mean(), "code": -n.C(z_enc).mean()}  # (1)
    for name, weight in variant.reconstruction_weights.items():
        if name == "gdl":
            value = gdl(x_real, x_rec if variant.gdl_gradient else x_rec.detach(), variant.gdl_reduction)
        else:
            value = F.l1_loss(x_rec, x_real) if name == "l1" else F.mse_loss(x_rec, x_real)
        terms[name] = weight * value
    return terms


def discriminator_losses(
    n: Networks, variant: Variant, x_real: Tensor, draws: Randomness
) -> tuple[dict[str, Tensor], Tensor]:
    """Loss of D by term, equation 4, and the encoded codes."""
    with torch.no_grad():
        z_enc = n.E(x_real)
        x_rec, x_rand = n.G(z_enc), n.G(draws.z_critic)
    terms = {"critic": n.D(x_rec).mean() + n.D(x_rand).mean() - 2 * n.D(x_real).mean()}
    penalties = penalty(n.D, x_real, x_rec, draws.mix_rec) + penalty(n.D, x_real, x_rand, draws.mix_rand)
    terms["penalty"] = variant.lambda1 * penalties
    return terms, z_enc


def code_losses(n: Networks, variant: Variant, z_enc: Tensor, draws: Randomness) -> dict[str, Tensor]:
    """Loss of C by term, equation 3."""
    terms = {"critic": n.C(z_enc).mean() - n.C(draws.z_code).mean()}
    terms["penalty"] = variant.lambda1 * penalty(n.C, z_enc, draws.z_code, draws.mix_code)
    return terms


def step(
    networks: Networks,
    opts: Optimisers,
    variant: Variant,
    x_real: Tensor,
    x_critic: Tensor,
    draws: Randomness,
    one_power_iteration: bool = False,
) -> dict[str, Tensor]:
    """One iteration: an update of (E, G), of D and of C. Gives the losses by "network.term", without graph.

    `x_real` are real scans of the first update, (B, 1, S, S, S), `x_critic` fresh ones for the second. With
    `one_power_iteration` spectral norms are taken once an update, as labkit does, and not at every call of a network.
    """
    update = cached if one_power_iteration else contextlib.nullcontext
    logged = {}

    def descend(prefix: str, terms: dict[str, Tensor]) -> None:
        logged.update({f"{prefix}.{name}": value.detach() for name, value in terms.items()})
        sum(terms.values()).backward()

    def train_only(*trained: nn.Module) -> None:
        for network in networks:
            network.requires_grad_(any(network is t for t in trained))
            network.zero_grad()

    train_only(networks.E, networks.G)
    with update():
        descend("G", generator_losses(networks, variant, x_real, draws.z_rand))
    opts.E.step()
    for _ in range(variant.generator_steps):  # paper: one; the release steps twice on the same gradients
        opts.G.step()

    train_only(networks.D)
    with update():
        terms, z_enc = discriminator_losses(networks, variant, x_critic, draws)
        descend("D", terms)
    opts.D.step()

    train_only(networks.C)
    with update():
        descend("C", code_losses(networks, variant, z_enc, draws))
    opts.C.step()
    return logged


def load_by_position(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights whose names differ but whose layers are the paper's, in the paper's order.

    `network` is one of the four, of this file or of `labkit.networks`; `state` the state dict of the same layers under
    other names, such as a plain ``torch.nn.Sequential`` has. ValueError says which tensors do not fit.
    """
    own = network.state_dict()
    if len(own) != len(state):
        raise ValueError(f"{type(network).__name__} has {len(own)} tensors, the weights have {len(state)}")
    pairs = list(zip(own.items(), state.items(), strict=True))
    faults = [f"{b} {tuple(y.shape)} for {a} {tuple(x.shape)}" for (a, x), (b, y) in pairs if x.shape != y.shape]
    if faults:
        raise ValueError(f"{type(network).__name__} cannot take these shapes: " + "; ".join(faults))
    network.load_state_dict({ours: value for (ours, _), (_, value) in pairs})
