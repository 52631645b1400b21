"""Measures of one set of scans against another, as distributions. Pure functions of features, (N, F) and (M, F).

Which features, is :mod:`labkit.evidence.metrics.embeddings`' affair. None of these has a scale of its own: a value
means something beside the same statistic between two sets of real scans of the same size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


FOLDS = 5
"""Parts that a classifier's scans are cut into: each is judged by what was learned from the others."""


def linear_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Maximum mean discrepancy with the linear kernel, as the paper's code has it: squared distance of the two means.

    (1/B^2)(sum xx' + sum yy') - (2/B^2) sum xy'. It sees the mean and nothing else: a generator that makes the mean
    scan and no other has 0.
    """
    return float(((x.mean(0, dtype=np.float64) - y.mean(0, dtype=np.float64)) ** 2).sum())


def median_distance(x: np.ndarray) -> float:
    """Median distance between the points of a set: the RBF kernel's bandwidth, from real scans alone."""
    distances = _distances(x, x)
    return float(np.median(distances[np.triu_indices(len(x), 1)]))


def rbf_mmd(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel, unbiased (Gretton et al. 2012, JMLR 13:723).

    Parameters
    ----------
    x, y : numpy.ndarray
        (N, F), (M, F), two points or more each.
    bandwidth : float
        Standard deviation of the kernel, from real points (:func:`median_distance`).

    Returns
    -------
    float
        0 on average for equal distributions, and as often below as above it.
    """
    kernel = _kernel(np.concatenate([x, y]), bandwidth)
    return _unbiased(kernel, np.arange(len(x) + len(y)), len(x))


def rbf_mmd_p(x: np.ndarray, y: np.ndarray, bandwidth: float, rng: np.random.Generator, times: int = 500) -> float:
    """Share of random relabellings whose MMD is as large: the p value of a permutation test of equality."""
    kernel = _kernel(np.concatenate([x, y]), bandwidth)
    n, total = len(x), len(x) + len(y)
    seen = _unbiased(kernel, np.arange(total), n)
    null = [_unbiased(kernel, rng.permutation(total), n) for _ in range(times)]
    return (1 + sum(value >= seen for value in null)) / (1 + times)


def _kernel(points: np.ndarray, bandwidth: float) -> np.ndarray:
    return np.exp(-(_distances(points, points) ** 2) / (2 * bandwidth**2))


def _unbiased(kernel: np.ndarray, order: np.ndarray, n: int) -> float:
    first, second = order[:n], order[n:]
    m = len(second)
    xx, yy, xy = kernel[np.ix_(first, first)], kernel[np.ix_(second, second)], kernel[np.ix_(first, second)]
    return float((xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean())


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Fréchet distance of two Gaussians fitted to the points: squared difference of means plus the covariances' part.

    tr(A + B - 2 (A^1/2 B A^1/2)^1/2), where the last trace is the sum of singular values of X'Y / sqrt((N-1)(M-1)) of
    the centred points: no matrix root, exact also with fewer points than features.
    """
    a, b = (v.astype(np.float64) - v.mean(0, dtype=np.float64) for v in (x, y))
    a, b = a / np.sqrt(len(a) - 1), b / np.sqrt(len(b) - 1)
    # tr((A^1/2 B A^1/2)^1/2) is the nuclear norm of a b', (N, M), whose size does not depend on the features
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    means = ((x.mean(0, dtype=np.float64) - y.mean(0, dtype=np.float64)) ** 2).sum()
    return float(means + (a**2).sum() + (b**2).sum() - 2 * cross)


def trace_ratio(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Total variance of synthetic over that of real points: 1 is as much variety, 0 one scan over and over."""
    return float(synthetic.var(0, ddof=1, dtype=np.float64).sum() / real.var(0, ddof=1, dtype=np.float64).sum())


def neighbourhoods(real: np.ndarray, synthetic: np.ndarray, k: int = 5) -> dict[str, float]:
    """Precision and recall, density and coverage.

    Kynkäänniemi et al. 2019 (arXiv 1904.06991) and Naeem et al. 2020 (arXiv 2002.09797).

    Parameters
    ----------
    real, synthetic : numpy.ndarray
        (N, F), (M, F), more than `k` each.
    k : int
        A point's neighbourhood reaches to its k-th neighbour in its own set.

    Returns
    -------
    dict of str to float
        ``precision``: synthetic points in the neighbourhood of a real one; ``recall``: real points in that of a
        synthetic one; ``density``: as precision, counting how many, 1 on average for equal distributions; ``coverage``:
        real points whose neighbourhood holds a synthetic one.
    """
    if min(len(real), len(synthetic)) <= k:
        raise ValueError(f"neighbourhoods of {k} need more than {k} scans, got {len(real)} and {len(synthetic)}")
    across = _distances(real, synthetic)
    reach_real = np.sort(_distances(real, real), 1)[:, k]  # place 0 is the point itself
    reach_synthetic = np.sort(_distances(synthetic, synthetic), 1)[:, k]
    inside = across <= reach_real[:, None]
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float((across <= reach_synthetic[None]).any(1).mean()),
        "density": float(inside.sum(0).mean() / k),
        "coverage": float((across.min(1) <= reach_real).mean()),
    }


def classifier() -> Pipeline:
    """A support vector machine with a Gaussian kernel on features scaled by the scans it learns from."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return make_pipeline(StandardScaler(), SVC(kernel="rbf"))


def classifier_auc(x: np.ndarray, y: np.ndarray, seed: int = 0, resamples: int = 1000) -> tuple[float, float, float]:
    """Classifier two-sample test: how well a non-linear classifier tells the two sets apart on points it never saw.

    Of :func:`classifier`, in five folds.

    Returns
    -------
    auc, low, high : float
        Area under the ROC curve, 0.5 for sets that cannot be told apart, 1 for ones that always can; and its 95 %
        interval by resampling points of each set (`resamples` times; NaN for 0).
    """
    from sklearn.model_selection import StratifiedKFold

    points, truth = np.concatenate([x, y]), np.r_[np.zeros(len(x)), np.ones(len(y))]
    scores, (scaler, machine) = np.empty(len(points)), (step for _, step in classifier().steps)
    # step by step: of so few points the checks of cross_val_predict take longer than the classifier
    for learned, judged in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(points, truth):
        machine.fit(scaler.fit_transform(points[learned]), truth[learned])
        scores[judged] = machine.decision_function(scaler.transform(points[judged]))
    # the AUC is the mean of these, 0, 1/2 or 1 for each pair of points: quicker to resample than the scores
    wins = (1 + np.sign(scores[len(x) :, None] - scores[None, : len(x)])) / 2
    auc = float(wins.mean())
    if not resamples:
        return auc, float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    resampled = [
        wins[np.ix_(rng.integers(len(y), size=len(y)), rng.integers(len(x), size=len(x)))].mean()
        for _ in range(resamples)
    ]
    low, high = np.quantile(resampled, (0.025, 0.975))
    return auc, float(low), float(high)


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return cdist(x, y)
