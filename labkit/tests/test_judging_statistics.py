import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.inter_rater import fleiss_kappa
from statsmodels.stats.proportion import proportion_confint

from labkit.evidence.judging import statistics


@pytest.mark.parametrize(("k", "n"), [(0, 9), (7, 24), (24, 24), (130, 210)])
def test_shares_agree_with_statsmodels_and_scipy(k, n):
    found = statistics.share(k, n)
    assert np.allclose((found.low, found.high), proportion_confint(k, n, method="wilson"), atol=1e-9)
    assert found.p == pytest.approx(stats.binomtest(k, n).pvalue)


def test_no_trials_give_no_share_and_no_error():
    assert statistics.share(0, 0).n == 0 and np.isnan(statistics.share(0, 0).value)
    assert np.isnan(statistics.detection(0, 0, 1, 4).d_prime)


def test_d_prime_and_criterion_are_the_textbooks():
    # Macmillan and Creelman, Detection Theory: H = 0.8, F = 0.4 gives d' = 1.095, c = -0.294
    found = statistics.detection(80_000, 100_000, 40_000, 100_000)
    assert found.d_prime == pytest.approx(1.095, abs=2e-3)
    assert found.criterion == pytest.approx(-0.294, abs=2e-3)
    # the same book: 75 % in two-alternative forced choice is d' = 0.954
    assert statistics.forced_choice(75_000, 100_000).d_prime == pytest.approx(0.954, abs=2e-3)


def test_a_perfect_rater_has_a_finite_d_prime():
    assert np.isfinite(statistics.detection(12, 12, 0, 12)).all()
    assert np.isfinite(statistics.forced_choice(24, 24)[:2]).all() and statistics.forced_choice(24, 24).d_high == np.inf


@pytest.mark.parametrize("true", [0.0, 1.0, 2.0])
def test_intervals_of_d_prime_hold_the_truth_as_often_as_they_say(true):
    rng = np.random.default_rng(0)
    n, criterion, held = 60, 0.3, []
    for _ in range(400):
        hits, false = (rng.binomial(n, stats.norm.sf(criterion - sign * true / 2)) for sign in (1, -1))
        found = statistics.detection(hits, n, false, n)
        held.append((found.d_low <= true <= found.d_high, found.c_low <= criterion <= found.c_high))
    assert (np.mean(held, 0) > 0.92).all()


@pytest.mark.parametrize("true", [0.0, 1.0, 3.0, 4.0])
def test_intervals_of_forced_choice_hold_the_truth(true):
    rng = np.random.default_rng(1)
    found = [statistics.forced_choice(rng.binomial(80, stats.norm.cdf(true / np.sqrt(2))), 80) for _ in range(400)]
    assert np.mean([one.d_low <= true <= one.d_high for one in found]) > 0.92


def test_area_under_the_curve_agrees_with_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    truth, graded = rng.integers(2, size=50).astype(bool), rng.integers(-3, 4, 50)
    pairs = graded[truth][:, None] - graded[~truth]
    by_hand = (pairs > 0).mean() + (pairs == 0).mean() / 2
    assert statistics.rank_share(graded, truth) == pytest.approx(roc_auc_score(truth, graded)) == by_hand
    assert np.isnan(statistics.rank_share([1, 2], [True, True]))


def test_learning_agrees_with_statsmodels():
    rng = np.random.default_rng(0)
    place = np.linspace(0, 1, 120)
    correct = rng.random(120) < 1 / (1 + np.exp(-(2 * place - 0.5)))
    model = sm.Logit(correct.astype(float), sm.add_constant(place)).fit(disp=0)
    found = statistics.trend(correct)
    assert found.ratio == pytest.approx(np.exp(model.params[1]), rel=1e-4)
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(model.conf_int()[1])), rel=1e-3)
    assert found.p == pytest.approx(model.pvalues[1], rel=1e-3)
    halves = statistics.trend([True] * 6 + [False] * 9 + [True] * 12 + [False] * 5, [0] * 15 + [1] * 17)
    assert halves.ratio == pytest.approx((12 / 5) / (6 / 9))  # of two places, a table's odds ratio
    assert np.isnan(statistics.trend([True] * 30).ratio)
    learned = statistics.trend([False] * 6 + [True] * 6)
    assert learned.ratio == np.inf and learned.p < 0.01 and np.isnan(learned.low)
    assert statistics.trend([True] * 6 + [False] * 6).ratio == 0
    assert np.isnan(statistics.trend([True, False] * 6, np.zeros(12)).p)


