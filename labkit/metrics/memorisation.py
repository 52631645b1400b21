"""Did the generator copy its training scans? Synthetic scans' distances to training and to held-out animals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Audit:
    """Result of :func:`audit`.

    Attributes
    ----------
    share : float
        Share of synthetic scans nearer to a training scan than to any held-out one, of equally many of each; 0.5 where
        the generator learned the distribution and no animal.
    nearer : float
        Mean logarithm of the distance to the nearest held-out over that to the nearest training scan; 0 where neither
        is nearer. A copy counts by how near it is, and so a few copies among many scans are seen.
    p : float
        How often a random choice of which animals count as training gives `nearer` as large.
    null_low, null_high : float
        Where 95 % of those shares lie.
    nearest : numpy.ndarray
        (M, 2), each synthetic scan's nearest training and held-out scan.
    distances : numpy.ndarray
        (M, 2), and how far they are.
    """

    share: float
    nearer: float
    p: float
    null_low: float
    null_high: float
    nearest: np.ndarray
    distances: np.ndarray


def audit(
    synthetic: np.ndarray, train: np.ndarray, held_out: np.ndarray, rng: np.random.Generator, times: int = 1000
) -> Audit:
    """Test whether synthetic scans are nearer to the scans a generator was trained on than to others.

    As many training as held-out scans are compared, because the nearest of many is nearer than the nearest of few.
    The null relabels animals at random.

    Parameters
    ----------
    synthetic, train, held_out : numpy.ndarray
        (M, F), (N, F), (K, F), features or voxels.
    rng : numpy.random.Generator
        Of the choice of training scans, and of the null.
    times : int
        Relabellings.
    """
    from scipy.spatial.distance import cdist

    n = min(len(train), len(held_out))
    if n < 2:
        raise ValueError(f"an audit needs two training and two held-out scans, got {len(train)} and {len(held_out)}")
    chosen = np.sort(rng.permutation(len(train))[:n]), np.sort(rng.permutation(len(held_out))[:n])
    distances = cdist(synthetic, np.concatenate([train[chosen[0]], held_out[chosen[1]]]))

    least = np.finfo(np.float32).tiny  # a bit for bit copy has no distance at all

    def statistics(order: np.ndarray) -> tuple[float, float]:
        first, second = distances[:, order[:n]].min(1), distances[:, order[n:]].min(1)
        share = (first < second).mean() + 0.5 * (first == second).mean()
        return float(share), float(np.log((second + least) / (first + least)).mean())

    share, nearer = statistics(np.arange(2 * n))
    null = np.array([statistics(rng.permutation(2 * n)) for _ in range(times)])
    low, high = np.quantile(null[:, 0], (0.025, 0.975))
    halves = distances[:, :n], distances[:, n:]
    nearest = np.stack([which[half.argmin(1)] for which, half in zip(chosen, halves, strict=True)], 1)
    return Audit(
        share,
        nearer,
        float((1 + (null[:, 1] >= nearer).sum()) / (1 + times)),
        float(low),
        float(high),
        nearest,
        np.stack([half.min(1) for half in halves], 1),
    )


def plant_copies(
    synthetic: np.ndarray, train: np.ndarray, rng: np.random.Generator, share: float = 0.3, noise: float = 0.02
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
    """
    planted = synthetic.copy()
    places = rng.permutation(len(planted))[: max(1, round(share * len(planted)))]
    copies = train[rng.integers(len(train), size=len(places))]
    planted[places] = np.clip(copies + noise * rng.standard_normal(copies.shape), 0, 1)
    return planted
