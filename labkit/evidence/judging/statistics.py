"""Statistics of judgements: shares, detection, agreement, preference, sample size. Pure functions of counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
Z = 1.959963984540054  # of a two-sided interval of that level


class Share(NamedTuple):
    """`k` of `n` trials, the share with Wilson's interval, and p of the exact two-sided binomial test of chance."""

    k: int
    n: int
    value: float
    low: float
    high: float
    p: float


def share(k: int, n: int) -> Share:
    """The share of `k` in `n` trials, tested against guessing, one half; NaN where there are no trials."""
    from scipy.stats import binomtest

    if n == 0:
        return Share(0, 0, *[float("nan")] * 4)
    test = binomtest(int(k), int(n), 0.5)
    interval = test.proportion_ci(LEVEL, method="wilson")
    return Share(int(k), int(n), k / n, float(interval.low), float(interval.high), float(test.pvalue))


class Detection(NamedTuple):
    """Sensitivity d′ and criterion c with 95 % intervals."""

    d_prime: float
    d_low: float
    d_high: float
    criterion: float
    c_low: float
    c_high: float


def detection(hits: int, signals: int, false_alarms: int, noises: int) -> Detection:
    """Sensitivity and criterion of yes-no answers, equal-variance Gaussian model.

    Parameters
    ----------
    hits, signals : int
        Synthetic scans called synthetic, of how many.
    false_alarms, noises : int
        Real scans called synthetic, of how many.

    Returns
    -------
    Detection
        d′ = z(H) - z(F) is 0 for a guesser; c = -(z(H) + z(F)) / 2 is positive for a rater slow to say *synthetic*.
        Half a trial is added to each count and one to each total (Hautus 1995, Behavior Research Methods 27:46), so
        that a perfect rater's d′ is finite: it is then a lower bound. Intervals: normal, with the variance of
        Gourevitch and Galanter (1967, Psychometrika 32:25). NaN where one kind of scan was not shown.
    """
    from scipy.stats import norm

    if not signals or not noises:
        return Detection(*[float("nan")] * 6)
    rates = np.array([(hits + 0.5) / (signals + 1), (false_alarms + 0.5) / (noises + 1)])
    z = norm.ppf(rates)
    variances = rates * (1 - rates) / (np.array([signals, noises]) + 1) / norm.pdf(z) ** 2
    d, c = float(z[0] - z[1]), float(-(z[0] + z[1]) / 2)
    error = float(np.sqrt(variances.sum()))
    return Detection(d, d - Z * error, d + Z * error, c, c - Z * error / 2, c + Z * error / 2)


def forced_choice(k: int, n: int) -> Detection:
    """Sensitivity in two-alternative forced choice of `k` right in `n` pairs: d′ = √2 z(share right).

    Half a trial is added as in :func:`detection`; the interval is Wilson's, carried over: a rater who is always right
    has no upper end. The criterion has no meaning and is NaN.
    """
    from scipy.stats import norm

    if n == 0:
        return Detection(*[float("nan")] * 6)
    found = share(k, n)
    ends = [(k + 0.5) / (n + 1), found.low if k else 0.0, found.high if k < n else 1.0]
    return Detection(*(float(value) for value in np.sqrt(2) * norm.ppf(ends)), *[float("nan")] * 3)


def rank_share(graded: Sequence[float], truth: Sequence[bool]) -> float:
    """Area under the ROC curve of graded answers, from surely real to surely synthetic; truth is True for synthetic.

    How often a synthetic scan is called so more surely than a real one; equal values count half.
    """
    from sklearn.metrics import roc_auc_score

    synthetic = np.asarray(truth, bool)
    return float(roc_auc_score(synthetic, graded)) if synthetic.any() and not synthetic.all() else float("nan")


class Trend(NamedTuple):
    """How the odds of a right answer change from the first trial to the last: odds ratio, its interval, p."""

    ratio: float
    low: float
    high: float
    p: float


def trend(correct: Sequence[bool], position: Sequence[float] | None = None) -> Trend:
    """Logistic regression of right answers on the trial's position: whether the rater learns, or tires.

    Parameters
    ----------
    correct : sequence of bool
        (n,), in the order of trials.
    position : sequence of float, optional
        (n,), in [0, 1] from the first trial to the last; default evenly.

    Returns
    -------
    Trend
        Wald interval and p. NaN with fewer than five answers of either kind: a slope then says nothing. Where all right
        answers come after (before) all wrong ones the ratio is infinite (0), without an interval, and p is Mann and
        Whitney's.
    """
    from scipy.stats import mannwhitneyu
    from statsmodels.discrete.discrete_model import Logit

    y = np.asarray(correct, float)
    x = np.linspace(0, 1, len(y)) if position is None else np.asarray(position, float)
    if min(y.sum(), len(y) - y.sum()) < 5 or np.ptp(x) == 0:
        return Trend(*[float("nan")] * 4)
    right, wrong = x[y == 1], x[y == 0]
    if right.min() >= wrong.max() or right.max() <= wrong.min():
        ratio = float("inf") if right.min() >= wrong.max() else 0.0
        return Trend(ratio, float("nan"), float("nan"), float(mannwhitneyu(right, wrong).pvalue))
    fitted = Logit(y, np.stack([np.ones_like(x), x], 1)).fit(disp=False)
    ratio, low, high = np.exp([fitted.params[1], *fitted.conf_int()[1]]).tolist()
    return Trend(ratio, low, high, float(fitted.pvalues[1]))


