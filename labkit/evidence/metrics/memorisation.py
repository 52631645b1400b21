"""Did the generator copy its training scans? Synthetic scans' distances to training and to held-out animals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DRAWS, RELABELLED = 20, 200
"""Choices of training scans over which a share is averaged, and random labels for the share's null."""


@dataclass(frozen=True)
class Audit:
    """Result of :func:`audit`.

    Attributes
    ----------
    nearer : float
        Mean logarithm of the distance to the nearest held-out over that to the nearest training scan, of all there are.
    p : float
        How often a random choice of which animals count as training gives `nearer` as large. Groups of unequal size
        are compared fairly, because the random ones are as unequal. It sees that *many* animals were copied: a single
        copied animal counts as training in most random choices, too.
    suspects : numpy.ndarray
        (k,), synthetic scans nearer to a training scan, relative to the nearest held-out one, than any held-out animal
        is, each compared with the others. A single copy is among them. Of K held-out animals and fair scans about one
        in K + 1 is.
    share : float
        Share of synthetic scans nearer to a training scan than to any held-out one, of `n` of each (mean over draws of
        which); 0.5 where the generator learned the distribution and no animal.
    null_low, null_high : float
        Where 95 % of the shares of random choices lie.
    n : int
        Training scans, and held-out ones, behind `share`.
    nearest : numpy.ndarray
        (M, 2), each synthetic scan's nearest training and held-out scan, of all.
    distances : numpy.ndarray
        (M, 2), and how far they are.
    """

    nearer: float
    p: float
    suspects: np.ndarray
    share: float
    null_low: float
    null_high: float
    n: int
    nearest: np.ndarray
    distances: np.ndarray


def audit(
    synthetic: np.ndarray, train: np.ndarray, held_out: np.ndarray, rng: np.random.Generator, times: int = 1000
) -> Audit:
    """Test whether synthetic scans are nearer to the scans a generator was trained on than to others.

    The null relabels animals at random. The nearest of many is nearer than the nearest of few: the share is therefore
    of as many training as held-out scans, and cannot see copies of the training scans that a draw leaves out; the test
    and the search for single suspects take all.

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

    many, few = len(train), len(held_out)
    n = min(many, few)
    if n < 2:
        raise ValueError(f"an audit needs two training and two held-out scans, got {many} and {few}")
    distances = cdist(synthetic, np.concatenate([train, held_out]))
    least = np.finfo(np.float32).tiny  # a bit for bit copy has no distance at all

    def nearest(order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return distances[:, order[:many]].min(1) + least, distances[:, order[many:]].min(1) + least

    def share(order: np.ndarray) -> float:
        found = []
        for _ in range(DRAWS):
            chosen = rng.permutation(order[:many])[:n], rng.permutation(order[many:])[:n]
            first, second = (distances[:, part].min(1) for part in chosen)
            found.append((first < second).mean() + 0.5 * (first == second).mean())
        return float(np.mean(found))

    def nearer(order: np.ndarray) -> float:
        first, second = nearest(order)
        return float(np.log(second / first).mean())

    own = np.arange(many + few)
    null = [rng.permutation(many + few) for _ in range(times)]
    seen = nearer(own)
    low, high = np.quantile([share(order) for order in null[:RELABELLED]], (0.025, 0.975))
    # real rats that nobody copied: each held-out animal against the training scans and the other held-out ones
    among = cdist(held_out, held_out)
    np.fill_diagonal(among, np.inf)
    fair = cdist(held_out, train).min(1) / (among.min(1) + least)
    first, second = nearest(own)
    return Audit(
        nearer=seen,
        p=(1 + sum(nearer(order) >= seen for order in null)) / (1 + times),
        suspects=np.flatnonzero(first / second < fair.min()),
        share=share(own),
        null_low=float(low),
        null_high=float(high),
        n=n,
        nearest=np.stack([distances[:, :many].argmin(1), distances[:, many:].argmin(1)], 1),
        distances=np.stack((first, second), 1),
    )


def plant_copies(
    synthetic: np.ndarray, train: np.ndarray, rng: np.random.Generator, share: float = 0.3, noise: float = 0.05
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
    planted[places] = np.clip(copies + noise * rng.standard_normal(copies.shape, np.float32), 0, 1)
    return planted
