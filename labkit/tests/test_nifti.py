import gzip

import nibabel as nib
import numpy as np
import pytest

from labkit import nifti
from labkit.grids import STUDY_SHAPE, STUDY_ZOOMS, grid_affine
from labkit.nifti import ScanFaultError


def write(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, grid_affine(array.shape[:3]) if affine is None else affine), path)
    return path


def noise(shape=(8, 9, 7), seed=0):
    return np.random.default_rng(seed).uniform(1, 100, shape).astype(np.float32)


def test_a_series_is_averaged_over_time(tmp_path):
    series = noise((4, 4, 4, 5))
    array, _ = nifti.read_array(write(tmp_path / "a.nii.gz", series))
    assert np.allclose(array, series.mean(-1))


def test_complex_values_become_their_magnitude(tmp_path):
    values = np.full((4, 4, 4), 3 + 4j, np.complex64)
    values[0] = 0
    array, _ = nifti.read_array(write(tmp_path / "a.nii", values))
    assert array[0].max() == 0 and np.allclose(array[1:], 5)


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.full((4, 4, 4), np.nan, np.float32), "64 of 64 voxels are NaN or infinite"),
        (np.full((4, 4, 4), 7, np.float32), "constant image: every voxel is 7"),
        (np.ones((4, 4), np.float32), "2-D"),
        (np.ones((4, 4, 1), np.float32), "2-D"),
        (np.ones((4, 4, 4, 2, 2), np.float32), "5-D"),
    ],
)
def test_unusable_voxels_are_named(tmp_path, array, fault):
    with pytest.raises(ScanFaultError, match=fault):
        nifti.read_array(write(tmp_path / "a.nii.gz", array, np.eye(4)))


def test_damaged_files_are_told_from_each_other(tmp_path):
    whole = write(tmp_path / "whole.nii.gz", noise((20, 20, 20)))
    (tmp_path / "half.nii.gz").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "start.nii.gz").write_bytes(whole.read_bytes()[:40])
    (tmp_path / "empty.nii").touch()
    (tmp_path / "text.nii").write_text("no scan, a note about one" * 40)
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"zipped note" * 40))
    (tmp_path / "plain.nii.gz").write_bytes(b"not even gzip" * 40)
    for name, fault in {
        "half.nii.gz": "truncated or corrupt",
        "start.nii.gz": "truncated or corrupt|damaged",
        "empty.nii": "empty file",
        "text.nii": "not a NIfTI",
        "text.nii.gz": "not a NIfTI",
        "plain.nii.gz": "corrupt gzip|not a NIfTI",
    }.items():
        with pytest.raises(ScanFaultError, match=fault):
            nifti.read_array(tmp_path / name)


def test_a_singular_affine_is_refused(tmp_path):
    image = nib.Nifti1Image(noise(), None)
    image.header["sform_code"] = 1
    image.header["srow_x"] = image.header["srow_y"] = [1, 0, 0, 0]
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(ScanFaultError, match="singular affine"):
        nifti.read_array(tmp_path / "a.nii")


def test_reorienting_keeps_every_voxel_where_it_is_in_the_world():
    array = noise()
    affine = np.array([[0, -0.5, 0, 3], [0, 0, 0.4, -2], [-0.3, 0, 0, 1], [0, 0, 0, 1.0]])  # axes I, L, A
    turned, turned_affine = nifti.reorient(array, affine)
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
    out = nifti.resample(array, affine, (40, 40, 40), target)
    weights = out / out.sum()
    index = np.array([(weights * axis).sum() for axis in np.meshgrid(*[np.arange(40)] * 3, indexing="ij")])
    assert np.allclose(nib.affines.apply_affine(target, index), centre, atol=0.02)
    voxel_ratio = 0.4**3 / (0.2 * 0.25 * 0.6)
    assert out.sum() * voxel_ratio == pytest.approx(array.sum(), rel=0.01)


def test_resampling_to_larger_voxels_does_not_alias():
    stripes = np.zeros((60, 20, 20), np.float32)
    stripes[::2] = 1
    affine = grid_affine(stripes.shape, (0.2, 0.5, 0.5))
    out = nifti.resample(stripes, affine, (30, 20, 20), grid_affine((30, 20, 20), (0.41, 0.5, 0.5)))
    assert np.abs(out[5:25] - 0.5).max() < 0.12  # without the blur the stripes would beat between 0 and 1


def test_resampled_labels_are_only_labels_of_the_scan():
    radius = np.linalg.norm(np.indices((30, 30, 30)) - 14.2, axis=0)
    labels = np.where(radius < 5, 7, np.where(radius < 11, 2, 0)).astype(np.uint8)
    affine = grid_affine(labels.shape, (0.3,) * 3)
    out = nifti.resample(labels, affine, (20, 20, 20), grid_affine((20, 20, 20), (0.45,) * 3), labels=True)
    assert out.dtype == np.uint8 and set(np.unique(out)) == {0, 2, 7}
    for label in (2, 7):
        assert (out == label).sum() * 0.45**3 == pytest.approx((labels == label).sum() * 0.3**3, rel=0.05)


def test_a_head_of_twenty_centimetres_is_reported():
    affine = grid_affine(STUDY_SHAPE, tuple(10 * zoom for zoom in STUDY_ZOOMS))
    array = blob(STUDY_SHAPE, affine, [0, 0, 0], 60)
    with pytest.raises(ScanFaultError, match=r"implausible voxel size \(3.75, 3.75, 5.0\).*voxel_mm"):
        nifti.study_grid_for(array, affine)


def test_the_field_of_view_is_centred_on_the_head_but_stays_inside_the_scan():
    affine = grid_affine((160, 60, 120), (0.25, 0.5, 0.25))  # 40 x 30 x 30 mm
    array = blob((160, 60, 120), affine, [5, -1, 6], 3)  # right, anterior, superior
    centre = nib.affines.apply_affine(nifti.study_grid_for(array, affine), (np.array(STUDY_SHAPE) - 1) / 2)
    assert centre == pytest.approx([5, -1, 3], abs=0.3)  # up, the scan ends 15 mm from its middle: 15 - 24/2 = 3


def test_a_field_of_view_smaller_than_the_study_is_kept_whole():
    affine = grid_affine((60, 60, 30), (0.3, 0.3, 0.6), (2.0, 3.0, 4.0))  # 18 x 18 x 18 mm
    centre = nib.affines.apply_affine(
        nifti.study_grid_for(blob((60, 60, 30), affine, [6, 6, 6], 3), affine), (np.array(STUDY_SHAPE) - 1) / 2
    )
    assert centre == pytest.approx([2, 3, 4], abs=1e-6)


def test_saving_twice_gives_the_same_bytes(tmp_path):
    image = nib.Nifti1Image(noise(), np.eye(4))
    nifti.save(image, tmp_path / "a.nii.gz")
    nifti.save(image, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    nifti.save(nib.Nifti1Image(noise(), np.eye(4)), tmp_path / "a.nii.gz")
    before = (tmp_path / "a.nii.gz").read_bytes()

    def full_disk(image, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        nifti.save(nib.Nifti1Image(noise(seed=1), np.eye(4)), tmp_path / "a.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
