"""The four networks: generator G, discriminator D, encoder E and code discriminator C of one variant at one scale.

Layers, weights and their order are the paper's; `labkit.convolutions` says how they are computed. Two things to know
where a variant has spectral norms:

- A training network makes a power iteration each time its weights are used. Open
  ``torch.nn.utils.parametrize.cached()`` around one update's passes: one iteration an update, the same weight in all of
  them. Close it before the optimiser's step, or the next pass uses the old weights; and start no pass in it under
  ``torch.no_grad()``, or the weight that is kept has no gradient.
- ``eval()`` stops the iterations: the weight is then divided by the last estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from labkit.blocks import Block, Critic, halving_blocks, layer_label
from labkit.convolutions import DenseLayer, FirstConv3d, LastConv3d, UpsamplingConv3d
from labkit.spectral import spectral_norm
from labkit.variants import Scale, Variant


class Generator(nn.Module):
    """G: code to scan.

    Parameters
    ----------
    variant : Variant
        `latent_dim`, `generator_norm`, `generator_spectral` and `generator_slope` are used.
    scale : Scale
        `size` and `base_channels` are used.
    """

    def __init__(self, variant: Variant, scale: Scale) -> None:
        super().__init__()
        widths = scale.channels[::-1]
        layers = [FirstConv3d(variant.latent_dim, widths[0])]
        layers += [UpsamplingConv3d(a, b) for a, b in pairwise(widths)]
        norm, spectral, slope = variant.generator_norm, variant.generator_spectral, variant.generator_slope
        self.blocks = nn.ModuleList(Block(layer, norm, spectral, slope) for layer in layers)
        self.head = _maybe_spectral(UpsamplingConv3d(widths[-1], 1), spectral)

    def forward(self, z: Tensor) -> Tensor:
        """Decode.

        Parameters
        ----------
        z : torch.Tensor
            (B, Z), codes.

        Returns
        -------
        torch.Tensor
            (B, 1, S, S, S), scans in [-1, 1], dtype of `z`.
        """
        x = z
        for block in self.blocks:  # (B, Z) -> (B, 8C, 4, 4, 4) -> ... -> (B, C, S/2, S/2, S/2)
            x = block(x)
        return torch.tanh(self.head(x).to(z.dtype))


class Encoder(nn.Module):
    """E: scan to code.

    Parameters
    ----------
    variant : Variant
        `latent_dim`, `encoder_norm`, `encoder_spectral` and `encoder_slope` are used.
    scale : Scale
        `size` and `base_channels` are used.
    """

    def __init__(self, variant: Variant, scale: Scale) -> None:
        super().__init__()
        norm, spectral, slope = variant.encoder_norm, variant.encoder_spectral, variant.encoder_slope
        self.blocks = halving_blocks((1, *scale.channels), norm, spectral, slope)
        self.head = _maybe_spectral(LastConv3d(scale.channels[-1], variant.latent_dim), spectral)

    def forward(self, x: Tensor) -> Tensor:
        """Encode.

        Parameters
        ----------
        x : torch.Tensor
            (B, 1, S, S, S), scans in [-1, 1].

        Returns
        -------
        torch.Tensor
            (B, Z), float32 under autocast.
        """
        for block in self.blocks:  # (B, 1, S, S, S) -> (B, C, S/2, S/2, S/2) -> ... -> (B, 8C, 4, 4, 4)
            x = block(x)
        return self.head(x)


class Discriminator(Critic):
    """D: scan to a number, higher for real. `Critic` has its methods.

    Parameters
    ----------
    variant : Variant
        `discriminator_norm`, `discriminator_spectral` and `discriminator_slope` are used.
    scale : Scale
        `size` and `base_channels` are used.
    """

    def __init__(self, variant: Variant, scale: Scale) -> None:
        norm, spectral, slope = variant.discriminator_norm, variant.discriminator_spectral, variant.discriminator_slope
        blocks = halving_blocks((1, *scale.channels), norm, spectral, slope)
        super().__init__(blocks, _maybe_spectral(LastConv3d(scale.channels[-1], 1), spectral))


class CodeDiscriminator(Critic):
    """C: code to a number, higher for one drawn from N(0, I). `Critic` has its methods.

    Parameters
    ----------
    variant : Variant
        `latent_dim`, `code_norm`, `code_spectral` and `code_slope` are used.
    scale : Scale
        `base_channels` is used.
    """

    def __init__(self, variant: Variant, scale: Scale) -> None:
        width = scale.code_channels
        layers = (DenseLayer(variant.latent_dim, width), DenseLayer(width, width))
        norm, spectral, slope = variant.code_norm, variant.code_spectral, variant.code_slope
        blocks = nn.ModuleList(Block(layer, norm, spectral, slope) for layer in layers)
        super().__init__(blocks, _maybe_spectral(DenseLayer(width, 1), spectral))

    def forward(self, z: Tensor) -> Tensor:
        """Judge codes, (B, Z) -> (B,); see `Critic.forward`.

        Raises
        ------
        ValueError
            If a batch norm is to train on a single code.
        """
        if self.training and len(z) < 2 and self.blocks[0].norm is not None:
            raise ValueError("BatchNorm in the code discriminator needs 2 or more codes a batch to train, got 1")
        return super().forward(z)


class Networks(NamedTuple):
    """The four networks of one model, by the paper's letters."""

    E: Encoder
    G: Generator
    D: Discriminator
    C: CodeDiscriminator


