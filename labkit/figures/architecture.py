"""A model on paper: its parts as a table, what is minimised as equations with their numbers filled in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from labkit import networks
from labkit.layers import FirstConv3d, UpsamplingConv3d
from labkit.rendering import AtlasHead, Geometry
from labkit.updates import R1_EVERY
from labkit.variants import AtlasSettings, Scale, Variant

if TYPE_CHECKING:
    import pandas as pd

NAMES = {"G": "generator", "D": "discriminator", "E": "encoder", "C": "code discriminator"}


class LayerRow(NamedTuple):
    """One row of a :func:`summary`."""

    layer: str  # layer, norms and activation; n channels, k kernel, s stride, p padding
    output_shape: tuple[int, ...]  # with the batch first
    parameters: int  # trained numbers in it


def summary(network: nn.Module, input_shape: tuple[int, ...]) -> list[LayerRow]:
    """List a network's layers in order with what they put out; the network is left as it was.

    `input_shape` has the batch first: (1, Z) for G and C, (1, 1, S, S, S) for D and E. The last layer of G comes with
    its tanh.
    """
    rows = []
    x = torch.zeros(input_shape, device=next(network.parameters()).device)
    was_training = network.training
    network.eval()  # neither power iterations nor running statistics move
    try:
        with torch.no_grad():
            features = x
            for part in network.blocks if _moves(network) else (*network.blocks, network.head):
                features, x = x, part(x)
                label = _block_label(part) if isinstance(part, networks.Block) else _layer_label(part)
                label += ", tanh" if isinstance(network, networks.Generator) and part is network.head else ""
                rows.append(LayerRow(label, tuple(x.shape), sum(p.numel() for p in part.parameters())))
            if _moves(network):
                rows += _head_rows(network.head, features, x)
    finally:
        network.train(was_training)
    return rows


def _moves(network: nn.Module) -> bool:
    """Whether a network ends by moving a template."""
    return isinstance(network.head, AtlasHead)


def _head_rows(head: AtlasHead, features: torch.Tensor, last: torch.Tensor) -> list[LayerRow]:
    """What such an end is made of, for features a quarter as fine as the scan and what the last block put out."""
    n, pooled = len(features), math.prod(head.pooled)
    parts: list[tuple[str, nn.Module | None, torch.Tensor]] = [
        ("velocity, log-brightness", head.field, features),
        ("weights of appearances", head.weights, features.new_zeros(n, features.shape[1] * pooled)),
        ("residual", head.residual, last),
    ]
    rows = [
        LayerRow(f"{name}: {_layer_label(layer)}", tuple(layer(x).shape), sum(p.numel() for p in layer.parameters()))
        for name, layer, x in parts
        if layer is not None
    ]
    for name, learned in (("template", head.template), ("appearances", head.appearances)):
        rows.append(LayerRow(f"{name}, learned", (n, *learned.shape[-4:]), learned.numel()))
    scan = head(features, last)[0]
    return [*rows, LayerRow("template, moved", tuple(scan.shape), 0)]


def _layer_label(layer: nn.Module) -> str:
    """What a layer is, in the words of the paper's figures."""
    spectral = ", spectral norm" if is_parametrized(layer, "weight") else ""
    if isinstance(layer, nn.Linear):
        return f"linear n{layer.out_features}{spectral}"
    kind = "transposed conv" if isinstance(layer, FirstConv3d) else "conv"
    kind = f"upsample x2, {kind}" if isinstance(layer, UpsamplingConv3d) else kind
    n, (k, *_), (s, *_), (p, *_) = layer.out_channels, layer.kernel_size, layer.stride, layer.padding
    return f"{kind} n{n} k{k} s{s} p{p}{spectral}"


def _block_label(block: networks.Block) -> str:
    norm = {"BatchNorm1d": "BatchNorm", "BatchNorm3d": "BatchNorm", "InstanceNorm3d": "InstanceNorm"}
    parts = [_layer_label(block.layer)]
    parts += [norm[type(block.norm).__name__]] if block.norm is not None else []
    return ", ".join([*parts, f"LeakyReLU {block.slope:g}" if block.slope else "ReLU"])


