import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import labkit
from labkit import figures, sharing
from labkit.data import volumes
from labkit.data.cohort import Cohort
from labkit.evidence.attributes import tissues
from labkit.evidence.metrics.yardstick import Yardstick
from labkit.evidence.sample import Sample
from labkit.evidence.segmentation import arms, gains, network, registered, reliability, sources
from labkit.evidence.segmentation.experiment import Experiment, LeakError
from labkit.evidence.segmentation.network import (
    PLANS,
    Examples,
    build,
    confidence,
    examples,
    full_labels,
    inputs,
    padded_box,
    probabilities,
    teach,
    train_network,
)
from labkit.evidence.segmentation.reader import find_network, find_reader
from labkit.evidence.segmentation.scores import score
from labkit.evidence.segmentation.sources import gaussian
from labkit.files import load_state
from labkit.generation import draw_codes
from labkit.runs import MODELS
from labkit.tests.brains import onions
from labkit.tests.test_training import FAST
from labkit.training import train

REFERENCE_RUNS = Path(__file__).resolve().parents[2] / "book" / "experiments" / "reference.py"
PLAN = replace(PLANS["smoke"], steps=60, size=32, channels=(8, 16), lr=2e-2, seeds=2)
COARSE = replace(PLAN, size=16, steps=40)


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return onions(tmp_path_factory.mktemp("segmentation") / "rats", n=12)


@pytest.fixture(scope="module")
def run(rats, tmp_path_factory):
    return train("sigmarat2", rats, "smoke", tmp_path_factory.mktemp("runs") / "run", n_train=8, **FAST)


@pytest.fixture(scope="module")
def done(run):
    return Experiment(run, COARSE, "r100,r100+s200,r25+s200").go_on()


def test_a_network_learns_to_label_animals_it_never_saw(rats):
    data = examples(rats[:8], PLAN)
    network = train_network(data, PLAN, seed=0)
    held_out = rats[8:]
    predicted = full_labels(probabilities([network], examples(held_out, PLAN).images, data.box), held_out.shape, PLAN)
    table = score(predicted, held_out).set_index("tissue")["dice"]
    assert table["whole brain"].min() > 0.9 and table.min() > 0.6
    again = train_network(data, PLAN, seed=0)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_the_network_of_every_scale_fits_forty_slices():
    for plan in PLANS.values():
        images = torch.zeros(1, 1, *3 * [plan.size])[(..., *padded_box((64, 64, 40), plan))]
        with torch.no_grad():
            assert build(plan, 0).eval()(images).shape == (1, 4, *images.shape[2:])
    assert padded_box((64, 64, 40), PLANS["laptop"]) == (slice(0, 64), slice(0, 64), slice(12, 52))
    assert padded_box((60, 64, 37), PLANS["laptop"]) == (slice(0, 64), slice(0, 64), slice(12, 52))


def test_a_network_of_blocks_labels_single_voxels(rats):
    plan = replace(PLAN, block=2, steps=120)
    data = examples(rats[:8], plan)
    network = train_network(data, plan, seed=0)
    held_out = examples(rats[8:], plan)
    found = probabilities([network], held_out.images, held_out.box).argmax(1, keepdim=True)
    assert (found == held_out.labels).float().mean() > 0.95
    inside = [found[..., a::2, b::2, c::2] for a in (0, 1) for b in (0, 1) for c in (0, 1)]
    assert sum((part != inside[0]).any(0).sum() for part in inside) > 100  # not one label a block


def test_scores_of_known_maps(rats):
    truth = rats[:2]
    labels = torch.stack([torch.from_numpy(np.array(scan.labels)) for scan in truth])
    perfect = score(labels, truth)
    assert (perfect["dice"] == 1).all() and (perfect["hd95_mm"] == 0).all() and (perfect["volume_bias"] == 0).all()
    shifted = score(torch.roll(labels, 2, 1), truth)  # two voxels of 0.375 mm to the right
    brain = shifted[shifted["tissue"] == "whole brain"]
    assert np.allclose(brain["hd95_mm"], 0.75, atol=0.01) and (brain["volume_bias"] == 0).all()
    one = (labels[0] > 0).numpy()
    overlap = 2 * (one & np.roll(one, 2, 0)).sum() / (2 * one.sum())
    assert brain["dice"].iloc[0] == pytest.approx(overlap, abs=1e-5)
    nothing = score(torch.zeros_like(labels), truth)
    assert (nothing["dice"] == 0).all() and (nothing["hd95_mm"] > 30).all() and (nothing["volume_bias"] == -1).all()


def test_a_generator_that_was_trained_on_a_test_animal_is_refused(rats, run, tmp_path):
    seen, unseen = run.train_part(rats), run.held_out(rats)
    with pytest.raises(LeakError, match=r"the generator was trained on 1 of the test animals"):
        Experiment(run, PLAN, train=seen[:4], test=seen[7:8])
    stranger = onions(tmp_path / "strangers", n=2, seed=9, first=int(seen.subjects[0]))  # other scans, a known name
    with pytest.raises(LeakError, match="by content or by name"):
        Experiment(run, PLAN, train=seen, test=stranger)
    with pytest.raises(LeakError, match="the networks would be trained on 4"):
        Experiment(run, PLAN, train=unseen, test=unseen)
    everything = train("sigmarat2", rats, "smoke", tmp_path / "all", n_train=12, **FAST)
    with pytest.raises(ValueError, match="held no animals out"):
        Experiment(everything, PLAN)