def build(variant: Variant, scale: Scale, seed: int = 0) -> Networks:
    """Make the four networks with the framework's default initialisation.

    Parameters
    ----------
    variant : Variant
        Norms, activations, latent size.
    scale : Scale
        Cube side and width.
    seed : int
        Of the initial weights and power iterations; the global random state is left as it was.

    Returns
    -------
    Networks
        On the CPU, so that a seed means the same weights whatever device they are moved to.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reaches into other devices
        return Networks(*(kind(variant, scale) for kind in (Encoder, Generator, Discriminator, CodeDiscriminator)))


def load_by_position(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights whose names differ but whose layers are the paper's, in the paper's order.

    Parameters
    ----------
    network : torch.nn.Module
        One of the four.
    state : mapping
        State dict of the same layers under other names, such as a plain ``torch.nn.Sequential`` has.

    Raises
    ------
    ValueError
        If there are more or fewer tensors, or one has another shape; says which.
    """
    own = network.state_dict()
    if len(own) != len(state):
        raise ValueError(f"{type(network).__name__} has {len(own)} tensors, the weights have {len(state)}")
    pairs = list(zip(own.items(), state.items(), strict=True))
    faults = [
        f"{theirs} {tuple(b.shape)} for {ours} {tuple(a.shape)}"
        for (ours, a), (theirs, b) in pairs
        if a.shape != b.shape
    ]
    if faults:
        raise ValueError(f"{type(network).__name__} cannot take these shapes: " + "; ".join(faults))
    network.load_state_dict({ours: value for (ours, _), (_, value) in pairs})


class LayerRow(NamedTuple):
    """One row of a `summary`.

    Attributes
    ----------
    layer : str
        Layer, norms and activation; n channels, k kernel, s stride, p padding.
    output_shape : tuple of int
        With the batch first.
    parameters : int
        Trained numbers in it.
    """

    layer: str
    output_shape: tuple[int, ...]
    parameters: int


def summary(network: nn.Module, input_shape: tuple[int, ...]) -> list[LayerRow]:
    """List a network's layers with what they put out, for a table.

    Parameters
    ----------
    network : torch.nn.Module
        One of the four; left as it was.
    input_shape : tuple of int
        With the batch first: (1, Z) for G and C, (1, 1, S, S, S) for D and E.

    Returns
    -------
    list of LayerRow
        In order; the last layer of G with its tanh.
    """
    rows = []
    x = torch.zeros(input_shape, device=next(network.parameters()).device)
    was_training = network.training
    network.eval()  # neither power iterations nor running statistics move
    try:
        with torch.no_grad():
            for part in (*network.blocks, network.head):
                x = part(x)
                label = part.label if isinstance(part, Block) else layer_label(part)
                label += ", tanh" if isinstance(network, Generator) and part is network.head else ""
                rows.append(LayerRow(label, tuple(x.shape), sum(p.numel() for p in part.parameters())))
    finally:
        network.train(was_training)
    return rows


def _maybe_spectral(layer: nn.Module, spectral: bool) -> nn.Module:
    return spectral_norm(layer) if spectral else layer
