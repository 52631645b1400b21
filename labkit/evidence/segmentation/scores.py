"""What a predicted label map is worth: Dice, 95 % Hausdorff distance and volume bias, by tissue and animal."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from labkit.data.cohort import Cohort

if TYPE_CHECKING:
    import pandas as pd

SCORED_TISSUES = {"whole brain": (1, 2, 3), "white matter": (3,), "grey matter": (2,), "CSF": (1,)}
"""What is scored, and the labels it consists of; the paper's order."""

SCORES = ("dice", "hd95_mm", "volume_bias")


def score(predicted: Tensor, truth: Cohort) -> pd.DataFrame:
    """Score label maps, uint8 (N, X, Y, Z), against the animals' own labels, on the scans' grid.

    One row an animal and tissue: ``subject``, ``session``, ``tissue``, ``dice`` [0, 1], ``hd95_mm`` (distance that 95 %
    of the surface points stay below, the larger of both directions; the diagonal of the grid where a tissue is
    missing), ``volume_bias`` (predicted over true volume, minus 1).
    """
    import pandas as pd

    rows = []
    for mine, scan in zip(predicted, truth, strict=True):
        labels = torch.from_numpy(np.array(scan.labels))
        own, theirs, overlap = _masks(mine), _masks(labels), dice(mine, labels)
        far = _hausdorff(own, theirs, scan.zooms)
        volumes = own.sum((1, 2, 3)), theirs.sum((1, 2, 3))
        for index, tissue in enumerate(SCORED_TISSUES):
            bias = float(volumes[0][index] / volumes[1][index] - 1) if volumes[1][index] else float("nan")
            rows.append((scan.subject, scan.session, tissue, float(overlap[index]), float(far[index]), bias))
    return pd.DataFrame(rows, columns=["subject", "session", "tissue", *SCORES])


def dice(labels: Tensor, others: Tensor, neither: float = 1) -> Tensor:
    """Dice of two label maps, uint8 (X, Y, Z): (4,), a tissue each, [0, 1]; `neither` where both are without it."""
    from monai.metrics import compute_dice

    own, theirs = _masks(labels), _masks(others)
    found = compute_dice(own[None], theirs[None], include_background=True, ignore_empty=False)[0]
    return torch.where((own + theirs).sum((1, 2, 3)) > 0, found, neither)


def _masks(labels: Tensor) -> Tensor:
    """(X, Y, Z) -> (4, X, Y, Z), float, a tissue each."""
    return torch.stack([sum(labels == part for part in parts) for parts in SCORED_TISSUES.values()]).float()


def _hausdorff(own: Tensor, theirs: Tensor, zooms: tuple[float, ...]) -> Tensor:
    from monai.metrics import compute_hausdorff_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty tissues, which are told apart below, and of MONAI's own changes
        far = compute_hausdorff_distance(
            own[None], theirs[None], include_background=True, percentile=95, spacing=list(zooms)
        )[0]
    diagonal = float(np.linalg.norm(np.array(own.shape[1:]) * np.array(zooms)))
    return torch.where(torch.isfinite(far), far, torch.as_tensor(diagonal, dtype=far.dtype))
