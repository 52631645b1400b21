"""How alike two scans are, pair by pair: the paper's errors, SSIM and MS-SSIM. All take scans in [0, 1].

Errors are voxel by voxel, and so only for pairs that belong together: between unrelated scans they improve when a
generator collapses to a blurred mean, which is nearer to every scan than another scan is. MS-SSIM that is high within a
synthetic cohort means that its rats are too alike; the number to hold it against is that of real pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001)
"""Weights of Wang et al. 2003 (Asilomar) for the finest three of their five scales: the window must fit 40 slices."""

KERNEL = 7
BATCH = 16  # pairs


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
    """MONAI's similarity and its contrast term, each (B,)."""
    from monai.metrics.regression import compute_ssim_and_cs

    both = compute_ssim_and_cs(x, y, spatial_dims=3, kernel_size=(KERNEL,) * 3, kernel_sigma=(1.5,) * 3, data_range=1.0)
    return tuple(term.flatten(1).mean(1) for term in both)


def pairs_within(n: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Unordered pairs of different scans, (m, 2), none twice; all there are if `count` is more."""
    first, second = np.triu_indices(n, 1)
    chosen = rng.permutation(len(first))[:count]
    return np.stack([first[chosen], second[chosen]], 1)


def pairs_between(n: int, m: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Pairs of a scan of one cohort and a scan of another, (k, 2), none twice."""
    chosen = rng.permutation(n * m)[:count]
    return np.stack([chosen // m, chosen % m], 1)