class Agreement(NamedTuple):
    """Fleiss' kappa with its interval over trials, and what it was computed from."""

    kappa: float
    low: float
    high: float
    trials: int
    raters: int


def fleiss_kappa(counts: np.ndarray, seed: int = 0, resamples: int = 1000) -> Agreement:
    """Agreement of several raters beyond chance (Fleiss 1971, Psychological Bulletin 76:378).

    Parameters
    ----------
    counts : numpy.ndarray
        (trials, categories), how many raters gave each answer; every row has the same sum, two or more.
    seed, resamples : int
        Of the bootstrap over trials.

    Returns
    -------
    Agreement
        1 is full agreement, 0 what chance gives, below 0 less than that. NaN where all answers are of one category.

    Raises
    ------
    ValueError
        Rows of different sums, or a single rater.
    """
    counts = np.asarray(counts)
    raters = counts.sum(1)
    if len(counts) == 0 or (raters != raters[0]).any() or raters[0] < 2:
        raise ValueError("kappa needs trials that the same number of raters answered, two or more")
    rng = np.random.default_rng(seed)
    again = [_kappa(counts[rng.integers(len(counts), size=len(counts))]) for _ in range(resamples)]
    again = [value for value in again if np.isfinite(value)]
    low, high = np.quantile(again, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if again else (np.nan, np.nan)
    return Agreement(_kappa(counts), float(low), float(high), len(counts), int(raters[0]))


def _kappa(counts: np.ndarray) -> float:
    from statsmodels.stats.inter_rater import fleiss_kappa

    with np.errstate(invalid="ignore"):  # 0 / 0 where all answers are of one category
        return float(fleiss_kappa(counts))


class Strengths(NamedTuple):
    """Bradley-Terry strengths, log odds with mean 0, and their covariance."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    covariance: np.ndarray


def bradley_terry(wins: np.ndarray, prior: float = 0.5) -> Strengths:
    """Strengths such that i is preferred to j with odds exp(s_i - s_j) (Bradley and Terry 1952, Biometrika 39:324).

    Parameters
    ----------
    wins : numpy.ndarray
        (k, k), ``wins[i, j]``: how often i was preferred to j.
    prior : float
        Wins added each way to every pair that met, so that one who never lost has a finite strength; 0 for maximum
        likelihood.

    Returns
    -------
    Strengths
        (k,) each, with normal 95 % intervals of the difference from the mean of all.

    Raises
    ------
    ValueError
        The pairs that met do not connect all competitors, or without a prior somebody never won or never lost.
    """
    from scipy.sparse.csgraph import connected_components
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    wins = np.asarray(wins, float)
    won, k = wins + prior * (wins + wins.T > 0), len(wins)
    if connected_components(won, connection="strong")[0] > 1:
        raise ValueError("these comparisons do not connect all competitors: show more pairs, or keep the prior")
    # logit P(i is preferred to j) = s_i - s_j: a logistic regression without intercept, in which each win is a success
    winner, loser = np.nonzero(won)
    design = np.eye(k)[winner] - np.eye(k)[loser]
    model = GLM(np.ones(len(winner)), design[:, 1:], Binomial(), freq_weights=won[winner, loser])
    fitted = model.fit(tol=1e-12)  # strengths relative to the first
    from_mean = np.eye(k)[:, 1:] - 1 / k
    value, covariance = from_mean @ fitted.params, from_mean @ fitted.cov_params() @ from_mean.T
    error = np.sqrt(np.diag(covariance))
    return Strengths(value, value - Z * error, value + Z * error, covariance)


def trials_needed(share: float = 0.6, chance: float = 0.5, power: float = 0.8, alpha: float = 0.05) -> int:
    """How many trials to tell a rater who is right in `share` of them from one who guesses.

    Parameters
    ----------
    share, chance : float
        In (0, 1), different.
    power : float
        Wanted chance that the exact two-sided binomial test at `alpha` finds it.
    alpha : float
        Of the test.

    Returns
    -------
    int
        The smallest number from which on every larger one has the power as well: for exact tests it goes up in teeth.

    Raises
    ------
    ValueError
        Shares outside (0, 1), or less than 0.01 apart: that would be tens of thousands of trials.
    """
    values = {"share": share, "chance": chance, "power": power, "alpha": alpha}
    wrong = [f"{name}={value!r}" for name, value in values.items() if not 0 < value < 1]
    if wrong or abs(share - chance) < 0.01:
        raise ValueError(
            f"{', '.join(wrong) or f'share={share!r}, chance={chance!r}'}: shares lie between 0 and 1, and the two to "
            "be told apart differ by 0.01 or more"
        )
    # Hoeffding 1963 (JASA 58:13): with as many trials the test has that power whatever the shares
    enough = (np.sqrt(-np.log(alpha / 2) / 2) + np.sqrt(-np.log(1 - power) / 2)) ** 2 / (share - chance) ** 2
    sizes = np.arange(1, int(enough) + 2)
    return 1 + max(sizes[power_of(sizes, share, chance, alpha) < power].tolist(), default=0)


def power_of(n: np.ndarray | int, share: float, chance: float = 0.5, alpha: float = 0.05) -> np.ndarray:
    """Chance that `n` trials show, at `alpha`, that a rater right in `share` of them does not guess."""
    from scipy.stats import binom

    low = binom.ppf(alpha / 2, n, chance)  # the largest region with at most alpha / 2 on each side
    low = np.where(binom.cdf(low, n, chance) > alpha / 2, low - 1, low)
    high = binom.isf(alpha / 2, n, chance)
    return binom.cdf(low, n, share) + binom.sf(high, n, share)