def test_kappa_agrees_with_statsmodels_and_the_published_example():
    # Fleiss 1971: 10 subjects, 14 raters, 5 categories, kappa 0.210
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    found = statistics.fleiss_kappa(np.array(counts))
    assert found.kappa == pytest.approx(0.210, abs=5e-4) == fleiss_kappa(counts)
    assert found.low < found.kappa < found.high and (found.trials, found.raters) == (10, 14)
    with pytest.raises(ValueError, match="same number of raters"):
        statistics.fleiss_kappa(np.array([[1, 1], [2, 1]]))


def test_strengths_agree_with_a_logistic_regression_in_statsmodels():
    wins = np.array([[0, 7, 9], [3, 0, 8], [2, 4, 0]])
    rows, won, games = [], [], []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        rows.append([(k == i) - (k == j) for k in (1, 2)])  # strengths relative to the first
        won.append([wins[i, j], wins[j, i]])
        games.append(wins[i, j] + wins[j, i])
    model = sm.GLM(np.array(won), np.array(rows), family=sm.families.Binomial()).fit()
    found = statistics.bradley_terry(wins, prior=0)
    expected = (wins + wins.T) / (1 + np.exp(found.value[None] - found.value[:, None]))
    assert np.allclose(expected.sum(1), wins.sum(1))  # the likelihood's own condition: as many wins as there were
    assert np.allclose(found.value[1:] - found.value[0], model.params, atol=1e-5)
    apart = found.covariance[1, 1] + found.covariance[0, 0] - 2 * found.covariance[0, 1]
    assert np.sqrt(apart) == pytest.approx(model.bse[0], rel=1e-4)
    assert found.value.sum() == pytest.approx(0, abs=1e-6)


def test_two_competitors_are_the_log_odds_of_their_games():
    found = statistics.bradley_terry(np.array([[0, 30], [10, 0]]), prior=0)
    apart = found.covariance[0, 0] + found.covariance[1, 1] - 2 * found.covariance[0, 1]
    assert (found.value[0] - found.value[1], apart) == pytest.approx((np.log(3), 1 / 30 + 1 / 10))
    assert found.low[0] < found.value[0] < found.high[0]


def test_one_who_never_lost_is_strong_but_finite():
    wins = np.array([[0, 9, 9], [0, 0, 5], [0, 4, 0]])
    found = statistics.bradley_terry(wins)
    assert np.isfinite(found.high).all() and found.value.argmax() == 0
    with pytest.raises(ValueError, match="connect"):
        statistics.bradley_terry(wins, prior=0)
    with pytest.raises(ValueError, match="connect"):
        statistics.bradley_terry(np.array([[0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 3], [0, 0, 1, 0]]))


@pytest.mark.parametrize(("share", "chance"), [(0.6, 0.5), (0.8, 0.5), (0.4, 0.25)])
def test_the_sample_size_has_the_power_by_direct_enumeration(share, chance):
    def power(n: int) -> float:
        k = np.arange(n + 1)
        reject = (stats.binom.cdf(k, n, chance) <= 0.025) | (stats.binom.sf(k - 1, n, chance) <= 0.025)
        return stats.binom.pmf(k, n, share)[reject].sum()

    n = statistics.trials_needed(share, chance)
    assert power(n - 1) < 0.8
    assert min(power(n + more) for more in range(30)) >= 0.8
    assert statistics.power_of(n, share, chance) == pytest.approx(power(n))


def test_one_trial_is_enough_where_it_has_the_power():
    assert statistics.trials_needed(0.99, 0.1, alpha=0.2) == 1


@pytest.mark.parametrize("wrong", [{"share": 1.0}, {"share": 0.505}, {"power": 0}])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError, match="shares lie between"):
        statistics.trials_needed(**wrong)
