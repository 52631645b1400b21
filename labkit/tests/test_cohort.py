import nibabel as nib
import numpy as np
import pytest
import torch

from labkit import open_cohort
from labkit.data import bids
from labkit.data.cohort import scan_digest
from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS, grid_affine


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """Four rats, two of them scanned twice, labelled, int16."""
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "data"))
    rng = np.random.default_rng(0)
    affine = grid_affine(STUDY_SHAPE, STUDY_ZOOMS, (0.1, -3.7, 1.8))
    for name in ("1_ses-a", "1_ses-b", "2", "3_ses-a", "3_ses-b", "4"):
        folder = tmp_path / "rats" / f"sub-{name[0]}" / "anat"
        folder.mkdir(parents=True, exist_ok=True)
        image = rng.integers(5, 3000, STUDY_SHAPE).astype(np.int16)
        nib.save(nib.Nifti1Image(image, affine), folder / f"sub-{name}_T2w.nii.gz")
        nib.save(nib.Nifti1Image((image // 1000).astype(np.uint8), affine), folder / f"sub-{name}_dseg.nii.gz")
    return open_cohort(tmp_path / "rats")


def test_a_cohort_is_a_sequence_of_scans(cohort):
    assert len(cohort) == 6 and [scan.subject for scan in cohort] == list("112334")
    assert cohort[-1].subject == "4" and cohort[1].session == "ses-b"
    assert cohort.shape == STUDY_SHAPE and cohort[0].zooms == STUDY_ZOOMS and cohort.labelled
    for index in (6, -7):
        with pytest.raises(IndexError, match=f"no scan {index} in rats: it has 6"):
            cohort[index]


def test_a_slice_of_a_cohort_is_a_cohort(cohort):
    assert cohort[1:3].fingerprint == cohort.subset([1, 2]).fingerprint
    assert cohort[::-2].subjects == ("4", "3", "1") and len(cohort[9:]) == 0


def test_no_animal_is_on_both_sides_of_a_split(cohort):
    sides = [cohort.split(2, seed) for seed in range(6)]
    for train, held_out in sides:
        assert len(set(train.subjects)) == 2 and not set(train.subjects) & set(held_out.subjects)
        assert len(train) + len(held_out) == 6
    assert len({train.fingerprint for train, _ in sides}) > 1
    assert cohort.split(2, 3)[0].fingerprint == sides[3][0].fingerprint


@pytest.mark.parametrize("n_train", [0, 4, 9])
def test_a_split_with_an_empty_side_is_refused(cohort, n_train):
    with pytest.raises(ValueError, match="has 4 animals, choose 1 to 3"):
        cohort.split(n_train)


def test_the_fingerprint_follows_content_and_order(cohort):
    assert cohort.subset(range(6)).fingerprint == cohort.fingerprint
    assert cohort.subset([1, 0]).fingerprint != cohort.subset([0, 1]).fingerprint
    assert cohort.subset([4, 1])[0].session == cohort[4].session
    assert np.array_equal(cohort.subset([4, 1])[0].image, cohort[4].image)


def test_a_content_hash_survives_the_precision_of_a_nifti_header():
    affine = grid_affine(centre_mm=(0.0, 0.0, 0.0))
    affine[0, 3] = 2.0015  # 2.002 to three places, but 2.001 in single precision
    image = np.zeros((4, 4, 4), np.float32)
    stored = affine.astype(np.float32).astype(np.float64)
    assert np.round(affine[0, 3], 3) != np.round(stored[0, 3], 3)
    assert scan_digest(image, None, affine) == scan_digest(image, None, stored)


def test_a_scan_tells_its_own_content_hash(cohort):
    assert all(scan.digest == scan_digest(scan.image, scan.labels, scan.affine) for scan in cohort)


def test_an_empty_or_outside_subset_behaves(cohort):
    assert len(cohort.subset([])) == 0
    with pytest.raises(IndexError, match="no scan 6"):
        cohort.subset([6])


@pytest.mark.parametrize("mask", [[True, False] * 3, np.array([True, False] * 3)])
def test_a_mask_is_not_taken_for_positions(cohort, mask):
    with pytest.raises(TypeError, match="numpy.flatnonzero"):
        cohort.subset(mask)
    with pytest.raises(TypeError, match="float"):
        cohort.subset([1.7])


@pytest.mark.parametrize("size", [16, 32, 64])
def test_volumes_are_cubes_that_fill_the_range(cohort, size):
    volumes = cohort.volumes(size)
    assert volumes.shape == (6, 1, size, size, size) and volumes.dtype == torch.float32
    assert volumes.flatten(1).amin(1).eq(-1).all() and volumes.flatten(1).amax(1).eq(1).all()
    assert (volumes[..., : size * 12 // 64] == -1).all()


def test_label_maps_lie_on_the_volumes(cohort):
    maps, volumes = cohort.label_maps(), cohort.volumes()
    assert maps.dtype == torch.uint8 and maps.shape == volumes.shape
    means = [volumes[maps == label].mean() for label in range(3)]
    assert means[0] < means[1] < means[2]


def test_missing_labels_are_named(cohort):
    for path in cohort.folder.glob("sub-2/anat/*_dseg.nii.gz"):
        path.unlink()
    again = open_cohort(cohort.folder)
    assert not again.labelled and again[2].labels is None and again[3].labels is not None
    with pytest.raises(ValueError, match=r"1 of 6 scans of rats have no labels \(2\)"):
        again.label_maps()


def test_writing_and_opening_gives_the_same_cohort(cohort, tmp_path):
    cohort.write(tmp_path / "out" / "copy")
    again = open_cohort(tmp_path / "out" / "copy")
    assert again.fingerprint == cohort.fingerprint and again.subjects == cohort.subjects
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["copy"]


def test_what_a_folder_says_of_its_animals_is_written_with_them(cohort, tmp_path):
    said = {"License": "CC0", "ReferencesAndLinks": ["Lab et al. 2020"], "Simulated": True}
    bids.write_description(cohort.folder, "Rats of a lab", **said)
    rows = [{"participant_id": name, "sex": "F", "group": group} for name, group in (("sub-1", "A"), ("3", "B"))]
    bids.write_table(cohort.folder / "participants.tsv", rows)  # with and without "sub-"
    bids.write_label_names(cohort.folder, {1: "rim", 2: "core"})
    again = open_cohort(open_cohort(cohort.folder).write(tmp_path / "copy"))
    assert again.about == {"Name": "rats", **said, "participants": {"sex": {"F": 2}, "group": {"A": 1, "B": 1}}}
    assert again.groups == {"1": "A", "3": "B"} and again.label_names == {1: "rim", 2: "core"}
    assert again[:2].about["participants"]["group"] == {"A": 1}


def test_odd_names_are_written_under_labels_of_the_same_order(cohort, tmp_path):
    (tmp_path / "odd").mkdir()
    for scan, name in zip(cohort, ["ä 1", "a-2", "a2", "x.y", "B", "ß"], strict=True):
        nib.save(scan.nifti(), tmp_path / "odd" / f"{name}.nii.gz")
    odd = open_cohort(tmp_path / "odd")
    again = open_cohort(odd.write(tmp_path / "copy"))
    assert again.fingerprint == odd.fingerprint and all(subject.isalnum() for subject in again.subjects)
    assert (tmp_path / "copy" / "participants.tsv").read_text().count("ä 1") == 1


def test_writing_never_overwrites(cohort, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="choose a new folder"):
        cohort.write(tmp_path / "there")


def test_a_volume_goes_back_to_exactly_the_file_it_came_from(cohort):
    for index, volume in enumerate(cohort.volumes()):
        original = nib.load(cohort[index].origin.path)
        back = cohort[index].restore(volume)
        assert np.array_equal(np.asarray(back.dataobj), np.asarray(original.dataobj))
        assert np.array_equal(back.affine, original.affine) and back.get_data_dtype() == original.get_data_dtype()
        assert back.header.get_zooms() == original.header.get_zooms()


def test_scaled_integers_come_back_in_their_own_unit(cohort, tmp_path):
    (tmp_path / "scaled").mkdir()
    image = nib.Nifti1Image(cohort[0].image * 0.01 - 3, cohort[0].affine)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "scaled" / "a.nii.gz")  # nibabel chooses slope and intercept
    scaled = open_cohort(tmp_path / "scaled")
    back = scaled[0].restore(scaled.volumes()[0])
    assert back.get_data_dtype() == np.float32
    assert np.abs(back.get_fdata() - nib.load(tmp_path / "scaled" / "a.nii.gz").get_fdata()).max() < 1e-4


def test_what_is_not_a_cube_is_not_restored(cohort):
    with pytest.raises(ValueError, match=r"\(S, S, S\)"):
        cohort[0].restore(torch.zeros(64, 64, 40))
