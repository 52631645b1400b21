from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import labkit
from labkit import generation
from labkit.data.cohort import Cohort
from labkit.evidence.metrics import faults
from labkit.evidence.metrics.compare import Comparison, compare
from labkit.evidence.metrics.embeddings import BANDS
from labkit.evidence.metrics.measures import Measurement
from labkit.evidence.metrics.study import passes
from labkit.evidence.metrics.yardstick import Yardstick
from labkit.tests.rats import ellipsoids
from labkit.tests.test_training import FAST
from labkit.training import train


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return ellipsoids(tmp_path_factory.mktemp("real") / "rats", n=24)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return ellipsoids(tmp_path_factory.mktemp("others") / "rats", n=24, seed=5)


@pytest.fixture(scope="module")
def honest(real, others):
    return compare(real, others, size=32)


def of(table, metric, flavour=None):
    rows = table[(table["metric"] == metric) & (True if flavour is None else table["flavour"] == flavour)]
    return rows.iloc[0]


def test_every_row_has_its_floor_and_says_how(honest):
    assert tuple(honest.columns) == Measurement._fields
    assert honest["floor"].notna().all() and (honest["n"] == 8).all() and honest["how"].str.len().min() > 30
    assert set(honest["direction"]) <= {"lower", "higher", "floor"}
    intervals = honest[["ci_low", "value", "ci_high"]].dropna()
    assert (intervals["ci_low"] <= intervals["value"] + 1e-9).all()
    assert (intervals["value"] <= intervals["ci_high"] + 1e-9).all()
    shares = honest[honest["metric"].isin(["precision", "recall", "coverage"])]
    ends = shares[["ci_low", "ci_high", "floor_low", "floor_high"]]
    assert ends.min().min() >= 0 and ends.max().max() <= 1
    assert {"MMD", "PSNR", "RMSE", "MAE", "NCC", "RBF-MMD", "Fréchet distance", "recall", "trace ratio",
            "classifier AUC", "Cohen's d"} <= set(honest["metric"])  # fmt: skip


def test_scans_of_the_same_kind_lie_about_at_their_floors(honest):
    assert of(honest, "RBF-MMD p", "PCA")["value"] > 0.02
    assert 0.5 < of(honest, "trace ratio", "PCA")["value"] < 2
    assert of(honest, "density", "regions")["direction"] == "floor"


def test_the_table_is_the_same_for_the_same_seed(real, others, honest):
    again = compare(real, others, size=32)
    assert again.drop(columns="how").equals(honest.drop(columns="how"))


def test_a_collapsed_cohort_passes_the_papers_errors_and_fails_the_others(real, tmp_path, honest):
    images = np.stack([scan.image for scan in real])
    mean = images.mean(0)
    import nibabel as nib

    rng = np.random.default_rng(0)
    for index in range(12):  # the mean rat over and over, with hardly any noise
        image = nib.Nifti1Image((mean + rng.normal(0, 1, mean.shape)).astype(np.float32), real[0].affine)
        (tmp_path / "same").mkdir(exist_ok=True)
        nib.save(image, tmp_path / "same" / f"sub-{index:02d}_T2w.nii.gz")
    table = compare(real, labkit.open_cohort(tmp_path / "same"), size=32)
    assert of(table, "trace ratio", "PCA")["value"] < 0.2
    assert of(table, "recall", "PCA")["value"] < of(honest, "recall", "PCA")["value"]
    assert of(table, "classifier AUC", "regions")["value"] > 0.8
    assert of(table, "RMSE", "paper")["value"] < of(honest, "RMSE", "paper")["value"]  # the trap: it improves


def test_training_scans_among_the_real_ones_are_refused(real):
    with pytest.raises(ValueError, match="were trained on"):
        compare(real, real[:12], train=real[:6], size=32)
    with pytest.raises(ValueError, match="too few scans"):
        compare(real[:8], real[8:13], size=32)
    with pytest.raises(ValueError, match="not of the real scans"):
        compare(real, real[:12], reconstructions=real[:12], size=32)
    with pytest.raises(ValueError, match="pass real"):
        Comparison(Yardstick(real, 6, size=32), real[:12], reconstructions=real)


