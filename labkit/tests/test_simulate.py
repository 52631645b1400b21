"""Individuals, and the simulator as a whole."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS, grid_affine
from labkit.data.simulate import Individual, Scanner, load_anatomy, parameters, simulate
from labkit.data.simulate.individual import draw_variation, rotation_matrix, smooth_noise
from labkit.data.simulate.preparation import balanced_weights, most_likely, prepare, shares
from labkit.tests.heads import CENTRE_MM, simple_head
from labkit.warps import JACOBIAN_FLOOR

TWINS = Individual(
    volume_cv=0, rotation_deg=0, shift_mm=0, warp_mm=0, ventricle_mm=0, density_cv=0, t1_cv=0, t2star_cv=0
)
STILL = Scanner(field_cv=0, shim_hz_per_mm=0, coil_shift_mm=0, gain_cv=0, echo_spacing_ms=1e-4)  # undistorted


@pytest.fixture(scope="module")
def head():
    return simple_head()


@pytest.fixture(scope="module")
def three(head):
    return list(simulate(head, range(3), seed=7))


def same(a, b):
    return (
        a.index == b.index
        and np.array_equal(a.image, b.image)
        and np.array_equal(a.labels, b.labels)
        and a.properties == b.properties
    )


def centroid_mm(rat):
    where = np.argwhere(rat.labels > 0).mean(0)
    return (rat.affine @ [*where, 1])[[0, 2, 1]]


def test_rat_i_is_the_same_whatever_n(head, three):
    assert same(next(simulate(head, [2], seed=7)), three[2])


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_rat_i_is_the_same_whatever_the_batch(head, three, batch_size):
    assert all(map(same, simulate(head, range(3), seed=7, batch_size=batch_size), three))


def test_rat_i_is_the_same_whatever_the_order(head, three):
    assert all(map(same, simulate(head, [2, 0, 1], seed=7), [three[2], three[0], three[1]]))


def test_rats_and_seeds_differ(head, three):
    other = next(simulate(head, [0], seed=8))
    assert not np.array_equal(other.labels, three[0].labels)
    assert not np.array_equal(three[1].labels, three[0].labels)
    assert not np.array_equal(three[1].image, three[0].image)


def test_a_rat_is_a_scan_of_the_study(three):
    for rat in three:
        assert rat.image.shape == rat.labels.shape == STUDY_SHAPE
        assert rat.image.dtype == np.int16 and rat.image.min() >= 0 and rat.image.max() < 32767
        assert rat.labels.dtype == np.uint8 and set(np.unique(rat.labels)) == {0, 1, 2, 3}
        assert np.array_equal(rat.affine, grid_affine(centre_mm=CENTRE_MM))
        assert all(isinstance(value, float) for value in rat.properties.values())


def test_volumes_of_a_rat_are_those_of_its_labels(three):
    for rat in three:
        for label, name in enumerate(("csf", "grey", "white"), start=1):
            volume = (rat.labels == label).sum() * np.prod(STUDY_ZOOMS)
            assert volume == pytest.approx(rat.properties[f"{name}_mm3"], rel=0.1)


def test_jacobians_of_rats_are_positive(three):
    assert all(JACOBIAN_FLOOR <= rat.properties["min_jacobian"] < 1 for rat in three)


def test_a_moved_rat_is_moved_by_its_shift(head):
    individual = dataclasses.replace(TWINS, shift_mm=0.4)
    for rat in simulate(head, range(2), individual=individual, scanner=STILL):
        shift = [rat.properties[f"shift_{axis}_mm"] for axis in "rsa"]
        centre = np.asarray(CENTRE_MM)[[0, 2, 1]]
        assert centroid_mm(rat) - centre == pytest.approx(shift, abs=0.05)
        assert np.abs(shift).max() > 0.15


def test_a_larger_rat_has_its_size_cubed_in_volume(head):
    usual = next(simulate(head, [0], individual=TWINS, scanner=STILL))
    rat = next(simulate(head, [0], individual=dataclasses.replace(TWINS, volume_cv=0.2), scanner=STILL))
    assert abs(rat.properties["size"] - 1) > 0.03
    growth = rat.properties["brain_mm3"] / usual.properties["brain_mm3"]
    assert growth == pytest.approx(rat.properties["size"] ** 3, rel=0.01)


def spread_mm2(rat):
    """Covariance of the brain's positions along right, superior, anterior."""
    return np.cov(np.argwhere(rat.labels > 0).T * np.asarray(STUDY_ZOOMS)[:, None])


def test_a_turned_rat_is_turned_by_its_rotation(head):
    usual = next(simulate(head, [0], individual=TWINS, scanner=STILL))
    rat = next(simulate(head, [0], individual=dataclasses.replace(TWINS, rotation_deg=6), scanner=STILL))
    angles = [rat.properties[f"rotation_{axis}_deg"] for axis in "rsa"]
    turn = rotation_matrix(torch.tensor([angles]))[0].numpy()
    expected = turn @ spread_mm2(usual) @ turn.T
    assert np.abs(expected - spread_mm2(usual)).max() > 0.4
    assert spread_mm2(rat) == pytest.approx(expected, abs=0.1)


