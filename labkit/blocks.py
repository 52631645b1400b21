"""Blocks: a layer with its norm and rectifier, and what the two critics D and C have in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from labkit.convolutions import CHANNELS_LAST, HalvingConv3d, exact_weight
from labkit.spectral import spectral_norm


class InstanceNorm3d(nn.Module):
    """Instance norm without affine parameters: each channel of each sample to mean 0 and variance 1 over its voxels.

    The framework's own copies channels-last volumes there and back and, without affine parameters, rounds the
    statistics of bfloat16 volumes to bfloat16. These two forms of the same do neither, or only the first.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, N, N, N) -> the same."""
        b, c, *sides = x.shape
        if x.device.type == "cpu":  # a batch norm a sample was measured three times faster there
            dtype = torch.promote_types(x.dtype, torch.float32)  # of the statistics
            one, zero = x.new_ones(c, dtype=dtype), x.new_zeros(c, dtype=dtype)
            return torch.cat([F.batch_norm(sample, None, None, one, zero, training=True) for sample in x.split(1)])
        # elsewhere many small kernels cost more than two copies: a group norm with one channel a group
        normed = torch.native_group_norm(x.contiguous(), None, None, b, c, sides[0] * sides[1] * sides[2], c, 1e-5)[0]
        return normed.contiguous(memory_format=CHANNELS_LAST)


class Block(nn.Module):
    """Layer, norm, LeakyReLU.

    Parameters
    ----------
    layer : torch.nn.Module
        Linear or convolution.
    norm : str
        "batch", "instance" or "none", on the layer's output.
    spectral : bool
        Whether the layer's weight is divided by its largest singular value, estimated by one power iteration each time
        the weight is asked for in training, none in evaluation.
    slope : float
        LeakyReLU's slope below zero.
    """

    def __init__(self, layer: nn.Module, norm: str, spectral: bool, slope: float) -> None:
        super().__init__()
        self.layer = spectral_norm(layer) if spectral else layer
        self.norm: nn.Module | None = None
        if norm == "batch":
            dense = isinstance(layer, nn.Linear)
            self.norm = nn.BatchNorm1d(layer.out_features) if dense else nn.BatchNorm3d(layer.out_channels)
        elif norm == "instance":
            self.norm = InstanceNorm3d()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Any input of the layer -> its output, normalised and rectified."""
        x = self.layer(x)
        return F.leaky_relu(x if self.norm is None else self.norm(x), self.slope)

    @property
    def label(self) -> str:
        """What the block is, in the words of the paper's figures."""
        norm = {"BatchNorm1d": "BatchNorm", "BatchNorm3d": "BatchNorm", "InstanceNorm3d": "InstanceNorm"}
        parts = [layer_label(self.layer)]
        parts += [norm[type(self.norm).__name__]] if self.norm is not None else []
        parts += [f"LeakyReLU {self.slope:g}" if self.slope else "ReLU"]
        return ", ".join(parts)


def layer_label(layer: nn.Module) -> str:
    """What a layer is, in the words of the paper's figures."""
    return layer.label + (", spectral norm" if is_parametrized(layer, "weight") else "")


def halving_blocks(widths: Sequence[int], norm: str, spectral: bool, slope: float) -> nn.ModuleList:
    """The hidden convolutions of D and E, of which the first has no norm.

    Parameters
    ----------
    widths : sequence of int
        Channels of the scan, then of each block's output.
    norm, spectral, slope
        As in `Block`.

    Returns
    -------
    torch.nn.ModuleList
        (B, 1, S, S, S) -> (B, C, S/2, S/2, S/2) -> ... -> (B, 8C, 4, 4, 4).
    """
    blocks = (
        Block(HalvingConv3d(a, b), norm if level else "none", spectral, slope)
        for level, (a, b) in enumerate(pairwise(widths))
    )
    return nn.ModuleList(blocks)


class Critic(nn.Module):
    """Blocks and a last layer of one output, with the gradient with respect to the input.

    Parameters
    ----------
    blocks : torch.nn.ModuleList
        Their layers have a `transpose`.
    head : torch.nn.Module
        Last layer, to (B, 1), without activation.
    """

    def __init__(self, blocks: nn.ModuleList, head: nn.Module) -> None:
        super().__init__()
        self.blocks, self.head = blocks, head

    def forward(self, x: Tensor) -> Tensor:
        """Judge.

        Parameters
        ----------
        x : torch.Tensor
            (B, 1, S, S, S), scans in [-1, 1], for D; (B, Z), codes, for C.

        Returns
        -------
        torch.Tensor
            (B,), higher for real, float32 under autocast.
        """
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
        trail, h = [], x.detach()
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
        return g.to(x.dtype)
