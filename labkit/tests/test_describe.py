from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from labkit.data import nifti
from labkit.data.cohort import Cohort, Scan
from labkit.data.grids import grid_affine
from labkit.data.labels import TISSUE_NAMES
from labkit.data.nifti import Origin
from labkit.data.sources import open_cohort
from labkit.evidence import describe

SIDE, ZOOMS = 16, (1.0, 0.5, 2.0)  # mm; unequal, so that a mix-up of axes shows
AFFINE = grid_affine((SIDE,) * 3, ZOOMS, centre_mm=(1.0, -2.0, 3.0))


def toy_cohort(images, labels=None, subjects=None, sessions=None, resampled=False) -> Cohort:
    """Scans of 16^3 voxels held in memory, as if opened from RAS files of int16."""
    images = np.asarray(images, np.float32)
    header = nib.Nifti1Image(np.zeros((SIDE,) * 3, np.int16), AFFINE).header
    scans = []
    for place, image in enumerate(images):
        origin = Origin(
            f"rat{place}.nii.gz", (SIDE, 2 * SIDE, SIDE), "RAS", tuple(map(tuple, np.diag([1.0, 2.0, 0.5, 1.0]))),
            nifti.encode_header(header), tuple(map(tuple, AFFINE)), resampled,
            min(0.0, float(image.min())), float(image.max()),
        )  # fmt: skip
        subject = subjects[place] if subjects else f"{place:02d}"
        session = sessions[place] if sessions else ""
        mine = None if labels is None else labels[place]
        scans.append(Scan(subject, session, image, mine, AFFINE, "T2w", origin, str(place)))
    return Cohort("toy", Path("toy"), scans)


def brain() -> np.ndarray:
    """Labels: grey matter 4:12 along each axis, white matter in its middle, CSF in the middle of that."""
    labels = np.zeros((SIDE,) * 3, np.uint8)
    for label, edge in ((2, 4), (3, 6), (1, 7)):
        labels[edge : SIDE - edge, edge : SIDE - edge, edge : SIDE - edge] = label
    return labels


def larger(cohort: Cohort) -> Cohort:
    """The same scans with voxels of twice the size: 4 ml of brain, as a rat has 2."""
    return Cohort("larger", cohort.folder, [replace(scan, affine=2 * scan.affine) for scan in cohort])


def random_images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(10, 100, (n, SIDE, SIDE, SIDE))


def ramp() -> np.ndarray:
    """Intensity is the height above the grid's floor in planes, 0 to 15."""
    return np.broadcast_to(np.arange(SIDE, dtype=np.float32)[None, :, None], (SIDE,) * 3)


def test_a_tissue_volume_is_its_voxels_times_the_voxel_volume():
    table = describe.tissue_volumes(toy_cohort(random_images(2), [brain(), brain()]))
    row = table.iloc[1]
    assert row["subject"] == "01"
    assert (row["CSF"], row["grey matter"], row["white matter"]) == (2**3, 8**3 - 4**3, 4**3 - 2**3)  # voxels of 1 mm3
    assert row["brain"] == 8**3


@pytest.mark.parametrize("labels", [brain() > 0, 10 * brain()], ids=["a brain mask", "an atlas"])
def test_labels_that_are_not_the_three_tissues_give_only_the_brain(labels):
    row = describe.tissue_volumes(toy_cohort(random_images(1), [labels.astype(np.uint8)])).iloc[0]
    assert row["brain"] == 8**3
    assert row[["CSF", "grey matter", "white matter"]].isna().all()


def test_scans_without_labels_are_left_out_of_the_volumes():
    table = describe.tissue_volumes(toy_cohort(random_images(2), [None, brain()]))
    assert list(table["subject"]) == ["01"]


def test_volumes_of_a_cohort_without_labels_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match="dseg.nii.gz"):
        describe.tissue_volumes(toy_cohort(random_images(1)))


