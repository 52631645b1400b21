import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import labkit
from labkit import figures, widgets
from labkit.data.file_template import FileTemplate
from labkit.evidence import describe
from labkit.tests.rats import ellipsoids


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohorts")
    return ellipsoids(folder / "real", 6), ellipsoids(folder / "made", 5, seed=9)


@pytest.mark.parametrize("plane", figures.PLANES)
def test_pairs_of_slices_share_positions_and_window(cohorts, plane):
    real, made = cohorts
    figure = figures.slice_pairs(real[0], made[0], plane, n=3)
    pictures = [ax for ax in figure.axes if ax.images]
    windows = {im.get_clim() for ax in pictures for im in ax.images if im.get_array().ndim == 2}
    assert windows == {figures.intensity_window([real[0], made[0]])}
    words = [text.get_text() for ax in figure.axes for text in ax.texts]
    positions = [word for word in words if re.fullmatch(r"[xyz]=.*", word)]
    assert len(positions) == 6 and sorted(positions) == sorted(positions[:3] * 2)
    assert "real" in words and "synthetic" in words and any("5 mm" in word for word in words)


def test_colour_comes_with_a_bar(cohorts):
    grey, colour = (figures.slice_pairs(cohorts[0][0], cohorts[1][0], n=2, colour=c) for c in (False, True))
    assert len(colour.axes) > len(grey.axes)


def test_an_unknown_plane_is_answered_with_the_known_ones(cohorts):
    with pytest.raises(ValueError, match="coronal, sagittal, horizontal"):
        figures.slice_pairs(cohorts[0][0], cohorts[1][0], "axial")


def test_the_maps_are_those_of_the_cohorts(cohorts):
    real, made = cohorts
    figure = figures.mean_and_variance(real, made)
    difference = next(ax for ax in figure.axes if ax.get_title() == "synthetic − real").images[0].get_array()
    means = [np.mean([scan.image for scan in cohort], 0) for cohort in (real, made)]
    unit = np.median([scan.origin.high for scan in real])
    assert np.allclose(difference, (means[1] - means[0])[:, :, 19].T / unit, atol=1e-6)
    with pytest.raises(ValueError, match="two scans or more"):
        figures.mean_and_variance(real, made[:1])


def test_a_collapsed_cohort_has_no_spread(cohorts):
    real, _ = cohorts
    same = [real[0]] * 4
    assert describe.spread_ratio(real, same)["synthetic / real"] == pytest.approx(0, abs=1e-9)
    assert describe.spread_ratio(real, real)["synthetic / real"] == pytest.approx(1)


def test_reconstructions_of_other_animals_are_refused(cohorts):
    real, _ = cohorts
    figure = figures.reconstruction_errors(real[:2], real[:2])
    assert [ax.get_title() for ax in figure.axes if ax.get_title().startswith("RMSE")] == ["RMSE 0.000"] * 2
    with pytest.raises(ValueError, match="same animals"):
        figures.reconstruction_errors(real[:2], real[1:3])


def test_the_odd_ones_of_a_cohort_stand_first_in_red_with_what_sets_them_apart(cohorts):
    scans = [replace(scan, subject=f"rat{place}") for place, scan in enumerate(list(cohorts[0]) * 3)]
    scans[5] = replace(scans[5], image=scans[5].image * 9)
    scans[2] = replace(scans[2], origin=replace(scans[2].origin, axes="LPS"))
    figure = figures.cohort_sheet(scans, most=4)
    titles = [ax.get_title().split("\n") for ax in figure.axes]
    assert titles[0][0] == "rat5" and "brightness" in titles[0][1] and titles[1][0] == "rat2" and "file" in titles[1][1]
    assert {ax.title.get_color() for ax in figure.axes[:2]} == {"firebrick"}
    assert f"the 4 of {len(scans)} that differ most" in figure.get_suptitle()


def test_a_contact_sheet_has_every_scan_once(cohorts):
    figure = figures.contact_sheet(cohorts[1])
    assert sum(bool(ax.images) for ax in figure.axes) == 5
    plt.close("all")


def test_the_viewer_holds_every_slice_of_both_and_nothing_from_elsewhere(cohorts):
    cards = figures.viewer(cohorts[0][0], cohorts[1][0])
    assert [len(card.words) for card in cards.cards] == [40, 64, 64]
    page = cards._repr_mimebundle_()["text/html"]
    assert not re.search(r"(src|href)=|https?://", page) and len(page) < 3_000_000
    middle = cards.cards[0].pictures[20]
    assert middle.shape == (64, 129) and middle[:, :64].any() and not np.array_equal(middle[:, :64], middle[:, 65:])


def test_two_cohorts_are_browsed_side_by_side(cohorts):
    browser = widgets.slice_browser(cohorts[0], live=True, beside=cohorts[1])
    names = [child.description for child in browser.children if getattr(child, "description", "")]
    assert names[:2] == ["animal", "beside"] and browser.children[-1].value.count("<img") == 2


def test_headers_are_compared_field_by_field(cohorts):
    import nibabel as nib

    scan = cohorts[0][0]
    image = nib.load(scan.origin.path)
    assert describe.compare_headers(image, scan)["equal"].all()
    other = nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine)
    assert not describe.compare_headers(other, scan).loc["voxels", "equal"]


def test_a_generated_file_is_like_a_training_scan_that_came_on_another_grid(cohorts):
    own = [labkit.open_cohort(cohorts[0].folder, grid=grid)[0] for grid in ("16x16x16@1.5", "study")]
    volume = torch.rand(1, 64, 64, 64) * 2 - 1
    for scan in own:
        written = FileTemplate.of([scan]).image(volume, np.random.default_rng(0))
        assert describe.compare_headers(written, scan)["equal"].all()
    assert [scan.origin.resampled for scan in own] == [True, False]
    assert not describe.compare_headers(written, own[0]).loc["voxel size, mm", "equal"]