def test_an_arm_has_the_scans_its_name_says(run, done):
    names = [arm.name for arm in done.arms]
    assert names == ["r100", "r100+s200", "r100-plain", "r25", "r25+s200"]  # with what they are compared with
    quarter, all_of_them = (done.real(arms.ARMS[name], 0) for name in ("r25", "r100"))
    assert len(quarter) == 2 and len(all_of_them) == 8
    assert {len(done.real(arms.ARMS["r25"], seed)) for seed in range(5)} == {2}
    assert len(done.real(arms.ARMS["s200"], 0)) == 0
    assert len(done._data(arms.ARMS["s200"], 0)[0]) == arms.ARMS["s200"].counts(len(done.train))[1]
    firsts = {done.real(arms.ARMS["r25"], seed).images.sum().item() for seed in range(5)}
    assert len(firsts) > 1  # other animals for other seeds
    labelled = done.labelled(arms.ARMS["r25+s200"], 0)
    assert len(labelled.examples) == 16 and len(labelled.confidence) == 19
    assert labelled.confidence[labelled.kept].min() >= np.delete(labelled.confidence, labelled.kept).max()
    data, about = done._data(arms.ARMS["r25+s200"], 0)
    assert len(data) == 18 and about["labels"] == "teacher"


def test_a_gaussian_has_the_mean_and_the_covariance_of_the_scans():
    images = torch.randn(5, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0)) / 10 + 0.3
    drawn = gaussian(images, 20_000, seed=1).flatten(1)
    assert torch.allclose(drawn.mean(0), images.flatten(1).mean(0), atol=5e-3)
    assert torch.allclose(drawn.T.cov(), images.flatten(1).T.cov(), atol=1e-3)
    assert (gaussian(images * 9, 100, seed=1).abs() <= 1).all()


def test_the_gaussian_control_is_labelled_like_synthetic_scans(done):
    data, about = done._data(arms.ARMS["r100+g200"], 0)
    assert len(data) == 24 and about["labels"] == "teacher" and about["generated"] == 19
    assert torch.equal(data.images[:8], done.real(arms.ARMS["r100"], 0).images)
    assert data.zooms == done.train[0].zooms


def test_a_learning_curve_trains_what_is_missing_and_keeps_it(done, monkeypatch):
    from labkit.evidence.segmentation import experiment

    curve = done.learning_curve()
    assert sorted(curve["steps"].unique()) == [10, 20, 40, 80] and len(curve) == 16 and set(curve["arm"]) == {"r100"}
    own = done.scores.query("arm == 'r100' and seed == 0 and tissue == 'CSF'")["dice"].mean()
    assert curve.query("steps == 40 and tissue == 'CSF'")["dice"].item() == pytest.approx(own)
    (said,) = gains.converged(curve, 40)
    assert said.startswith("r100: twice the 40 steps would add") and "CSF" in said
    few = [curve.assign(arm=arm, dice=curve["dice"] + more) for arm, more in (("r5", 0.0), ("r5+a200", 0.05))]
    *_, gained = gains.converged(pd.concat([curve, *few]), 40)
    assert gained.startswith("r5+a200 against r5, by steps: at 10 ") and gained.count("CSF +0.0500") == 4
    assert len(figures.learning_curve(pd.concat([curve, *few]), 40).axes) == 3
    monkeypatch.setattr(experiment, "train_network", None)
    assert done.learning_curve().equals(curve)
    assert len(figures.learning_curve(curve, 40).axes[0].lines) == 5
    assert set(done.scores["arm"]) <= {arm.name for arm in done.arms}


def test_finished_arms_are_not_trained_again_and_an_interruption_loses_one_at_most(run, monkeypatch, tmp_path):
    from labkit.evidence.segmentation import experiment

    trained = []

    def counted(data, plan, seed, augmentation="full"):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(seed)
        return train_network(data, plan, seed, augmentation)

    monkeypatch.setattr(experiment, "train_network", counted)
    quick = replace(COARSE, steps=3)
    with pytest.raises(KeyboardInterrupt):
        Experiment(run, quick, "r100,r25", out_dir=tmp_path / "arms").go_on()
    left = Experiment(run, quick, "r100,r25", out_dir=tmp_path / "arms")
    assert len(left.missing()) == 4
    trained.clear()
    monkeypatch.setattr(experiment, "train_network", train_network)
    left.go_on()
    assert not left.missing() and set(left.scores["arm"]) == {"r100-plain", "r100", "r25"}
    monkeypatch.setattr(experiment, "train_network", counted)
    Experiment(run, quick, "r100,r25", out_dir=tmp_path / "arms").go_on()
    assert not trained
    arm, seed = left.jobs[1]
    (left.arm_folder(arm, seed) / "model.safetensors").unlink()
    assert left.missing() == [(arm, seed)] and len(left.scores) == (len(left.jobs) - 1) * len(left.test) * 4
    file = left.arm_folder(*left.jobs[0]) / "scores.csv"
    for text in (
        file.read_text().replace("CSF", "<b>CSF</b>"),
        file.read_text().replace("dice", "x"),
        "",
        "a,b\n1,2\n",
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match="is not the scores of whole brain, white matter, .*: remove its folder"):
            left.scores  # noqa: B018


