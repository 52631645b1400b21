import numpy as np
import pytest
import torch
from scipy import ndimage

from labkit.evidence.metrics import distributions, embeddings, intervals, measures, memorisation, similarity
from labkit.evidence.sample import Sample
from labkit.tests.rats import ellipsoids


def normal(n, f=4, seed=0, mean=0.0, sd=1.0):
    return np.random.default_rng(seed).normal(mean, sd, (n, f))


def test_paired_measures_have_their_textbook_values():
    x = torch.zeros(2, 1, 4, 4, 4)
    y = torch.full_like(x, 0.1)
    assert torch.allclose(similarity.rmse(x, y), torch.tensor([0.1, 0.1])) and torch.allclose(
        similarity.mae(x, y), torch.tensor([0.1, 0.1])
    )
    assert torch.allclose(similarity.psnr(x, y), torch.tensor([20.0, 20.0]))
    z = torch.rand(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(similarity.ncc(z, 0.3 * z + 0.2), torch.ones(2), atol=1e-5)
    assert torch.allclose(similarity.ncc(z, -z), -torch.ones(2), atol=1e-5)


def test_unpaired_errors_prefer_a_collapsed_generator():
    # the reason why paired measures are for reconstructions only
    real = torch.rand(40, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    other = torch.rand(40, 1, 6, 6, 6, generator=torch.Generator().manual_seed(1))
    collapsed = real.mean(0, keepdim=True).expand_as(real)
    assert similarity.rmse(real, collapsed).mean() < similarity.rmse(real, other).mean()


@pytest.fixture(scope="module")
def pictures():
    g = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 1, 8, 8, 6, generator=g)
    return torch.nn.functional.interpolate(coarse, size=(40, 32, 30), mode="trilinear")


def test_ms_ssim_is_1_for_equal_scans_and_falls_with_noise(pictures):
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))
    values = [similarity.ms_ssim(pictures, (pictures + sd * noise).clamp(0, 1)).mean() for sd in (0, 0.05, 0.2)]
    assert values[0] == pytest.approx(1, abs=1e-4) and values[0] > values[1] > values[2]


def test_ms_ssim_does_not_depend_on_what_was_asked_before(pictures):
    alone = similarity.ms_ssim(pictures[:2], pictures[2:4])
    together = similarity.ms_ssim(torch.cat([pictures] * 4), torch.cat([pictures.roll(1, 0)] * 4))
    assert len(together) == 24 and torch.allclose(similarity.ms_ssim(pictures[:2], pictures[2:4]), alone)


def test_ms_ssim_is_the_product_it_is_defined_as(pictures):
    from monai.metrics.regression import compute_ssim_and_cs

    x, y = pictures[:3], 0.7 * pictures[:3] + 0.3 * pictures[3:]
    a, b = x, y
    weights = np.array(similarity.WEIGHTS) / sum(similarity.WEIGHTS)
    expected = torch.ones(3)
    for level, weight in enumerate(weights):
        ssim, cs = compute_ssim_and_cs(a, b, 3, (7, 7, 7), (1.5, 1.5, 1.5), 1.0)
        term = ssim if level == 2 else cs
        expected = expected * term.flatten(1).mean(1).clamp_min(0) ** float(weight)
        a, b = (torch.nn.functional.avg_pool3d(v, 2) for v in (a, b))
    assert torch.allclose(similarity.ms_ssim(x, y), expected, atol=1e-4)


def test_pairs_are_of_different_scans_and_none_comes_twice():
    rng = np.random.default_rng(0)
    pairs = similarity.pairs_within(6, 100, rng)
    assert len(pairs) == 15 and len({tuple(pair) for pair in pairs}) == 15 and (pairs[:, 0] < pairs[:, 1]).all()
    across = similarity.pairs_between(3, 5, 9, rng)
    assert len({tuple(pair) for pair in across}) == 9 and across[:, 0].max() < 3 and across[:, 1].max() < 5


def test_linear_mmd_is_blind_to_collapse_and_the_gaussian_one_is_not():
    real, fresh = normal(200), normal(200, seed=1)
    collapsed = np.repeat(real.mean(0, keepdims=True), 200, 0)
    assert distributions.linear_mmd(real, collapsed) < 1e-20 < distributions.linear_mmd(real, fresh)
    bandwidth = distributions.median_distance(real)
    assert distributions.rbf_mmd(real, collapsed, bandwidth) > 10 * abs(distributions.rbf_mmd(real, fresh, bandwidth))


def test_the_linear_mmd_is_the_papers_formula():
    x, y = normal(5), normal(5, seed=1, mean=0.5)
    formula = ((x @ x.T).sum() + (y @ y.T).sum() - 2 * (x @ y.T).sum()) / 25
    assert distributions.linear_mmd(x, y) == pytest.approx(formula)