def networks_table(variant: Variant | AtlasSettings, scale: Scale) -> pd.DataFrame:
    """Layers of all four networks with what they put out for one scan or code; of an atlas what is fitted.

    Parameters
    ----------
    variant, scale : Variant or AtlasSettings, Scale
        What and how large.

    Returns
    -------
    pandas.DataFrame
        Index ``network`` (G, D, E, C) and ``layer``, columns ``output`` (channels × sides, without the batch) and
        ``parameters``; each network ends with its sum. Of an atlas: index ``of`` (all animals, each animal) and
        ``what``, for scans of the study's proportions and animals enough for all its appearances.
    """
    import pandas as pd

    if isinstance(variant, AtlasSettings):
        return _atlas_table(variant, scale)
    built = networks.build(variant, scale)
    code, scan = (2, variant.latent_dim), (2, 1, *(scale.size,) * 3)
    rows = []
    for name, shape in (("G", code), ("D", scan), ("E", scan), ("C", code)):
        network = getattr(built, name)
        title = f"{name}, {NAMES[name]}"
        for row in summary(network, shape):
            output = " × ".join(str(side) for side in row.output_shape[1:]) or "1"
            rows.append((title, row.layer, output, row.parameters))
        rows.append((title, "in all", "", sum(p.numel() for p in network.parameters())))
    table = pd.DataFrame(rows, columns=["network", "layer", "output", "parameters"])
    return table.set_index(["network", "layer"])


