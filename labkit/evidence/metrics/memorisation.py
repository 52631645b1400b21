"""Did the generator copy its training scans? Synthetic scans' distances to training and to held-out animals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labkit import warps


@dataclass(frozen=True)
class Audit:
    """Result of :func:`audit`.

    Attributes
    ----------
    suspects : numpy.ndarray
        (k,), synthetic scans nearer to a training animal, relative to the nearest held-out one, than any held-out
        animal is, each compared with the others. A single copy is among them.
    p : float
        How probable as many suspects are where nobody was copied: synthetic scans and K held-out animals are then
        exchangeable, each scan exceeds all K with probability 1 / (K + 1), and the count among M scans is
        beta-binomial. A generator that learned the training animals' distribution, and not the animals, keeps to it.
    nearest : numpy.ndarray
        (M, 2), each synthetic scan's nearest training and held-out animal.
    distances : numpy.ndarray
        (M, 2), and how far they are.
    """

    suspects: np.ndarray
    p: float
    nearest: np.ndarray
    distances: np.ndarray


def audit(synthetic: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> Audit:
    """Search synthetic scans for copies of the animals that a generator was trained on.

    Parameters
    ----------
    synthetic, train, held_out : numpy.ndarray
        (M, F), (N, F), (K, F), features or voxels; one scan an animal, or the animals would not be exchangeable.

    Raises
    ------
    ValueError
        Fewer than two training or held-out animals.
    """
    from scipy.spatial.distance import cdist
    from scipy.stats import betabinom

    if min(len(train), len(held_out)) < 2:
        raise ValueError(f"an audit needs two training and two held-out animals, got {len(train)} and {len(held_out)}")
    least = np.finfo(np.float32).tiny  # a bit for bit copy has no distance at all
    near, far = cdist(synthetic, train), cdist(synthetic, held_out)
    distances = np.stack((near.min(1), far.min(1)), 1) + least
    # real animals that nobody copied: each held-out one against the training animals and the other held-out ones
    among = cdist(held_out, held_out)
    np.fill_diagonal(among, np.inf)
    fair = cdist(held_out, train).min(1) / (among.min(1) + least)
    suspects = np.flatnonzero(distances[:, 0] / distances[:, 1] < fair.min())
    return Audit(
        suspects=suspects,
        p=float(betabinom.sf(len(suspects) - 1, len(synthetic), 1, len(held_out))),
        nearest=np.stack((near.argmin(1), far.argmin(1)), 1),
        distances=distances,
    )


def plant_copies(
    synthetic: np.ndarray,
    train: np.ndarray,
    rng: np.random.Generator,
    share: float = 0.3,
    noise: float = 0.05,
    poses: np.ndarray | None = None,
) -> np.ndarray:
    """Replace a share of synthetic scans with noisy copies of training scans: what the audit has to catch.

    Parameters
    ----------
    synthetic, train : numpy.ndarray
        (M, ...), (N, ...), voxels in [0, 1].
    rng : numpy.random.Generator
        Which, and the noise.
    share : float
        Of the synthetic scans.
    noise : float
        Standard deviation, parts of the range.
    poses : numpy.ndarray, optional
        (N, 12), of :func:`new_poses`: how each training scan lies where it is copied.
    """
    planted = synthetic.copy()
    places = rng.permutation(len(planted))[: max(1, round(share * len(planted)))]
    chosen = rng.integers(len(train), size=len(places))
    copies = train[chosen] if poses is None else moved(torch.from_numpy(train[chosen]), poses[chosen]).numpy()
    planted[places] = np.clip(copies + noise * rng.standard_normal(copies.shape, np.float32), 0, 1)
    return planted


def new_poses(n: int, rng: np.random.Generator, voxels: float = 1.5) -> np.ndarray:
    """Poses (n, 12) for :func:`moved`: shifts, and turns and stretches that move far ends, by about `voxels`.

    An animal that was put into the scanner once more is one that voxels alone do not know again.
    """
    return voxels * rng.standard_normal((n, 12), np.float32)


def moved(volumes: Tensor, poses: np.ndarray) -> Tensor:
    """Volumes (N, C, X, Y, Z) as they would lie in other poses (N, 12)."""
    matrix = warps.affine_matrix(torch.from_numpy(poses), volumes.shape[2:])
    points = warps.index_grid(volumes)
    middle = (torch.tensor(volumes.shape[2:])[:, None, None, None] - 1) / 2
    places = matrix[:, :, :3] @ (points - middle).flatten(2) + matrix[:, :, 3:]
    return warps.sample(volumes, places.unflatten(2, points.shape[2:]) + middle)