def test_the_gaussian_mmd_is_unbiased_and_its_p_value_uniform():
    values, small = [], 0
    for seed in range(40):
        x, y = normal(20, seed=2 * seed), normal(20, seed=2 * seed + 1)
        values.append(distributions.rbf_mmd(x, y, 2.0))
        small += distributions.rbf_mmd_p(x, y, 2.0, np.random.default_rng(seed), 60) < 0.1
    assert abs(np.mean(values)) < 3 * np.std(values) / 40**0.5 and small <= 10
    assert distributions.rbf_mmd_p(x, normal(20, seed=5, mean=1.5), 2.0, np.random.default_rng(0), 200) < 0.01


def test_the_frechet_distance_is_that_of_gaussians():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(1, 1, (50, 5))
    a, b = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert distributions.frechet(x, y) == pytest.approx(expected, rel=1e-6)
    assert distributions.frechet(x, x) == pytest.approx(0, abs=1e-8)
    wide = rng.normal(size=(8, 300))  # fewer points than features
    assert distributions.frechet(wide, wide + 2) == pytest.approx(4 * 300)


def test_each_collapse_is_seen_by_recall_and_the_trace_ratio_but_not_by_coverage_alone():
    real = normal(100)
    same = real[np.random.default_rng(0).integers(3, size=100)] + 1e-3 * normal(100, seed=3)
    found = distributions.neighbourhoods(real, same)
    fresh = distributions.neighbourhoods(real, normal(100, seed=1))
    assert found["precision"] == 1 and found["recall"] < 0.1 < 0.5 < fresh["recall"]
    assert distributions.trace_ratio(real, same) < 0.8 * distributions.trace_ratio(real, normal(100, seed=1))
    assert 0.7 < fresh["density"] < 1.3 and fresh["coverage"] > 0.8
    far = distributions.neighbourhoods(real, normal(100, seed=1, mean=50))
    assert far["precision"] == far["coverage"] == 0
    with pytest.raises(ValueError, match="more than 5 scans"):
        distributions.neighbourhoods(real[:5], same)


def test_the_classifier_tells_what_a_linear_one_cannot():
    auc, low, high = distributions.classifier_auc(normal(150), normal(150, seed=1, sd=2.5))
    assert auc > 0.8 and low < auc < high  # same mean, other spread
    auc, low, high = distributions.classifier_auc(normal(150), normal(150, seed=2))
    assert low < 0.55 and high > 0.45


def test_planted_copies_are_caught_and_honest_scans_are_not():
    rng = np.random.default_rng(0)
    train, held_out, fresh = (normal(n, 30, seed=s) * 0.1 + 0.5 for n, s in ((120, 1), (40, 2), (60, 3)))
    honest = memorisation.audit(fresh, train, held_out)
    planted = memorisation.plant_copies(fresh, train, rng, share=0.3)
    caught = memorisation.audit(planted, train, held_out)
    assert (planted != fresh).any(1).sum() == 18 and honest.p > 0.05 and caught.p < 1e-3
    assert caught.nearest[:, 0].max() < 120 and caught.nearest[:, 1].max() < 40


def test_of_all_training_scans_only_those_that_are_copied_are_brought_into_another_pose(monkeypatch):
    train, made = (np.random.default_rng(n).random((n, 1, 9, 8, 7), np.float32) for n in (200, 10))
    poses, moved, sizes = memorisation.new_poses(200, np.random.default_rng(0)), memorisation.moved, []
    lying = moved(torch.from_numpy(train), poses).numpy()
    assert np.abs(lying - train).mean() > 0.05
    whole = memorisation.plant_copies(made, lying, np.random.default_rng(1))
    monkeypatch.setattr(memorisation, "moved", lambda some, their: sizes.append(len(some)) or moved(some, their))
    planted = memorisation.plant_copies(made, train, np.random.default_rng(1), poses=poses)
    assert sizes == [3] and np.allclose(planted, whole, atol=1e-6)


def test_features_come_from_real_scans_and_keep_what_differs(tmp_path):
    rats = ellipsoids(tmp_path / "rats", n=9)
    cubes = (rats.volumes(32) + 1) / 2
    box = embeddings.brain_box(rats, 32)
    inside = np.zeros((32, 32, 32), bool)
    inside[box] = True
    labels = rats.label_maps(32)[:, 0].numpy() > 0
    assert labels[:, ~inside].sum() == 0 and inside.mean() < 0.6
    features = embeddings.pca(cubes, box)(cubes)
    assert features.shape == (9, 8) and np.allclose(features.mean(0), 0, atol=1e-4)
    assert embeddings.regions(box)(cubes).shape == (9, 128)
    size = labels.sum((1, 2, 3))
    assert abs(np.corrcoef(features[:, 0], size)[0, 1]) > 0.95


