"""What counts as white, side by side. A scanner's unit means nothing, so every use of a scan needs an answer.

=================================================  ==============================  =====================================
answer                                             white is                        use it for
=================================================  ==============================  =====================================
:func:`white`                                      1.75 x 95 % quantile of blocks  comparing scans: measures, tissues,
                                                                                   segmentation
:func:`head_white`                                 99th percentile of the head     showing one scan to a rater
:func:`intensity_window`                           99.5th percentile of scans      drawing scans in one figure
:func:`head_threshold`                             15 % of the 99th percentile     telling head from air
:func:`labkit.data.file_template.written_range`    brightest voxel, or what a      the networks' [-1, 1], and the
                                                   generator's 1 was written as    paper's measures
=================================================  ==============================  =====================================

They are not one: the brightest voxel is chance, but it is what the paper's networks and errors are scaled by; a
percentile of voxels depends on noise and resolution, which a fair comparison must not, but shows a picture well; raters
must not tell a source by the share of air around its head, so theirs is of the head alone; and scans in one figure
share one window, or their brightness could not be compared by eye.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from labkit.data.cohort import Scan

HEAD = 0.15
"""Part of the 99th percentile above which there is head, and not air."""

BLOCK, QUANTILE, HEADROOM = 4, 0.95, 1.75
"""Of :func:`white`: voxels along a block, quantile of the blocks, and how far above it white is."""


def white(images: Tensor) -> Tensor:
    """What counts as white in a scan, so that scans can be compared in brightness.

    The brightest voxel of 160 000 is chance, and the brightest percent of voxels is less bright in a smooth scan than
    in a noisy one of the same head. White is therefore taken from means of blocks of 4 x 4 x 4 voxels: 1.75 times their
    95 % quantile, which some voxels in a thousand exceed. Halving the resolution of a scan moves it by less than 3 %,
    the brightest half percent of voxels by 10 %. Where heads fill less than a tenth of the grid, as brains that are cut
    out may, it is the median of their blocks instead of that quantile: the same where both rules meet.

    Parameters
    ----------
    images : torch.Tensor
        (N, 1, X, Y, Z), scans without padding, 0 is black.

    Returns
    -------
    torch.Tensor
        (N,), the images' unit.
    """
    block = [min(BLOCK, extent) for extent in images.shape[2:]]
    means = torch.nn.functional.avg_pool3d(images.float(), block).flatten(1)
    means, count = means.sort(1).values, means.shape[1]
    head = (means > HEAD * means[:, [int(0.99 * (count - 1))]]).sum(1)
    rank = (count - head // 2).clamp(max(1, int(QUANTILE * count)), count)
    return HEADROOM * means.gather(1, rank[:, None] - 1)[:, 0].clamp_min(1e-6)


def head_white(head: np.ndarray) -> float:
    """What a rater is shown white: the 99th percentile of the head's voxels, (n,), above 0."""
    return max(float(np.percentile(head, 99.0)), 1e-6)


def head_threshold(image: np.ndarray) -> float:
    """The intensity that tells head from air, the same as in :func:`labkit.data.grids.head_box`."""
    return HEAD * np.percentile(image, 99)


def intensity_window(scans: Sequence[Scan]) -> tuple[float, float]:
    """Black and white of scans that are drawn together, the files' unit.

    Returns
    -------
    low, high : float
        0 (the smallest 0.5th percentile where there are negative values), and the largest 99.5th percentile.
    """
    ends = np.array([np.percentile(scan.image, (0.5, 99.5)) for scan in scans])
    low, high = min(0.0, float(ends[:, 0].min())), float(ends[:, 1].max())
    return low, high if high > low else max(float(scan.image.max()) for scan in scans)