def test_rotations_are_about_right_superior_and_anterior_in_this_order():
    quarter = rotation_matrix(torch.tensor([[90.0, 0, 0], [0, 90.0, 0], [0, 0, 90.0]]))
    x, y, z = torch.eye(3)
    assert torch.allclose(quarter[0] @ y, z, atol=1e-6)
    assert torch.allclose(quarter[1] @ z, x, atol=1e-6)
    assert torch.allclose(quarter[2] @ x, y, atol=1e-6)


def test_size_and_pose_keep_to_their_spreads():
    rats = [draw_variation(Individual(), 0, i, 2, (4, 4, 4), 2.0) for i in range(400)]
    volume = np.array([rat.size**3 for rat in rats])
    assert 0.03 < volume.std() / volume.mean() < 0.05
    angles = torch.stack([rat.rotation_deg for rat in rats])
    shifts = torch.stack([rat.shift_mm for rat in rats])
    assert angles.abs().max() <= 3.0 + 1e-5 and 1.0 < angles.std() < 1.4
    assert shifts.abs().max() <= 0.5 + 1e-5 and 0.15 < shifts.std() < 0.25
    contrast = torch.stack([rat.contrast for rat in rats])
    assert contrast.mean((0, 2)) == pytest.approx([1, 1, 1], abs=0.01)
    assert contrast.std((0, 2)) == pytest.approx([0.02, 0.03, 0.05], rel=0.15)


def test_smooth_noise_is_as_strong_at_the_edge_as_inside_and_as_smooth_as_asked():
    noise = smooth_noise((24, 24, 24), 2.0, torch.Generator().manual_seed(1))
    assert noise.std() == pytest.approx(1, abs=0.15)
    assert noise[:, 0].std() == pytest.approx(1, abs=0.3)
    neighbours = (noise[:, 2:] * noise[:, :-2]).mean() / noise.square().mean()
    assert neighbours == pytest.approx(np.exp(-(2**2) / (4 * 2.0**2)), abs=0.05)


def test_wider_ventricles_are_wider(head):
    individual = dataclasses.replace(TWINS, ventricle_mm=0.6)
    rats = list(simulate(head, range(6), individual=individual, scanner=STILL))
    widths = [draw_variation(individual, 0, rat.index, 4, (4, 4, 4), 1.0).ventricle_mm for rat in rats]
    volumes = [rat.properties["csf_mm3"] for rat in rats]
    assert np.corrcoef(widths, volumes)[0, 1] > 0.95


def test_labels_of_the_average_rat_have_the_volumes_of_its_fractions():
    sheet = torch.zeros(1, 3, 1, 1, 400)
    sheet[0, 0] = torch.linspace(0, 0.6, 400)  # a sheet thinner than a voxel, everywhere less than half of it
    sheet[0, 1] = 1 - sheet[0, 0]
    plain = most_likely(sheet, torch.ones(4))
    assert (plain == 1).sum() < 0.6 * sheet[0, 0].sum()
    balanced = most_likely(sheet, balanced_weights(shares(sheet)))
    assert (balanced == 1).sum() == pytest.approx(sheet[0, 0].sum().item(), rel=0.02)


def test_pure_background_stays_background():
    empty = torch.zeros(1, 3, 2, 2, 2)
    assert most_likely(empty, torch.tensor([1.0, 5, 5, 5])).max() == 0


def test_bad_requests_are_answered_before_any_work(head):
    with pytest.raises(ValueError, match="rat -1 was asked for"):
        simulate(head, [0, -1])
    with pytest.raises(ValueError, match="batch_size must be 1 or more, not 0"):
        simulate(head, [0], batch_size=0)
    with pytest.raises(ValueError, match="no anatomy is called 'rat'; allowed: phantom, sigma"):
        load_anatomy("rat")
    sideways = dataclasses.replace(head, affine=np.diag([0.5, 0.5, 0.5, 1]))
    with pytest.raises(ValueError, match="do not run right, superior, anterior"):
        prepare(sideways, 11.7, torch.device("cpu"))


def test_parameters_are_json_and_change_with_everything_they_stand_for(head):
    told = parameters(head)
    assert json.loads(json.dumps(told)) == told
    assert parameters(simple_head()) == told
    assert parameters(head, scanner=Scanner(te_ms=20)) != told
    assert parameters(head, individual=Individual(warp_mm=0.1)) != told
    assert parameters(dataclasses.replace(head, maps=head.maps * 0.9))["anatomy"] != told["anatomy"]
    assert told["acquisition"]["EchoTime"] == 0.0175 and told["acquisition"]["RepetitionTime"] == 2.0


def test_parameters_of_a_named_anatomy_need_neither_its_files_nor_building_it(monkeypatch):
    monkeypatch.setenv("LABKIT_MIRROR", "/nowhere")
    told = parameters("sigma")["anatomy"]
    assert told["name"] == "sigma" and len(told["files"]) == 6
    assert all(len(digest) == 64 for digest in told["files"].values())
    assert parameters("phantom")["anatomy"] != told