def test_measures_that_monai_has_are_monais(pictures):
    from monai.metrics import MAEMetric, PSNRMetric, RMSEMetric

    x, y = pictures[:3], pictures[3:]
    for ours, theirs in (
        (similarity.rmse, RMSEMetric()),
        (similarity.mae, MAEMetric()),
        (similarity.psnr, PSNRMetric(max_val=1)),
    ):
        assert torch.allclose(ours(x, y), theirs(y_pred=x, y=y).flatten(), atol=1e-5)


def test_the_frechet_distance_is_monais_where_that_works():
    from monai.metrics.fid import get_fid_score

    x, y = normal(80, 6), normal(70, 6, seed=1, mean=0.4, sd=1.3)
    theirs = get_fid_score(torch.from_numpy(x), torch.from_numpy(y)).item()
    assert distributions.frechet(x, y) == pytest.approx(theirs, rel=1e-6)


def test_a_generator_that_collapses_is_preferred_by_the_linear_mmd_alone():
    rng = np.random.default_rng(0)
    real, full, n = normal(120, 8), normal(120, 8, seed=1), 120
    centre = real.mean(0)
    half = centre + (full - full.mean(0)) / 2**0.5
    collapsed = centre + 1e-3 * normal(n, 8, seed=2)
    generators = {"full": full, "half": half, "collapsed": collapsed}
    bandwidth = distributions.median_distance(real)
    linear = {name: distributions.linear_mmd(real, made) for name, made in generators.items()}
    assert linear["collapsed"] < linear["full"] and linear["half"] < linear["full"]
    gaussian = {name: distributions.rbf_mmd(real, made, bandwidth) for name, made in generators.items()}
    assert gaussian["full"] < gaussian["half"] < gaussian["collapsed"]
    recall = {name: distributions.neighbourhoods(real, made)["recall"] for name, made in generators.items()}
    assert recall["full"] > recall["half"] > recall["collapsed"] == 0
    ratio = {name: distributions.trace_ratio(real, made) for name, made in generators.items()}
    assert ratio["full"] > ratio["half"] > ratio["collapsed"]
    auc = {name: distributions.classifier_auc(real, made)[0] for name, made in generators.items()}
    assert auc["full"] < auc["half"] < auc["collapsed"] and auc["collapsed"] > 0.99
    assert distributions.rbf_mmd_p(real, half, bandwidth, rng, 200) < 0.05


def test_the_audit_keeps_its_size_and_learning_a_distribution_is_no_copying():
    # 174 training and 36 held-out animals, 60 synthetic scans of 12 features, seeds 0 to 59
    fresh_alarms, learned_alarms, caught = 0, 0, 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        train, held_out, fresh = (0.5 + 0.1 * rng.standard_normal((n, 12)) for n in (174, 36, 60))
        learned = rng.multivariate_normal(
            train.mean(0), np.cov(train.T), 60
        )  # of the training animals, and copies none
        few = train[rng.integers(10, size=60)] + 0.02 * rng.standard_normal((60, 12))  # copies of ten, and nothing else
        audits = [memorisation.audit(scans, train, held_out).p <= 0.05 for scans in (fresh, learned, few)]
        fresh_alarms, learned_alarms, caught = fresh_alarms + audits[0], learned_alarms + audits[1], caught + audits[2]
    assert fresh_alarms <= 6 and learned_alarms <= 6 and caught == 60, (fresh_alarms, learned_alarms, caught)


def test_ms_ssim_and_ssim_are_monais(pictures):
    from monai.metrics import MultiScaleSSIMMetric, SSIMMetric

    x, y = pictures[:3], (0.7 * pictures[:3] + 0.3 * pictures[3:])
    weights = tuple(weight / sum(similarity.WEIGHTS) for weight in similarity.WEIGHTS)
    many = MultiScaleSSIMMetric(spatial_dims=3, data_range=1.0, kernel_size=similarity.KERNEL, weights=weights)
    one = SSIMMetric(spatial_dims=3, data_range=1.0, win_size=similarity.KERNEL)
    assert torch.allclose(similarity.ms_ssim(x, y), many(y_pred=x, y=y).flatten(), atol=1e-6)
    assert torch.allclose(similarity.ssim(x, y), one(y_pred=x, y=y).flatten(), atol=1e-6)


def test_chosen_pairs_are_the_pairs_that_were_chosen():
    real, other = (Sample(torch.rand(6, 1, 32, 32, 32, generator=torch.Generator().manual_seed(s)), (32,) * 3)
                   for s in (0, 1))  # fmt: skip
    within, between = measures.similar_pairs(real, other, (slice(None),) * 3, np.random.default_rng(0), 9)
    for pairs, left in ((within, other), (between, real)):
        x, y = left.normalised[pairs.first], other.normalised[pairs.second]
        assert len(pairs.first) == 9 and np.allclose(similarity.ms_ssim(x, y), pairs.values)
    again = measures.similar_pairs(real, other, (slice(None),) * 3, np.random.default_rng(1), 9)
    assert again[0] is within  # computed once


