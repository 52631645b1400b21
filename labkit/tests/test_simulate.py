"""Individuals, and the simulator as a whole."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS, grid_affine
from labkit.data.simulate import Individual, Scanner, load_anatomy, parameters, simulate
from labkit.data.simulate.departures import DEPARTURES, chosen, draw_departure
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


def having(name, wanted=True):
    """The first rat that has a departure, or has not."""
    return next(i for i in range(20) if draw_departure((name,), 7, i, (4, 4, 4)).has[name] is wanted)


def with_and_without(head, name):
    """Rats of seed 7, undistorted: the same one with a departure, and as it is otherwise."""
    return [next(simulate(head, [having(name)], seed=7, scanner=STILL, departures=d)) for d in (name, ())]


@pytest.mark.parametrize("name", DEPARTURES)
def test_a_rat_that_has_not_what_was_asked_for_is_the_rat_that_it_was(head, name):
    index = having(name, False)
    departed, plain = (next(simulate(head, [index], seed=7, departures=d)) for d in (name, ()))
    assert departed.properties.pop(name) == 0 and name not in plain.properties
    assert same(departed, plain)


def test_a_departed_rat_is_the_same_whatever_n_and_the_batch(head):
    one, two, three = simulate(head, range(3), seed=7, departures=DEPARTURES, batch_size=3)
    assert all(map(same, simulate(head, [2, 0], seed=7, departures=DEPARTURES), [three, one]))


def test_a_lesion_is_brighter_than_its_brain_and_leaves_labels_and_the_rest_alone(head):
    sick, well = with_and_without(head, "lesions")
    assert np.array_equal(sick.labels, well.labels)
    more = sick.image / np.maximum(well.image, 1.0) - 1
    lesion = (well.image > 5000) & (more > 0.1)
    volume = lesion.sum() * np.prod(STUDY_ZOOMS)
    assert 1 < volume < 4.2 * 2.0**3 * 1.5
    assert (well.labels[lesion] > 0).mean() > 0.9 and 0.15 < np.median(more[lesion]) < 0.5
    away = np.abs(sick.image - well.image.astype(int)) <= 100  # some ringing
    assert away.mean() > 1 - 4 * lesion.mean()


def test_a_lesion_is_the_same_whatever_else_was_asked_for():
    alone, all_ = (draw_departure(names, 3, 5, (4, 4, 4)) for names in (("lesions",), tuple(DEPARTURES)))
    assert (alone.place, alone.radius_mm) == (all_.place, all_.radius_mm) and torch.equal(alone.edge, all_.edge)
    assert alone.has["lesions"] == all_.has["lesions"] and list(alone.has) == ["lesions"]


def test_without_bulbs_there_is_no_brain_ahead_of_a_plane(head):
    right, anterior, superior = head.centre_mm
    backwards = dataclasses.replace(
        head, centre_mm=(right, anterior - 3, superior)
    )  # the field of view: more lies ahead
    without, whole = with_and_without(backwards, "bulbs")
    slices = (without.labels > 0).sum((0, 1)), (whole.labels > 0).sum((0, 1))
    plane = draw_departure(("bulbs",), 7, whole.index, (4, 4, 4)).plane_mm
    first = round(plane / STUDY_ZOOMS[2] + 20)
    assert slices[0][first + 2 :].sum() == 0 and slices[1][first + 2 :].sum() > 20
    assert np.array_equal(slices[0][: first - 2], slices[1][: first - 2])
    assert np.array_equal(without.image[..., : first - 2], whole.image[..., : first - 2])
    gone = (whole.labels > 0) & (without.labels == 0)
    assert without.image[gone].mean() < 0.7 * whole.image[gone].mean()  # muscle is darker
    assert without.properties["brain_mm3"] < whole.properties["brain_mm3"]


def test_a_cut_scan_lacks_a_few_slices_at_one_end(head):
    cut, whole = with_and_without(head, "cut")
    empty = ~cut.image.any((0, 1))
    assert 2 <= empty.sum() <= 6 and empty[0] != empty[-1] and np.abs(np.diff(empty.astype(int))).sum() == 1
    assert not cut.labels[..., empty].any()
    assert np.array_equal(cut.image[..., ~empty], whole.image[..., ~empty])
    assert np.array_equal(cut.labels[..., ~empty], whole.labels[..., ~empty])


def test_a_second_warp_moves_tissue_without_folding_it(head):
    warped, plain = with_and_without(head, "warps")
    assert JACOBIAN_FLOOR <= warped.properties["min_jacobian"] < plain.properties["min_jacobian"]
    moved = (warped.labels != plain.labels).sum() / (plain.labels > 0).sum()
    assert 0.02 < moved < 0.3
    draw = draw_departure(("warps",), 7, warped.index, (20, 20, 20))
    assert draw.velocity_mm.std() == pytest.approx(0.2, rel=0.1)


def test_half_of_the_rats_have_each_departure_and_one_says_nothing_of_another():
    has = np.array([list(draw_departure(DEPARTURES, 0, i, (1, 1, 1)).has.values()) for i in range(400)], float)
    assert has.mean(0) == pytest.approx(0.5, abs=0.1)
    assert np.abs(np.corrcoef(has.T) - np.eye(len(DEPARTURES))).max() < 0.2


def test_departures_are_named_in_one_order_and_a_misspelt_one_is_told():
    assert chosen("warps, lesions,warps") == chosen(["warps", "lesions"]) == ("lesions", "warps")
    with pytest.raises(ValueError, match="unknown departure 'lesion': did you mean 'lesions'"):
        simulate(None, [0], departures="cut,lesion")


def test_parameters_name_the_departures_and_are_the_usual_ones_without(head):
    told = parameters(head, departures="cut")
    assert list(told["departures"]) == ["cut"] and json.loads(json.dumps(told)) == told
    assert "departures" not in parameters(head) and told["source"] != parameters(head)["source"]
    assert parameters(head, departures="warps") != told
