"""How a layer is computed: the paper's layers and weights, in cheaper and exactly equal forms.

The paper's generator upsamples and then convolves. Written plainly, and as it is computed here:

>>> plain = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv3d(8, 16, 3, padding=1, bias=False))
>>> fast = UpsamplingConv3d(8, 16)
>>> _ = fast.load_state_dict({"weight": plain[1].weight})
>>> x = torch.randn(2, 8, 4, 4, 4)
>>> torch.allclose(fast(x), plain(x), atol=1e-5)
True

Each class is the framework's own layer (same weight shape, initialisation and bias) with another `forward`:

- A convolution of an upsampled volume meets every voxel eight times. Its sub-pixel form (Shi et al. 2016, CVPR,
  arXiv 1609.05158) has one 2x2x2 kernel for each of the eight voxels an input voxel becomes, made of sums of the 3x3x3
  kernel's taps: 8 products instead of 27. The eight kernels together are one transposed convolution k4 s2 p1.
- That is also the transpose of a halving convolution, so a critic's gradient with respect to its input can be written
  as a network of its own (`labkit.networks.Critic.input_gradient`).
- With one image channel the eight voxels of a 2x2x2 cell are taken as channels (space to depth), because kernels made
  for many channels are slow for one.
- A 4x4x4 convolution of a 4x4x4 volume, and its transpose, are matrix products.

Hidden volumes lie in memory channels-last, which every kernel here is fastest with; weights stay contiguous, as file
formats want them. Weights are prepared outside autocast: sums of taps and spectral norms keep the precision of the
stored weights, and a convolution's own cast to bfloat16 is the only rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

CHANNELS_LAST = torch.channels_last_3d
FEW_CHANNELS = 8  # from here on, k4 s2 kernels were measured faster than space to depth (CPU, float32 and bfloat16)
START = 15  # power iterations on the initial weight, as in the framework


def full_precision(x: Tensor) -> AbstractContextManager:
    """Autocast switched off on the device of `x`, for what must not be rounded to bfloat16."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def exact_weight(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer's weight, its spectral norm computed outside the autocast that `x` is in; ask once, for it may cost."""
    with full_precision(x):
        return layer.weight


@contextmanager
def convolving(device: torch.device, benchmark: bool = True) -> Iterator[None]:
    """Make float32 mean float32 in a GPU's convolutions, and choose their algorithms by timing them.

    The framework's default rounds the operands of float32 convolutions to 10 bits (TF32), though not those of matrix
    products. Who wants fast arithmetic here has bfloat16; float32 is there to compare with.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    exact = (cudnn.conv, "fp32_precision", "ieee") if hasattr(cudnn, "conv") else (cudnn, "allow_tf32", False)
    settings = [exact, (cudnn, "benchmark", benchmark)]
    before = [getattr(where, name) for where, name, _ in settings]
    try:
        for where, name, value in settings:
            setattr(where, name, value)
        yield
    finally:
        for (where, name, _), value in zip(settings, before, strict=True):
            setattr(where, name, value)


def halve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve k4 s2 p1: (B, in, 2N, 2N, 2N), weight (out, in, 4, 4, 4), bias (out,) -> (B, out, N, N, N)."""
    if weight.shape[1] >= FEW_CHANNELS:
        # one copy of the weight, to the volume's dtype and layout, instead of one in each direction of each pass
        weight = weight.to(x.dtype, memory_format=CHANNELS_LAST)
        return F.conv3d(x.contiguous(memory_format=CHANNELS_LAST), weight, bias, stride=2, padding=1)
    cells = _space_to_depth(F.pad(x, (1,) * 6))  # (B, 8 in, N+1, N+1, N+1)
    return F.conv3d(cells.contiguous(memory_format=CHANNELS_LAST), _space_to_depth(weight), bias)


def double(x: Tensor, weight: Tensor) -> Tensor:
    """Transpose of `halve` without its bias: (B, out, N, N, N), its weight -> (B, in, 2N, 2N, 2N)."""
    x = x.contiguous(memory_format=CHANNELS_LAST)
    if weight.shape[1] >= FEW_CHANNELS:
        return F.conv_transpose3d(x, weight.to(x.dtype, memory_format=CHANNELS_LAST), stride=2, padding=1)
    kernel = _space_to_depth(weight).flip(2, 3, 4).transpose(0, 1)  # (8 in, out, 2, 2, 2)
    cells = F.conv3d(x, kernel, padding=1)  # (B, 8 in, N+1, N+1, N+1)
    return _depth_to_space(cells)[..., 1:-1, 1:-1, 1:-1]


def _space_to_depth(x: Tensor) -> Tensor:
    """(B, C, 2N, 2N, 2N) -> (B, 8C, N, N, N); sides need not be equal."""
    b, c, *sides = x.shape
    i, j, k = (side // 2 for side in sides)
    return x.reshape(b, c, i, 2, j, 2, k, 2).permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, 8 * c, i, j, k)


def _depth_to_space(x: Tensor) -> Tensor:
    """(B, 8C, N, N, N) -> (B, C, 2N, 2N, 2N)."""
    b, c, (i, j, k) = x.shape[0], x.shape[1] // 8, x.shape[2:]
    return x.reshape(b, c, 2, 2, 2, i, j, k).permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, c, 2 * i, 2 * j, 2 * k)