def test_an_interval_of_pairs_knows_that_pairs_share_scans():
    # the mean of x_i + y_j over pairs of 20 and 20 scans: its standard error is that of two means of 20
    covered, widths = 0, []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal(20), rng.standard_normal(20)
        first, second = np.tile(np.arange(20), 10), rng.integers(20, size=200)
        low, high = intervals.of_pairs(x[first] + y[second], first, second, False, rng, 200)
        covered += low <= 0 <= high
        widths.append(high - low)
    assert 85 <= covered <= 100 and np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(2 / 20), rel=0.15)


@pytest.mark.parametrize("n", [6, 20])
def test_intervals_of_means_and_of_their_differences_cover_the_truth_of_few_scans(n):
    covered = np.zeros(2, int)
    for seed in range(400):
        x, y = np.random.default_rng([seed, n]).normal([[1.0], [0.4]], [[1.0], [2.0]], (2, n))
        found = intervals.of_mean(x), intervals.of_difference(x, y)
        covered += [low <= truth <= high for (low, high), truth in zip(found, (1.0, 0.6), strict=True)]
    assert (365 <= covered).all() and (covered <= 394).all(), covered  # a bootstrap's are at 340 of six
    assert np.isnan([*intervals.of_mean(x[:2]), *intervals.of_difference(x, y[:2])]).all()
    assert intervals.of_difference(np.ones(3), np.zeros(4)) == (1, 1)


def test_an_interval_from_halves_covers_the_truth():
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((40, 1)), rng.standard_normal((40, 1)) + 1

        def difference(u, v):
            return float(v.mean() - u.mean())

        low, high = intervals.of_halves(difference, x, y, difference(x, y), rng, 100)
        covered += low <= 1 <= high
    assert covered >= 85


def test_a_single_copy_is_a_suspect_and_fair_scans_are_about_as_often_as_chance():
    false, found = 0, 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        train, held_out, fresh = (0.5 + 0.1 * rng.standard_normal((n, 12)) for n in (150, 30, 60))
        false += len(memorisation.audit(fresh, train, held_out).suspects)
        one = memorisation.plant_copies(fresh, train, rng, share=1 / 60, noise=0.01)
        found += len(memorisation.audit(one, train, held_out).suspects) > 0
    assert false / (20 * 60) < 0.1 and found == 20


def test_a_share_of_all_is_no_certainty():
    low, high = intervals.of_share(1.0, 18)
    assert 0.8 < low < 0.85 and high == pytest.approx(1)


def test_the_spectrum_tells_blur_from_noise_and_real_scans_from_neither():
    rng = np.random.default_rng(0)
    cubes = torch.from_numpy(ndimage.gaussian_filter(rng.random((40, 1, 32, 32, 32), np.float32), (0, 0, 1, 1, 1)))
    cubes = (cubes - cubes.min()) / (cubes.max() - cubes.min())
    box = (slice(2, 30),) * 3
    real, other = (Sample(part, (32, 32, 32)) for part in cubes.split(20))
    blurred = Sample(torch.from_numpy(ndimage.gaussian_filter(other.cubes.numpy(), (0, 0, 1, 1, 1))), (32, 32, 32))
    noisy = Sample((other.cubes + 0.2 * torch.randn(other.cubes.shape)).clamp(0, 1), (32, 32, 32))
    found = {}
    for name, sample in (("real", other), ("blurred", blurred), ("noisy", noisy)):
        rows = list(measures.spectrum(box)(real, sample, np.random.default_rng(1), measures.FULL))
        assert [row.flavour for row in rows] == list(embeddings.BANDS) and all(row.direction == "floor" for row in rows)
        found[name] = [row.value for row in rows]
        if name == "real":
            assert all(row.ci_low < 1 < row.ci_high or abs(row.value - 1) < 0.1 for row in rows)
    assert found["blurred"][-1] < 0.2 and found["noisy"][-1] > 2 and np.abs(np.array(found["real"]) - 1).max() < 0.15
    assert found["blurred"][0] > 2 * found["blurred"][-1]


def test_a_wave_is_counted_in_the_band_of_its_length():
    x = torch.arange(32.0)
    for wavelength, band in ((16, 0), (6, 1), (3, 2), (2.2, 3)):
        cube = (0.5 + 0.4 * torch.sin(2 * torch.pi * x / wavelength)).expand(1, 1, 32, 32, 32)
        assert embeddings.powers((slice(0, 32),) * 3)(cube).argmax() == band