def _atlas_table(settings: AtlasSettings, scale: Scale) -> pd.DataFrame:
    import pandas as pd

    geometry = Geometry((scale.size, scale.size, scale.size * 5 // 8), settings, torch.device("cpu"))
    sides = {
        ("all animals", "template T"): geometry.template_shape,
        ("all animals", "appearances A"): (settings.appearances, *geometry.template_shape),
        ("each animal", "velocity v at knots"): (3, *geometry.knots),
        ("each animal", "pose"): (geometry.sizes["pose"],),
        ("each animal", "log-brightness g at knots"): geometry.bright,
        ("each animal", "weights a of appearances"): (settings.appearances,),
    }
    rows = [(*key, " × ".join(map(str, shape)), int(np.prod(shape))) for key, shape in sides.items()]
    return pd.DataFrame(rows, columns=["of", "what", "sides", "numbers"]).set_index(["of", "what"])


def _in_latex(value: float) -> str:
    """A number, with a power of ten in place of an exponent."""
    mantissa, _, power = f"{value:g}".partition("e")
    return mantissa + (rf" \cdot 10^{{{int(power)}}}" if power else "")


def _atlas_equations(settings: AtlasSettings) -> str:
    """What an atlas is, and what its fit minimises."""
    return "\n\n".join([
        r"$$ \hat x_i = e^{B g_i} \, \bigl(T + \textstyle\sum_j a_{ij} A_j\bigr) \circ \varphi_i, \qquad "
        r"\varphi_i = \mathrm{pose}_i \circ \exp(v_i) $$",
        rf"$$ \begin{{aligned}} L = {{}} & 4 \, \lVert x_i - \hat x_i \rVert_{{MSE}} + {settings.bending:g} \, "
        rf"\lVert \partial^2 v_i \rVert^2 \cr & + {_in_latex(settings.speed)} \, \lVert v_i \rVert^2 + 10^{{-3}} \, "
        r"\lVert g_i \rVert^2 \end{aligned} $$",
        r"Scans in [0, 1], velocities in voxels. $\exp$ is the flow of $v$; $B$ makes knots smooth. The mean velocity "
        "of all animals is held at zero. New animals are drawn from a Gaussian over all numbers of an animal, whose "
        "axes are the code.",
    ])  # fmt: skip


def equations(variant: Variant | AtlasSettings) -> str:
    """The losses a model is trained on, as Markdown with LaTeX, its weights as numbers.

    Numbered as in Ferreira et al. 2022; a variant whose settings are none of the paper's has the same three equations
    with its own terms.

    Parameters
    ----------
    variant : Variant or AtlasSettings
        Resolved, overrides included.

    Returns
    -------
    str
        Markdown.
    """
    if isinstance(variant, AtlasSettings):
        return _atlas_equations(variant)
    weights = variant.reconstruction_weights
    size = r"\lVert x - G(z_e) \rVert"
    names = {"l1": rf"{size}_{{L1}}", "mse": rf"{size}_{{MSE}}", "gdl": rf"{size}_{{GDL}}"}
    # a line a term, so that the equation fits a phone; of "\\\\" Sphinx makes another environment, which takes no tag
    terms = "".join(rf" \cr & + {weight:g}\, {names[term]}" for term, weight in weights.items())
    penalty = rf"{variant.lambda1:g}\, L"
    of_d = (
        rf"{variant.r1 / 2:g}\, \mathbb{{E}}\lVert \nabla D(x) \rVert^2"
        if variant.r1
        else rf"{penalty}_{{GP\text{{-}}D}}"
    )
    lines = [
        r"$$ L_{GD} = -\mathbb{E}[D(G(z_e))] - \mathbb{E}[D(G(z_r))] \tag{1} $$",
        rf"$$ \begin{{aligned}} L_{{G}} = {{}} & L_{{GD}} - \mathbb{{E}}[C(z_e)]{terms} \end{{aligned}} "
        rf"\tag{{{_number(weights)}}} $$",
        rf"$$ L_C = \mathbb{{E}}[C(z_e)] - \mathbb{{E}}[C(z_r)] + {penalty}_{{GP\text{{-}}C}} \tag{{3}} $$",
        rf"$$ L_D = -L_{{GD}} - 2\,\mathbb{{E}}[D(x)] + {of_d} \tag{{4}} $$",
    ]
    notes = []
    if variant.generator_head == "atlas":
        template = r"\bigl(T + \textstyle\sum_j a_j A_j\bigr) \circ \exp(v)"
        lines.insert(0, rf"$$ G(z) = \bigl\lvert\, e^{{B g}} \, {template} + r + \mathrm{{noise}} \,\bigr\rvert $$")
        notes.append(
            "G moves the template T of an atlas of the training scans: it makes velocity v, log-brightness g, weights "
            f"a of appearances A and a residual r of at most {variant.residual:g} grey values of [0, 1]; T and A are "
            "trained on. The noise is the atlas's."
        )
    if variant.r1:
        notes.append(
            f"The penalty of D is taken at real scans, every {R1_EVERY}th iteration with {R1_EVERY} times its weight."
        )
    if variant.critic_augmentation:
        notes.append("D sees scans, real and generated, shifted, mirrored and brightened at random.")
    if variant.sphere_codes:
        notes.append("Codes of E, and random ones that C sees, all have the same length.")
    if "gdl" in weights:
        kind = {"sum": "summed over voxels and batch", "mean": "averaged over voxels and batch"}[variant.gdl_reduction]
        trained = "" if variant.gdl_gradient else ", added as a plain number that no gradient flows through"
        notes.append(f"The gradient difference (GDL) is {kind}{trained}.")
    if variant.generator_steps > 1:
        notes.append(f"G's optimiser steps {variant.generator_steps} times an iteration on the same gradients.")
    decay = f", weight decay {variant.weight_decay:g}" if variant.weight_decay else ""
    optimiser = {"adam": "Adam", "adamw": "AdamW"}[variant.optimiser]
    notes.append(f"{optimiser}, learning rate {variant.lr:g}, betas {variant.beta1:g} and {variant.beta2:g}{decay}.")
    return "\n\n".join([*lines, " ".join(notes)])


def _number(weights: dict[str, float]) -> str:
    """Number of L_G in the paper, by its reconstruction terms."""
    return {("l1",): "2", ("l1", "mse"): "5", ("gdl", "mse"): "6"}.get(tuple(sorted(weights)), r"6'")
