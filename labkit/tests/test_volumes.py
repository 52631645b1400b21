import numpy as np
import pytest
import torch

from labkit.data import volumes


def scans(n=2, shape=(64, 64, 40), seed=0):
    return torch.from_numpy(np.random.default_rng(seed).uniform(10, 900, (n, *shape)).astype(np.float32))


def test_the_study_grid_gets_twelve_empty_slices_at_either_end():
    cube = volumes.pad_to_cube(scans(), 64)
    assert cube.shape == (2, 1, 64, 64, 64)
    assert (cube[..., :12] == 0).all() and (cube[..., 52:] == 0).all() and (cube[..., 12:52] > 0).all()


def test_padding_then_cropping_changes_nothing():
    images = scans(shape=(13, 64, 7))
    assert torch.equal(volumes.crop_from_cube(volumes.pad_to_cube(images, 64), images.shape[1:]), images)


def test_a_scan_larger_than_the_cube_is_refused():
    with pytest.raises(ValueError, match="does not fit a cube of side 64"):
        volumes.pad_to_cube(torch.zeros(1, 65, 64, 40), 64)


def test_every_scan_reaches_both_ends_of_the_range_by_itself():
    images = scans()
    images[1] *= 7
    unit, low, high = volumes.to_unit_range(volumes.pad_to_cube(images, 64))
    assert unit.flatten(1).amin(1).tolist() == [-1, -1] and unit.flatten(1).amax(1).tolist() == [1, 1]
    assert low.tolist() == [0, 0] and torch.equal(high, images.flatten(1).amax(1))


def test_the_way_back_restores_intensities():
    cube = volumes.pad_to_cube(scans(), 64)
    unit, low, high = volumes.to_unit_range(cube)
    assert torch.allclose(volumes.from_unit_range(unit, low, high), cube, atol=1e-3)


def test_a_constant_cube_is_background():
    unit, _, _ = volumes.to_unit_range(torch.full((1, 1, 4, 4, 4), 3.0))
    assert (unit == -1).all()


def test_shrinking_does_not_alias():
    fine = torch.zeros(1, 1, 64, 64, 64)
    fine[:, :, ::2] = 1  # the finest stripes the cube can hold: half as large they must be grey, not striped
    assert torch.allclose(volumes.resize(fine, 32), torch.full((1, 1, 32, 32, 32), 0.5))


def test_a_side_of_nothing_is_refused():
    with pytest.raises(ValueError, match="size=0"):
        volumes.resize(torch.zeros(1, 1, 4, 4, 4), 0)


def test_labels_shrink_by_majority_and_stay_labels():
    maps = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
    maps[..., :4] = 3
    maps[..., 4:5] = 1
    small = volumes.resize_labels(maps, 2)
    assert small.dtype == torch.uint8 and small[0, 0, 0, 0].tolist() == [3, 0]
    assert set(volumes.resize_labels(maps, 16).unique().tolist()) <= {0, 1, 3}
    other = torch.full_like(maps, 7)  # of several maps each is resized as it is alone, whatever labels the others have
    both = volumes.resize_labels(torch.cat([maps, other]), 2)
    assert torch.equal(both[:1], small) and (both[1] == 7).all()
    assert volumes.resize_labels(maps[:0], 2).shape == (0, 1, 2, 2, 2)
