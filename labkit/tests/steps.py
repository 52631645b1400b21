"""Iterations of one learner from the same weights on the same draws, wherever and however they are computed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from labkit.capture import WARM_UP, Captured
from labkit.rendering import no_atlas
from labkit.updates import Draws, Learner
from labkit.variants import Scale, Variant, resolve


class Walk(NamedTuple):
    """What some iterations gave.

    Attributes
    ----------
    terms : torch.Tensor
        (iterations, terms) float64, what is logged.
    moved : torch.Tensor
        (parameters,) float64, how far each weight of the four networks has come.
    learner : Learner
        As it is afterwards.
    """

    terms: Tensor
    moved: Tensor
    learner: Learner


def make_draws(learner: Learner, count: int) -> list[Draws]:
    """Smooth scans and random codes for `count` iterations, drawn on the CPU, the same for every device."""
    g, b, side = torch.Generator().manual_seed(7), learner.scale.batch_size, learner.scale.size
    z = learner.variant.latent_dim

    def scans() -> Tensor:
        coarse = torch.rand(b, 1, 4, 4, 4, generator=g) * 2 - 1
        return torch.nn.functional.interpolate(coarse, size=(side,) * 3, mode="trilinear")

    def one() -> Draws:
        codes = [torch.randn(b, z, generator=g) for _ in range(3)]
        mixes = [torch.rand(b, *axes, generator=g) for axes in ((1, 1, 1, 1), (1, 1, 1, 1), (1,))]
        values = [scans(), codes[0], scans(), codes[1], codes[2], *mixes]
        shape, viewed = learner.G.noise_shape, learner.variant.critic_augmentation
        values += [torch.randn(b, 4, *shape, generator=g) if shape else None]
        values += [torch.rand(b, 5, 5, generator=g) if viewed else None]
        return Draws(*(None if value is None else value.to(learner.device) for value in values))

    return [one() for _ in range(count)]


def make_learner(variant: Variant, scale: Scale, device: torch.device, seed: int = 0) -> Learner:
    """A learner, with a template to move where its G moves one."""
    atlas = None
    if variant.generator_head == "atlas":
        atlas, g = no_atlas(scale, 2), torch.Generator().manual_seed(3)
        atlas |= {name: torch.rand(atlas[name].shape, generator=g) for name in ("template", "appearances")}
        atlas |= {"levels": torch.tensor([0.02, 0.0, 1e-3]), "spread": torch.full_like(atlas["spread"], 0.01)}
    return Learner(variant, scale, device, seed, atlas)


def weights(learner: Learner) -> Tensor:
    """All weights of the four networks, in one row."""
    parameters = [p for network in learner.networks.values() for p in network.parameters()]
    return torch.cat([p.detach().double().cpu().flatten() for p in parameters])


def walk(
    model: str,
    device: str,
    precision: str,
    iterations: int,
    scale: str = "smoke",
    advance: Callable[[Learner], Callable[[Draws], dict[str, Tensor]]] = Captured,
    **overrides: float,
) -> Walk:
    """Make a learner and iterate.

    Parameters
    ----------
    model, scale, precision : str
        As for `labkit.variants.resolve`.
    device : str
        Where.
    iterations : int
        How many.
    advance : callable
        Makes what iterates from the learner.
    **overrides
        Other settings of the model.
    """
    learner = make_learner(*resolve(model, scale, precision=precision, **overrides), torch.device(device))
    go, before = advance(learner), weights(learner)
    logged = [go(draws) for draws in make_draws(learner, iterations)]
    return Walk(torch.stack([row(terms) for terms in logged]), weights(learner) - before, learner)


def row(terms: dict[str, Tensor]) -> Tensor:
    """Logged terms as (terms,) float64 on the CPU."""
    return torch.stack(list(terms.values())).double().cpu()


def distance(a: Tensor, b: Tensor) -> float:
    """||a - b|| / ||b||."""
    return float((a - b).norm() / b.norm())


def check_device(
    device: str, model: str, precision: str, scale: str = "laptop", iterations: int = WARM_UP, **overrides: float
) -> dict[str, float]:
    """Compare a device's iterations with the CPU's in float32, and played back ones with ones made one by one.

    Returns
    -------
    dict of str to float
        Relative distances: "first terms" of E and G to the CPU's, before anything is updated; "replayed terms" and
        "replayed weights", over the last two, played back, to the same two made one by one from the same state;
        "recorded", how many recordings there were.
    """
    cpu = walk(model, "cpu", "fp32", 1, scale, **overrides)
    learner = make_learner(*resolve(model, scale, precision=precision, **overrides), torch.device(device))
    *first, a, b = make_draws(learner, iterations + 2)
    advance = Captured(learner)
    warming = [advance(draws) for draws in first]
    state = copy.deepcopy(learner.state())
    twin = make_learner(learner.variant, learner.scale, learner.device, seed=1)
    twin.load(state)
    before, single = weights(learner), Captured(twin, graph=False)
    replayed, expected = ([row(go(draws)) for draws in (a, b)] for go in (advance, single))
    of_generator = list(warming[0]).index("loss_D")
    return {
        "first terms": distance(row(warming[0])[:of_generator], cpu.terms[0][:of_generator]),
        "replayed terms": distance(torch.cat(replayed), torch.cat(expected)),
        "replayed weights": distance(weights(learner) - before, weights(twin) - before),
        "recorded": float(len(advance.replays)),
    }


BOUNDS = {
    "fp32": {"first terms": 1e-3, "replayed terms": 1e-2, "replayed weights": 0.05},
    "bf16": {"first terms": 5e-2, "replayed terms": 1e-2, "replayed weights": 0.2},
}
"""What `check_device` may find. A GPU may add up in another order each time, and Adam makes steps of nearly one length
of gradients that are nothing but such rounding, so that some weights differ where the terms hardly do."""


def faults(found: dict[str, float], precision: str) -> list[str]:
    """Distances over their bounds, in words."""
    return [
        f"{name} {found[name]:.3g}, at most {bound:g}"
        for name, bound in BOUNDS[precision].items()
        if not found[name] <= bound  # not a number is a fault
    ]