def test_teachers_keep_what_they_are_sure_of(monkeypatch):
    class Sure(torch.nn.Module):
        def forward(self, x):  # the brighter, the surer that all is grey matter
            logits = torch.zeros(len(x), 4, *x.shape[2:])
            logits[:, 2] = x[:, 0].mean((1, 2, 3), keepdim=True)
            return logits

    images = torch.stack([torch.full((1, 8, 8, 8), value) for value in (0.1, 3.0, 1.0)])
    labelled = teach([Sure()], images, (slice(0, 8),) * 3, keep=2)
    assert list(labelled.kept) == [1, 2] and (labelled.examples.labels == 2).all()
    assert np.argsort(labelled.confidence).tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match="generate more"):
        teach([Sure()], images, (slice(0, 8),) * 3, keep=4)
    assert confidence(torch.ones(1, 1, 2, 2, 2), torch.zeros(1, 1, 2, 2, 2)).tolist() == [0]
    sizes, whole = [], network.probabilities
    monkeypatch.setattr(network, "MANY", 2)
    monkeypatch.setattr(
        network, "probabilities", lambda some, part, box: sizes.append(len(part)) or whole(some, part, box)
    )
    parts = teach([Sure()], images, (slice(0, 8),) * 3, keep=2)  # as of thousands, whose probabilities need not fit
    assert sizes == [2, 1] and (parts.confidence == labelled.confidence).all() and list(parts.kept) == [1, 2]
    assert (parts.examples.labels == labelled.examples.labels).all()


def simulated(gain, spread=0.01, animals=36, seeds=5, seed=0):
    rng = np.random.default_rng(seed)
    rats = rng.normal(0.8, 0.05, animals)
    rows = []
    for arm, shift in (("r100", 0.0), ("r100+s200", gain)):
        for s in range(seeds):
            scores = rats + shift + rng.normal(0, spread) / 3 + rng.normal(0, spread, animals)
            rows += [(arm, s, str(i), "", "CSF", v) for i, v in enumerate(scores)]
    return pd.DataFrame(rows, columns=["arm", "seed", "subject", "session", "tissue", "dice"])


def test_a_gain_is_seen_and_no_gain_is_not():
    false_alarms, seen = 0, 0
    for seed in range(20):
        nothing = gains.differences(simulated(0.0, seed=seed), {"r100+s200": "r100"}).iloc[0]
        real = gains.differences(simulated(0.02, seed=seed), {"r100+s200": "r100"}).iloc[0]
        false_alarms += bool(nothing["ci_low"] > 0 or nothing["ci_high"] < 0)
        seen += bool(real["ci_low"] > 0)
        assert real["p"] < 0.05 and 0.005 < real["difference"] < 0.035
        assert 0 < real["detectable"] < 0.05 and 0 < real["seeds_sd"] < 0.02
    assert false_alarms <= 2 and seen >= 19