def test_copies_are_looked_for_and_planted_ones_found(real, others, tmp_path):
    table = compare(real, others[:12], train=others, size=32)  # half of what it was trained on, by heart
    rows = table[table["metric"].isin(["suspects", "copies p"])].set_index(["metric", "flavour"])["value"]
    assert len(rows) == 6 and rows["suspects", "synthetic"] > 0.5 and rows["copies p", "synthetic"] < 1e-6


def test_a_run_is_compared_with_its_held_out_rats(real, tmp_path):
    run = train("sigmarat2", real, "smoke", tmp_path / "run", n_train=10, **FAST)
    held_out = run.held_out(real)
    back = labkit.reconstruct(run, held_out)
    made = generation.generate(run, 8)
    table = compare(held_out, made, run.train_part(real), back, size=32)
    assert len(table[table["flavour"] == "reconstruction"]) == 5
    assert of(table, "classifier AUC", "PCA")["value"] > 0.6  # twenty tiny iterations fool nobody
    with pytest.raises(ValueError, match="real ones come first"):
        compare(made, held_out, size=32)


def test_sessions_of_trained_animals_and_other_voxel_sizes_are_refused(tmp_path):
    import nibabel as nib

    folder = tmp_path / "two"
    ellipsoids(folder, n=14)
    for path in sorted(folder.glob("*_T2w.nii.gz")):
        again = np.asarray(nib.load(path).dataobj) + 1
        nib.save(nib.Nifti1Image(again, nib.load(path).affine), folder / path.name.replace("_T2w", "_ses-2_T2w"))
    both = labkit.open_cohort(folder)
    first = [i for i, scan in enumerate(both) if scan.session == ""]
    second = [i for i, scan in enumerate(both) if scan.session != ""]
    assert len(first) == len(second) == 14
    with pytest.raises(ValueError, match="with other scans of theirs"):
        compare(both.subset(first), both.subset(second), train=both.subset(second), size=32)


def test_six_animals_a_side_give_no_interval_rather_than_a_wrong_one(real, others):
    with pytest.warns(UserWarning, match="left out: PCA and anatomy"):
        table = compare(real[:12], others[:6], size=32)
    assert of(table, "trace ratio", "regions")[["ci_low", "ci_high"]].isna().all()
    assert of(table, "recall", "regions")["ci_high"] > of(table, "recall", "regions")["ci_low"]
    assert set(table["flavour"]) == {"paper", "released", "regions", *BANDS}


@pytest.mark.parametrize("animals, absent", [
    (4, {"RBF-MMD p": 8, "classifier AUC": 10, "precision": 12, "recall": 12, "density": 12, "coverage": 12}),
    (8, {"classifier AUC": 10, "precision": 12, "recall": 12, "density": 12, "coverage": 12}),
    (11, {"precision": 12, "recall": 12, "density": 12, "coverage": 12}),
    (12, {}),
])  # fmt: skip
def test_what_few_animals_allow_is_measured_and_the_rest_named(real, others, animals, absent, recwarn):
    table = compare(real[:animals], others[:9], train=others[9:], reconstructions=real[:animals], size=16)
    yardstick = Yardstick(real[:animals], train=others[9:], size=16)
    assert {one.metric: one.animals for one in yardstick.left_out} == absent
    warned = [str(one.message) for one in recwarn if "left out" in str(one.message)]
    assert len(warned) == (animals < 12)
    for text in warned:
        assert all(metric in text and f"{needed} real animals" in text for metric, needed in absent.items())
        assert f"{animals} real animals that no model saw, {animals // 2} of them in A" in text
    found = set(table["metric"])
    assert found.isdisjoint(absent) and absent.keys() | found >= {"recall", "classifier AUC", "RBF-MMD p"}
    assert {"PSNR", "MMD", "RBF-MMD", "Fréchet distance", "trace ratio", "Cohen's d", "suspects", "SSIM"} <= found
    assert {"PCA", "regions", "reconstruction", "paper", "released", "synthetic"} <= set(table["flavour"])
    assert table[["value", "floor"]].notna().all().all()
    assert np.isnan(of(table, "RMSE", "paper")["ci_low"]) == (animals < 8)