def test_the_dorsal_ventral_ratio_compares_the_upper_quarter_of_the_brain_with_the_lower():
    labels = np.zeros((SIDE,) * 3, np.uint8)
    labels[4:12, 2:14, 4:12] = 2  # planes 2 to 13, so the quarters are 11 to 13 and 2 to 4
    (scan,) = toy_cohort([ramp()], [labels])
    assert describe.dorsal_ventral_ratio(scan) == pytest.approx(12 / 3)


def test_the_dorsal_ventral_ratio_does_not_depend_on_gain_or_on_what_is_outside_the_brain():
    louder = 3 * ramp().copy()
    louder[:, :3] = 1000
    (scan,) = toy_cohort([louder], [brain()])
    assert describe.dorsal_ventral_ratio(scan) == pytest.approx(10.5 / 4.5)


def test_a_stray_voxel_does_not_stretch_the_brain():
    labels = brain()
    labels[8, 15, 8] = 2
    (scan,) = toy_cohort([ramp()], [labels])
    assert describe.dorsal_ventral_ratio(scan) == pytest.approx(10.5 / 4.5)


def test_the_profile_runs_from_the_dorsal_end_down_in_mm():
    profile = describe.intensity_profile(toy_cohort([ramp(), 2 * ramp()], [brain(), brain()]))
    assert list(profile.columns) == ["00", "01"]
    np.testing.assert_allclose(profile.index, 0.5 * np.arange(8))
    np.testing.assert_allclose(profile["00"], np.arange(11, 3, -1) / 7.5)
    np.testing.assert_allclose(profile["00"], profile["01"])  # relative, so gain falls out


def test_without_labels_the_head_is_measured_and_not_the_air():
    image = np.random.default_rng(0).uniform(0, 5, (SIDE,) * 3)
    image[3:13, 3:13, 3:13] = 100
    image[7, 7, 7] = 0  # a hole is part of the head
    image[0, 0, 0] = 100  # a lone bright voxel is not
    (scan,) = toy_cohort([image])
    mask, name = describe.region(scan)
    assert name == "head"
    expected = np.zeros((SIDE,) * 3, bool)
    expected[3:13, 3:13, 3:13] = True
    np.testing.assert_array_equal(mask[4:12, 4:12, 4:12], expected[4:12, 4:12, 4:12])
    assert not mask[~expected].any()


def test_the_region_of_a_labelled_scan_is_its_brain():
    (scan,) = toy_cohort(random_images(1), [brain()])
    mask, name = describe.region(scan)
    assert name == "brain" and mask.sum() == 8**3


def test_the_unit_range_is_what_networks_see():
    cohort = toy_cohort(random_images(2))
    seen = cohort.volumes(64)[:, 0, 24:40, 24:40, 24:40].numpy()  # 16^3 in the middle of the padded 64^3
    for scan, volume in zip(cohort, seen, strict=True):
        np.testing.assert_allclose(2 * describe.unit_range(scan) - 1, volume, atol=1e-5)


def test_mean_and_standard_deviation_agree_with_numpy():
    cohort = toy_cohort(random_images(5))
    scaled = np.stack([describe.unit_range(scan) for scan in cohort]).astype(np.float64)
    mean, sd = describe.mean_and_sd(cohort)
    np.testing.assert_allclose(mean, scaled.mean(0), atol=1e-12)
    np.testing.assert_allclose(sd, scaled.std(0, ddof=1), atol=1e-12)


def test_one_scan_has_no_standard_deviation():
    mean, sd = describe.mean_and_sd(toy_cohort(random_images(1)))
    assert sd is None and mean.shape == (SIDE,) * 3


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one scan"):
        describe.mean_and_sd([])


def test_the_scan_table_tells_the_file_from_the_grid():
    row = describe.scan_table(toy_cohort(random_images(1), [brain()], resampled=True)).iloc[0]
    assert row["file voxels"] == "16 × 32 × 16" and row["grid voxels"] == "16 × 16 × 16"
    assert row["file mm"] == "1 × 2 × 0.5" and row["grid mm"] == "1 × 0.5 × 2"
    assert (row["file axes"], row["file type"], row["resampled"]) == ("RAS", "int16", True)
    assert row["labels"] == "0, 1, 2, 3"
    assert describe.scan_table(toy_cohort(random_images(1))).iloc[0]["labels"] == "none"


