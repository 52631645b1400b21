"""Convolutions: the paper's layers, with the paper's weights, in cheaper and exactly equal forms.

Each class is the framework's own layer (same weight shape, initialisation and bias) with another `forward`:

- A convolution of an upsampled volume meets every voxel eight times. Its sub-pixel form (Shi et al. 2016, CVPR,
  arXiv 1609.05158) has one 2x2x2 kernel for each of the eight voxels an input voxel becomes, made of sums of the 3x3x3
  kernel's taps: 8 products instead of 27. The eight kernels together are one transposed convolution k4 s2 p1.
- That is also the transpose of a halving convolution, so a critic's gradient with respect to its input can be written
  as a network of its own (`labkit.blocks.Critic.input_gradient`).
- With one image channel the eight voxels of a 2x2x2 cell are taken as channels (space to depth), because kernels made
  for many channels are slow for one.
- A 4x4x4 convolution of a 4x4x4 volume, and its transpose, are matrix products.

Hidden volumes lie in memory channels-last, which every kernel here is fastest with; weights stay contiguous, as file
formats want them. Weights are prepared outside autocast: sums of taps and spectral norms keep the precision of the
stored weights, and a convolution's own cast to bfloat16 is the only rounding.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS_LAST = torch.channels_last_3d
FEW_CHANNELS = 8  # from here on, k4 s2 kernels were measured faster than space to depth (CPU, float32 and bfloat16)


def full_precision(x: Tensor) -> AbstractContextManager:
    """Autocast switched off on the device of `x`, for what must not be rounded to bfloat16."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def exact_weight(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's weight, its spectral norm computed outside the autocast that `x` is in; ask once, for it may cost."""
    with full_precision(x):
        return layer.weight


def halve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with kernel 4, stride 2, padding 1: half the side.

    Parameters
    ----------
    x : torch.Tensor
        (B, in, 2N, 2N, 2N).
    weight : torch.Tensor
        (out, in, 4, 4, 4).
    bias : torch.Tensor, optional
        (out,).

    Returns
    -------
    torch.Tensor
        (B, out, N, N, N).
    """
    if weight.shape[1] >= FEW_CHANNELS:
        # one copy of the weight, to the volume's dtype and layout, instead of one in each direction of each pass
        weight = weight.to(x.dtype, memory_format=CHANNELS_LAST)
        return F.conv3d(x.contiguous(memory_format=CHANNELS_LAST), weight, bias, stride=2, padding=1)
    cells = _space_to_depth(F.pad(x, (1,) * 6))  # (B, 8 in, N+1, N+1, N+1)
    return F.conv3d(cells.contiguous(memory_format=CHANNELS_LAST), _space_to_depth(weight), bias)


def double(x: Tensor, weight: Tensor) -> Tensor:
    """Apply the transpose of `halve` without its bias: twice the side.

    Parameters
    ----------
    x : torch.Tensor
        (B, out, N, N, N).
    weight : torch.Tensor
        (out, in, 4, 4, 4), as in `halve`.

    Returns
    -------
    torch.Tensor
        (B, in, 2N, 2N, 2N).
    """
    x = x.contiguous(memory_format=CHANNELS_LAST)
    if weight.shape[1] >= FEW_CHANNELS:
        return F.conv_transpose3d(x, weight.to(x.dtype, memory_format=CHANNELS_LAST), stride=2, padding=1)
    kernel = _space_to_depth(weight).flip(2, 3, 4).transpose(0, 1)  # (8 in, out, 2, 2, 2)
    cells = F.conv3d(x, kernel, padding=1)  # (B, 8 in, N+1, N+1, N+1)
    return _depth_to_space(cells)[..., 1:-1, 1:-1, 1:-1]


def _space_to_depth(x: Tensor) -> Tensor:
    """(B, C, 2N, 2N, 2N) -> (B, 8C, N, N, N)."""
    b, c, n = x.shape[0], x.shape[1], x.shape[2] // 2
    return x.reshape(b, c, n, 2, n, 2, n, 2).permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, 8 * c, n, n, n)


def _depth_to_space(x: Tensor) -> Tensor:
    """(B, 8C, N, N, N) -> (B, C, 2N, 2N, 2N)."""
    b, c, n = x.shape[0], x.shape[1] // 8, x.shape[2]
    return x.reshape(b, c, 2, 2, 2, n, n, n).permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c, 2 * n, 2 * n, 2 * n)


class HalvingConv3d(nn.Conv3d):
    """Convolution k4 s2 p1, (B, in, 2N, 2N, 2N) -> (B, out, N, N, N), and its transpose."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, kernel_size=4, stride=2, padding=1)
        self.label = f"conv n{out_channels} k4 s2 p1"

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Half the side; `weight` where the caller has it already."""
        return halve(x, exact_weight(self, x) if weight is None else weight, self.bias)

    def transpose(self, g: Tensor, weight: Tensor) -> Tensor:
        """Bring a gradient from the output, (B, out, N, N, N), to the input, (B, in, 2N, 2N, 2N)."""
        return double(g, weight)


class UpsamplingConv3d(nn.Conv3d):
    """Nearest upsampling by 2, then convolution k3 s1 p1 without bias: (B, in, N, N, N) -> (B, out, 2N, 2N, 2N)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.label = f"upsample x2, conv n{out_channels} k3 s1 p1"
        # along one axis, with taps w0 w1 w2: the even voxel 2i is w0 x[i-1] + (w1 + w2) x[i], the odd voxel 2i+1 is
        # (w0 + w1) x[i] + w2 x[i+1]; a transposed convolution k4 s2 p1 does this with the kernel below
        axis = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])  # w2, w1 + w2, w0 + w1, w0
        taps = torch.kron(torch.kron(axis, axis), axis).T.contiguous()  # (27, 64)
        self.register_buffer("taps", taps, persistent=False)  # not in the state dict, which holds the paper's weights

    def forward(self, x: Tensor) -> Tensor:
        """Twice the side."""
        weight = exact_weight(self, x)
        with full_precision(x):
            kernel = weight.transpose(0, 1).flatten(2) @ self.taps  # (out, in, 3, 3, 3) -> (in, out, 64)
        return double(x, kernel.unflatten(2, (4, 4, 4)))