@pytest.mark.parametrize("seeds", [3, 5])
def test_an_interval_knows_that_networks_differ(seeds):
    """True differences of 0, networks that differ more than animals do: 95 % of intervals have to hold 0."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        values = rng.normal(0, 0.01, (seeds, 1)) + rng.normal(0, 0.01, (1, 36)) + rng.normal(0, 0.02, (seeds, 36))
        low, high, _, p = gains.of_networks(values)
        covered += low <= 0 <= high
        assert (p > 0.05) == (low <= 0 <= high)
    assert covered / 400 > 0.93


def test_no_mean_dice_is_said_to_lie_outside_its_range():
    found = gains.means(simulated(0.3, seeds=2, spread=0.3))
    assert (found["ci_low"] >= 0).all() and (found["ci_high"] <= 1).all()


def test_a_single_network_has_no_interval_and_no_p():
    row = gains.differences(simulated(0.02, seeds=1), {"r100+s200": "r100"}).iloc[0]
    assert row[["ci_low", "ci_high", "p", "p_holm", "seeds_sd"]].isna().all()


def test_p_values_are_students_and_their_correction_is_holms():
    table = simulated(0.005)
    row = gains.differences(table, {"r100+s200": "r100"}).iloc[0]
    values = gains.difference_matrix(table, "r100+s200", "r100", "CSF")
    alone = np.repeat(values.mean(1, keepdims=True), 36, 1)  # were animals all alike, it is the t test of the seeds
    assert values.shape == (5, 36)
    assert gains.of_networks(alone)[3] == pytest.approx(stats.ttest_1samp(values.mean(1), 0).pvalue)
    assert row["p_holm"] == row["p"]  # one arm
    shifted = [table[table["arm"] == "r100"].assign(arm=name) for name in "abc"]
    for part, gain in zip(shifted, (0.002, 0.0, 0.004), strict=True):
        part["dice"] += np.random.default_rng(1).normal(gain, 0.02, len(part))
    rows = gains.differences(pd.concat([table, *shifted]), dict.fromkeys("abc", "r100"))
    ordered = rows.sort_values("p")
    by_hand = np.minimum(np.maximum.accumulate(ordered["p"].to_numpy() * (3, 2, 1)), 1)
    assert rows["p"].nunique() == 3 and np.allclose(ordered["p_holm"], by_hand)
    assert gains.differences(table, {}).empty


def test_what_stands_in_place_of_an_atlass_scans_is_held_against_them():
    rng, rows = np.random.default_rng(0), []
    for arm, better in (("r5+a200", 0.0), ("r5+u95", 0.05), ("r5+e200", 0.0), ("r5", -0.1)):
        for seed in range(5):
            for animal in range(12):
                dice = 0.8 + better + 0.002 * rng.standard_normal()
                rows.append(
                    {"arm": arm, "seed": seed, "subject": f"{animal}", "session": "", "tissue": "CSF", "dice": dice}
                )
    warped, labelled = gains.rivals(pd.DataFrame(rows))
    assert warped.startswith("r5+e200 against r5+a200, warping") and warped.endswith(": not told apart.")
    assert labelled.startswith("r5+u95 against r5+a200, labelling") and ": CSF +0.05" in labelled
    assert not gains.rivals(pd.DataFrame(rows[:60]))


def test_conclusions_are_made_from_the_numbers():
    row = {"arm": "r100+s50", "reference": "r100", "tissue": "CSF", "difference": 0.05, "ci_low": 0.03, "ci_high": 0.07,
           "p": 0.001, "p_holm": 0.004, "detectable": 0.01, "seeds": 5, "animals": 36}  # fmt: skip
    gain, loss, nothing = (
        gains.conclusions(pd.DataFrame([row | change]))[0]
        for change in ({}, {"ci_low": -0.07, "ci_high": -0.03, "difference": -0.05}, {"ci_low": -0.01})
    )
    assert "a gain, as published" in gain and "+0.0764" in gain
    assert "a loss" in loss and "not told apart" in nothing
    assert "not told apart" in gains.conclusions(pd.DataFrame([row | {"p_holm": np.nan}]))[0]
    control = gains.conclusions(pd.DataFrame([row | {"arm": "r5+t200"}]))
    assert control == ["r5+t200 against r100, new rats with true labels added: CSF +0.0500 (+0.0300 to +0.0700)."]
    true = row | {"arm": "r100+t200", "difference": 0.004, "ci_low": -0.001, "ci_high": 0.009}
    assert (
        "not testable here, where new rats with true labels gained +0.0040"
        in gains.conclusions(pd.DataFrame([row, true]))[0]
    )
    lost = row | {"arm": "r100", "reference": "r100-plain", "ci_low": -0.07, "ci_high": -0.03, "difference": -0.05}
    rows = [lost, lost | {"tissue": "grey matter"}, row | {"arm": "r25", "p_holm": 0.5}]
    assert gains.conclusions(pd.DataFrame(rows)) == [
        "r100 against r100-plain, conventional augmentation: CSF −0.0500 (−0.0700 to −0.0300), "
        "grey matter −0.0500 (−0.0700 to −0.0300).",
        "r25 against r100, a quarter of the real scans: nothing that this design can see.",
    ]


def test_arms_are_named_and_controls_need_a_simulator():
    assert {arm.name for arm in arms.chosen("full", simulated=True)} == {
        name for name in arms.ARMS if not name.endswith("1000")
    }
    assert not [arm for arm in arms.chosen("reduced", simulated=False) if arm.source == "true"]
    with pytest.raises(ValueError, match="not a simulated one"):
        arms.chosen("r5+t200", simulated=False)
    with pytest.raises(ValueError, match="r100\\+s20"):
        arms.chosen("r100+s20", simulated=True)
    assert arms.ARMS["r100+s200"].words(174) == "174 real + 348 synthetic"
    assert arms.ARMS["r100+s50-plain"].words(174) == "174 real + 87 synthetic, no augmentation"


def test_ones_own_scans_are_segmented_in_their_own_space(rats, done, tmp_path):
    source = rats[0]
    image = nib.load(source.origin.path)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine),
                                                                 nib.orientations.axcodes2ornt("PIR")))  # fmt: skip
    (tmp_path / "mine").mkdir()
    nib.save(turned, tmp_path / "mine" / "sub-mine_T2w.nii.gz")
    mine = labkit.open_cohort(tmp_path / "mine")
    labelled = labkit.segment(done, mine, tmp_path / "out")
    written = nib.load(next((tmp_path / "out").rglob("*_dseg.nii.gz")))
    assert written.shape == turned.shape and np.allclose(written.affine, turned.affine, atol=1e-4)
    assert np.array_equal(nib.load(next((tmp_path / "out").rglob("*_T2w.nii.gz"))).get_fdata(), turned.get_fdata())
    assert score(torch.from_numpy(np.array(labelled[0].labels))[None], rats[:1])["dice"].iloc[0] > 0.8
    assert labelled.shape == rats.shape
    again = labkit.segment(done, mine, tmp_path / "out")
    assert again.fingerprint == labelled.fingerprint
    with pytest.raises(ValueError, match="no network of arm r50"):
        labkit.segment(done, mine, tmp_path / "other", arm="r50")
    by_run = labkit.segment(done.run.path, mine, tmp_path / "by_run")  # the folder alone, as a user has it
    assert by_run.fingerprint == labelled.fingerprint


def test_the_network_becomes_an_instrument_of_the_quality_chapter(rats, run, done):
    reader = find_reader(run.path, rats.shape, rats[0].zooms)
    sample = Sample.of(rats)
    read = reader(sample.normalised * 2 - 1).numpy()
    assert read.shape == (12, 6) and len(reader.names) == 6
    own = tissues(rats)
    grey = reader.names.index("grey matter volume by network, mm³")
    assert np.corrcoef(read[:, grey], own["grey matter volume, mm³"])[0, 1] > 0.8
    assert read[:, grey].mean() == pytest.approx(own["grey matter volume, mm³"].mean(), rel=0.2)
    found = reader.features(sample.normalised)
    assert found.shape == (12, COARSE.channels[-1])
    deepest: list[torch.Tensor] = []  # where the whole network passes it
    level = reader.network.unet.model
    while isinstance(level, torch.nn.Sequential) and hasattr(level[1], "submodule"):
        level = level[1].submodule
    level.register_forward_hook(lambda _, __, out: deepest.append(out.mean((2, 3, 4))))
    images = volumes.resize(sample.normalised * 2 - 1, COARSE.size)[(..., *reader.box)]
    with torch.no_grad():
        reader.network(images)
    assert np.allclose(found, deepest[0], atol=1e-6)
    assert find_reader(run.path / "samples", rats.shape, rats[0].zooms) is None
    yardstick = Yardstick(rats, size=32, reader=reader)
    assert {"network", "network anatomy"} <= set(yardstick.families) and "network" in yardstick.embedded
    found = {row.flavour for name in yardstick.families for row in yardstick.floors(name)}
    assert set(reader.names) <= found and "network" in found


def test_results_are_left_beside_the_arms(done):
    done.save()
    table = pd.read_csv(done.folder / "differences.csv")
    assert set(table["score"]) == {"dice", "hd95_mm", "volume_bias"}
    assert set(table["arm"]) == {"r100", "r100+s200", "r25", "r25+s200"}
    assert (done.folder / "conclusions.txt").read_text().startswith("whole brain, r100+s200 against r100:")
    assert done.table().shape == (5, 13)


def test_an_experiment_is_found_again_where_the_runs_rats_are_rounded_otherwise(rats, run, monkeypatch):
    folder = Experiment(run, COARSE).folder
    moved = [replace(scan, digest=f"{place:064d}") for place, scan in enumerate(rats)]
    other = Cohort(rats.name, rats.folder, moved, recipe=rats.recipe)
    monkeypatch.setattr(labkit.Run, "_check_cohort", lambda *_: None)  # as it does of simulated rats
    monkeypatch.setattr(labkit.Run, "cohort", lambda _: other)
    assert other.fingerprint != rats.fingerprint and Experiment(run, COARSE).folder == folder
    train = run.train_part(other)
    assert Experiment(run, COARSE, train=train, test=run.held_out(other)).folder != folder  # scans that one brings


@pytest.mark.skipif(not REFERENCE_RUNS.is_file(), reason="the script is part of a checkout")
def test_an_experiment_travels_with_a_packed_run_and_is_not_trained_again(rats, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("reference_runs", REFERENCE_RUNS)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path / "packed" / "small"
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("*.safetensors", ".lock", "segmentation"))
    (folder / sharing.PACKED).write_bytes(sharing.pack(load_state(run.path / MODELS)))
    arms = "r100,r25+s200"
    first = Experiment(folder, COARSE, arms, cohort=rats).go_on()
    monkeypatch.setattr(sys, "argv", ["reference.py", "--models", "small", "--out", str(folder.parent),
                                      "--experiments", str(first.run.path.parent)])  # fmt: skip
    script.main()
    assert {path.parent.name for path in folder.rglob("*.safetensors.xz")} == {"r100-seed0", "r100-seed1"}
    again = Experiment(folder, COARSE, arms, cohort=rats)
    assert again.run.path != first.run.path and again.folder.name == first.folder.name and again.missing() == []
    pd.testing.assert_frame_equal(again.scores, first.scores, rtol=1e-4)
    images, box = inputs(again.test, COARSE)
    mine, theirs = (probabilities([one.network("r100", 1)], images, box) for one in (again, first))
    assert 0 < (mine - theirs).abs().max() and (mine - theirs).abs().mean() < 0.02
    assert find_network(again.run.path).folder == again.folder / "r100-seed0"
    assert find_network(again.run.path, "r25+s200") is None
    with pytest.raises(ValueError, match=r"arm r25\+s200 with seed 0 was not kept: remove .*r25\+s200-seed0"):
        again.network("r25+s200", 0)


def test_figures_of_the_experiment_have_their_panels(done):
    drawn = {
        "design": figures.experiment_design(done),
        "dose": figures.dose_response(done),
        "low": figures.low_data(done),
        "gains": figures.gains(done.differences()),
        "predictions": figures.predictions(done),
        "teacher": figures.teacher_labels(done, n=5),
    }
    assert len(drawn["dose"].axes) == 4 and len(drawn["predictions"].axes) == 18 and len(drawn["teacher"].axes) == 10
    assert drawn["gains"].axes[0].get_yticklabels()[1].get_text() == "r100+s200 − r100"
    plt.close("all")


def test_wrong_settings_are_refused_before_any_work(run):
    for settings, message in (
        ({"scale": "huge"}, "huge"), ({"seeds": 0}, "seeds=0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Experiment(run, **({"scale": "smoke"} | settings))


def test_examples_join_and_are_taken(rats):
    data = examples(rats[:3], PLAN)
    both = data.take([0, 2]).join(data.take([1]))
    assert isinstance(both, Examples) and len(both) == 3
    assert torch.equal(both.images[1], data.images[2]) and torch.equal(both.labels[2], data.labels[1])


@pytest.fixture(scope="module")
def atlas(run, rats):
    """An atlas of the same training scans, beside the generator's run."""
    return train("atlas", rats, "smoke", run.path.parent / "atlas", n_train=8, iterations=40)