class HalvingConv3d(nn.Conv3d):
    """Convolution k4 s2 p1, (B, in, 2N, 2N, 2N) -> (B, out, N, N, N), and its transpose."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, kernel_size=4, stride=2, padding=1)

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
        # along one axis, with taps w0 w1 w2: the even voxel 2i is w0 x[i-1] + (w1 + w2) x[i], the odd voxel 2i+1 is
        # (w0 + w1) x[i] + w2 x[i+1]; a transposed convolution k4 s2 p1 does this with the kernel below
        axis = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])  # w2, w1 + w2, w0 + w1, w0
        taps = torch.kron(torch.kron(axis, axis), axis).T.contiguous()  # (27, 64)
        self.register_buffer("taps", taps, persistent=False)  # not in the state dict, which holds the paper's weights

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Twice the side; `weight` where the caller has it already."""
        weight = exact_weight(self, x) if weight is None else weight
        with full_precision(x):
            kernel = weight.transpose(0, 1).flatten(2) @ self.taps  # (out, in, 3, 3, 3) -> (in, out, 64)
        return double(x, kernel.unflatten(2, (4, 4, 4)))


class FirstConv3d(nn.ConvTranspose3d):
    """Transposed convolution s1 p0 of a 1x1x1 volume without bias, as a product: (B, in) -> (B, out, 4, 4, 4).

    Its kernel is as large as what it makes, 4x4x4 in the paper.
    """

    def __init__(self, channels: int, out_channels: int, sides: tuple[int, ...] = (4, 4, 4)) -> None:
        super().__init__(channels, out_channels, kernel_size=sides, bias=False)

    def forward(self, z: Tensor, weight: Tensor | None = None) -> Tensor:
        """(B, in) -> (B, out, 4, 4, 4); `weight` where the caller has it already."""
        weight = exact_weight(self, z) if weight is None else weight  # (in, out, 4, 4, 4)
        return (z @ weight.flatten(1)).unflatten(1, (self.out_channels, *self.kernel_size))


class LastConv3d(nn.Conv3d):
    """Convolution s1 p0 of a volume as large as its kernel, as a product: (B, in, 4, 4, 4) -> (B, out).

    Outside autocast: a critic's value grows to hundreds, where bfloat16 would leave steps of a unit between its values.
    """

    def __init__(self, channels: int, out_channels: int, sides: tuple[int, ...] = (4, 4, 4)) -> None:
        super().__init__(channels, out_channels, kernel_size=sides)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, 4, 4, 4) -> (B, out)."""
        weight = exact_weight(self, x).flatten(1)
        with full_precision(x):
            return F.linear(x.flatten(1).to(weight.dtype), weight, self.bias)


class DenseLayer(nn.Linear):
    """Linear layer outside autocast, (B, in) -> (B, out), and its transpose.

    Outside autocast because a few codes a batch spend their time on reading weights, which a cast only adds to.
    """

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """(B, in) -> (B, out); `weight` where the caller has it already."""
        weight = exact_weight(self, x) if weight is None else weight
        with full_precision(x):
            return F.linear(x.to(weight.dtype), weight, self.bias)

    def transpose(self, g: Tensor, weight: Tensor) -> Tensor:
        """Bring a gradient from the output, (B, out), to the input, (B, in)."""
        with full_precision(g):
            return g.to(weight.dtype) @ weight


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


class SpectralNorm(nn.Module):
    """Divide a weight by its largest singular value, as power iteration estimates it (Miyato et al. 2018).

    One iteration each time the weight is asked for in training, none in evaluation. The framework's parametrisation
    does the same; its gradient is left to be found from W / sigma and sigma = u W v, which walks over each weight eight
    times. Written out it takes three, a quarter of an iteration where every layer has a norm. `dim` is the axis of the
    weight's output channels; the others together are the matrix's columns.
    """

    def __init__(self, weight: Tensor, dim: int) -> None:
        super().__init__()
        self.dim = dim
        matrix = self._matrix(weight.detach())
        rows, columns = matrix.shape
        self.register_buffer("u", F.normalize(matrix.new_empty(rows).normal_(), dim=0, eps=1e-12))
        self.register_buffer("v", F.normalize(matrix.new_empty(columns).normal_(), dim=0, eps=1e-12))
        for _ in range(START):
            self._iterate(matrix)

    def forward(self, weight: Tensor) -> Tensor:
        """Any weight of the initial one's shape -> the same, largest singular value about 1."""
        matrix = self._matrix(weight)
        if self.training:
            self._iterate(matrix.detach())
        # copies, because the next iteration changes u and v in place while a gradient may still need these
        divided = _Divide.apply(matrix, self.u.clone(), self.v.clone())
        moved = weight.movedim(self.dim, 0).shape
        return divided.view(moved).movedim(0, self.dim)

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.movedim(self.dim, 0).flatten(1)

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        F.normalize(matrix @ self.v, dim=0, eps=1e-12, out=self.u)
        F.normalize(matrix.T @ self.u, dim=0, eps=1e-12, out=self.v)


class _Divide(torch.autograd.Function):
    """W / (u W v), differentiable once; u and v count as constants, as they do in the framework."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, u: Tensor, v: Tensor) -> Tensor:
        sigma = torch.dot(u, matrix @ v)
        divided = matrix / sigma
        ctx.save_for_backward(divided, u, v, sigma)
        return divided

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        divided, u, v, sigma = ctx.saved_tensors
        along = torch.dot(grad.reshape(-1), divided.reshape(-1))
        return torch.addr(grad, u, v * -along).div_(sigma), None, None  # (g - <g, W/sigma> u v') / sigma


def spectral_norm(layer: nn.Module, wanted: bool = True) -> nn.Module:
    """Give a layer's weight a `SpectralNorm` if it is `wanted`; the layer itself comes back."""
    if wanted:
        transposed = isinstance(layer, nn.ConvTranspose3d)  # whose weights have their output channels second
        parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight, dim=int(transposed)))
    return layer
