"""The measured departures of the released code: what the page on differences says holds when it is measured again."""

import importlib.util
import json
from pathlib import Path

import pytest

import labkit

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "book" / "reference" / "differences"
SCRIPT = ROOT / "book" / "experiments" / "differences.py"
if not SCRIPT.is_file():
    pytest.skip("the experiment is part of a checkout, not of an installed labkit", allow_module_level=True)


@pytest.fixture(scope="module")
def experiment():
    spec = importlib.util.spec_from_file_location("differences_experiment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rats():
    return labkit.open_cohort("phantom", n=4)


@pytest.fixture(scope="module")
def kept():
    return json.loads((KEPT / "measured.json").read_text(encoding="utf-8"))


def test_the_page_shows_what_was_measured(experiment, kept):
    assert (KEPT / "table.md").read_text(encoding="utf-8") == experiment.markdown(
        {name: entry["said"] for name, entry in kept.items()}
    )
    assert list(kept) == list(experiment.DIFFERENCES)


@pytest.mark.parametrize("name", ["rotation in voxels", "identity affine of its pictures", "codes of 1000 for 500"])
def test_what_depends_on_no_scan_is_the_same_again(experiment, rats, kept, name):
    numbers, said = experiment.DIFFERENCES[name](rats)
    assert numbers == pytest.approx(kept[name]["numbers"]) and said == kept[name]["said"]


def test_the_swapped_models_differ_in_norms_and_few_weights_fit_both(experiment, rats):
    numbers, said = experiment.swapped_files(rats, "smoke")
    assert numbers["spectral norms, 1"] > numbers["spectral norms, 2"]
    assert [numbers[f"{name} fits"] for name in "EGDC"] == [0, 0, 1, 0] and "Weights of D fit either model" in said


def test_the_literal_sum_outweighs_the_mse_and_as_released_pulls_at_nothing(experiment, rats):
    numbers, _ = experiment.gdl_weight(rats)
    assert numbers["64, with gradient"] > numbers["32, with gradient"] > 5
    assert numbers["64, without gradient"] == numbers["32, without gradient"] == 0


def test_scaling_undoes_the_intensity_factor_and_drowns_the_noise(experiment, rats):
    numbers, _ = experiment.augmentation_before_scaling(rats)
    assert numbers["factor 1.1, largest change"] < 1e-9 and numbers["noise"] < 1e-4


def test_two_steps_take_the_generator_further(experiment, rats):
    one, two = (experiment._moved(steps, 3, rats) for steps in (1, 2))
    assert two[0] / one[0] == pytest.approx(2, abs=0.1) and two[-1] > 1.2 * one[-1]


def test_a_restart_without_optimisers_jumps(experiment, rats, monkeypatch):
    monkeypatch.setattr(experiment, "ITERATIONS", 12)
    numbers, _ = experiment.resuming(rats)
    assert numbers["first update"] > 1.2


def test_a_new_iterator_repeats_the_draws_and_leaves_scans_out(experiment, rats):
    numbers, _ = experiment.new_iterators(rats)
    assert numbers["torch, distinct"] <= 8 and numbers["MONAI, distinct"] > 70  # of 80
    assert numbers["unseen"] == pytest.approx(0.361, abs=0.001)
    assert numbers["torch, ms"] > numbers["one iterator, ms"]


def test_the_released_metrics_differ_on_the_same_pairs(experiment, rats):
    numbers, _ = experiment.ms_ssim_product(rats)
    assert numbers["as released"] < numbers["as defined"]
    numbers, _ = experiment.two_grids(rats)
    assert numbers["MAE, padded"] == pytest.approx(numbers["MAE, scanned"] * 40 / 64, rel=0.05)
    assert numbers["NCC, padded"] > numbers["NCC, scanned"]


def test_batches_of_two_count_the_spread_of_both_sides_and_a_mean_rat_pleases_unpaired_errors(experiment):
    rats = labkit.open_cohort("phantom", n=12)
    numbers, said = experiment.batches_of_two(rats)
    assert numbers["MMD released"] > 2 * numbers["MMD paper"] and "released" in said
    numbers, _ = experiment.collapse(rats)
    for flavour in ("paper", "released"):
        assert numbers[f"RMSE {flavour}, mean"] < numbers[f"RMSE {flavour}, rats"]
    assert numbers["MMD paper, mean"] == pytest.approx(numbers["MMD paper, rats"], rel=1e-3)  # the same mean
