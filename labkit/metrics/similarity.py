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
C1, C2 = 0.01**2, 0.03**2
PASS = 16  # pairs at a time


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Multi-scale structural similarity of pairs.

    Three scales, a Gaussian window of 7 voxels (standard deviation 1.5), weights renormalised to a sum of 1; MONAI's
    implementation.

    Parameters
    ----------
    x, y : torch.Tensor
        (B, 1, X, Y, Z) in [0, 1], each side 25 voxels or more.

    Returns
    -------
    torch.Tensor
        (B,), 1 for equal scans.
    """
    from monai.metrics import MultiScaleSSIMMetric

    weights = tuple(weight / sum(WEIGHTS) for weight in WEIGHTS)
    metric = MultiScaleSSIMMetric(spatial_dims=3, data_range=1.0, kernel_size=KERNEL, weights=weights)
    values = []
    for a, b in zip(x.split(PASS), y.split(PASS), strict=True):
        values.append(metric(y_pred=a, y=b).flatten())
        metric.reset()  # it would otherwise keep every pair of every call
    return torch.cat(values)


def released_ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """MS-SSIM as the released notebook computes it, misplaced product included, so that its numbers can be compared.

    Where the definition has the contrast terms of all scales but the last times the similarity of the last one, the
    release multiplies the last one in once for every scale: prod_s cs_s^w_s * ssim_last^w_last.

    Parameters
    ----------
    x, y : torch.Tensor
        As for :func:`ms_ssim`.
    """
    from monai.metrics.regression import compute_ssim_and_cs

    weights = [weight / sum(WEIGHTS) for weight in WEIGHTS]
    values = []
    for a, b in zip(x.split(PASS), y.split(PASS), strict=True):
        contrasts, last = [], None
        for level in range(len(weights)):
            ssim, cs = compute_ssim_and_cs(
                a, b, spatial_dims=3, kernel_size=(KERNEL,) * 3, kernel_sigma=(1.5,) * 3, data_range=1.0
            )
            last = ssim.flatten(1).mean(1).clamp_min(0)
            contrasts.append(cs.flatten(1).mean(1).clamp_min(0))
            if level < len(weights) - 1:
                a, b = (torch.nn.functional.avg_pool3d(v, 2) for v in (a, b))
        per_scale = [
            contrast**weight * last ** weights[-1] for contrast, weight in zip(contrasts[:-1], weights, strict=False)
        ]
        values.append(torch.stack(per_scale).prod(0))
    return torch.cat(values)


def pairs_within(n: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Unordered pairs of different scans, (m, 2), none twice; all there are if `count` is more."""
    first, second = np.triu_indices(n, 1)
    chosen = rng.permutation(len(first))[:count]
    return np.stack([first[chosen], second[chosen]], 1)


def pairs_between(n: int, m: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Pairs of a scan of one cohort and a scan of another, (k, 2), none twice."""
    chosen = rng.permutation(n * m)[:count]
    return np.stack([chosen // m, chosen % m], 1)