@pytest.mark.parametrize("animals", [1, 2, 3])
def test_fewer_than_four_animals_are_told_what_they_still_allow(real, others, animals):
    words = f"{animals} real animals that no model saw.*need 4 or more.*Reconstruction errors.*pictures.*n_train"
    with pytest.raises(ValueError, match=words):
        compare(real[:animals], others[:9], train=others[9:], size=16)


def test_training_scans_are_held_once_whoever_is_compared(real, others):
    yardstick = Yardstick(real, train=others, size=16)
    assert yardstick.trained is yardstick.teaching  # a thousand of them take a gigabyte
    twice = Cohort("twice", others.folder, [replace(scan, session=k) for scan in others[:8] for k in ("1", "2")])
    some = Yardstick(real, train=twice, size=16)  # nor has an animal two chances of being copied
    assert len(some.trained) == 8 and len(some.teaching) == 16
    with pytest.raises(ValueError, match="an audit for copies needs the training scans"):
        _ = Yardstick(real, size=16).trained


def test_what_measures_learn_from_is_not_measured(real, others):
    yardstick = Yardstick(real, size=32)
    taught, measured = set(yardstick._teachers), {place for parting in yardstick._partings for place in [*parting[0]]}
    assert len(taught) == 8 and taught.isdisjoint(measured) and len(measured) == 16
    parts = [set(a) | set(b) for a, b in yardstick._partings]
    assert len(parts) == 20 and all(len(part) == 16 for part in parts)
    with pytest.raises(ValueError, match="pass train, or 18 real animals or more"):
        _ = Yardstick(real[:12], size=32).gauge


def test_a_value_and_its_floor_are_means_over_partings_and_their_mirror_images(honest):
    d = honest[honest["metric"] == "Cohen's d"]
    assert d["floor"].abs().max() < 1e-9  # A against B and B against A: no accident of one parting is left
    assert (d["floor_low"] < 0).all() and (d["floor_high"] > 0).all()


def test_an_interval_that_ends_at_a_bound_still_ends_there_about_the_mean_of_partings():
    all_inside = Measurement("precision", "PCA", 1.0, 0.9, 1.0).about(0.95)
    assert (all_inside.ci_low, all_inside.ci_high) == (pytest.approx(0.85), 1)  # else the truth could not be above 0.95
    moved = Measurement("precision", "PCA", 0.8, 0.6, 0.9).about(0.75)
    assert (moved.ci_low, moved.ci_high) == (pytest.approx(0.55), pytest.approx(0.85))


def rejected(yardstick, sample):
    """Measures that do not call a sample as good as real."""
    rows = [row for family in yardstick.families for row in yardstick.beside_floors(family, sample)]
    return {row.key for row in rows if not passes(pd.Series(row._asdict()))}, len(rows)


@pytest.mark.parametrize("trained", [True, False])
def test_a_perfect_generator_is_accepted_and_bad_ones_are_not(trained, tmp_path):
    """All measures, on other rats of the same kind, four times: with and without scans to learn from."""
    pool = ellipsoids(tmp_path / "rats", n=96)
    false, rows = 0, 0
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(pool))
        real, made, taught = (pool.subset(np.sort(order[a:b]).tolist()) for a, b in ((0, 36), (36, 54), (54, 96)))
        yardstick = Yardstick(real, 18, taught if trained else None, seed, 16)
        fresh = yardstick.sample(made).take(np.arange(len(yardstick.reference)))
        found, count = rejected(yardstick, fresh)
        false, rows = false + len(found), rows + count
        if seed == 0:
            scene = faults.Scene.of(yardstick.parts[0], yardstick.reference)
            for fault, strength in ((faults.FAULTS[0], 1.0), (faults.FAULTS[0], 0.7), (faults.FAULTS[1], 1.0)):
                bad, _ = rejected(yardstick, faults.spoil(fresh, fault, strength, scene))
                seen = {("recall", "PCA"), ("recall", "regions")}
                if trained or strength == 1:  # a tenth of the variance is not told apart by twelve animals a side
                    seen |= {("trace ratio", "PCA"), ("trace ratio", "regions")}
                assert seen <= bad, (fault.name, strength, seen - bad)
    assert false <= 0.05 * rows, (false, rows)
