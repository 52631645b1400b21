"""MS-SSIM of pairs of scans: how alike they look, at several scales.

High within a synthetic cohort means that its rats are too alike; the number to hold it against is that of real pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001)
"""Weights of Wang et al. 2003 (Asilomar) for the finest three of their five scales: 40 slices halve no further."""

KERNEL = 7
PASS = 16  # pairs at a time


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Multi-scale structural similarity of pairs.

    Three scales, a Gaussian window of 7 voxels (standard deviation 1.5), weights renormalised to a sum of 1.

    Parameters
    ----------
    x, y : torch.Tensor
        (B, 1, X, Y, Z) in [0, 1], each side 25 voxels or more.

    Returns
    -------
    torch.Tensor
        (B,), 1 for equal scans.
    """
    every = torch.arange(len(x))
    return both_ms_ssim(x, y, every, every)[0]


def released_ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM as the released notebook computes it, misplaced product included, so that its numbers can be compared.

    Where the definition has the contrast terms of all scales but the last times the similarity of the last one, the
    release multiplies the last one in once for every scale: prod_s cs_s^w_s * ssim_last^w_last.

    Parameters
    ----------
    x, y : torch.Tensor
        As for :func:`ms_ssim`.
    """
    every = torch.arange(len(x))
    return both_ms_ssim(x, y, every, every)[1]


def both_ms_ssim(x: Tensor, y: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`ms_ssim` and :func:`released_ms_ssim` of chosen pairs, at the price of one of them.

    Parameters
    ----------
    x, y : torch.Tensor
        (N, 1, X, Y, Z), (M, 1, X, Y, Z) in [0, 1].
    first, second : torch.Tensor
        (P,), which scan of `x` goes with which of `y`.

    Returns
    -------
    right, released : torch.Tensor
        (P,).
    """
    weights = torch.tensor(WEIGHTS) / sum(WEIGHTS)
    right, released = [], []
    for i, j in zip(first.split(PASS), second.split(PASS), strict=True):
        contrasts, last = _scales(x[i], y[j])
        at_last = last ** weights[-1]
        terms = contrasts[:, :-1] ** weights[:-1]  # (b, 2)
        right.append(terms.prod(1) * at_last)
        released.append((terms * at_last[:, None]).prod(1))
    return torch.cat(right), torch.cat(released)


def _scales(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Contrast terms at every scale, (B, 3), and the similarity at the coarsest, (B,): MONAI's, one pass for both."""
    from monai.metrics.regression import compute_ssim_and_cs

    contrasts, last = [], None
    for level in range(len(WEIGHTS)):
        if level:
            x, y = (torch.nn.functional.avg_pool3d(v, 2) for v in (x, y))
        similarity, contrast = compute_ssim_and_cs(
            x, y, spatial_dims=3, kernel_size=(KERNEL,) * 3, kernel_sigma=(1.5,) * 3, data_range=1.0
        )
        contrasts.append(contrast.flatten(1).mean(1).clamp_min(0))
        last = similarity.flatten(1).mean(1).clamp_min(0)
    return torch.stack(contrasts, 1), last


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of pairs at one scale, window as in :func:`ms_ssim`; (B, 1, X, Y, Z) -> (B,)."""
    from monai.metrics.regression import compute_ssim_and_cs

    similarity, _ = compute_ssim_and_cs(
        x, y, spatial_dims=3, kernel_size=(KERNEL,) * 3, kernel_sigma=(1.5,) * 3, data_range=1.0
    )
    return similarity.flatten(1).mean(1)


def pairs_within(n: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Unordered pairs of different scans, (m, 2), none twice; all there are if `count` is more."""
    first, second = np.triu_indices(n, 1)
    chosen = rng.permutation(len(first))[:count]
    return np.stack([first[chosen], second[chosen]], 1)


def pairs_between(n: int, m: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Pairs of a scan of one cohort and a scan of another, (k, 2), none twice."""
    chosen = rng.permutation(n * m)[:count]
    return np.stack([chosen // m, chosen % m], 1)
