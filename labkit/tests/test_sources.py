import json
import shutil
import time
import warnings
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from labkit import CohortError, open_cohort
from labkit.data import folders
from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS, grid_affine
from labkit.evidence import selection
from labkit.evidence.segmentation import experiment
from labkit.evidence.segmentation.arms import ARMS


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "data"))


def rat(seed, shape=STUDY_SHAPE):
    """A noisy ellipsoid in a dark field: enough of a head for reading."""
    rng = np.random.default_rng(seed)
    index = np.indices(shape) - np.array(shape).reshape(3, 1, 1, 1) / 2
    radius = np.sqrt(((index / (np.array(shape).reshape(3, 1, 1, 1) * 0.35)) ** 2).sum(0))
    return (np.where(radius < 1, 900, 20) + rng.integers(0, 60, shape)).astype(np.int16)


def put(folder, name, array=None, affine=None, seed=0, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    array = rat(seed) if array is None else array
    affine = grid_affine(array.shape[:3], STUDY_ZOOMS) if affine is None else affine
    nib.save(nib.Nifti1Image(array, affine), folder / name)
    if labels is not None:
        stem = name.split(".nii")[0]
        nib.save(nib.Nifti1Image(labels, affine), folder / f"{stem}_dseg.nii.gz")


def test_ten_differently_broken_files_give_one_error_that_names_all_ten(tmp_path):
    folder = tmp_path / "scans"
    put(folder, "good.nii.gz", seed=1)
    put(folder, "truncated.nii.gz", seed=2)
    whole = (folder / "truncated.nii.gz").read_bytes()
    (folder / "truncated.nii.gz").write_bytes(whole[: len(whole) // 3])
    (folder / "zero.nii.gz").touch()
    (folder / "text.nii").write_text("not a scan " * 100)
    put(folder, "nan.nii", np.where(rat(3) > 940, np.nan, rat(3)).astype(np.float32))
    put(folder, "inf.nii", np.where(rat(4) > 940, np.inf, rat(4)).astype(np.float32))
    put(folder, "constant.nii", np.full(STUDY_SHAPE, 5, np.int16))
    put(folder, "flat.nii", rat(5)[:, :, 20], np.eye(4))
    singular = nib.Nifti1Image(rat(6), None)
    singular.header["sform_code"], singular.header["srow_x"], singular.header["srow_y"] = 1, [1, 0, 0, 0], [1, 0, 0, 0]
    nib.save(singular, folder / "singular.nii")
    put(folder, "labelled.nii.gz", seed=7, labels=np.ones((8, 8, 8), np.uint8))
    put(folder, "twice.nii.gz", seed=8)
    put(folder, "twice.nii", seed=9)
    with pytest.raises(CohortError) as caught:
        open_cohort(folder)
    message = str(caught.value)
    assert message.startswith("10 unusable files in ") and len(caught.value.faults) == 10
    for name, fault in {
        "truncated.nii.gz": "truncated or corrupt",
        "zero.nii.gz": "empty file",
        "text.nii": "not a NIfTI",
        "nan.nii": "NaN or infinite",
        "inf.nii": "NaN or infinite",
        "constant.nii": "constant image",
        "flat.nii": "2-D",
        "singular.nii": "singular affine",
        "labelled.nii.gz": "label shape (8, 8, 8) differs",
        "twice.nii.gz": "duplicate",
    }.items():
        line = next(line for line in message.splitlines() if f"{name}:" in line)
        assert fault in line
    assert "good.nii.gz" not in message


def test_skip_bad_goes_on_with_the_rest_and_says_so_every_time(tmp_path):
    folder = tmp_path / "scans"
    put(folder, "a.nii.gz", seed=1)
    put(folder, "b.nii.gz", np.full(STUDY_SHAPE, 5, np.int16))
    put(folder, "c.nii.gz", seed=2)
    for _ in range(2):  # read, then from the cache
        with pytest.warns(UserWarning, match=r"left out 1 unusable files[\s\S]*b.nii.gz: constant image"):
            cohort = open_cohort(folder, skip_bad=True)
        assert cohort.subjects == ("a", "c") and list(cohort.skipped) == [str(folder / "b.nii.gz")]
    put(folder, "c_T2w.nii.gz", seed=3)
    with pytest.warns(UserWarning, match=r"left out 2 unusable files[\s\S]*c_T2w.nii.gz: duplicate"):
        assert len(open_cohort(folder, skip_bad=True)) == 2


def test_nothing_usable_is_an_error_even_when_skipping(tmp_path):
    put(tmp_path / "scans", "b.nii.gz", np.full(STUDY_SHAPE, 5, np.int16))
    with pytest.raises(CohortError, match="1 unusable file in"):
        open_cohort(tmp_path / "scans", skip_bad=True)


def test_the_same_animal_under_two_names_is_refused(tmp_path):
    put(tmp_path / "scans", "a.nii.gz", seed=1)
    put(tmp_path / "scans", "b.nii.gz", seed=1)
    with pytest.raises(CohortError, match="b.nii.gz: duplicate: the same voxels as a.nii.gz"):
        open_cohort(tmp_path / "scans")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("sigmma", {}, "there is no folder .*sigmma; did you mean 'sigma'"),
        ("/no/such/place", {}, "Allowed: 'phantom', 'sigma', 'mice', or a folder"),
        (".", {"grid": "mni"}, "allowed: 'study', 'native'"),
        (__file__, {}, "it is a file, name its folder"),
        (".", {"n": 0}, "at least 1"),
        (".", {"n": True}, "at least 1"),
        (".", {"n": "2"}, "at least 1"),
        (".", {"seed": -1}, "at least 0"),
        (".", {"seed": None}, "at least 0"),
        (".", {"axes": "RRS"}, "three letters"),
        (".", {"axes": ("R", "S", "A")}, "three letters"),
        (".", {"voxel_mm": (0.1, 0.1)}, "three voxel sizes"),
        (".", {"voxel_mm": (0.1, 0.1, np.nan)}, "three voxel sizes"),
        (".", {"voxel_mm": 0.1}, "three voxel sizes"),
        (".", {"departures": "cut"}, "are of simulated rats"),
        ("phantom", {"departures": ["cut", "bulb"]}, "did you mean 'bulbs'"),
    ],
)
def test_wrong_arguments_stop_with_what_is_allowed(source, options, message):
    with pytest.raises(CohortError, match=message):
        open_cohort(source, **options)


def test_numbers_may_be_numpys(tmp_path):
    put(tmp_path / "scans", "a.nii.gz")
    cohort = open_cohort(tmp_path / "scans", n=np.int64(1), seed=np.int64(2), voxel_mm=np.float32(STUDY_ZOOMS))
    assert len(cohort) == 1 and cohort[0].zooms == STUDY_ZOOMS


def test_a_scan_two_label_files_fit_is_left_out_by_skip_bad(tmp_path):
    put(tmp_path / "scans", "a.nii.gz", seed=1)
    put(tmp_path / "scans", "b.nii.gz", seed=2)
    for name in ("one", "two"):
        put(tmp_path / "scans" / "derivatives" / name, "a_dseg.nii.gz", rat(1))
    with pytest.warns(UserWarning, match="a.nii.gz: 2 label files fit it"):
        assert open_cohort(tmp_path / "scans", skip_bad=True).subjects == ("b",)


def test_a_relative_folder_is_found_again_from_elsewhere(tmp_path, monkeypatch):
    put(tmp_path / "scans", "a.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert open_cohort("scans")[0].origin.path == str(tmp_path / "scans" / "a.nii.gz")


def test_a_header_without_orientation_is_warned_of_until_axes_are_given(tmp_path):
    put(tmp_path / "scans", "a.nii.gz")
    image = nib.Nifti1Image(rat(1), None)
    image.header.set_zooms(STUDY_ZOOMS)
    nib.save(image, tmp_path / "scans" / "b.nii.gz")
    for _ in range(2):  # read, then from the cache
        with pytest.warns(UserWarning, match=r"1 of 2 scans .* e\.g\. b\.nii\.gz: taken for LAS"):
            open_cohort(tmp_path / "scans")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(open_cohort(tmp_path / "scans", axes="rsa")[1].image, rat(1))


def test_an_empty_folder_and_too_large_an_n_are_errors(tmp_path):
    with pytest.raises(CohortError, match="no NIfTI scans in"):
        open_cohort(tmp_path)
    put(tmp_path / "scans", "a.nii.gz")
    with pytest.raises(CohortError, match="holds 1: choose n <= 1"):
        open_cohort(tmp_path / "scans", n=2)


def test_a_study_scan_stored_in_another_orientation_is_turned_not_interpolated(tmp_path):
    image = nib.Nifti1Image(rat(1), grid_affine(STUDY_SHAPE, STUDY_ZOOMS))
    turned = image.as_reoriented(nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RSA", "LPS"))))
    (tmp_path / "scans").mkdir()
    nib.save(turned, tmp_path / "scans" / "a.nii.gz")
    scan = open_cohort(tmp_path / "scans")[0]
    assert np.array_equal(scan.image, rat(1)) and scan.origin.axes == "LPS" and not scan.origin.resampled
    back = scan.restore(open_cohort(tmp_path / "scans").volumes()[0])
    assert np.array_equal(np.asarray(back.dataobj), np.asarray(turned.dataobj))
    assert np.array_equal(back.affine, turned.affine) and back.get_data_dtype() == np.int16


def test_a_scan_on_another_grid_comes_onto_the_study_grid_and_back(tmp_path):
    fine = rat(1, (90, 40, 100))
    affine = np.diag([-0.28, 0.55, 0.26, 1.0])
    affine[:3, 3] = [12.0, -9.0, -11.0]
    labels = (fine > 500).astype(np.uint8) * 2
    put(tmp_path / "scans", "a.nii.gz", fine, affine, labels=labels)
    scan = open_cohort(tmp_path / "scans")[0]
    assert scan.image.shape == STUDY_SHAPE and scan.zooms == STUDY_ZOOMS and scan.origin.resampled
    assert nib.aff2axcodes(scan.affine) == ("R", "S", "A")
    in_mm3 = np.prod(STUDY_ZOOMS)
    assert (scan.labels == 2).sum() * in_mm3 == pytest.approx((labels > 0).sum() * 0.28 * 0.55 * 0.26, rel=0.03)
    back = scan.restore(open_cohort(tmp_path / "scans").volumes()[0])
    assert back.shape == fine.shape and np.allclose(back.affine, affine) and back.get_data_dtype() == np.int16
    inside = labels > 0
    assert abs(np.asarray(back.dataobj)[inside].mean() / fine[inside].mean() - 1) < 0.05
    back_labels = scan.restore_labels(open_cohort(tmp_path / "scans").label_maps()[0])
    overlap = ((np.asarray(back_labels.dataobj) == 2) & inside).sum() * 2
    assert overlap / ((np.asarray(back_labels.dataobj) == 2).sum() + inside.sum()) > 0.95  # Dice


def test_wrong_headers_can_be_overruled(tmp_path):
    tenfold = grid_affine(STUDY_SHAPE, tuple(10 * zoom for zoom in STUDY_ZOOMS))[:, [0, 2, 1, 3]]  # says R, A, S
    put(tmp_path / "scans", "a.nii.gz", affine=tenfold)
    with pytest.raises(CohortError, match="implausible voxel size"):
        open_cohort(tmp_path / "scans")
    cohort = open_cohort(tmp_path / "scans", axes="RSA", voxel_mm=STUDY_ZOOMS)
    assert cohort[0].zooms == STUDY_ZOOMS and np.array_equal(cohort[0].image, rat(0))
    back = cohort[0].restore(cohort.volumes()[0])
    assert np.allclose(back.affine, tenfold)  # the file's own header, so that it still lies on the original


def test_a_native_grid_is_kept_where_scans_share_it(tmp_path):
    affine = np.diag([0.3, 0.3, 0.6, 1.0])
    put(tmp_path / "scans", "a.nii.gz", rat(1, (70, 80, 30)), affine)
    put(tmp_path / "scans", "b.nii.gz", rat(2, (70, 80, 30)), affine)
    cohort = open_cohort(tmp_path / "scans", grid="native")
    assert cohort.shape == (70, 30, 80) and not cohort[0].origin.resampled
    assert cohort.volumes(64).shape == (2, 1, 64, 64, 64)
    back = cohort[1].restore(cohort.volumes(128)[1])
    assert np.array_equal(np.asarray(back.dataobj), rat(2, (70, 80, 30)))
    (tmp_path / "scans" / "empty.nii").touch()
    with pytest.warns(UserWarning, match="empty.nii: empty file"):
        assert len(open_cohort(tmp_path / "scans", grid="native", skip_bad=True)) == 2
    put(tmp_path / "scans", "c.nii.gz", rat(3, (64, 80, 30)), affine)
    with pytest.raises(CohortError, match=r"c.nii.gz: its grid \(64, 30, 80\)"):
        open_cohort(tmp_path / "scans", grid="native")


def test_a_native_cube_smaller_than_the_networks_comes_back_exactly(tmp_path):
    array = (rat(1, (32, 32, 32)) + 50).astype(np.int16)  # no voxel is 0, so padding widens the range
    put(tmp_path / "scans", "a.nii.gz", array, np.diag([0.6, 0.6, 0.6, 1.0]))
    cohort = open_cohort(tmp_path / "scans", grid="native")
    assert np.array_equal(np.asarray(cohort[0].restore(cohort.volumes(64)[0]).dataobj), array)


def test_a_folder_called_like_a_simulated_source_does_not_take_its_place(tmp_path, monkeypatch):
    put(tmp_path / "phantom", "a.nii.gz")
    monkeypatch.chdir(tmp_path)
    assert open_cohort("phantom", n=1).folder != tmp_path / "phantom"
    assert open_cohort("./phantom").subjects == ("a",)


@pytest.fixture
def three(tmp_path):
    """A folder of three labelled scans, opened once."""
    for index in range(3):
        put(tmp_path / "scans", f"{index}.nii.gz", seed=index, labels=np.ones(STUDY_SHAPE, np.uint8))
    return open_cohort(tmp_path / "scans")


@pytest.fixture
def read(monkeypatch):
    """Names of the scans that are read from their files."""
    names = []
    read_one = folders._read_one

    def counted(files, **options):
        names.append(files.image.name)
        return read_one(files, **options)

    monkeypatch.setattr(folders, "_read_one", counted)
    return names


def test_a_folder_opened_again_is_not_read_again(three, read):
    assert open_cohort(three.folder).fingerprint == three.fingerprint
    assert open_cohort(three.folder, n=2).fingerprint == three[:2].fingerprint
    assert read == []


def test_of_a_folder_that_has_grown_only_the_new_file_is_read(three, read):
    put(three.folder, "1b.nii.gz", seed=9)
    assert open_cohort(three.folder).subset([0, 1, 3]).fingerprint == three.fingerprint and read == ["1b.nii.gz"]


def test_only_a_changed_file_is_read_again(three, read):
    put(three.folder, "1.nii.gz", seed=9)
    assert open_cohort(three.folder).digests[1] != three.digests[1] and read == ["1.nii.gz"]


def test_a_scan_whose_labels_changed_is_read_again(three, read):
    nib.save(nib.Nifti1Image(np.full(STUDY_SHAPE, 2, np.uint8), three[1].affine), three.folder / "1_dseg.nii.gz")
    (three.folder / "2_dseg.nii.gz").unlink()
    again = open_cohort(three.folder)
    assert (again[1].labels == 2).all() and again[2].labels is None and read == ["1.nii.gz", "2.nii.gz"]


def test_other_options_read_other_voxels(three, read):
    assert open_cohort(three.folder, axes="RSP").fingerprint != three.fingerprint and len(read) == 3


@pytest.mark.parametrize("damage", [lambda b: b[:200], lambda b: b[:5000] + bytes([b[5000] ^ 1]) + b[5001:]])
def test_a_damaged_entry_of_the_cache_is_made_again(three, read, tmp_path, damage):
    for path in (tmp_path / "data" / "cache").iterdir():
        path.write_bytes(damage(path.read_bytes()))
    assert open_cohort(three.folder).fingerprint == three.fingerprint and len(read) == 3
    assert open_cohort(three.folder).fingerprint == three.fingerprint and len(read) == 3


def test_twins_are_found_among_scans_that_are_not_read_again(three):
    put(three.folder, "3.nii.gz", seed=1)
    with pytest.raises(CohortError, match="3.nii.gz: duplicate: the same voxels as 1.nii.gz"):
        open_cohort(three.folder)
    assert len(open_cohort(three.folder, twins=True)) == 4


def test_voxels_cannot_be_changed_behind_their_content_hash(three):
    for scan in (three[0], open_cohort(three.folder)[0]):
        with pytest.raises(ValueError, match="read-only"):
            scan.image[0] = 0


def test_a_disk_that_takes_no_cache_costs_one_warning_not_the_cohort(tmp_path, monkeypatch):
    put(tmp_path / "scans", "a.nii.gz")
    put(tmp_path / "scans", "b.nii.gz", seed=1)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="No space left") as warned:
        assert len(open_cohort(tmp_path / "scans")) == 2
    assert len(warned) == 1


def test_a_data_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path, monkeypatch):
    def forbidden(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("labkit.data.simulate.dataset.simulated_dataset", forbidden)
    with pytest.raises(PermissionError) as caught:
        open_cohort("phantom", n=1)
    assert str(tmp_path / "data") in caught.value.__notes__[0] and "LABKIT_DATA" in caught.value.__notes__[0]


def test_a_copied_folder_has_the_same_fingerprint(tmp_path):
    put(tmp_path / "scans", "a.nii.gz", labels=(rat(0) > 500).astype(np.uint8))
    shutil.copytree(tmp_path / "scans", tmp_path / "copy")
    assert open_cohort(tmp_path / "scans").fingerprint == open_cohort(tmp_path / "copy").fingerprint


def test_simulated_rats_are_made_once_and_more_are_added(tmp_path):
    two = open_cohort("phantom", n=2, seed=5)
    began = time.perf_counter()
    assert open_cohort("phantom", n=2, seed=5).fingerprint == two.fingerprint
    assert time.perf_counter() - began < 1.0
    three = open_cohort("phantom", n=3, seed=5)
    assert three.digests[:2] == two.digests and len(three) == 3
    assert two[0].image.shape == STUDY_SHAPE and two[0].zooms == STUDY_ZOOMS and two.labelled
    assert set(np.unique(two[0].labels)) == {0, 1, 2, 3}
    folder = three.folder
    description = (folder / "dataset_description.json").read_text()
    assert '"Simulated": true' in description and '"seed": 5' in description
    assert len((folder / "participants.tsv").read_text().splitlines()) == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_cohort(folder).fingerprint == three.fingerprint  # it is a folder of NIfTI files like any other


def test_departed_rats_are_a_cohort_of_their_own_that_its_recipe_opens_again(tmp_path):
    cohort = open_cohort("phantom", n=3, seed=5, departures="warps, cut")
    assert cohort.name == "phantom-cut-warps" and cohort.folder.name.startswith("phantom-cut-warps-s5-")
    recipe = json.loads(json.dumps(cohort.recipe))
    assert recipe["departures"] == ["cut", "warps"]
    assert open_cohort(recipe.pop("source"), **recipe).fingerprint == cohort.fingerprint
    table = (cohort.folder / "participants.tsv").read_text().splitlines()
    _, *rows = (dict(zip(table[0].split("\t"), line.split("\t"), strict=True)) for line in table)
    lost = [not scan.image.any((0, 1)).all() for scan in cohort]
    assert [row["cut"] == "1" for row in rows] == lost and {row["warps"] for row in rows} <= {"0", "1"}
    described = json.loads((cohort.folder / "dataset_description.json").read_text())
    assert list(described["Parameters"]["departures"]) == ["cut", "warps"] and "cut, warps" in described["Name"]


def test_new_rats_of_controls_have_the_departures_of_the_runs_own(monkeypatch):
    """Fresh rats to measure with, and those with true labels that a segmentation network learns from."""
    opened = []

    def record(source, **options):
        opened.append((source, options))
        return SimpleNamespace(digests=("new",))

    recipe = {"source": "sigma", "n": 9, "seed": 3, "departures": ["cut"]}
    monkeypatch.setattr(selection, "open_cohort", record)
    selection.real_scans(SimpleNamespace(config={"cohort": {"recipe": recipe}}), None, "fresh", n=8, seed=2)
    monkeypatch.setattr(experiment, "open_cohort", record)
    monkeypatch.setattr(experiment, "examples", lambda rats, plan: rats)
    own = SimpleNamespace(arms=[ARMS["r100+t200"]], simulated=recipe, train=range(5), plan=None,
                          test=SimpleNamespace(digests=("old",)), counts=lambda arm: arm.counts(5))  # fmt: skip
    experiment.Experiment._true.func(own)
    assert opened == [("sigma", {"n": 16, "seed": 6, "departures": ["cut"]}),
                      ("sigma", {"n": 10, "seed": 4, "departures": ["cut"]})]  # fmt: skip


@pytest.mark.parametrize(("change", "kind"), [
    (lambda v: v - 32768, np.int16), (lambda v: v + 5000, np.int32), (lambda v: (v - 300) / 4, np.float32),
])  # fmt: skip
def test_what_is_stored_with_an_offset_opens_as_without(tmp_path, change, kind):
    plain = [rat(seed, (80, 70, 50)) - 20 for seed in (1, 2)]
    for name, rats in {"plain": plain, "offset": [change(v.astype(np.float64)).astype(kind) for v in plain]}.items():
        for place, array in enumerate(rats):
            put(tmp_path / name, f"rat{place}.nii.gz", array)
    one, other = open_cohort(tmp_path / "plain"), open_cohort(tmp_path / "offset")
    assert not one[0].origin.air and other[0].origin.air == pytest.approx(change(0.0))
    assert np.allclose(one.volumes(), other.volumes(), atol=1e-5)
    assert other.volumes()[0, 0, 0, 0, 0] == -1  # padding is air, and not white
    back = np.asarray(other[0].restore(other.volumes()[0]).dataobj)
    assert back.dtype == kind and abs(back[0, 0, 0] - change(0.0)) < 0.1 * abs(change(0.0) - change(900.0))


def test_scans_whose_air_is_0_keep_their_0(tmp_path):
    noisy = rat(1).astype(np.float32) + 40
    no_air = np.random.default_rng(2).normal(500, 40, STUDY_SHAPE)
    stripped = np.where(rat(3) > 500, rat(3) - 1200, 0)
    for place, array in enumerate((noisy, no_air, stripped, noisy - 90)):
        put(tmp_path / "scans", f"rat{place}.nii.gz", array.astype(np.float32))
    assert [scan.origin.air for scan in open_cohort(tmp_path / "scans")] == [0, 0, 0, 0]


@pytest.mark.parametrize(("affine", "said"), [
    (np.diag([0.375, 0.375, 1e-6, 1]), r"implausible voxel size \(0.375, 0.375, 1e-06\)"),
    (np.diag([0.375, 0.001, 0.5, 1]), r"implausible voxel size \(0.375, 0.001, 0.5\)"),
    (np.diag([6, 0.375, 0.5, 1]), "0.005 to 5 mm are possible"),
    (np.array([[0.375, 0, 0, 1e30], [0, 0.375, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 1]]), "1e.30 mm away from the origin"),
])  # fmt: skip
@pytest.mark.parametrize("grid", ["study", "native", "fitted"])
def test_voxels_and_places_that_cannot_be_are_refused_before_any_work(tmp_path, affine, said, grid, monkeypatch):
    put(tmp_path / "scans", "a.nii.gz", affine=affine)
    monkeypatch.setattr(folders.grids, "resample", None)
    with pytest.raises(CohortError, match=said) as caught:
        open_cohort(tmp_path / "scans", grid=grid)
    assert list(caught.value.faults) == [str(tmp_path / "scans" / "a.nii.gz")]


def test_masks_atlases_and_lone_bright_voxels_are_no_scans(tmp_path):
    index = np.indices(STUDY_SHAPE)
    atlas = (index // 8 * np.array([1, 9, 81]).reshape(3, 1, 1, 1)).sum(0) * (rat(1) > 500)
    lone = rat(2).astype(np.float32)
    lone[30, 30, 20] = 1e9
    dot = np.zeros(STUDY_SHAPE, np.int16)
    dot[30, 30, 20] = 7
    odd = {"inside": (rat(3) > 500).astype(np.uint8), "regions": atlas.astype(np.int16), "hot": lone, "dot": dot}
    for name, array in odd.items():
        put(tmp_path / "scans", f"{name}.nii.gz", array)
    put(tmp_path / "scans", "rat1.nii.gz", seed=4)
    put(tmp_path / "scans", "rat2.nii.gz", np.clip(rat(5) // 4, 0, 255).astype(np.uint8))
    with pytest.raises(CohortError) as caught:
        open_cohort(tmp_path / "scans")
    faults = {path.rsplit("/", 1)[1].split(".")[0]: fault for path, fault in caught.value.faults.items()}
    assert set(faults) == set(odd)
    assert all("a mask, an atlas or a label map" in faults[name] for name in ("inside", "regions"))
    assert all("but its brightest voxels" in faults[name] for name in ("hot", "dot"))


def test_files_that_are_passed_over_are_named(tmp_path):
    scans = tmp_path / "scans"
    put(scans, "rat1.nii.gz", seed=1)
    put(scans, "rat1_seg.nii.gz", np.ones(STUDY_SHAPE, np.uint8))
    put(scans / "week2", "rat1.nii.gz", seed=2)
    (scans / "rat2.img").write_bytes(b"x")
    with pytest.warns(UserWarning, match="not taken") as said:
        assert len(open_cohort(scans)) == 1
    (text,) = {str(one.message) for one in said}
    assert "week2/rat1.nii.gz" in text and "labels of a scan are called *_dseg" in text and "rat2.img" in text
    put(tmp_path / "plain", "rat1.nii.gz", seed=1, labels=np.ones(STUDY_SHAPE, np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_cohort(tmp_path / "plain")


@pytest.mark.parametrize(
    "text", ["version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "../.git/annex/objects/a"]
)
def test_a_pointer_to_what_was_not_fetched_is_called_one(tmp_path, text):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "rat1.nii.gz").write_text(text)
    with pytest.raises(CohortError, match="pointer to a file that was not fetched"):
        open_cohort(tmp_path / "scans")


def test_contrasts_of_an_animal_are_kinds_of_scan_of_which_one_is_chosen(tmp_path):
    for place, (subject, name) in enumerate(
        [(s, f"acq-fine_echo-{echo}_run-{run}") for s in ("1", "2") for echo in (1, 2) for run in (1, 2)]
    ):
        put(tmp_path / "raw" / f"sub-{subject}" / "anat", f"sub-{subject}_{name}_T2w.nii.gz", seed=place)
    with pytest.raises(CohortError, match=r"2 kinds of scan.*acq-fine_echo-1 \(4\), acq-fine_echo-2 \(4\).*entities="):
        open_cohort(tmp_path / "raw")
    cohort = open_cohort(tmp_path / "raw", entities={"echo": 2})
    assert [scan.session for scan in cohort] == ["acq-fine_echo-2_run-1", "acq-fine_echo-2_run-2"] * 2
    again = open_cohort(**{key: value for key, value in cohort.recipe.items()})
    assert again.fingerprint == cohort.fingerprint
    with pytest.raises(CohortError, match="no NIfTI scans with {'echo': '3'}"):
        open_cohort(tmp_path / "raw", entities={"echo": 3})


def test_one_acquisition_an_animal_may_differ_between_animals(tmp_path):
    for place, name in enumerate(["sub-1_acq-a_T2w", "sub-2_acq-b_T2w", "sub-3_ses-1_T2w", "sub-3_ses-2_T2w"]):
        put(tmp_path / "raw" / name[:5] / "anat", f"{name}.nii.gz", seed=place)
    assert len(open_cohort(tmp_path / "raw")) == 4


def test_heads_that_the_grid_cuts_in_half_are_told(tmp_path):
    put(tmp_path / "scans", "rat1.nii.gz", seed=1, affine=np.diag([1.0, 1, 1, 1]))  # voxels that nobody set
    with pytest.warns(UserWarning, match=r"1 of 1 scans .* of 24 x 24 x 20 mm, e.g. rat1.nii.gz: \d+ % .*voxel_mm"):
        cohort = open_cohort(tmp_path / "scans")
    assert 0.05 < cohort[0].origin.kept < 0.4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_cohort(tmp_path / "scans", grid="fitted")[0].origin.kept == 1
        open_cohort(tmp_path / "scans", voxel_mm=(0.375, 0.375, 0.5), axes="RSA")
