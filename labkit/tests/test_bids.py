from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import labkit
from labkit.data import bids


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("sub-03_ses-1_run-2_T2w.nii.gz", ("03", "ses-1_run-2", "T2w")),
        ("sub-03_space-SIGMA_desc-synthetic_boldref.nii", ("03", "", "boldref")),
        ("rat7.nii.gz", ("rat7", "", "")),
        ("rat_7_dseg.nii", ("rat_7", "", "dseg")),
        ("rat_7_left.nii", ("rat_7_left", "", "")),
        ("my.rat.nii.gz", ("my.rat", "", "")),
        ("Ratte 1 größer_T2w.NII.GZ", ("Ratte 1 größer", "", "T2w")),
        ("mask.nii.gz", ("mask", "", "mask")),
    ],
)
def test_names_are_taken_apart(name, parsed):
    got = bids.parse_name(Path(name))
    assert (got.subject, got.session, got.suffix) == parsed


@pytest.mark.parametrize("name", ["scan.mgz", "._rat.nii.gz", "notes.txt", "rat.nii.json"])
def test_other_files_are_not_scans(name):
    assert bids.parse_name(Path(name)) is None


def test_bids_scans_sessions_and_labels_are_found(tmp_path):
    touch(
        tmp_path,
        "sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz",
        "sub-01/ses-b/anat/sub-01_ses-b_T2w.nii",
        "sub-02/anat/sub-02_T2w.nii.gz",
        "sub-02/anat/sub-02_dseg.nii.gz",
        "derivatives/atlas/sub-01/ses-b/anat/sub-01_ses-b_space-T2w_dseg.nii.gz",
    )
    found, faults = bids.find_scans(tmp_path)
    assert faults == {}
    assert [(f.subject, f.session, f.labels and f.labels.name) for f in found] == [
        ("01", "ses-a", None),
        ("01", "ses-b", "sub-01_ses-b_space-T2w_dseg.nii.gz"),
        ("02", "", "sub-02_dseg.nii.gz"),
    ]


def test_labels_without_a_task_fit_a_scan_with_one(tmp_path):
    touch(tmp_path, "sub-1/func/sub-1_task-rest_boldref.nii.gz", "derivatives/sub-1/anat/sub-1_dseg.nii.gz")
    found, _ = bids.find_scans(tmp_path)
    assert found[0].labels.name == "sub-1_dseg.nii.gz"


def test_one_cohort_is_one_kind_of_scan(tmp_path):
    for subject in ("1", "2", "3"):
        touch(tmp_path, f"sub-{subject}/anat/sub-{subject}_T2w.nii.gz")
    touch(tmp_path, "sub-1/func/sub-1_task-rest_bold.nii.gz", "sub-1/anat/sub-1_mask.nii.gz")
    assert [f.suffix for f in bids.find_scans(tmp_path)[0]] == ["T2w"] * 3
    assert [f.suffix for f in bids.find_scans(tmp_path, "bold")[0]] == ["bold"]


def test_a_kind_the_study_knows_comes_before_field_maps_that_more_rats_have(tmp_path):
    touch(tmp_path, *(f"sub-{subject}/fmap/sub-{subject}_epi.nii.gz" for subject in "123"))
    touch(tmp_path, *(f"sub-{subject}/anat/sub-{subject}_T2w.nii.gz" for subject in "12"))
    assert [f.suffix for f in bids.find_scans(tmp_path)[0]] == ["T2w"] * 2
    assert [f.suffix for f in bids.find_scans(tmp_path, "EPI")[0]] == ["epi"] * 3


def test_phase_images_are_no_scans(tmp_path):
    touch(tmp_path, *(f"sub-1/func/sub-1_part-{part}_bold.nii.gz" for part in ("mag", "phase", "real", "imag")))
    assert [f.session for f in bids.find_scans(tmp_path)[0]] == ["part-mag"]


def test_endings_may_be_capitals(tmp_path):
    touch(tmp_path, "RatA.NII.GZ", "ratb.Nii", "c.NIFTI")
    assert [f.subject for f in bids.find_scans(tmp_path)[0]] == ["RatA", "ratb"]


