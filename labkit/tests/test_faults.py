import numpy as np
import pytest
import torch

from labkit.evidence.metrics import faults
from labkit.evidence.metrics.yardstick import Yardstick
from labkit.evidence.sample import Sample, at_resolution
from labkit.tests.rats import ellipsoids

SHAPE = (64, 64, 40)
NOTICED = 2.0


@pytest.fixture(scope="module")
def yardstick(tmp_path_factory):
    return Yardstick(ellipsoids(tmp_path_factory.mktemp("faults") / "rats", n=32), size=32)


@pytest.fixture(scope="module")
def control(yardstick):
    return faults.control(yardstick, (0.5, 1.0))


def worse(control, fault, strength, metric, flavour):
    row = control[
        (control["fault"] == fault) & (control["strength"] == strength)
        & (control["metric"] == metric) & (control["flavour"] == flavour)
    ]  # fmt: skip
    assert len(row) == 1
    return row["worse"].iloc[0]


@pytest.mark.parametrize("fault", [fault for fault in faults.FAULTS if fault.name != "no ventricles"],
                         ids=lambda fault: fault.name)  # fmt: skip
def test_a_fault_of_strength_0_changes_nothing_and_a_stronger_one_changes_more(yardstick, fault):
    scene = faults.Scene.of(yardstick.parts[1], yardstick.other)
    whole = yardstick.other.cubes
    shifts = [
        (faults.spoil(yardstick.other, fault, strength, scene).cubes - whole).abs().mean().item()
        for strength in (0.0, 0.5, 1.0)
    ]
    assert shifts[0] < 1e-7 < shifts[1] < shifts[2]
    assert torch.equal(yardstick.other.cubes, whole)


def test_padding_stays_black_under_noise(yardstick):
    scene = faults.Scene.of(yardstick.parts[1], yardstick.other)
    noise = next(fault for fault in faults.FAULTS if fault.name == "noise")
    cubes = faults.spoil(yardstick.other, noise, 1.0, scene).cubes
    assert cubes[..., :5].max() == 0 and cubes[..., 10:20].std() > 0.05


def test_noise_is_put_into_the_brain_alone_where_all_around_it_was_cut_out(yardstick):
    cubes = yardstick.other.cubes
    stripped = Sample(torch.where(cubes > 0.3, cubes, 0), yardstick.other.shape)
    scene = faults.Scene.of(yardstick.parts[1], stripped)
    noise = next(fault for fault in faults.FAULTS if fault.name == "noise")
    coarse = at_resolution(stripped, 8)
    for sample in (stripped, coarse):
        change, bright = (faults.spoil(sample, noise, 1.0, scene).cubes - sample.cubes).abs(), sample.cubes.max()
        assert change[sample.cubes < bright / 20].max() == 0 and change[sample.cubes > bright / 4].mean() > 0.05


def test_ventricles_are_filled_with_what_surrounds_them_and_nothing_else_changes():
    mask = torch.zeros(1, 1, 16, 16, 16, dtype=torch.bool)
    mask[..., 7:9, 7:9, 7:9] = True
    cubes = torch.where(mask, 1.0, 0.4)
    scene = faults.Scene((0.5, 0.5, 0.5), (slice(None),) * 3, mask, 0)
    fault = next(fault for fault in faults.FAULTS if fault.name == "no ventricles")
    filled = fault.apply(cubes, 1.0, scene)
    assert torch.allclose(filled[mask], torch.tensor(0.4), atol=1e-3) and torch.equal(filled[~mask], cubes[~mask])
    assert fault in faults.possible(scene)
    unlabelled = faults.Scene(scene.zooms, scene.slices, None, 0)
    assert fault not in faults.possible(unlabelled)
    with pytest.raises(ValueError, match="without tissue labels"):
        faults.spoil(Sample(cubes, (16, 16, 16)), fault, 1.0, unlabelled)


def test_errors_against_a_random_scan_prefer_the_collapsed_generator_and_distributions_do_not(control):
    for strength in (0.5, 1.0):
        for metric, flavour in (("RMSE", "paper"), ("MAE", "paper"), ("PSNR", "released"), ("NCC", "released")):
            assert worse(control, "collapse to the mean", strength, metric, flavour) < 0
    for metric, flavour in (("RBF-MMD", "PCA"), ("recall", "PCA"), ("trace ratio", "PCA"), ("classifier AUC", "PCA")):
        half, full = (worse(control, "collapse to the mean", strength, metric, flavour) for strength in (0.5, 1.0))
        assert 0 < half <= full and full > NOTICED, (metric, half, full)


def test_precision_alone_calls_a_generator_perfect_that_makes_one_rat(control):
    assert worse(control, "one scan over and over", 1.0, "precision", "PCA") <= 0
    assert worse(control, "one scan over and over", 1.0, "recall", "PCA") > 2


def test_values_without_a_fault_are_the_floors(control):
    nothing = control[control["strength"] == 0]
    assert np.array_equal(nothing["value"], nothing["floor"]) and (nothing["worse"] == 0).all()
    assert (control["spread"] > 0).all()


def test_real_scans_at_a_lower_resolution_keep_their_brightness():
    rng = np.random.default_rng(0)
    cubes = torch.from_numpy(rng.random((4, 1, 64, 64, 64), np.float32)) * 0.2
    cubes[:, :, 16:48, 16:48, 16:48] += 0.5
    sample = Sample(cubes, SHAPE)
    coarse = at_resolution(sample, 32)
    assert coarse.cubes.shape == cubes.shape and not torch.equal(coarse.cubes, cubes)
    inside = (..., slice(24, 40), slice(24, 40), slice(24, 40))
    assert coarse.normalised[inside].mean() == pytest.approx(sample.normalised[inside].mean().item(), rel=0.02)


def test_a_strength_beyond_1_is_refused(yardstick):
    scene = faults.Scene.of(yardstick.parts[1], yardstick.other)
    with pytest.raises(ValueError, match=r"strength=1\.5"):
        faults.spoil(yardstick.other, faults.FAULTS[0], 1.5, scene)
