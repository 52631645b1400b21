import nibabel as nib
import numpy as np
import pytest

from labkit.data import grids
from labkit.data.common_grid import Grid
from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS, ScanFaultError, grid_affine


def test_reorienting_keeps_every_voxel_where_it_is_in_the_world():
    array = np.random.default_rng(0).uniform(1, 100, (8, 9, 7))
    affine = np.array([[0, -0.5, 0, 3], [0, 0, 0.4, -2], [-0.3, 0, 0, 1], [0, 0, 0, 1.0]])  # axes I, L, A
    turned, turned_affine = grids.reorient(array, affine)
    assert nib.aff2axcodes(turned_affine) == ("R", "S", "A")
    world = nib.affines.apply_affine(affine, [2, 5, 3])
    index = np.round(nib.affines.apply_affine(np.linalg.inv(turned_affine), world)).astype(int)
    assert turned[tuple(index)] == array[2, 5, 3]


def blob(shape, affine, centre, width):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = nib.affines.apply_affine(affine, index)
    return np.exp(-(((world - centre) / width) ** 2).sum(-1) / 2).astype(np.float32) * 1000


def test_resampling_keeps_an_object_at_its_world_position_on_an_oblique_grid():
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * [0.2, 0.25, 0.6]
    affine[:3, 3] = [-6, -8, -9]
    centre = nib.affines.apply_affine(affine, [35, 30, 15])
    array = blob((80, 70, 30), affine, centre, 1.5)
    target = grid_affine((40, 40, 40), (0.4, 0.4, 0.4), tuple(centre + [0.3, -0.2, 0.5]))
    out = grids.resample(array, affine, (40, 40, 40), target)
    weights = out / out.sum()
    index = np.array([(weights * axis).sum() for axis in np.meshgrid(*[np.arange(40)] * 3, indexing="ij")])
    assert np.allclose(nib.affines.apply_affine(target, index), centre, atol=0.02)
    voxel_ratio = 0.4**3 / (0.2 * 0.25 * 0.6)
    assert out.sum() * voxel_ratio == pytest.approx(array.sum(), rel=0.01)


def test_resampling_to_larger_voxels_does_not_alias():
    stripes = np.zeros((60, 20, 20), np.float32)
    stripes[::2] = 1
    affine = grid_affine(stripes.shape, (0.2, 0.5, 0.5))
    out = grids.resample(stripes, affine, (30, 20, 20), grid_affine((30, 20, 20), (0.41, 0.5, 0.5)))
    assert np.abs(out[5:25] - 0.5).max() < 0.12  # without the blur the stripes would beat between 0 and 1


def test_resampled_labels_are_only_labels_of_the_scan():
    radius = np.linalg.norm(np.indices((30, 30, 30)) - 14.2, axis=0)
    labels = np.where(radius < 5, 7, np.where(radius < 11, 2, 0)).astype(np.uint8)
    affine = grid_affine(labels.shape, (0.3,) * 3)
    out = grids.resample(labels, affine, (20, 20, 20), grid_affine((20, 20, 20), (0.45,) * 3), labels=True)
    assert out.dtype == np.uint8 and set(np.unique(out)) == {0, 2, 7}
    for label in (2, 7):
        assert (out == label).sum() * 0.45**3 == pytest.approx((labels == label).sum() * 0.3**3, rel=0.05)


def test_a_head_of_twenty_centimetres_is_reported():
    affine = grid_affine(STUDY_SHAPE, tuple(10 * zoom for zoom in STUDY_ZOOMS))
    array = blob(STUDY_SHAPE, affine, [0, 0, 0], 60)
    with pytest.raises(ScanFaultError, match=r"implausible voxel size \(3.75, 3.75, 5.0\).*voxel_mm"):
        Grid().around_head(array, affine)


def test_the_field_of_view_is_centred_on_the_head_but_stays_inside_the_scan():
    affine = grid_affine((160, 60, 120), (0.25, 0.5, 0.25))  # 40 x 30 x 30 mm
    array = blob((160, 60, 120), affine, [5, -1, 6], 3)  # right, anterior, superior
    centre = nib.affines.apply_affine(Grid().around_head(array, affine), (np.array(STUDY_SHAPE) - 1) / 2)
    assert centre == pytest.approx([5, -1, 3], abs=0.3)  # up, the scan ends 15 mm from its middle: 15 - 24/2 = 3


def test_a_field_of_view_smaller_than_the_study_is_kept_whole():
    affine = grid_affine((60, 60, 30), (0.3, 0.3, 0.6), (2.0, 3.0, 4.0))  # 18 x 18 x 18 mm
    centre = nib.affines.apply_affine(
        Grid().around_head(blob((60, 60, 30), affine, [6, 6, 6], 3), affine), (np.array(STUDY_SHAPE) - 1) / 2
    )
    assert centre == pytest.approx([2, 3, 4], abs=1e-6)
