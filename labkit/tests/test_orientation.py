"""Scans that lie otherwise than their headers say are found, and none that lie as they should are doubted."""

import itertools
import warnings

import nibabel as nib
import numpy as np
import pytest

import labkit
from labkit import figures
from labkit.data import orientation
from labkit.data.grids import corrected_affine

TURNS = orientation._turns()


@pytest.fixture(scope="module")
def rats():
    return labkit.open_cohort("phantom", n=12)


def kinds(rat, rng):
    """A rat as others would have scanned it."""
    strong = rat.image + 0.05 * rat.image.max() * rng.standard_normal(rat.image.shape)
    coil = np.linspace(3, 0.4, rat.image.shape[1])[None, :, None]
    return {"whole": rat.image, "brain": np.where(rat.labels > 0, rat.image, 0), "noise": abs(strong),
            "coil below": rat.image * coil}  # fmt: skip


def test_the_reference_that_is_kept_is_the_mean_of_the_first_simulated_rats(rats):
    with open(orientation.resources.files("labkit.data").joinpath(orientation.FILE), "rb") as stream:
        kept = np.load(stream).astype(int)
    made = orientation.references((scan.image, scan.labels, scan.zooms) for scan in rats[:8])
    assert abs(kept - made).max() <= 2


def test_every_way_to_lie_is_told_and_the_right_one_never_doubted(rats):
    rng, told = np.random.default_rng(0), []
    for rat in rats[8:]:
        for image in kinds(rat, rng).values():
            assert orientation.fits(image, rat.zooms, "RSA") == ["RSA"]
            for turn in TURNS[1:]:
                zooms = tuple(rat.zooms[axis] for axis in turn[0])
                found = orientation.fits(orientation.turned(image, turn), zooms, "RSA")
                told.append(found != ["RSA"])
    assert np.mean(told) > 0.95


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_the_axes_that_are_told_put_a_scan_right_again(rats, turn):
    rat = rats[8]
    zooms = tuple(rat.zooms[axis] for axis in turn[0])
    (found,) = orientation.fits(orientation.turned(rat.image, turn), zooms, "RSA")
    codes = nib.orientations.axcodes2ornt(tuple(found)), nib.orientations.axcodes2ornt(("R", "S", "A"))
    change = nib.orientations.ornt_transform(*codes)
    back = nib.orientations.apply_orientation(orientation.turned(rat.image, turn), change)
    assert back.shape == rat.image.shape and np.array_equal(back, rat.image)
    assert (found != "RSA") == (turn != ((0, 1, 2), (1, 1, 1)))


def test_a_folder_says_which_axes_fit_and_takes_them_where_it_is_asked_to(rats, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    lying = np.array([[-0.375, 0, 0, 0], [0, 0.375, 0, 0], [0, 0, 0.5, 0], [0, 0, 0, 1.0]])  # as a person would: L A S
    for place, rat in enumerate(rats[8:11]):
        affine = lying if place else rat.affine
        nib.save(nib.Nifti1Image(rat.image.astype(np.int16), affine), folder / f"rat{place}.nii.gz")
    with pytest.warns(UserWarning, match=r"2 of 3 scans .* rat1.nii.gz: with axes RSA they fit .*axes='RSA'"):
        labkit.open_cohort(folder)
    with pytest.warns(UserWarning, match="they are taken for that"):
        right = labkit.open_cohort(folder, axes="auto")
    assert [np.array_equal(scan.image, rat.image) for scan, rat in zip(right, rats[8:11], strict=True)] == [True] * 3
    with pytest.warns(UserWarning, match="they are taken for that"):
        assert labkit.open_cohort(**right.recipe).fingerprint == right.fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labkit.open_cohort(folder, axes="RSA")


def test_the_mice_and_a_real_rat_are_not_doubted(mirror):
    scans = [*labkit.open_cohort("mice")[:6]]
    for scan in scans:
        assert orientation.fits(scan.image, scan.zooms, "RSA") == ["RSA"]
    path = next((mirror / "scans").glob("*.nii.gz"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cohort = labkit.open_cohort(path.parent)
    assert cohort[0].origin.fits == ""


def test_a_real_rat_in_a_wide_field_on_thick_slices_is_put_right(mirror, tmp_path):
    path = next((mirror / "scans").glob("*.nii.gz"))
    image = nib.load(path)
    stored, true = np.asanyarray(image.dataobj), "".join(nib.aff2axcodes(image.affine))
    wrong = corrected_affine(image.header, stored.shape, "RSP", None)  # sections exchanged
    nib.save(nib.Nifti1Image(stored, wrong), tmp_path / path.name)
    with pytest.warns(UserWarning, match=f"with axes {true} they fit .*hardly worse: [RLAPSI]{{3}}; mind which end"):
        turned = labkit.open_cohort(tmp_path)
    best, other = turned[0].origin.fits.split()
    assert (
        best == true and other[2] == true[2] and {*best[:2]} != {*other[:2]}
    )  # it is the same turned about: head to tail
    with pytest.warns(UserWarning, match="taken for that"):
        right = labkit.open_cohort(tmp_path, axes="auto")
    as_scanned = labkit.open_cohort(path.parent)[0]
    assert np.corrcoef(right[0].image.ravel(), as_scanned.image.ravel())[0, 1] > 0.98
    assert right[0].origin.better_axes == "" and turned[0].origin.better_axes == true
    with pytest.raises(ValueError, match="lies as its header says"):
        figures.lies_otherwise(right[0])
    drawn = figures.lies_otherwise(turned[0])
    assert [ax.get_title().rpartition(" ")[2] for ax in drawn.axes] == ["RSP"] * 3 + [true] * 3
    with pytest.raises(ValueError, match="lies as its header says"):
        figures.lies_otherwise(as_scanned)


def test_all_ways_to_lie_are_24():
    assert len(set(TURNS)) == 24
    probe = np.arange(24).reshape(2, 3, 4)
    assert len({orientation.turned(probe, turn).tobytes() for turn in TURNS}) == 24
    assert not any(np.array_equal(probe[::-1], orientation.turned(probe, turn)) for turn in TURNS)  # no mirror
    assert set(itertools.chain(*(turn[0] for turn in TURNS))) == {0, 1, 2}
