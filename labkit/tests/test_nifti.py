import gzip

import nibabel as nib
import numpy as np
import pytest

from labkit.data import nifti
from labkit.data.grids import ScanFaultError, grid_affine


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
    (tmp_path / "zipped.nii").write_bytes(whole.read_bytes())
    (tmp_path / "annexed.nii.gz").symlink_to(tmp_path / "annex" / "key")
    (tmp_path / "folder.nii").mkdir()
    for name, fault in {
        "half.nii.gz": "truncated or corrupt",
        "start.nii.gz": "truncated or corrupt|damaged",
        "empty.nii": "empty file",
        "text.nii": "not a NIfTI",
        "text.nii.gz": "not a NIfTI",
        "plain.nii.gz": "not gzip, though named .gz",
        "zipped.nii": "gzip, but not named so: rename it to .nii.gz",
        "annexed.nii.gz": "a link to .*key, which is not there",
        "folder.nii": "cannot be read: Is a directory",
    }.items():
        with pytest.raises(ScanFaultError, match=fault):
            nifti.read_array(tmp_path / name)


def test_a_scaled_series_is_averaged_in_its_own_unit(tmp_path):
    series = np.random.default_rng(0).integers(0, 900, (4, 4, 4, 5)).astype(np.int16)
    image = nib.Nifti1Image(series, np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "a.nii.gz")
    array, header = nifti.read_array(tmp_path / "a.nii.gz")
    values = nib.load(tmp_path / "a.nii.gz").get_fdata()
    assert array == pytest.approx(values.mean(-1), rel=1e-6) and header.get_slope_inter() == (0.5, -10)


def test_values_too_large_for_single_precision_are_a_fault(tmp_path):
    values = noise().astype(np.float64)
    values[3, 3, 3] = 1e200
    with pytest.raises(ScanFaultError, match="beyond the range"):
        nifti.read_array(write(tmp_path / "a.nii", values))


def test_a_header_in_metres_is_not_called_singular(tmp_path):
    array, header = nifti.read_array(write(tmp_path / "a.nii", noise(), np.diag([3e-4, 3e-4, 5e-4, 1])))
    assert header.get_zooms() == pytest.approx((3e-4, 3e-4, 5e-4)) and array.shape == (8, 9, 7)


def test_a_singular_affine_is_refused(tmp_path):
    image = nib.Nifti1Image(noise(), None)
    image.header["sform_code"] = 1
    image.header["srow_x"] = image.header["srow_y"] = [1, 0, 0, 0]
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(ScanFaultError, match="singular affine"):
        nifti.read_array(tmp_path / "a.nii")


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
