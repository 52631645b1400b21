"""Equations 1 to 6 of Ferreira et al. 2022 (Applied Sciences 12:4844), as functions of tensors.

Symbols: `d_real`, `d_rec`, `d_rand` are the discriminator's values, (B,), of real scans x, reconstructions G(E(x)) and
random scans G(z_r); `c_enc`, `c_rand` the code discriminator's, (B,), of encoded codes E(x) and random codes z_r. E[.]
is the mean over the batch. Every loss is a scalar to be made small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def adversarial_loss(d_rec: Tensor, d_rand: Tensor) -> Tensor:
    """L_GD, equation 1: how far the discriminator is from taking both kinds of generated scan for real.

    Parameters
    ----------
    d_rec, d_rand : torch.Tensor
        (B,).

    Returns
    -------
    torch.Tensor
        Scalar.
    """
    return -d_rec.mean() - d_rand.mean()  # (1)


def generator_loss(d_rec: Tensor, d_rand: Tensor, c_enc: Tensor, reconstruction: Tensor) -> Tensor:
    """L_G of G and E, equations 2, 5 and 6, which differ in their reconstruction terms alone.

    Parameters
    ----------
    d_rec, d_rand, c_enc : torch.Tensor
        (B,).
    reconstruction : torch.Tensor
        Scalar, the sum of `reconstruction_terms`.

    Returns
    -------
    torch.Tensor
        Scalar.
    """
    return adversarial_loss(d_rec, d_rand) - c_enc.mean() + reconstruction  # (2), (5), (6)


def code_critic_loss(c_enc: Tensor, c_rand: Tensor, penalty: Tensor, lambda1: float) -> Tensor:
    """L_C, equation 3.

    Parameters
    ----------
    c_enc, c_rand : torch.Tensor
        (B,).
    penalty : torch.Tensor
        Scalar, L_GP-C: one gradient penalty between encoded and random codes.
    lambda1 : float
        Its weight.

    Returns
    -------
    torch.Tensor
        Scalar.
    """
    return c_enc.mean() - c_rand.mean() + lambda1 * penalty  # (3)


def critic_loss(d_real: Tensor, d_rec: Tensor, d_rand: Tensor, penalty: Tensor, lambda1: float) -> Tensor:
    """L_D, equation 4.

    Parameters
    ----------
    d_real, d_rec, d_rand : torch.Tensor
        (B,).
    penalty : torch.Tensor
        Scalar, L_GP-D: the sum of two gradient penalties, real to reconstructed and real to random scans.
    lambda1 : float
        Its weight.

    Returns
    -------
    torch.Tensor
        Scalar.
    """
    return -adversarial_loss(d_rec, d_rand) - 2 * d_real.mean() + lambda1 * penalty  # (4)


def reconstruction_terms(
    x_real: Tensor,
    x_rec: Tensor,
    weights: Mapping[str, float],
    gdl_reduction: str = "sum",
    gdl_gradient: bool = True,
) -> dict[str, Tensor]:
    """Weighted differences between scans and their reconstructions: the last terms of equations 2, 5 and 6.

    Parameters
    ----------
    x_real, x_rec : torch.Tensor
        (B, 1, S, S, S), in [-1, 1].
    weights : mapping of str to float
        Weight of each term wanted, of "l1" (mean absolute), "mse" (mean squared) and "gdl" (gradient difference).
    gdl_reduction : str
        "sum" or "mean", see `gradient_difference`.
    gdl_gradient : bool
        False adds the gradient difference as a number that nothing learns from.

    Returns
    -------
    dict of str to torch.Tensor
        Scalars, already weighted, by the same names; equation 2 has {"l1"}, 5 {"l1", "mse"}, 6 {"mse", "gdl"}.

    Raises
    ------
    ValueError
        If a term is not one of the three.
    """
    terms = {}
    for name, weight in weights.items():
        if name == "l1":
            value = F.l1_loss(x_rec, x_real)
        elif name == "mse":
            value = F.mse_loss(x_rec, x_real)
        elif name == "gdl":
            value = gradient_difference(x_real, x_rec if gdl_gradient else x_rec.detach(), gdl_reduction)
        else:
            raise ValueError(f"unknown reconstruction term {name!r}: allowed are l1, mse and gdl")
        terms[name] = weight * value
    return terms


def gradient_difference(x: Tensor, y: Tensor, reduction: str = "sum") -> Tensor:
    """Gradient difference loss: squared difference of the sizes of the steps between neighbours, on three axes.

    Parameters
    ----------
    x, y : torch.Tensor
        (B, C, N1, N2, N3), compared voxel by voxel.
    reduction : str
        "sum" over pairs of neighbours and batch, as equation 6 and the released code say, or "mean" over both, which
        depends on neither size nor batch; the three axes are summed either way.

    Returns
    -------
    torch.Tensor
        Scalar.

    Raises
    ------
    ValueError
        If `reduction` is neither.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is {reduction!r}, allowed are sum and mean")
    total = x.new_zeros(())
    for axis in (2, 3, 4):
        steps = (x.diff(dim=axis).abs() - y.diff(dim=axis).abs()).square()
        total = total + (steps.sum() if reduction == "sum" else steps.mean())
    return total


def draw_weights(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw an interpolation weight for each sample.

    Parameters
    ----------
    like : torch.Tensor
        (B, ...), gives batch, number of axes, dtype and device.
    generator : torch.Generator
        On the same device.

    Returns
    -------
    torch.Tensor
        (B, 1, ...), uniform in [0, 1).
    """
    shape = (len(like),) + (1,) * (like.ndim - 1)
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)


def interpolate(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Point between two samples at which a penalty is taken, without the samples' graph.

    Parameters
    ----------
    a, b : torch.Tensor
        (B, ...), real and generated.
    weight : torch.Tensor
        (B, 1, ...), in [0, 1]: the share of `a`.

    Returns
    -------
    torch.Tensor
        (B, ...).
    """
    return (weight * a + (1 - weight) * b).detach()


def input_gradient(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient of a critic's summed values with respect to its input, differentiable in the critic's parameters.

    Parameters
    ----------
    critic : callable
        (B, ...) -> (B,).
    x : torch.Tensor
        (B, ...).

    Returns
    -------
    torch.Tensor
        Shape of `x`.
    """
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient


def unit_norm_penalty(gradient: Tensor) -> Tensor:
    """How far each sample's gradient is from length 1: E[(||g|| - 1)^2], with ||g|| = sqrt(sum g^2 + 1e-15).

    Parameters
    ----------
    gradient : torch.Tensor
        (B, ...); summed in float32 at least, whatever its dtype.

    Returns
    -------
    torch.Tensor
        Scalar.
    """
    g = gradient.flatten(1)
    g = g.to(torch.promote_types(g.dtype, torch.float32))
    return ((g.square().sum(1) + 1e-15).sqrt() - 1).square().mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    a: Tensor,
    b: Tensor,
    weight: Tensor,
    gradient: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor] = input_gradient,
) -> Tensor:
    """One WGAN-GP penalty of a critic, on points between two batches (Gulrajani et al. 2017, arXiv 1704.00028).

    Parameters
    ----------
    critic : callable
        (B, ...) -> (B,).
    a, b, weight : torch.Tensor
        As in `interpolate`; weights come from `draw_weights` or from the caller.
    gradient : callable
        Takes the critic and the points, gives the gradient; a critic that knows its own gradient may say so here.

    Returns
    -------
    torch.Tensor
        Scalar, at least 0.
    """
    return unit_norm_penalty(gradient(critic, interpolate(a, b, weight)))