def test_an_atlas_brings_labels_of_its_own_and_sees_an_arms_labels_alone(run, atlas, done):
    alone = Experiment(run, COARSE, "r5+a200,r5+u95,r5+c200,r5+e200")
    assert alone.atlas.path == atlas.path
    arm = arms.ARMS["r5+u95"]
    data, about = alone._data(arm, 0)
    assert len(data) == 1 + 7 and about["labels"] == "the atlas's own"
    truth = alone._real.labels
    places = [p for p in range(8) if alone.train.subjects[p] not in sources.arms_animals(alone.train, 0.05, 0)]
    agree = (data.labels[1:] == truth[places]).float().mean()
    assert agree > 0.9 and not torch.equal(data.labels[1:], truth[places])
    drawn, _ = alone._data(arms.ARMS["r5+a200"], 0)
    assert len(drawn) == 1 + 16 and (drawn.labels[1:] > 0).any() and drawn.images.abs().max() <= 1
    coloured, _ = alone._data(arms.ARMS["r5+c200"], 0)
    assert torch.equal(coloured.labels, drawn.labels) and not torch.equal(coloured.images, drawn.images)
    elastic, _ = alone._data(arms.ARMS["r5+e200"], 0)
    assert len(elastic) == 17 and set(elastic.labels.unique().tolist()) == {0, 1, 2, 3}


