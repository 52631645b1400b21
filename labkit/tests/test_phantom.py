"""The procedural rat head has a rat's sizes, its structures lie where an atlas has them, and its fractions add up."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from labkit.data.simulate.anatomy import TISSUE_PROPERTIES
from labkit.data.simulate.phantom import phantom_anatomy, phantom_structures
from labkit.data.simulate.phantom.curves import monotone_cubic, outline_distance, sections, smooth_curve

SPACING = 0.2
FORAMEN_MAGNUM = -15.8  # y, mm: behind it lies the spinal cord


@pytest.fixture(scope="module")
def rat():
    return phantom_anatomy(SPACING)


@pytest.fixture(scope="module")
def atlas():
    ids, names, affine = phantom_structures(SPACING)

    def where(name):
        """World x, y, z (mm) of the voxels of a structure: (N, 3)."""
        voxels = np.argwhere(ids == names.index(name))
        return voxels @ affine[:3, :3].T + affine[:3, 3]

    return where


def brain(rat):
    """Fractions of CSF, grey and white matter in front of the foramen magnum, and y (mm) of each coronal section."""
    y = rat.affine[1, 3] + rat.affine[1, 2] * np.arange(rat.maps.shape[-1])
    return rat.label_maps()[..., torch.as_tensor(y > FORAMEN_MAGNUM)], y


def test_fractions_lie_between_0_and_1_and_leave_the_rest_to_air(rat):
    total = rat.maps.sum(0)
    assert rat.maps.dtype == torch.float32 and set(rat.tissues) <= set(TISSUE_PROPERTIES)
    assert rat.maps.min() >= 0 and rat.maps.max() <= 1 and total.max() <= 1 + 1e-6
    assert rat.air.min() >= 0 and (total + rat.air).max() <= 1 + 1e-5


def test_every_tissue_is_used(rat):
    assert all(rat.maps.flatten(1).sum(1) * SPACING**3 > 5)  # mm3


def test_left_mirrors_right(rat):
    for volume in (*rat.maps, rat.air, rat.texture):
        assert torch.equal(volume, volume.flip(0))
    assert rat.affine[0, 3] + rat.affine[0, 0] * (rat.maps.shape[1] - 1) / 2 == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("label", "mm3"), [(0, 300), (1, 1280), (2, 700)])
def test_tissue_volumes_are_those_of_an_adult_wistar_rat(rat, label, mm3):
    assert float(brain(rat)[0][label].sum()) * SPACING**3 == pytest.approx(mm3, rel=0.15)


def test_brain_volume_and_extent_are_those_of_an_adult_wistar_rat(rat):
    fractions, y = brain(rat)
    inside = fractions.sum(0) > 0.5
    assert float(fractions.sum()) * SPACING**3 == pytest.approx(2240, rel=0.05)
    x, z, along = (inside.any(2).any(1), inside.any(2).any(0), inside.any(1).any(0))
    assert int(x.sum()) * SPACING == pytest.approx(15.6, abs=0.5)
    assert int(z.sum()) * SPACING == pytest.approx(11.3, abs=0.6)
    assert int(along.sum()) * SPACING == pytest.approx(28.2, abs=1.0)


def test_grid_covers_the_field_of_view_with_room_for_pose(rat):
    assert all(n * SPACING >= mm for n, mm in zip(rat.maps.shape[1:], (27, 27, 34), strict=True))
    middle = rat.affine[:3, :3] @ ((np.array(rat.maps.shape[1:]) - 1) / 2) + rat.affine[:3, 3]
    np.testing.assert_allclose(middle, rat.centre_mm, atol=1e-9)
    assert np.abs(rat.affine[[0, 2, 1], [0, 1, 2]]).min() == SPACING  # array axes right, superior, anterior


def test_head_goes_on_past_the_field_of_view_except_above(rat):
    filled = rat.maps.sum(0) > 0.5
    assert filled[..., 0].any() and filled[..., -1].any() and filled[:, 0].any()
    assert not filled[:, -1].any()


def test_structures_follow_each_other_from_front_to_back(atlas):
    order = ["olfactory bulb", "striatum", "thalamus", "superior colliculus", "inferior colliculus", "cerebellum"]
    centres = [atlas(name)[:, 1].mean() for name in order]
    assert centres == sorted(centres, reverse=True)
    assert atlas("optic tract")[:, 1].max() > atlas("hippocampus")[:, 1].max()


def test_corpus_callosum_lies_above_the_lateral_ventricles(atlas):
    callosum, ventricle = atlas("corpus callosum"), atlas("lateral ventricle")
    compared = 0
    for x, y in {tuple(p) for p in ventricle[:, :2].round(3) if -3 < p[1] < 1 and abs(p[0]) < 3}:
        above = callosum[(np.abs(callosum[:, :2] - (x, y)) < 0.01).all(1), 2]
        below = ventricle[(np.abs(ventricle[:, :2] - (x, y)) < 0.01).all(1), 2]
        if len(above):
            compared += 1
            assert above.min() > below.max()
    assert compared > 50


def test_ventricles_are_one_connected_cavity():
    ids, names, _ = phantom_structures(SPACING)
    parts = ["lateral ventricle", "third ventricle", "aqueduct", "fourth ventricle"]
    cavity, _ = ndimage.label(np.isin(ids, [names.index(p) for p in parts]), np.ones((3, 3, 3)))
    main = np.bincount(cavity[ids == names.index("aqueduct")]).argmax()
    for part in parts:
        assert (cavity[ids == names.index(part)] == main).mean() > 0.95, part


def test_dorsal_surface_passes_from_air_to_skin_bone_cortex_and_white_matter(rat):
    index = {name: i for i, name in enumerate(rat.tissues)}
    at = np.linalg.inv(rat.affine) @ (3.0, -2.0, 0.0, 1.0)
    column = rat.maps[:, int(round(at[0])), :, int(round(at[2]))].flip(1)  # from above
    depth = {name: int((column[index[name]] > 0.4).nonzero()[0]) for name in ("skin", "bone", "cortex", "white")}
    assert list(depth) == sorted(depth, key=depth.get)
    assert 1.2 < (depth["white"] - depth["cortex"]) * SPACING < 2.4  # mm of cortex
    assert 0.4 < float(column[index["bone"]][: depth["cortex"]].sum()) * SPACING < 1.1  # mm of skull


def test_ear_canals_reach_from_both_bullae_to_the_side_of_the_head(rat, atlas):
    canal, bulla = atlas("ear canal"), atlas("tympanic bulla")
    for side in (-1, 1):
        assert (side * canal[:, 0]).max() > 12 and (side * bulla[:, 0]).max() > 6
    x = rat.affine[0, 3] + SPACING * torch.arange(rat.air.shape[0])
    assert float(rat.air[x > 4].sum()) * SPACING**3 > 40  # mm3, one side
    assert float(rat.air[(x.abs() < 3)].sum()) * SPACING**3 > 40  # nose and airway


def test_texture_has_mean_1_in_the_head_and_detail_in_the_cortex(rat):
    inside = rat.maps.sum(0) > 0.5
    assert float(rat.texture[inside].mean()) == pytest.approx(1, abs=0.01)
    assert 0.005 < float(rat.texture[rat.maps[rat.tissues.index("cortex")] > 0.8].std()) < 0.1


def test_same_head_every_time_and_at_any_resolution(rat):
    coarse = phantom_anatomy(0.4)
    ratio = coarse.label_maps().sum((1, 2, 3)) * 0.4**3 / (rat.label_maps().sum((1, 2, 3)) * SPACING**3)
    assert torch.allclose(ratio, torch.ones(3), atol=0.12)
    assert torch.equal(phantom_anatomy(0.4).maps, coarse.maps)


def test_impossible_spacing_is_refused_with_the_range():
    with pytest.raises(ValueError, match=r"0\.1 to 0\.6"):
        phantom_anatomy(2.0)


def test_uneven_outline_table_is_refused():
    with pytest.raises(ValueError, match="same number"):
        sections("0 | 1 1  2 2\n1 | 1 1")


def test_interpolation_between_levels_passes_the_knots_without_overshoot():
    knots, values = np.array([0.0, 1.0, 3.0]), np.array([0.0, 1.0, 1.0])
    assert np.allclose(monotone_cubic(knots, values, knots), values)
    assert monotone_cubic(knots, values, np.linspace(0, 3, 50)).max() <= 1 + 1e-12


def test_distance_to_a_round_outline_is_the_radius_left():
    angle = np.arange(16) / 16 * 2 * np.pi
    circle = smooth_curve(3 * np.stack([np.cos(angle), np.sin(angle)], 1)[None], closed=True, midline=False)[0]
    x = np.linspace(0, 5, 11)
    np.testing.assert_allclose(outline_distance(circle, x, np.zeros(1))[:, 0], 3 - x, atol=0.03)