def test_a_scan_is_named_by_its_animal_and_what_tells_its_scans_apart():
    cohort = toy_cohort(random_images(3), subjects=["a", "a", "b"], sessions=["ses-1_run-2", "", "task-rest"])
    assert [describe.scan_name(scan) for scan in cohort] == ["a ses-1 run-2", "a", "b"]


def test_the_summary_gives_tissues_only_where_there_are_labels():
    assert list(describe.summary(toy_cohort(random_images(2))).index) == ["dorsal / ventral intensity"]
    table = describe.summary(toy_cohort(random_images(2), [brain(), brain()]))
    assert table.loc["brain, mm³", "mean"] == 8**3 and table.loc["brain, mm³", "CV %"] == 0
    assert list(table.columns) == ["mean", "SD", "CV %"]  # half a millilitre: no rat's
    table = describe.summary(larger(toy_cohort(random_images(2), [brain(), brain()])))
    assert table.loc["brain, mm³", "mean"] == pytest.approx(16**3)
    assert table.loc["brain, mm³", "SIGMA, whole"] == describe.SIGMA_MM3["brain"]
    assert np.isnan(table.loc["dorsal / ventral intensity", "SIGMA, whole"])


def test_the_reference_volumes_add_up_to_the_brain():
    for volumes in (describe.SIGMA_MM3, describe.SIGMA_IN_VIEW_MM3):
        assert sum(volumes[name] for name in TISSUE_NAMES.values()) == volumes["brain"]
    assert all(describe.SIGMA_IN_VIEW_MM3[name] < whole for name, whole in describe.SIGMA_MM3.items())


def test_the_reference_volumes_are_those_of_the_published_maps(mirror):
    for name, part in (("CSF", "csf"), ("grey matter", "gm"), ("white matter", "wm")):
        image = nib.load(mirror / "sigma" / f"SIGMA_InVivo_Anatomical_Brain_{part}.nii.gz")
        along = image.get_fdata().sum((0, 2)) * np.prod(image.header.get_zooms())
        anterior = image.affine[1, 3] + image.affine[1, 1] * np.arange(len(along))
        assert along.sum() == pytest.approx(describe.SIGMA_MM3[name], abs=1)
        share = np.clip((10 - np.abs(anterior + 3.0)) / 0.15 + 0.5, 0, 1)  # of each plane within 20 mm around y = -3
        assert (along * share).sum() == pytest.approx(describe.SIGMA_IN_VIEW_MM3[name], abs=1)


def test_what_is_odd_of_a_cohort_is_named_and_nothing_else():
    scans = list(open_cohort("phantom", n=12))
    assert (describe.outliers(scans)["apart"] == "").sum() >= 10  # of a dozen the largest may be called large
    upside_down = replace(scans[4], image=np.ascontiguousarray(scans[4].image[:, ::-1]))
    scans[4], scans[7] = upside_down, replace(scans[7], image=scans[7].image / 5)
    labels = np.where(scans[9].labels == 3, 57, scans[9].labels).astype(np.uint8)
    scans[9] = replace(scans[9], labels=labels)
    found = describe.outliers(scans)
    assert set(found["place"][:3]) == {4, 7, 9}
    apart = {place: words for place, words in zip(found["place"], found["apart"], strict=True)}
    assert apart[4].startswith("likeness 0.") and apart[7].startswith("brightness") and apart[9] == "labels 0, 1, 2, 57"
    brightness = found.set_index("place")["brightness"]
    assert brightness[7] == pytest.approx(np.percentile(scans[7].image, 99.5))
    alone = describe.outliers(scans[:1])
    assert alone["odd"].tolist() == [0] and alone["apart"].tolist() == [""] and alone["likeness"].isna().all()
