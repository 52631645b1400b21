"""The four networks: generator G, encoder E, discriminator D and code discriminator C of one variant at one scale.

Layers, weights and their order are the paper's; `labkit.layers` says how they are computed, `labkit.published` has the
same networks written plainly. Two things to know where a variant has spectral norms:

- A training network makes a power iteration each time its weights are used. Open
  ``torch.nn.utils.parametrize.cached()`` around one update's passes: one iteration an update, the same weight in all of
  them. Close it before the optimiser's step, or the next pass uses the old weights; and start no pass in it under
  ``torch.no_grad()``, or the weight that is kept has no gradient.
- ``eval()`` stops the iterations: the weight is then divided by the last estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from labkit.layers import (
    DenseLayer,
    FirstConv3d,
    HalvingConv3d,
    InstanceNorm3d,
    LastConv3d,
    UpsamplingConv3d,
    exact_weight,
    spectral_norm,
)
from labkit.rendering import SPACING, AtlasHead, no_atlas, noise_of
from labkit.variants import ATLAS_SCALES, AtlasSettings, Scale, Variant


class Block(nn.Module):
    """Layer (linear or convolution), norm on its output ("batch", "instance" or "none"), LeakyReLU of a slope.

    With `spectral`, the layer's weight is divided by its largest singular value (`labkit.layers.SpectralNorm`). With
    `lean`, its output is not kept for the backward pass but computed again; a batch norm would count a batch twice.
    """

    def __init__(self, layer: nn.Module, norm: str, spectral: bool, slope: float, lean: bool = False) -> None:
        super().__init__()
        self.lean = lean and norm != "batch"
        self.layer = spectral_norm(layer, spectral)
        self.norm: nn.Module | None = None
        if norm == "batch":
            dense = isinstance(layer, nn.Linear)
            self.norm = nn.BatchNorm1d(layer.out_features) if dense else nn.BatchNorm3d(layer.out_channels)
        elif norm == "instance":
            self.norm = InstanceNorm3d()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Any input of the layer -> its output, normalised and rectified."""
        if self.lean and torch.is_grad_enabled():
            # the weight from outside: a spectral norm must not be iterated again; and nothing in here is random
            weight = exact_weight(self.layer, x)
            return checkpoint(self._computed, x, weight, use_reentrant=False, preserve_rng_state=False)
        return self._computed(x)

    def _computed(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        x = self.layer(x, weight)
        return F.leaky_relu(x if self.norm is None else self.norm(x), self.slope)


def halving_blocks(scale: Scale, norm: str, spectral: bool, slope: float) -> nn.ModuleList:
    """The hidden convolutions of D and E, of which the first has no norm.

    (B, 1, S, S, S) -> (B, C, S/2, S/2, S/2) -> ... -> (B, 8C, 4, 4, 4).
    """
    lean = scale.activation_checkpointing
    return nn.ModuleList(
        Block(HalvingConv3d(a, b), norm if level else "none", spectral, slope, lean)
        for level, (a, b) in enumerate(pairwise((1, *scale.channels)))
    )


def margins(scale: Scale) -> tuple[int, ...]:
    """Voxels around a scale's box on either side, as ``F.pad`` takes them: the last axis first."""
    around = [((scale.size - side) // 2, scale.size - side - (scale.size - side) // 2) for side in scale.sides]
    return tuple(extent for pair in reversed(around) for extent in pair)


def inside(x: Tensor, margins: tuple[int, ...]) -> Tensor:
    """Cubes without their margins: (B, 1, S, S, S) -> (B, 1, X, Y, Z)."""
    return F.pad(x, [-extent for extent in margins]) if any(margins) else x


class Generator(nn.Module):
    """G: code to scan; `variant` gives latent size, norm, slope and how it ends, `scale` size and width.

    `atlas` is what an :class:`labkit.rendering.AtlasHead` begins with. With `noisy`, which in evaluation makes a
    difference to such a head alone, each scan has the noise that follows from its code.
    """

    def __init__(self, variant: Variant, scale: Scale, atlas: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.noisy = False
        widths = scale.channels[::-1]
        norm, spectral, slope = variant.generator_norm, variant.generator_spectral, variant.generator_slope
        layers = [FirstConv3d(variant.latent_dim, widths[0], scale.coarsest)]
        layers += [UpsamplingConv3d(a, b) for a, b in pairwise(widths)]
        lean = scale.activation_checkpointing
        self.blocks = nn.ModuleList(Block(layer, norm, spectral, slope, lean) for layer in layers)
        if variant.generator_head == "atlas":
            settings = AtlasSettings(iterations=1, knot_spacing=SPACING, brightness_spacing=SPACING)
            if atlas is None:  # for whoever asks what layers there are
                atlas = no_atlas(scale, ATLAS_SCALES.get(scale.name, settings).appearances)
            fine, coarse, count = atlas["template"].shape[2], int(atlas["shape"][0]), len(atlas["appearances"])
            settings = replace(settings, appearances=count, template_factor=fine // coarse)
            self.head: nn.Module = AtlasHead(widths[-2], widths[-1], scale, settings, variant.residual, atlas)
        else:
            self.head = spectral_norm(UpsamplingConv3d(widths[-1], 1), spectral)
        self.margins = margins(scale)

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """Of the standard normal numbers that noise of one scan is made of, (3, X, Y, Z); None if it has none."""
        return (3, *self.head.shape) if isinstance(self.head, AtlasHead) else None

    @property
    def has_labels(self) -> bool:
        """Whether :meth:`labelled` has some to give: an atlas of scans with labels has."""
        return isinstance(self.head, AtlasHead) and self.head.label_logits is not None

    def forward(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """Decode: codes (B, Z) -> scans (B, 1, S, S, S) in [-1, 1], dtype of `z`.

        An atlas's head takes `noise`, N(0, 1), (B, 3, X, Y, Z) as :attr:`noise_shape` has it; in training its brightest
        voxels may pass 1, so that they have a way back.
        """
        features, last = self._features(z)
        if not isinstance(self.head, AtlasHead):
            x = torch.tanh(self.head(last).to(z.dtype))
            return F.pad(x, self.margins, value=-1.0) if any(self.margins) else x
        if self.training:
            return self.head(features, last, noise)[0]
        return self.head(features, last, self._own_noise(z) if noise is None else noise)[0].clamp(-1, 1)

    @torch.no_grad()
    def labelled(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, with label maps, uint8 (B, 1, S, S, S)."""
        scans, labels = self.head(*self._features(z), self._own_noise(z), labelled=True)
        return scans.clamp(-1, 1), labels

    def _own_noise(self, z: Tensor) -> Tensor | None:
        return noise_of(z, self.noise_shape[1:]) if self.noisy and self.noise_shape else None

    def _features(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """What two blocks before the end put out, and the last: (B, 2C, S/4, S/4, S/4), (B, C, S/2, S/2, S/2)."""
        features = x = z
        for block in self.blocks:  # (B, Z) -> (B, 8C, 4, 4, 4) -> ... -> (B, C, S/2, S/2, S/2)
            features, x = x, block(x)
        return features, x


class Encoder(nn.Module):
    """E: scan to code; `variant` gives latent size, norm and slope, `scale` size and width."""

    def __init__(self, variant: Variant, scale: Scale) -> None:
        super().__init__()
        norm, spectral, slope = variant.encoder_norm, variant.encoder_spectral, variant.encoder_slope
        self.blocks = halving_blocks(scale, norm, spectral, slope)
        self.head = spectral_norm(LastConv3d(scale.channels[-1], variant.latent_dim, scale.coarsest), spectral)
        self.margins, self.on_sphere = margins(scale), variant.sphere_codes

    def forward(self, x: Tensor) -> Tensor:
        """Encode: scans (B, 1, S, S, S) in [-1, 1] -> codes (B, Z), float32 under autocast."""
        x = inside(x, self.margins)
        for block in self.blocks:  # (B, 1, S, S, S) -> (B, C, S/2, S/2, S/2) -> ... -> (B, 8C, 4, 4, 4)
            x = block(x)
        z = self.head(x)
        return on_sphere(z) if self.on_sphere else z


def on_sphere(z: Tensor) -> Tensor:
    """Codes (B, Z) as long as random ones are on average: their directions times the root of Z."""
    return math.sqrt(z.shape[1]) * F.normalize(z, dim=1)


class Critic(nn.Module):
    """What D and C have in common: blocks, a last layer to (B, 1), and the gradient with respect to the input."""

    def __init__(self, blocks: nn.ModuleList, head: nn.Module, margins: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.blocks, self.head, self.margins = blocks, head, margins

    def forward(self, x: Tensor) -> Tensor:
        """Judge scans (B, 1, S, S, S) or codes (B, Z) -> (B,), higher for real, float32 under autocast."""
        x = inside(x, self.margins)
        for block in self.blocks:
            x = block(x)
        return self.head(x).squeeze(1)

    def input_gradient(self, x: Tensor) -> Tensor:
        """Gradient of the critic's summed values with respect to its input, differentiable in the critic's parameters.

        The same numbers as ``torch.autograd.grad(critic(x).sum(), x, create_graph=True)``, but computed as a network
        that runs backwards, through each rectifier's slopes and each layer's transpose, so that training on it needs
        no second derivative of a convolution. Where there is no norm, it depends on the forward pass by those slopes
        alone, whose derivative is zero: no graph of that pass is kept and none is walked.

        Parameters
        ----------
        x : torch.Tensor
            As in `forward`; the result is not differentiable in `x`.

        Returns
        -------
        torch.Tensor
            Shape and dtype of `x`.
        """
        normed = any(block.norm is not None for block in self.blocks)
        weights = [exact_weight(block.layer, x) for block in self.blocks]
        trail, h = [], inside(x.detach(), self.margins)
        with torch.set_grad_enabled(normed):  # a norm's own gradient below needs a graph of it, wanted or not
            for block, weight in zip(self.blocks, weights, strict=True):
                before = block.layer(h, weight)
                if normed and not before.requires_grad:  # the critic's parameters are frozen
                    before.requires_grad_()
                after = before if block.norm is None else block.norm(before)
                h = F.leaky_relu(after, block.slope)
                trail.append((block, weight, before, after))
        g = exact_weight(self.head, x).expand(len(x), *h.shape[1:]).to(h.dtype)
        for block, weight, before, after in reversed(trail):
            g = torch.ops.aten.leaky_relu_backward(g, after.detach(), block.slope, False)
            if block.norm is not None:
                (g,) = torch.autograd.grad(after, before, g, create_graph=torch.is_grad_enabled())
            g = block.layer.transpose(g, weight)
        return (F.pad(g, self.margins) if any(self.margins) else g).to(x.dtype)


class Discriminator(Critic):
    """D: scan to a number, higher for real."""

    def __init__(self, variant: Variant, scale: Scale) -> None:
        norm, spectral, slope = variant.discriminator_norm, variant.discriminator_spectral, variant.discriminator_slope
        blocks = halving_blocks(scale, norm, spectral, slope)
        head = spectral_norm(LastConv3d(scale.channels[-1], 1, scale.coarsest), spectral)
        super().__init__(blocks, head, margins(scale))


class CodeDiscriminator(Critic):
    """C: code to a number, higher for one drawn from N(0, I)."""

    def __init__(self, variant: Variant, scale: Scale) -> None:
        width = scale.code_channels
        norm, spectral, slope = variant.code_norm, variant.code_spectral, variant.code_slope
        layers = (DenseLayer(variant.latent_dim, width), DenseLayer(width, width))
        blocks = nn.ModuleList(Block(layer, norm, spectral, slope) for layer in layers)
        super().__init__(blocks, spectral_norm(DenseLayer(width, 1), spectral))

    def forward(self, z: Tensor) -> Tensor:
        """Judge codes, (B, Z) -> (B,); ValueError if a batch norm is to train on a single code."""
        if self.training and len(z) < 2 and self.blocks[0].norm is not None:
            raise ValueError("BatchNorm in the code discriminator needs 2 or more codes a batch to train, got 1")
        return super().forward(z)


class Networks(NamedTuple):
    """The four networks of one model, by the paper's letters."""

    E: Encoder
    G: Generator
    D: Discriminator
    C: CodeDiscriminator


def build(variant: Variant, scale: Scale, seed: int = 0, atlas: Mapping[str, Tensor] | None = None) -> Networks:
    """Make the four networks with the framework's default initialisation.

    Parameters
    ----------
    variant : Variant
        Norms, activations, latent size.
    scale : Scale
        Cube side and width.
    seed : int
        Of the initial weights and power iterations; the global random state is left as it was.
    atlas : mapping of str to torch.Tensor, optional
        What an :class:`labkit.rendering.AtlasHead` begins with.

    Returns
    -------
    Networks
        On the CPU, so that a seed means the same weights whatever device they are moved to.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reaches into other devices
        return Networks(
            Encoder(variant, scale),
            Generator(variant, scale, atlas),
            Discriminator(variant, scale),
            CodeDiscriminator(variant, scale),
        )
