"""95 % intervals of statistics of one or two sets of scans."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np

ENDS = (0.025, 0.975)
UNKNOWN = (float("nan"), float("nan"))
SMALLEST_HALF = 6  # neighbourhoods of five need one more
FEWEST = 4  # of three scans a bootstrap holds a mean over pairs within them 48 times in 100, of four to six about 80


def of_pairs(
    values: np.ndarray, first: np.ndarray, second: np.ndarray, within: bool, rng: np.random.Generator, times: int = 500
) -> tuple[float, float]:
    """Interval of a mean over pairs of scans, by a bootstrap over scans.

    A scan that is drawn twice counts twice in each of its pairs: pairs that share a scan are not independent, and a
    bootstrap over pairs would take them for it.

    Parameters
    ----------
    values, first, second : numpy.ndarray
        (m,), the measure of each pair, and which scans it is of.
    within : bool
        Both are of one set.
    times : int
        Resamples; 0 gives NaN, as do fewer than :data:`FEWEST` scans.
    """
    scans = max(first.max(), second.max()) if within else min(first.max(), second.max())
    if times == 0 or scans + 1 < FEWEST:
        return UNKNOWN
    counts = [rng.multinomial(n, np.full(n, 1 / n), times) for n in (first.max() + 1, second.max() + 1)]
    if within:
        n = max(first.max(), second.max()) + 1
        counts = [rng.multinomial(n, np.full(n, 1 / n), times)] * 2
    weights = (counts[0][:, first] * counts[1][:, second]).astype(np.float64)
    sums = weights.sum(1)
    means = (weights @ values)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(means, ENDS).tolist()
    return low, high


def of_mean(values: np.ndarray) -> tuple[float, float]:
    """Interval of the mean of independent values, (m,): Student's t; NaN for fewer than three.

    A bootstrap's is too narrow for few values: of six it covers the mean 85 times in 100.
    """
    from scipy.stats import t

    if len(values) < 3:
        return UNKNOWN
    reach = t.ppf(ENDS[1], len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def of_difference(values: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Interval of the difference of two means, `values` (m,) less `other` (k,): Welch's t; NaN for fewer than three."""
    from scipy.stats import ttest_ind

    if min(len(values), len(other)) < 3:
        return UNKNOWN
    if max(np.ptp(values), np.ptp(other)) == 0:
        return (float(values[0] - other[0]),) * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a side of equal values, as few marks may be
        interval = ttest_ind(values, other, equal_var=False).confidence_interval()
    return float(interval.low), float(interval.high)


def of_halves(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    x: np.ndarray,
    y: np.ndarray,
    value: float,
    rng: np.random.Generator,
    times: int = 60,
    least: float = -np.inf,
) -> tuple[float, float]:
    """Interval of a statistic of two sets from random halves of both (delete-d jackknife, Shao and Wu 1989).

    A half has the spread about the whole that the whole has about the truth; other parts are scaled to that. A
    bootstrap would draw scans twice, and distances between a scan and itself are no distances.

    Parameters
    ----------
    statistic : callable
        Of two sets of features, (N, F) and (M, F).
    value : float
        Of the whole sets `x` and `y`; the interval is about it.
    times : int
        Halves; 0 gives NaN.
    least : float
        Smallest value that the statistic can have; the interval ends there.

    Returns
    -------
    low, high : float
        NaN where a set is too small to leave out a fifth of it: nothing can then be said of its spread.
    """
    kept = [max(SMALLEST_HALF, len(v) // 2) for v in (x, y)]
    if times == 0 or any(5 * k > 4 * len(v) for k, v in zip(kept, (x, y), strict=True)):
        return UNKNOWN
    found = [
        statistic(*(v[rng.permutation(len(v))[:k]] for v, k in zip((x, y), kept, strict=True))) for _ in range(times)
    ]
    # a half is biased as small samples are, and so only its spread is used
    scale = np.mean([np.sqrt(k / (len(v) - k)) for v, k in zip((x, y), kept, strict=True)])
    low, high = scale * np.quantile(np.array(found) - np.mean(found), ENDS)
    return float(max(value + min(low, 0), min(least, value))), float(value + max(high, 0))


def of_share(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a share of `n` scans, which has a width at 0 and 1, too."""
    from scipy.stats import binomtest

    interval = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