class FirstConv3d(nn.ConvTranspose3d):
    """Transposed convolution k4 s1 p0 of a 1x1x1 volume without bias, as a product: (B, in) -> (B, out, 4, 4, 4)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, kernel_size=4, bias=False)
        self.label = f"transposed conv n{out_channels} k4 s1 p0"

    def forward(self, z: Tensor) -> Tensor:
        """(B, in) -> (B, out, 4, 4, 4)."""
        weight = exact_weight(self, z).flatten(1)  # (in, 64 out)
        return (z @ weight).unflatten(1, (self.out_channels, 4, 4, 4))


class LastConv3d(nn.Conv3d):
    """Convolution k4 s1 p0 of a 4x4x4 volume, as a product outside autocast: (B, in, 4, 4, 4) -> (B, out).

    A critic's value grows to hundreds, where bfloat16 would leave steps of a unit between its values.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, kernel_size=4)
        self.label = f"conv n{out_channels} k4 s1 p0"

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, 4, 4, 4) -> (B, out)."""
        weight = exact_weight(self, x).flatten(1)
        with full_precision(x):
            return F.linear(x.flatten(1).to(weight.dtype), weight, self.bias)


class DenseLayer(nn.Linear):
    """Linear layer outside autocast, (B, in) -> (B, out), and its transpose.

    Outside autocast because a few codes a batch spend their time on reading weights, which a cast only adds to.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels)
        self.label = f"linear n{out_channels}"

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """(B, in) -> (B, out); `weight` where the caller has it already."""
        weight = exact_weight(self, x) if weight is None else weight
        with full_precision(x):
            return F.linear(x.to(weight.dtype), weight, self.bias)

    def transpose(self, g: Tensor, weight: Tensor) -> Tensor:
        """Bring a gradient from the output, (B, out), to the input, (B, in)."""
        with full_precision(g):
            return g.to(weight.dtype) @ weight