def test_files_without_a_subject_belong_to_the_folder_they_are_in(tmp_path):
    touch(
        tmp_path, "sub-1/anat/T2w.nii.gz", "sub-1/anat/mask.nii.gz", "sub-2/anat/T2w.nii.gz", "sub-2/anat/dseg.nii.gz"
    )
    found, faults = bids.find_scans(tmp_path)
    assert [(f.subject, f.labels and f.labels.name) for f in found] == [
        ("1", None),
        ("2", "dseg.nii.gz"),
    ] and not faults


def test_links_to_folders_are_followed_even_in_a_circle(tmp_path):
    touch(tmp_path / "elsewhere", "sub-1_T2w.nii.gz")
    touch(tmp_path / "data", "sub-2/anat/sub-2_T2w.nii.gz")
    (tmp_path / "data" / "sub-1").mkdir()
    (tmp_path / "data" / "sub-1" / "anat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "sub-2" / "again").symlink_to(tmp_path / "data" / "sub-2")
    found, faults = bids.find_scans(tmp_path / "data")
    assert [f.subject for f in found] == ["1", "2"] and not faults


def test_half_written_files_and_other_derivatives_are_no_scans(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz", "sub-1/anat/.writing-x7/sub-1_run-1_T2w.nii.gz")
    touch(tmp_path, "derivatives/fmriprep/sub-1/anat/sub-1_run-2_T2w.nii.gz", "derivatives/sub-9/anat/sub-9_T2w.nii.gz")
    assert [(f.subject, f.session) for f in bids.find_scans(tmp_path)[0]] == [("1", "")]


def test_labels_named_after_a_scan_are_that_scans(tmp_path):
    touch(tmp_path, "r1_T2w.nii.gz", "r1_T2w_dseg.nii.gz", "r2_T2w.nii.gz", "r2_dseg.nii.gz", "r2_T1w_dseg.nii.gz")
    found, faults = bids.find_scans(tmp_path)
    assert [f.labels.name for f in found] == ["r1_T2w_dseg.nii.gz", "r2_dseg.nii.gz"] and not faults


def test_of_many_label_files_the_least_processed_is_taken(tmp_path):
    touch(tmp_path, "sub-1/anat/sub-1_T2w.nii.gz")
    for processing in ("", "desc-aseg_", "space-MNI152_", "space-MNI152_res-2_"):
        touch(tmp_path, f"derivatives/fmriprep/sub-1/anat/sub-1_{processing}dseg.nii.gz")
    found, faults = bids.find_scans(tmp_path)
    assert found[0].labels.name == "sub-1_dseg.nii.gz" and not faults


def test_two_kinds_of_one_rat_in_a_flat_folder_are_told_how_to_choose(tmp_path):
    touch(tmp_path, "r1_T1w.nii.gz", "r1_T2w.nii.gz")
    assert next(iter(bids.find_scans(tmp_path)[1].values())).endswith("suffix='T2w' would take one kind")
    assert [f.suffix for f in bids.find_scans(tmp_path, "T2w")[0]] == ["T2w"]


def test_a_subject_that_stands_twice_is_a_fault(tmp_path):
    touch(tmp_path, "rat1.nii", "rat1.nii.gz", "rat2.nii")
    found, faults = bids.find_scans(tmp_path)
    assert [f.subject for f in found] == ["rat1", "rat2"]
    assert {p.name: f for p, f in faults.items()} == {"rat1.nii.gz": "duplicate: subject rat1 is already rat1.nii"}


def test_two_label_files_for_one_scan_are_a_fault(tmp_path):
    touch(
        tmp_path,
        "sub-1/anat/sub-1_T2w.nii.gz",
        "derivatives/a/sub-1/anat/sub-1_dseg.nii.gz",
        "derivatives/b/sub-1/anat/sub-1_dseg.nii.gz",
    )
    _, faults = bids.find_scans(tmp_path)
    assert "2 label files fit it" in next(iter(faults.values()))


def test_written_paths_are_read_back_as_the_same_subject():
    path = bids.scan_path("0007", suffix="boldref")
    assert path == Path("sub-0007/func/sub-0007_task-rest_boldref.nii.gz")
    assert bids.parse_name(path).subject == "0007"
    assert bids.scan_path("1", "ses-2_run-1", "T2w") == Path("sub-1/ses-2/anat/sub-1_ses-2_run-1_T2w.nii.gz")


def test_tables_say_na_for_what_is_missing(tmp_path):
    bids.write_table(tmp_path / "t.tsv", [{"a": 1, "b": None}, {"a": 0.123456789}])
    assert (tmp_path / "t.tsv").read_text() == "a\tb\n1\tn/a\n0.123457\tn/a\n"


def test_of_several_label_maps_the_one_that_is_asked_for_by_its_desc_is_taken(tmp_path):
    touch(tmp_path, *(f"sub-1/anat/sub-1_{kind}.nii.gz" for kind in ("T2w", "dseg", "desc-structures_dseg")))
    touch(tmp_path, "derivatives/sub-1/anat/sub-1_space-T2w_desc-hand_dseg.nii.gz", "sub-2/anat/sub-2_T2w.nii.gz")

    def taken(labels):
        return [found.labels and found.labels.name for found in bids.find_scans(tmp_path, labels=labels)[0]]

    assert taken(None) == ["sub-1_dseg.nii.gz", None]
    assert taken("structures") == ["sub-1_desc-structures_dseg.nii.gz", None]
    assert taken("hand") == ["sub-1_space-T2w_desc-hand_dseg.nii.gz", None]
    assert taken("struct") == [None, None]


def test_flat_files_have_label_maps_by_desc_too(tmp_path):
    touch(tmp_path, "rat1_T2w.nii", "rat1_T2w_dseg.nii", "rat1_T2w_desc-hand_dseg.nii")
    assert bids.find_scans(tmp_path, labels="hand")[0][0].labels.name == "rat1_T2w_desc-hand_dseg.nii"


def test_a_table_cannot_be_broken_by_what_stands_in_it_nor_make_a_spreadsheet_compute(tmp_path):
    rows = [
        {"name": "a\tb\nc", "n": -3},
        {"name": "=cmd()", "n": 0.5},
        {"name": "@x", "n": "-3"},
        {"name": None, "n": 1},
    ]
    bids.write_table(tmp_path / "a.tsv", rows)
    assert (tmp_path / "a.tsv").read_text().splitlines() == [
        "name\tn",
        "a b c\t-3",
        "'=cmd()\t0.5",
        "'@x\t-3",
        "n/a\t1",
    ]


def test_a_scan_whose_name_has_a_newline_is_an_animal_as_any_other(tmp_path):
    rats = labkit.open_cohort("phantom", n=2)
    for rat, name in zip(rats, ("a\nb", "=c"), strict=True):
        nib.save(rat.nifti(), tmp_path / f"{name}.nii.gz")
    cohort = labkit.open_cohort(tmp_path)
    assert cohort.subjects == ("=c", "a\nb")
    assert len(labkit.open_cohort(cohort.write(tmp_path / "again"))) == 2
    assert (tmp_path / "again" / "participants.tsv").read_text().count("\n") == 3


@pytest.mark.parametrize("part", ["../x", "a/b", "", "a\\b", "a\nb"])
def test_no_part_of_a_name_leads_elsewhere(tmp_path, part):
    for place in (
        {"subject": part or ".."},
        {"subject": "1", "suffix": part or "."},
        {"subject": "1", "session": f"run-1_{part or '/'}"},
    ):
        with pytest.raises(ValueError, match="cannot be a part of a file's name"):
            bids.scan_path(**place)
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4))
    with pytest.raises(ValueError, match="leads out of"):
        bids.save_scan(tmp_path / "in", Path("..") / "out.nii.gz", image, None)
    assert not list(tmp_path.rglob("*.nii.gz"))
