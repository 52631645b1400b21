"""Labels for synthetic scans, which are born without: a teacher's, with a filter for scans it is unsure of.

A teacher is a network, or the mean of several, trained on the very real scans of the arm it serves. It cannot know more
than those scans taught it: what a student can gain is the variety of the images, not of the labels. Where it is wrong,
the student learns the mistake.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from labkit.evidence.segmentation.network import Examples, probabilities

SPARE = 1.15
"""Scans labelled for each that is kept: the least certain of them are dropped."""


class Labelled(NamedTuple):
    """Synthetic scans with labels.

    Attributes
    ----------
    examples : Examples
        The scans that were kept, in their order.
    kept : numpy.ndarray
        Their places among all.
    confidence : numpy.ndarray
        (N,), of all: mean probability of the winning label over voxels called brain; 0 where no brain was seen.
    """

    examples: Examples
    kept: np.ndarray
    confidence: np.ndarray


def teach(networks: list[nn.Module], images: Tensor, box: tuple[slice, ...], keep: int) -> Labelled:
    """Label scans and keep the `keep` most certain ones.

    Parameters
    ----------
    networks : list of torch.nn.Module
        The teacher.
    images : torch.Tensor
        (N, 1, S, S, S), as :class:`labkit.evidence.segmentation.network.Examples` has them.
    box : tuple of slice
        Of the network's input.
    keep : int
        At most N.
    """
    if keep > len(images):
        raise ValueError(f"{keep} scans are to be kept of {len(images)}: generate more")
    chances = probabilities(networks, images, box)
    winners, labels = chances.max(1, keepdim=True)
    certain = confidence(winners, labels)
    kept = np.sort(np.argsort(-certain, kind="stable")[:keep])
    chosen = torch.from_numpy(kept)
    return Labelled(Examples(images[chosen], labels[chosen].to(torch.uint8), box), kept, certain)


def confidence(winners: Tensor, labels: Tensor) -> np.ndarray:
    """Mean winning probability over voxels called brain: (N, 1, S, S, S) twice -> (N,)."""
    brain = (labels > 0).float()
    voxels = brain.flatten(1).sum(1)
    return ((winners * brain).flatten(1).sum(1) / voxels.clamp_min(1)).numpy()