def test_what_an_atlas_labels_itself_stands_beside_what_networks_label(run, atlas, done, monkeypatch):
    both = Experiment(run, done.plan, "r100", out_dir=done.folder, seeds=done.seeds)
    found = registered.scores(both)
    assert (
        set(found["arm"]) == {"r100"} and len(found) == both.seeds * len(both.test) * 4 and found["dice"].mean() > 0.5
    )
    seeds = [part["dice"].tolist() for _, part in found.groupby("seed")]
    assert seeds[0] == seeds[1]  # with all labels there is nothing to choose
    monkeypatch.setattr(registered, "score", None)
    assert registered.scores(both).equals(found)  # kept
    table = registered.beside_networks(both)
    assert table.index.tolist() == [("8 real", "a network"), ("8 real", "the atlas, by registration")]
    assert table.loc[("8 real", "the atlas, by registration"), "CSF"].startswith(
        f"{found.query('tissue == @tissue', local_dict={'tissue': 'CSF'})['dice'].mean():.3f}"
    )


def test_a_generator_that_moves_an_atlas_labels_its_scans_from_an_arms_labels_alone(run, rats, atlas, tmp_path):
    own = train("sigmarat3", rats, "smoke", tmp_path / "third", n_train=8, iterations=2)
    experiment = Experiment(own, COARSE, "r5+o200,r5+a200")
    assert experiment.atlas.path == own.path / "atlas"
    data, about = experiment._data(arms.ARMS["r5+o200"], 0)
    assert len(data) == 1 + 16 and about["labels"] == "the atlas's own"
    network, z = own.generator(), draw_codes(own, 16, 0)
    pairs = zip(data.images[1:], network(z).detach(), strict=True)
    assert all(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.99 for a, b in pairs)  # another white
    seen = experiment.atlas_with(sources.arms_animals(experiment.train, 0.05, 0))
    network.head.label_logits, network.head.label_values = (
        seen.atlas.state[name] for name in ("label_logits", "label_values")
    )
    assert torch.equal(data.labels[1:], experiment.plan.classes(network.labelled(z)[1]))
    with pytest.raises(ValueError, match="'r100\\+o200' needs a generator that moves an atlas"):
        Experiment(run, COARSE, "r100+o200")
    both = Experiment(
        own, COARSE, "r5+o200,r5+a200", atlas=atlas
    )  # another atlas for the arms of one, its own for itself
    assert both.atlas.path == atlas.path
    assert torch.equal(both._data(arms.ARMS["r5+o200"], 0)[0].labels, data.labels)
    folders = [[one.arm_folder(arms.ARMS[name], 0) for one in (experiment, both)] for name in ("r5+o200", "r5+a200")]
    assert folders[0][0] == folders[0][1] and folders[1][0] != folders[1][1]  # nor is it trained again for another


def test_arms_of_an_atlas_need_one():
    assert not [arm for arm in arms.chosen("reduced", True, atlas=False) if arm.source in arms.ATLAS_SOURCES]
    with pytest.raises(ValueError, match="needs an atlas of the same training scans"):
        arms.chosen("r5+a200", True, atlas=False)


def test_an_atlas_labels_new_animals_by_registration(rats, atlas, tmp_path):
    mine = atlas.held_out(rats)
    labelled = labkit.segment(atlas, mine, tmp_path / "out")
    predicted = torch.stack([torch.from_numpy(np.array(scan.labels)) for scan in labelled])
    assert score(predicted, mine).groupby("tissue")["dice"].mean()["whole brain"] > 0.8
    assert np.array_equal(labelled[0].image, mine[0].image)
    unlabelled = train("atlas", onions(tmp_path / "bare", n=4, labels=False), "smoke", tmp_path / "none", iterations=4)
    with pytest.raises(ValueError, match="without labels"):
        labkit.segment(unlabelled, mine)


