"""Measures of a scan against its own reconstruction: voxel by voxel, and so only for pairs that belong together.

Between unrelated scans these improve when a generator collapses to a blurred mean, which is nearer to every scan than
another scan is. All take scans in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor


def rmse(x: Tensor, y: Tensor) -> Tensor:
    """Root mean square error of pairs, (B, ...) and (B, ...) -> (B,); on [0, 1] the same as NRMSE."""
    return (x - y).flatten(1).square().mean(1).sqrt()


def mae(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute error of pairs, (B, ...) and (B, ...) -> (B,)."""
    return (x - y).flatten(1).abs().mean(1)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pairs, dB for a range of 1; infinite for equal scans. (B, ...) -> (B,)."""
    return -20 * torch.log10(rmse(x, y))


def ncc(x: Tensor, y: Tensor) -> Tensor:
    """Normalised cross-correlation of pairs, [-1, 1], blind to brightness and contrast. (B, ...) -> (B,).

    NaN where a scan is constant.
    """
    a, b = (v.flatten(1) - v.flatten(1).mean(1, keepdim=True) for v in (x, y))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
