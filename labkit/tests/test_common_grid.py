"""Grids of a cohort's own: said in words, fitted to heads, centred on them, and remembered."""

import doctest
import json

import nibabel as nib
import numpy as np
import pytest

from labkit import CohortError, generate, open_cohort, reconstruct, train
from labkit.data import common_grid
from labkit.data.common_grid import Grid, Head, asked, fitted
from labkit.data.file_template import FileTemplate
from labkit.data.grids import grid_affine


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path / "data"))


def brain(seed=0, shape=(48, 32, 40), zooms=(0.3, 0.3, 0.3), at=(0.0, 0.0, 0.0), radii=(5.0, 3.0, 5.0), air=0):
    """An ellipsoid of `radii` mm (right, superior, anterior) at a place in the field of view, and its affine."""
    affine = grid_affine(shape, zooms)
    place = nib.affines.apply_affine(affine, np.stack(np.indices(shape), -1))[..., [0, 2, 1]]
    inside = (((place - np.array(at)) / radii) ** 2).sum(-1) < 1
    rng = np.random.default_rng(seed)
    return (inside * rng.uniform(500, 900, shape) + air * rng.uniform(1, 9, shape)).astype(np.float32), affine


def put(folder, seed=0, name=None, **options):
    folder.mkdir(exist_ok=True)
    array, affine = brain(seed, **options)
    name = name or f"sub-{seed}"
    nib.save(nib.Nifti1Image(array, affine), folder / f"{name}_T2w.nii.gz")
    nib.save(nib.Nifti1Image((array > 100).astype(np.uint8), affine), folder / f"{name}_dseg.nii.gz")


def test_the_examples_run():
    assert doctest.testmod(common_grid).failed == 0


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("study", "study"), ("64x64x40@0.375x0.375x0.5", "study"), (((64, 64, 40), (0.375, 0.375, 0.5)), "study"),
        (((56, 40, 64), 0.3), "56x40x64@0.3"), ("56X40x64@0.30x0.3x0.3", "56x40x64@0.3"),
        ([[32, 32, 32], [0.5, 0.5, 0.25]], "32x32x32@0.5x0.5x0.25"), (Grid((16, 16, 16), (1, 1, 1)), "16x16x16@1"),
        ("native", "native"), ("fitted", "fitted"), ("fitted:96", "fitted:96"),
    ],
)  # fmt: skip
def test_every_way_to_ask_for_a_grid_becomes_one_text_that_a_parameter_can_hold(given, text):
    assert asked(given) == text == asked(json.loads(json.dumps(text)))


@pytest.mark.parametrize(
    "given",
    ["stduy", "56x40@0.3", "56x40x64", "56x40x64@0", "4x40x64@0.3", "56x40x640@0.3", ((56, 40, 64.5), 0.3), 0.3, None,
     ((56, 40), 0.3), ((56, 40, 64), (0.3, 0.3)), "fitted:60", "fitted:1024", "1x1x1@1.2.3", ("56x40x64", 0.3)],
)  # fmt: skip
def test_a_grid_that_is_none_is_refused_with_what_is_allowed(given):
    with pytest.raises(ValueError, match=r"grid=.*(allowed|three whole numbers|multiple of 8)"):
        asked(given)


def test_scans_are_brought_onto_a_grid_of_the_callers_centred_on_the_head(tmp_path):
    put(tmp_path / "raw", 0, shape=(60, 50, 60), at=(2.0, -1.0, 1.0))
    put(tmp_path / "raw", 1, shape=(50, 50, 70), zooms=(0.4, 0.3, 0.25))
    cohort = open_cohort(tmp_path / "raw", grid="32x24x32@0.4")
    assert cohort.shape == (32, 24, 32) and {scan.zooms for scan in cohort} == {(0.4, 0.4, 0.4)}
    for scan in cohort:
        middle = np.argwhere(scan.labels > 0).mean(0)
        assert middle == pytest.approx([15.5, 11.5, 15.5], abs=0.6)
        assert (scan.labels > 0).sum() * 0.4**3 == pytest.approx(4 / 3 * np.pi * 5 * 3 * 5, rel=0.03)
    assert open_cohort(cohort.recipe["source"], grid=cohort.recipe["grid"]).fingerprint == cohort.fingerprint