def test_a_folder_of_labels_is_opened_again_only_for_the_same_scans_and_weights(rats, atlas, tmp_path):
    mine = atlas.held_out(rats)
    labelled = labkit.segment(atlas, mine, tmp_path / "out")
    assert labkit.segment(atlas, mine, tmp_path / "out").fingerprint == labelled.fingerprint
    assert labelled.about["Name"].endswith(", segmented") and (tmp_path / "out" / "participants.tsv").exists()
    longer = train("atlas", rats, "smoke", tmp_path / "longer", iterations=4)
    for run, scans in ((longer, mine), (atlas, mine[:1])):
        with pytest.raises(FileExistsError, match="out is there already and holds something else:\n.*there, .*asked"):
            labkit.segment(run, scans, tmp_path / "out")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Twelve animals of which every other one has labels, an alpha-GAN's and an atlas's run on two thirds of them."""
    folder = tmp_path_factory.mktemp("lab")
    cohort = onions(folder / "rats", n=12)
    for scan in cohort:
        if int(scan.subject) % 2:
            (folder / "rats" / f"sub-{scan.subject}_dseg.nii.gz").unlink()
    cohort = labkit.open_cohort(folder / "rats")
    run = train("sigmarat2", cohort, "smoke", folder / "run", **FAST)
    return cohort, run, train("atlas", cohort, "smoke", folder / "atlas", iterations=40)


def test_an_atlas_of_a_few_labelled_scans_labels_any_other_without_an_experiment(lab, rats, tmp_path):
    cohort, _, atlas = lab
    unlabelled = [place for place, scan in enumerate(cohort) if scan.labels is None]
    labelled = labkit.segment(atlas, cohort.subset(unlabelled), tmp_path / "out")
    predicted = torch.stack([torch.from_numpy(np.array(scan.labels)) for scan in labelled])
    truth = rats.subset(unlabelled)  # the same animals, of which nothing was taken away
    assert np.array_equal(truth[0].image, labelled[0].image) and not (atlas.path / "segmentation").exists()
    assert score(predicted, truth).groupby("tissue")["dice"].mean()["whole brain"] > 0.8


def test_labels_on_some_scans_are_enough_for_the_experiment(lab):
    cohort, run, atlas = lab
    some = Experiment(run, COARSE, seeds=1)
    known = {scan.subject for scan in cohort if scan.labels is not None}
    assert len(some.train) == 4 and len(some.unlabelled) == 4 and len(some.test) == 2
    assert known == {*some.train.subjects, *some.test.subjects} and some.atlas.path == atlas.path
    assert [arm.name for arm in some.arms] == ["r100", "r100-plain", "r100+u", "r100+s1000", "r100+a1000", "r100+e1000"]
    assert "4 of 8 training scans have labels" in some.notes[0] and "added in arm r100+u" in some.notes[0]
    assert some.notes[1] == "2 held-out scans have no labels, and are left out of the test."
    data, about = some._data(arms.ARMS["r100+u"], 0)
    assert len(data) == 8 and about["labels"] == "the atlas's own" and some.counts(arms.ARMS["r100+u"]) == (4, 4)
    images, _ = inputs(some.unlabelled, COARSE)
    assert torch.equal(data.images[4:], images) and all((maps > 0).any() for maps in data.labels[4:])
    some.go_on()
    table = some.table()
    assert table[("", "trained on")].to_list()[-2:] == ["4 real + 80 atlas", "4 real + 80 warped"]
    assert set(some.scores["subject"]) == set(some.test.subjects)
    said = " ".join(some.conclusions())
    assert "r100+u against r100, the scans without labels added" in said and "r100+u against r100+a1000" in said
    drawn = figures.experiment_design(some), figures.dose_response(some), figures.predictions(some)
    assert len(drawn[1].axes) == 4 and figures.gains(some.differences())
    plt.close("all")


def test_labels_of_another_coding_are_learned_scored_and_written_by_their_names(lab, tmp_path):
    cohort, own, _ = lab
    table = np.array([0, 7, 30, 201], np.uint8)
    coded = Cohort("coded", tmp_path, [
        scan if scan.labels is None else replace(scan, labels=table[scan.labels]) for scan in cohort
    ])  # fmt: skip
    names = "index\tname\n0\tbackground\n7\tventricles\n30\tcortex\n201\tcallosum\n"
    (tmp_path / "desc-mine_dseg.tsv").write_text(names)
    (tmp_path / "dseg.tsv").write_text("index\tname\n1\tCSF\n")  # names others
    assert coded.label_names == {7: "ventricles", 30: "cortex", 201: "callosum"}
    some = Experiment(
        own, COARSE, "r100,r100+a1000,r100+u", 1, own.train_part(coded), own.held_out(coded), tmp_path / "x"
    )
    assert some.plan.labels == (0, 7, 30, 201) and some.notes[0].startswith("4 of 8")
    for arm in ("r100", "r100+a1000", "r100+u"):
        assert some._data(arms.ARMS[arm], 0)[0].labels.unique().tolist() == [0, 1, 2, 3]
    some.go_on()
    dice = some.means().set_index(["arm", "tissue"])["mean"]
    assert set(some.tissues) == {"whole brain", "ventricles", "cortex", "callosum"}
    assert dice["r100", "whole brain"] > 0.6 and set(dice.index.get_level_values(1)) == set(some.tissues)
    about = json.loads((some.arm_folder(arms.ARMS["r100"], 0) / "arm.json").read_text())
    assert about["plan"]["labels"] == [0, 7, 30, 201]
    labelled = labkit.segment(some, coded[:1], tmp_path / "out")
    assert set(np.unique(labelled[0].labels)) <= {0, 7, 30, 201} and len(np.unique(labelled[0].labels)) > 1
    assert registered.scores(some)["dice"].mean() > 0.5 and len(figures.gains(some.differences()).axes) == 4
    plt.close("all")


def test_only_a_side_without_any_labels_is_refused(lab, run):
    cohort, own, _ = lab
    train_part, held_out = own.train_part(cohort), own.held_out(cohort)
    bare, known = ([p for p, scan in enumerate(train_part) if (scan.labels is None) == none] for none in (True, False))
    with pytest.raises(
        ValueError, match="0 of 4 training scans have the labels to learn .1 CSF.*and 1 or more have to"
    ):
        Experiment(own, COARSE, train=train_part.subset(bare), test=held_out)
    one = [p for p, scan in enumerate(held_out) if scan.labels is None or scan.subject == held_out.subjects[0]]
    with pytest.raises(ValueError, match="held-out scans have the labels to learn.*and 2 or more have to.*n_train"):
        Experiment(own, COARSE, train=train_part, test=held_out.subset(one))
    assert len(Experiment(own, COARSE, train=train_part.subset(known), test=held_out).unlabelled) == 0
    with pytest.raises(ValueError, match="all of them have labels"):
        Experiment(run, COARSE, "r100+u", atlas=own)


def changed(cohort, **arrays):
    """The scans with other images or labels, (N, X, Y, Z), or None for none."""
    content = {key: [None] * len(cohort) if array is None else array for key, array in arrays.items()}
    scans = [replace(scan, **{key: content[key][place] for key in content}) for place, scan in enumerate(cohort)]
    return Cohort("changed", cohort.folder, scans)


def dice_of(table, source, comparison):
    return table[(table["source"] == source) & (table["comparison"] == comparison)].set_index("tissue")["dice"]


def test_the_true_labels_agree_with_networks_as_the_experiment_scored_them(done):
    table = reliability.agreement(done, {"again": done.test})
    scored = done.scores.query("arm == 'r100'").groupby("tissue")["dice"].mean()
    for source in (reliability.REAL, "again"):
        found = dice_of(table, source, reliability.BY_LABEL)
        assert found.to_dict() == pytest.approx(scored.to_dict())
    assert (table["n"] == 4).all() and (table["networks"] == 2).all() and len(table) == 16
    assert ((table["ci_low"] < table["dice"]) & (table["dice"] < table["ci_high"])).all()
    drawn = reliability.shown(table).data
    assert drawn.shape == (4, 4) and drawn.index[0] == (reliability.BY_TWO, reliability.REAL, 4)


def test_noise_is_read_less_alike_than_real_scans(done):
    noise = np.random.default_rng(0).uniform(0, 1000, (4, *done.test.shape)).astype(np.float32)
    table = reliability.agreement(done, {"noise": changed(done.test, image=noise, labels=None)})
    assert set(table[table["source"] == "noise"]["comparison"]) == {reliability.BY_TWO}  # no labels of its own
    real, found = (dice_of(table, source, reliability.BY_TWO) for source in (reliability.REAL, "noise"))
    # all of it is read as CSF, alike and wrongly: only all tissues together tell
    assert (found < real - 0.5)[["grey matter", "white matter"]].all() and found["whole brain"] > 0.9


def test_one_network_twice_agrees_fully_and_labels_off_by_a_voxel_as_they_must(done, monkeypatch):
    network = done.network("r100", 0)
    monkeypatch.setattr(Experiment, "network", lambda self, arm, seed: network)
    images, box = inputs(done.test, done.plan)
    own = full_labels(probabilities([network], images, box), done.test.shape, PLAN).numpy()
    table = reliability.agreement(done, {"shifted": changed(done.test, labels=np.roll(own, 1, 1))})
    assert (table[table["comparison"] == reliability.BY_TWO]["dice"] == 1).all()
    grey = own == 2
    overlap = (grey & np.roll(grey, 1, 1)).sum((1, 2, 3)) / grey.sum((1, 2, 3))
    found = dice_of(table, "shifted", reliability.BY_LABEL)
    assert found["grey matter"] == pytest.approx(overlap.mean(), abs=1e-5) and overlap.mean() < 0.95


def test_a_tissue_that_no_network_finds_is_no_agreement(done, monkeypatch):
    class Blind(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([1.0, 0, 0, 0])[:, None, None, None].expand(len(x), 4, *x.shape[2:])

    monkeypatch.setattr(Experiment, "network", lambda self, arm, seed: Blind())
    assert (reliability.agreement(done, {})["dice"] == 0).all()


def test_a_coarser_generator_has_real_scans_at_its_own_resolution_beside_it(run, tmp_path):
    fine = Experiment(run, replace(PLAN, steps=2), "r100", out_dir=tmp_path / "arms").go_on()
    table = reliability.agreement(fine, {"sigmarat2": labkit.generate(run, 3)})
    assert list(table["source"].unique()) == [reliability.REAL, f"{reliability.REAL}, at 16³", "sigmarat2"]


def test_what_cannot_be_compared_is_refused(run, rats, done, tmp_path):
    with pytest.raises(ValueError, match="1 networks of arm r100 are trained, and it takes two"):
        reliability.agreement(Experiment(run, COARSE, "r100", seeds=1), {})
    with pytest.raises(ValueError, match="0 networks of arm r100"):
        reliability.agreement(Experiment(run, COARSE, "r100", out_dir=tmp_path), {})
    with pytest.raises(ValueError, match="no scans of nobody"):
        reliability.agreement(done, {"nobody": rats[:0]})
    smaller = changed(rats[:2], image=[scan.image[:32] for scan in rats[:2]], labels=None)
    with pytest.raises(ValueError, match=r"small scans have \(32, 64, 40\) voxels"):
        reliability.agreement(done, {"small": smaller})
