"""What a predicted label map is worth: Dice, 95 % Hausdorff distance and volume bias, by tissue and animal."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from labkit.data.cohort import Cohort
from labkit.data.labels import WHOLE_BRAIN

if TYPE_CHECKING:
    import pandas as pd

SCORED_TISSUES = {WHOLE_BRAIN: (1, 2, 3), "white matter": (3,), "grey matter": (2,), "CSF": (1,)}
"""What is scored, and the labels it consists of; the paper's order."""


def scored(names: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """The same of other labels, by what they are called: all of them together, and each."""
    whole = {WHOLE_BRAIN: tuple(names)}
    return whole | {name: (label,) for label, name in names.items()} if len(names) > 1 else whole


SCORES = ("dice", "hd95_mm", "volume_bias")


def score(predicted: Tensor, truth: Cohort, tissues: Mapping[str, Sequence[int]] = SCORED_TISSUES) -> pd.DataFrame:
    """Score label maps, uint8 (N, X, Y, Z), against the animals' own labels, on the scans' grid.

    One row an animal and entry of `tissues`, labels by name: ``subject``, ``session``, ``tissue``, ``dice`` [0, 1],
    ``hd95_mm`` (distance that 95 % of the surface points stay below, the larger of both directions; the diagonal of the
    grid where a tissue is missing), ``volume_bias`` (predicted over true volume, minus 1).
    """
    import pandas as pd

    rows = []
    for mine, scan in zip(predicted, truth, strict=True):
        labels = torch.from_numpy(np.array(scan.labels))
        own, theirs = masks(mine, tissues), masks(labels, tissues)
        dices = dice(own[None], theirs[None])[0]
        far = _hausdorff(own, theirs, scan.zooms)
        volumes = own.sum((1, 2, 3)), theirs.sum((1, 2, 3))
        for index, tissue in enumerate(tissues):
            bias = float(volumes[0][index] / volumes[1][index] - 1) if volumes[1][index] else float("nan")
            rows.append((scan.subject, scan.session, tissue, float(dices[index]), float(far[index]), bias))
    return pd.DataFrame(rows, columns=["subject", "session", "tissue", *SCORES])


def dice(own: Tensor, theirs: Tensor, neither: float = 1) -> Tensor:
    """Dice of :func:`masks` of maps in pairs, each (N, T, X, Y, Z): (N, T), [0, 1]; `neither` where both are empty."""
    from monai.metrics import compute_dice

    found = compute_dice(own, theirs, include_background=True, ignore_empty=False)
    return torch.where((own + theirs).sum((2, 3, 4)) > 0, found, neither)


def masks(labels: Tensor, tissues: Mapping[str, Sequence[int]]) -> Tensor:
    """Of a label map, uint8 (X, Y, Z): (T, X, Y, Z), float, a tissue each."""
    return torch.stack([sum(labels == part for part in parts) for parts in tissues.values()]).float()


def _hausdorff(own: Tensor, theirs: Tensor, zooms: tuple[float, ...]) -> Tensor:
    from monai.metrics import compute_hausdorff_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty tissues, which are told apart below, and of MONAI's own changes
        far = compute_hausdorff_distance(
            own[None], theirs[None], include_background=True, percentile=95, spacing=list(zooms)
        )[0]
    diagonal = float(np.linalg.norm(np.array(own.shape[1:]) * np.array(zooms)))
    return torch.where(torch.isfinite(far), far, torch.as_tensor(diagonal, dtype=far.dtype))