def test_a_stripped_brain_at_the_edge_of_its_scan_is_in_the_middle_and_one_with_air_stays_in_the_field():
    grid = Grid((40, 32, 40), (0.3, 0.3, 0.3))
    for air, expected in ((0, -2.0), (1, 0.0)):
        array, affine = brain(at=(0.0, -2.0, 0.0), shape=(40, 32, 40), radii=(5, 2, 5), air=air)
        centre = nib.affines.apply_affine(grid.around_head(array, affine), (np.array(grid.shape) - 1) / 2)
        assert centre[2] == pytest.approx(expected, abs=0.2)


def test_a_scan_that_has_the_grid_already_is_not_interpolated(tmp_path):
    put(tmp_path / "raw", 0, shape=(32, 24, 40), radii=(4, 3, 4))
    cohort = open_cohort(tmp_path / "raw", grid=((32, 24, 40), 0.3))
    assert not cohort[0].origin.resampled
    assert np.array_equal(cohort[0].image, brain(0, shape=(32, 24, 40), radii=(4, 3, 4))[0])


def test_a_fitted_grid_holds_the_longest_head_with_voxels_as_small_as_fit():
    heads = [Head(np.array(extent), np.array(3 * [0.1])) for extent in ((10.0, 7.0, 18.0), (11.0, 9.0, 16.0))]
    grid, finer = fitted(heads), fitted(heads, "fitted:96")
    assert (grid.shape, grid.zooms) == ((40, 32, 64), 3 * (0.3,)) and finer.shape[2] == 96
    for found in (grid, finer):
        assert (np.array(found.shape) * found.zooms >= [11, 9, 18]).all()
        assert not np.mod(found.shape, 8).any()


def test_a_fitted_grid_is_not_finer_than_the_scans():
    grid = fitted([Head(np.array([10.0, 7.0, 16.0]), np.array([0.5, 0.5, 1.0]))])
    assert grid.zooms == (0.5, 0.5, 0.5) and grid.shape == (24, 16, 40)


def test_a_cohort_remembers_the_grid_that_was_fitted_to_it(tmp_path):
    for seed in range(2):
        put(tmp_path / "raw", seed, shape=(100, 80, 100), zooms=(0.15, 0.15, 0.15))
    cohort = open_cohort(tmp_path / "raw", grid="fitted")
    assert cohort.shape == (64, 40, 64) and cohort.recipe["grid"] == "64x40x64@0.17"
    assert all((scan.labels > 0).sum() * 0.17**3 == pytest.approx(314, rel=0.03) for scan in cohort)


def test_where_no_head_can_be_read_a_fitted_grid_is_not_to_blame(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "text.nii").write_text("not a scan " * 100)
    with pytest.raises(CohortError, match="(?s)1 unusable file in .*not a NIfTI file"):
        open_cohort(tmp_path / "raw", grid="fitted")


def test_what_is_written_like_scans_on_a_grid_is_opened_on_that_grid_again(tmp_path):
    for seed in range(2):
        put(tmp_path / "raw", seed, shape=(60, 50, 60), zooms=(0.25, 0.25, 0.25))
    cohort = open_cohort(tmp_path / "raw", grid="32x24x32@0.4")
    template = FileTemplate.of(cohort)
    assert template.grid == "32x24x32@0.4"
    (tmp_path / "made").mkdir()
    nib.save(cohort[0].restore(cohort[:1].volumes()[0]), tmp_path / "made" / "sub-0_T2w.nii.gz")
    back = open_cohort(tmp_path / "made", **template.opening)
    template.check_grid(back)
    assert np.corrcoef(back[0].image.ravel(), cohort[0].image.ravel())[0, 1] > 0.95
    own = open_cohort(tmp_path / "raw", grid="native")
    assert FileTemplate.of(own).grid == "native"


def test_a_reconstruction_lies_where_its_scan_does_and_not_where_its_own_outline_would_have_it(tmp_path):
    for seed in range(6):
        put(tmp_path / "raw", seed, shape=(60, 50, 60), zooms=(0.25, 0.25, 0.25), at=(0.3 * seed, -0.5, 0.2))
    cohort = open_cohort(tmp_path / "raw", grid="32x24x32@0.4")
    run = train("adni", cohort, "smoke", tmp_path / "run", iterations=2)
    back, made = reconstruct(run, cohort[3:5]), generate(run, 2)
    for scan, own in zip(back, cohort[3:5], strict=True):
        np.testing.assert_allclose(scan.affine, own.affine, atol=1e-6)
    for scan in made:
        np.testing.assert_allclose(scan.affine, run.train_part(cohort)[0].affine, atol=1e-6)
    assert nib.load(run.path / "samples" / "iteration-000002_random.nii.gz").header.get_zooms()[:3] == (
        pytest.approx(3 * (64 / 16 * 0.4,))
    )
