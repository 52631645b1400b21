"""How alike two scans are, pair by pair: the paper's errors, SSIM and MS-SSIM. All take scans in [0, 1].

Errors are voxel by voxel, and so only for pairs that belong together: between unrelated scans they improve when a
generator collapses to a blurred mean, which is nearer to every scan than another scan is. MS-SSIM that is high within a
synthetic cohort means that its scans are too alike; the number to hold it against is that of real pairs.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001)
"""Weights of Wang et al. 2003 (Asilomar) for the finest three of their five scales: the window must fit 40 slices."""

KERNEL, SIGMA = 7, 1.5
"""Voxels along a side of SSIM's window, and its standard deviation."""

C1, C2 = 0.01**2, 0.03**2
BATCH = 2  # pairs: more do not stay in the processor's cache


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


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of pairs at one scale, window as in :func:`ms_ssim`; (B, 1, X, Y, Z) -> (B,)."""
    return _ssim_and_contrast(x, y)[0]


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Multi-scale structural similarity of pairs: contrast terms of all scales but the last, times its similarity.

    Three scales, a Gaussian window of 7 voxels (standard deviation 1.5) that stays within the scan, weights
    renormalised to a sum of 1.

    Parameters
    ----------
    x, y : torch.Tensor
        (B, 1, X, Y, Z) in [0, 1], each side 25 voxels or more.

    Returns
    -------
    torch.Tensor
        (B,), 1 for equal scans.
    """
    weights = torch.tensor(WEIGHTS) / sum(WEIGHTS)
    found = []
    for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True):
        terms = []
        for scale in range(len(WEIGHTS)):
            if scale:
                a, b = (torch.nn.functional.avg_pool3d(v, 2) for v in (a, b))
            last, contrast = _ssim_and_contrast(a, b)
            terms.append(contrast)
        terms[-1] = last
        found.append((torch.stack(terms, 1).clamp_min(0) ** weights).prod(1))
    return torch.cat(found)


def _ssim_and_contrast(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity and its contrast term, each (B,), the mean over all places where the window lies within the scan."""
    fields = torch.stack([x, y, x * x, y * y, x * y])[:, :, 0].flatten(0, 1)  # (5 B, X, Y, Z)
    # the window is a product: axis by axis, each a product of matrices, which processors are best at
    fields = fields @ _window(fields.shape[3])
    fields = _window(fields.shape[2]).T @ fields
    flat = _window(fields.shape[1]).T @ fields.flatten(2)  # (5 B, X - 6, ...)
    mean_x, mean_y, xx, yy, xy = flat.unflatten(0, (5, -1))
    squares = mean_x.square() + mean_y.square()
    contrast = (2 * (xy - mean_x * mean_y) + C2) / (xx + yy - squares + C2)
    similarity = (2 * mean_x * mean_y + C1) / (squares + C1) * contrast
    return similarity.mean((1, 2)), contrast.mean((1, 2))


@cache
def _window(extent: int) -> Tensor:
    """(extent, extent - 6): each column is the window at a place along an axis."""
    weights = torch.exp(-0.5 * (torch.arange(KERNEL) - KERNEL // 2).div(SIGMA).square())
    matrix = torch.zeros(extent, extent - KERNEL + 1)
    for place in range(matrix.shape[1]):
        matrix[place : place + KERNEL, place] = weights / weights.sum()
    return matrix


def pairs_within(n: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Unordered pairs of different scans, (m, 2), none twice; all there are if `count` is more."""
    first, second = np.triu_indices(n, 1)
    chosen = rng.permutation(len(first))[:count]
    return np.stack([first[chosen], second[chosen]], 1)


def pairs_between(n: int, m: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Pairs of a scan of one cohort and a scan of another, (k, 2), none twice."""
    chosen = rng.permutation(n * m)[:count]
    return np.stack([chosen // m, chosen % m], 1)
