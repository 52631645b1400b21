"""Spectral norm of a layer's weight, W / sigma, with its gradient written out.

The framework's parametrisation does the same; its gradient is left to be found from W / sigma and sigma = u W v, which
walks over each weight eight times. Written out it takes three, a quarter of an iteration where every layer has a norm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

START = 15
"""Power iterations on the initial weight, as in the framework."""


class SpectralNorm(nn.Module):
    """Divide a weight by its largest singular value, as power iteration estimates it (Miyato et al. 2018).

    One iteration each time the weight is asked for in training, none in evaluation.

    Parameters
    ----------
    weight : torch.Tensor
        The initial weight, two axes or more.
    dim : int
        Axis of its output channels; the others together are the matrix's columns.
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


def spectral_norm(layer: nn.Module) -> nn.Module:
    """Give a layer's weight a :class:`SpectralNorm`; the layer itself comes back."""
    transposed = isinstance(layer, nn.ConvTranspose3d)  # whose weights have their output channels second
    parametrize.register_parametrization(layer, "weight", SpectralNorm(layer.weight, dim=int(transposed)))
    return layer
