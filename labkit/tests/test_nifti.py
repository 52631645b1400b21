import gzip
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from labkit.data import nifti, reading
from labkit.data.grids import ScanFaultError, grid_affine


def write(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, grid_affine(array.shape[:3]) if affine is None else affine), path)
    return path


def noise(shape=(8, 9, 7), seed=0):
    return np.random.default_rng(seed).uniform(1, 100, shape).astype(np.float32)


def test_a_series_is_averaged_over_time(tmp_path):
    series = noise((4, 4, 4, 5))
    array, _ = reading.read_array(write(tmp_path / "a.nii.gz", series))
    assert np.allclose(array, series.mean(-1))


def test_complex_values_become_their_magnitude(tmp_path):
    values = np.full((4, 4, 4), 3 + 4j, np.complex64)
    values[0] = 0
    array, _ = reading.read_array(write(tmp_path / "a.nii", values))
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
        reading.read_array(write(tmp_path / "a.nii.gz", array, np.eye(4)))


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
            reading.read_array(tmp_path / name)


def test_a_scaled_series_is_averaged_in_its_own_unit(tmp_path):
    series = np.random.default_rng(0).integers(0, 900, (4, 4, 4, 5)).astype(np.int16)
    image = nib.Nifti1Image(series, np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "a.nii.gz")
    array, header = reading.read_array(tmp_path / "a.nii.gz")
    values = nib.load(tmp_path / "a.nii.gz").get_fdata()
    assert array == pytest.approx(values.mean(-1), rel=1e-6) and header.get_slope_inter() == (0.5, -10)


def test_values_too_large_for_single_precision_are_a_fault(tmp_path):
    values = noise().astype(np.float64)
    values[3, 3, 3] = 1e200
    with pytest.raises(ScanFaultError, match="beyond the range"):
        reading.read_array(write(tmp_path / "a.nii", values))


def test_a_header_in_metres_is_not_called_singular(tmp_path):
    array, header = reading.read_array(write(tmp_path / "a.nii", noise(), np.diag([3e-4, 3e-4, 5e-4, 1])))
    assert header.get_zooms() == pytest.approx((3e-4, 3e-4, 5e-4)) and array.shape == (8, 9, 7)


def test_a_singular_affine_is_refused(tmp_path):
    image = nib.Nifti1Image(noise(), None)
    image.header["sform_code"] = 1
    image.header["srow_x"] = image.header["srow_y"] = [1, 0, 0, 0]
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(ScanFaultError, match="singular affine"):
        reading.read_array(tmp_path / "a.nii")


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


def flipped(path, to, place, bit=1):
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    to.write_bytes(data)
    return to


@pytest.fixture
def packed(tmp_path):
    rng = np.random.default_rng(0)
    nib.save(
        nib.Nifti1Image(rng.integers(0, 999, (9, 8, 7)).astype(np.int16), np.diag([0.4, 0.4, 0.4, 1])),
        tmp_path / "a.nii.gz",
    )
    return tmp_path / "a.nii.gz"


def test_no_flipped_bit_of_a_packed_file_changes_a_voxel_unseen(packed, tmp_path):
    right, unseen = reading.read_array(packed)[0], 0
    for place in range(10, packed.stat().st_size, 7):
        try:
            array, _ = reading.read_array(flipped(packed, tmp_path / "b.nii.gz", place))
        except ScanFaultError:
            continue
        unseen += not np.array_equal(array, right)
    assert unseen == 0
    end = packed.stat().st_size
    with pytest.raises(ScanFaultError, match="corrupt gzip: CRC check failed"):
        reading.read_array(flipped(packed, tmp_path / "b.nii.gz", end - 8))


def with_field(path, to, name, value):
    image = nib.load(path)
    raw, header = bytearray(gzip.decompress(path.read_bytes())), image.header.copy()
    header["vox_offset"] = 352
    header[name] = value
    raw[:348] = header.binaryblock
    to.write_bytes(gzip.compress(raw) if to.suffix == ".gz" else raw)
    return to


@pytest.mark.parametrize("value", [np.inf, 1e38, 100, -1, 353.5])
def test_voxels_that_begin_nowhere_are_that_files_fault(packed, tmp_path, value):
    with pytest.raises(ScanFaultError, match=r"voxels are said to begin at byte|header is damaged|truncated"):
        reading.read_array(with_field(packed, tmp_path / "b.nii", "vox_offset", value))


def test_an_offset_of_0_means_the_end_of_the_header_where_the_file_is_that_long(packed, tmp_path):
    right = reading.read_array(packed)[0]
    for name in ("b.nii", "b.nii.gz"):
        path = with_field(packed, tmp_path / name, "vox_offset", 0)
        assert np.array_equal(reading.read_array(path)[0], right)
    path = tmp_path / "b.nii"
    path.write_bytes(path.read_bytes() + b"\1\2")
    with pytest.raises(ScanFaultError, match="begin at byte 0"):
        reading.read_array(path)


def test_a_header_that_claims_more_than_its_file_is_refused_before_memory_is_asked_for(packed, tmp_path):
    for name in ("b.nii", "b.nii.gz"):
        path = with_field(packed, tmp_path / name, "dim", [3, 30000, 30000, 30000, 1, 1, 1, 1])
        tracemalloc.start()
        with pytest.raises(ScanFaultError, match=r"shape \(30000, 30000, 30000\) takes 54000000000352 bytes"):
            reading.read_array(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


def test_a_bomb_is_not_unpacked_beyond_what_its_header_tells(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((8, 8, 8))
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = tmp_path / "b.nii.gz"
    with gzip.open(path, "wb") as stream:
        stream.write(header.binaryblock + bytes(4))
        for _ in range(64):
            stream.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(ScanFaultError, match="more bytes than its header tells"):
        reading.read_array(path, constant=True)
    assert tracemalloc.get_traced_memory()[1] < 60 << 20
    tracemalloc.stop()


def test_a_header_that_is_shorter_than_its_file_would_shear_the_head_and_is_refused(packed, tmp_path):
    for name in ("b.nii", "b.nii.gz"):
        path = with_field(packed, tmp_path / name, "dim", [3, 8, 8, 7, 1, 1, 1, 1])
        with pytest.raises(ScanFaultError, match="more bytes than its header tells: shape .8, 8, 7."):
            reading.read_array(path)
    path = with_field(packed, tmp_path / "b.nii", "vox_offset", 352)
    path.write_bytes(path.read_bytes() + bytes(160))  # some writers fill their last block with zeros
    assert np.array_equal(reading.read_array(path)[0], reading.read_array(packed)[0])


def test_half_of_a_pair_says_so(tmp_path):
    nib.save(nib.Nifti1Pair(np.ones((4, 4, 4), np.int16), np.eye(4)), tmp_path / "a.hdr")
    (tmp_path / "a.hdr").rename(tmp_path / "a.nii")
    with pytest.raises(ScanFaultError, match="half of a pair"):
        reading.read_array(tmp_path / "a.nii")
