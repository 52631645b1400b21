"""Equations 1 to 6 of Ferreira et al. 2022 (Applied Sciences 12:4844), as functions of tensors.

Symbols, everywhere alike: x_real a scan, x_rec = G(E(x)) its reconstruction, x_rand = G(z_rand) a random scan, all
(B, 1, S, S, S) in [-1, 1]; z_enc = E(x) its code, z_rand ~ N(0, I), both (B, Z); d_real, d_rec, d_rand the values that
D gives to scans, c_enc, c_rand those that C gives to codes, (B,). E[.] is the mean over the batch. Every loss is a
scalar to be made small.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def adversarial_loss(d_rec: Tensor, d_rand: Tensor) -> Tensor:
    """L_GD: how far D is from taking both kinds of generated scan for real."""
    return -d_rec.mean() - d_rand.mean()  # (1)


def generator_loss(d_rec: Tensor, d_rand: Tensor, c_enc: Tensor, reconstruction: Tensor) -> Tensor:
    """L_G1, L_G2, L_G3 of E and G, which differ in the sum of their `reconstruction_terms` alone."""
    return adversarial_loss(d_rec, d_rand) - c_enc.mean() + reconstruction  # (2), (5), (6)


def code_critic_loss(c_enc: Tensor, c_rand: Tensor, penalty: Tensor, lambda1: float) -> Tensor:
    """L_C, with one gradient penalty between encoded and random codes."""
    return c_enc.mean() - c_rand.mean() + lambda1 * penalty  # (3)


def critic_loss(d_real: Tensor, d_rec: Tensor, d_rand: Tensor, penalty: Tensor, lambda1: float) -> Tensor:
    """L_D, with the sum of two gradient penalties: real to reconstructed, and real to random scans."""
    return -adversarial_loss(d_rec, d_rand) - 2 * d_real.mean() + lambda1 * penalty  # (4)


def reconstruction_terms(
    x_real: Tensor, x_rec: Tensor, weights: Mapping[str, float], gdl_reduction: str = "sum", gdl_gradient: bool = True
) -> dict[str, Tensor]:
    """Weighted differences between scans and their reconstructions: the last terms of equations 2, 5 and 6.

    Parameters
    ----------
    x_real, x_rec : torch.Tensor
        Scans and their reconstructions.
    weights : mapping of str to float
        Weight of each term wanted, of "l1" (mean absolute), "mse" (mean squared) and "gdl" (`gradient_difference`):
        equation 2 has {"l1"}, 5 {"l1", "mse"}, 6 {"mse", "gdl"}.
    gdl_reduction : {"sum", "mean"}
        Of the gradient difference.
    gdl_gradient : bool
        False adds the gradient difference as a number that nothing learns from, as the release does.

    Returns
    -------
    dict of str to torch.Tensor
        Scalars, already weighted, by the same names.
    """
    measures = {
        "l1": lambda: F.l1_loss(x_rec, x_real),
        "mse": lambda: F.mse_loss(x_rec, x_real),
        "gdl": lambda: gradient_difference(x_real, x_rec if gdl_gradient else x_rec.detach(), gdl_reduction),
    }
    if unknown := set(weights) - set(measures):
        raise ValueError(f"unknown reconstruction term {min(unknown)!r}: allowed are l1, mse and gdl")
    return {name: weight * measures[name]() for name, weight in weights.items()}


def gradient_difference(x: Tensor, y: Tensor, reduction: str = "sum") -> Tensor:
    """GDL: squared difference of the sizes of the steps between neighbours, summed over the three axes.

    Parameters
    ----------
    x, y : torch.Tensor
        (B, 1, S, S, S).
    reduction : {"sum", "mean"}
        Over pairs of neighbours and batch: "sum" as equation 6 and the release have it, "mean" depends on neither size
        nor batch.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is {reduction!r}, allowed are sum and mean")
    total = x.new_zeros(())
    for axis in (2, 3, 4):
        steps = (x.diff(dim=axis).abs() - y.diff(dim=axis).abs()).square()
        total = total + (steps.sum() if reduction == "sum" else steps.mean())
    return total


def draw_mix(like: Tensor, generator: torch.Generator) -> Tensor:
    """A place between two batches for each sample: (B, ...) -> (B, 1, ...), uniform in [0, 1), of its dtype."""
    shape = (len(like),) + (1,) * (like.ndim - 1)
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)


def points_between(a: Tensor, b: Tensor, mix: Tensor) -> Tensor:
    """Where a penalty is taken: `mix` of `a` and the rest of `b`, (B, ...) each, without their graph."""
    return (mix * a + (1 - mix) * b).detach()


def unit_norm_penalty(gradient: Tensor) -> Tensor:
    """L_GP (Gulrajani et al. 2017, arXiv 1704.00028) of a critic's gradient at such points, (B, ...).

    E[(||g|| - 1)^2] with ||g|| = sqrt(sum g^2 + 1e-15), summed in float32 at least, whatever the gradient's dtype.
    """
    g = gradient.flatten(1)
    g = g.to(torch.promote_types(g.dtype, torch.float32))
    return ((g.square().sum(1) + 1e-15).sqrt() - 1).square().mean()


def zero_norm_penalty(gradient: Tensor) -> Tensor:
    """R1 (Mescheder et al. 2018, arXiv 1801.04406) of a critic's gradient at real scans, (B, ...): E[||g||^2] / 2."""
    g = gradient.flatten(1)
    return g.to(torch.promote_types(g.dtype, torch.float32)).square().sum(1).mean() / 2
