from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

from labkit import figures
from labkit.data.augment import FULL, TRANSFORMS
from labkit.data.labels import TISSUE_NAMES
from labkit.evidence import describe
from labkit.figures import style
from labkit.tests.test_describe import SIDE, brain, larger, ramp, random_images, toy_cohort

EXTENT_MM = {  # centre 1, -2, 3 mm (right, anterior, superior), voxels of 1 x 0.5 x 2 mm (right, superior, anterior)
    "coronal": (-7, 9, -1, 7),
    "sagittal": (-18, 14, -1, 7),
    "horizontal": (-7, 9, -18, 14),
}

BRIGHT_MM = {"coronal": (7, 5.5), "sagittal": (12, 5.5), "horizontal": (7, 12)}  # middle of bright_corner's corner


def labelled(n: int):
    return toy_cohort(random_images(n), [brain()] * n)


def unlabelled(n: int):
    return toy_cohort(random_images(n))


def bright_corner():
    """One scan, black but for its right, dorsal, rostral corner."""
    image = np.zeros((SIDE,) * 3)
    image[12:, 10:, 14:] = 100  # a different reach along each axis
    return toy_cohort([image])[0]


def pictures(figure) -> list:
    images = [image for ax in figure.axes for image in ax.images]
    return [image for image in images if image.get_array().ndim == 2]  # nilearn's black ground has three colours


def brightest_mm(image) -> tuple[float, float]:
    """World position across and up of the middle of the bright voxels of a picture."""
    values, (left, right, bottom, top) = np.asarray(image.get_array()), image.get_extent()
    if image.origin == "upper":
        values = values[::-1]
    rows, columns = np.nonzero(values > 50)
    up = bottom + (rows.mean() + 0.5) / values.shape[0] * (top - bottom)
    return left + (columns.mean() + 0.5) / values.shape[1] * (right - left), up


DRAWINGS = {
    "three_planes": figures.three_planes,
    "slice_series": lambda cohort: figures.slice_series(cohort[0], labels=True),
    "one_slice": lambda cohort: figures.one_slice(cohort[0], "sagittal", labels=True),
    "intensity_histograms": figures.intensity_histograms,
    "dorsal_ventral_profile": figures.dorsal_ventral_profile,
    "mean_and_sd": figures.mean_and_sd,
    "augmentations": lambda cohort: figures.augmentations(cohort.subset([0]).volumes(16)[0]),
}


@pytest.mark.parametrize("cohort", [labelled(2), unlabelled(2), unlabelled(1)], ids=["labels", "no labels", "one scan"])
@pytest.mark.parametrize("name", DRAWINGS)
def test_every_figure_is_finite_legible_and_shown_once(name, cohort):
    figure = DRAWINGS[name](cohort)
    assert plt.get_fignums() == []  # an open figure would appear twice in a notebook
    figure.canvas.draw()
    for image in pictures(figure):
        assert np.ma.masked_invalid(image.get_array()).count() == np.ma.count(image.get_array())
    for line in (line for ax in figure.axes for line in ax.lines):
        assert np.isfinite(np.asarray(line.get_ydata(), float)).any()
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    assert texts and min(text.get_fontsize() for text in texts) >= 9
    assert figure.get_facecolor()[:3] == (1, 1, 1)


def test_a_figure_does_not_change_the_style_of_others():
    before = dict(plt.rcParams)
    figures.one_slice(bright_corner())
    assert dict(plt.rcParams) == before


def test_three_planes_has_three_axes_a_rat_and_one_window_for_all():
    cohort = toy_cohort([ramp(), 10 * ramp()])
    figure = figures.three_planes(cohort)
    named = figures.three_planes([bright_corner(), bright_corner()], names=["real", "made"])
    assert {"real", "made"} <= {text.get_text() for axes in named.axes for text in axes.texts}
    shown = pictures(figure)
    assert len(shown) == 3 * len(cohort)
    assert {image.get_clim() for image in shown} == {(0.0, 150.0)}
    assert "0 (black) to 150 (white)" in figure.get_suptitle()


@pytest.mark.parametrize("plane", EXTENT_MM)
def test_sections_are_in_mm_with_left_on_the_left_and_dorsal_on_top(plane):
    scan = bright_corner()
    (image,) = pictures(figures.one_slice(scan, plane, 15))
    np.testing.assert_allclose(image.get_extent(), EXTENT_MM[plane])
    np.testing.assert_allclose(brightest_mm(image), BRIGHT_MM[plane])
    assert image.axes.get_xlim() == EXTENT_MM[plane][:2] and image.axes.get_ylim() == EXTENT_MM[plane][2:]


def test_nilearn_agrees_on_which_side_is_which():
    figure = figures.three_planes([bright_corner()])
    for image, plane in zip(pictures(figure), ("sagittal", "coronal", "horizontal"), strict=True):
        np.testing.assert_allclose(brightest_mm(image), BRIGHT_MM[plane])
        left, right = image.axes.get_xlim()
        assert left < right  # not the radiologists' way round


def test_nilearns_pictures_reach_to_the_outer_edges_of_their_voxels():
    extents = [image.get_extent() for image in pictures(figures.three_planes([bright_corner()]))]
    np.testing.assert_allclose(extents, [EXTENT_MM[plane] for plane in ("sagittal", "coronal", "horizontal")])


def test_the_sides_of_every_plane_are_written_where_they_are():
    sides = {
        "coronal": "LRVD",
        "sagittal": ("caudal", "rostral", "V", "D"),
        "horizontal": ("L", "R", "caudal", "rostral"),
    }
    for plane, (left, right, bottom, top) in sides.items():
        (ax,) = figures.one_slice(bright_corner(), plane).axes
        at = {text.get_text(): text.get_position() for text in ax.texts}
        assert at[left][0] < 0.1 and at[right][0] > 0.9 and at[bottom][1] < 0.1 and at[top][1] > 0.9


def test_a_slice_is_where_its_title_says():
    scan = bright_corner()
    positions = style.positions_mm(scan.affine, scan.image.shape, 2)
    np.testing.assert_allclose(positions, -2 + 2 * (np.arange(SIDE) - 7.5))
    (ax,) = figures.one_slice(scan, "coronal", 0).axes
    assert ax.get_title().startswith("17.0 mm caudal")
    assert figures.one_slice(scan, "sagittal", 15).axes[0].get_title().startswith("8.5 mm right")


def test_a_series_spreads_over_the_whole_depth():
    figure = figures.slice_series(bright_corner(), "coronal", n=4)
    assert [ax.get_title() for ax in figure.axes if ax.images] == [
        "13.0 mm caudal", "5.0 mm caudal", "3.0 mm rostral", "11.0 mm rostral",
    ]  # fmt: skip
    assert len(pictures(figures.slice_series(bright_corner(), "sagittal", n=99))) == SIDE


def test_labels_are_coloured_only_where_they_are():
    scan = labelled(1)[0]
    plain, coloured = pictures(figures.one_slice(scan, "coronal", 8, labels=True))
    shown = coloured.get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), np.asarray(scan.labels)[:, :, 8].T == 0)
    assert len(pictures(figures.one_slice(scan, "coronal", 8))) == 1


def test_unknown_planes_and_slices_are_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match="coronal, sagittal, horizontal"):
        figures.slice_series(bright_corner(), "axial")
    with pytest.raises(ValueError, match="0 to 15"):
        figures.one_slice(bright_corner(), "coronal", 16)
    with pytest.raises(ValueError, match="at least one"):
        figures.three_planes([])


def test_the_window_is_the_darkest_and_brightest_of_all_scans_without_outliers():
    images = random_images(2)
    images[0, 0, 0, 0] = 1e6
    low, high = figures.intensity_window(list(toy_cohort(images)))
    assert low == 0 and 99 < high <= 100
    assert figures.intensity_window(list(toy_cohort(images - 50)))[0] < 0


def test_histograms_hold_every_voxel_once():
    cohort = labelled(3)
    as_stored, scaled, by_tissue = figures.intensity_histograms(cohort).axes
    for ax in (as_stored, scaled):
        assert [patch.get_data().values.sum() for patch in ax.patches] == [SIDE**3] * len(cohort)
    assert [line.get_label() for line in by_tissue.lines] == list(TISSUE_NAMES.values())
    np.testing.assert_allclose([line.get_ydata().sum() for line in by_tissue.lines], 1)
    assert len(figures.intensity_histograms(unlabelled(1)).axes) == 2


def test_labels_of_another_coding_are_not_drawn_as_tissues():
    coded = [replace(scan, labels=np.array([0, 4, 9, 12])[scan.labels]) for scan in labelled(2)]
    assert len(figures.intensity_histograms(coded).axes) == 2


def test_the_profile_points_down_and_names_what_was_measured():
    (ax,) = figures.dorsal_ventral_profile(labelled(3)).axes
    assert ax.get_ylim()[0] > ax.get_ylim()[1] == 0
    assert "brain" in ax.get_xlabel() and "±" in ax.get_title()
    (ax,) = figures.dorsal_ventral_profile(unlabelled(1)).axes
    assert "head" in ax.get_xlabel() and "±" not in ax.get_title()


@pytest.mark.parametrize("n", [2, 8])
def test_tissue_volumes_has_a_dot_a_rat_and_a_violin_only_around_many(n):
    labels = [brain() for _ in range(n)]
    for place, extra in enumerate(labels):  # volumes that differ
        extra[4, 4, 4 : 5 + place] = 1
        extra[4, 5, 4 : 5 + place] = 3
        extra[3, 3, 4 : 5 + place] = 2
    cohort = toy_cohort(random_images(n), labels)
    table, figure = describe.tissue_volumes(cohort), figures.tissue_volumes(cohort)
    for ax, name in zip(figure.axes, ("CSF", "grey matter", "white matter", "brain"), strict=True):
        *violin, dots = ax.collections
        np.testing.assert_allclose(dots.get_offsets()[:, 0], table[name])
        assert len(violin) == (table[name].std() > 0 and n >= 8)
        assert not ax.lines  # of half a millilitre, it is no rat's


def test_tissue_volumes_of_rats_stand_beside_sigmas():
    figure = figures.tissue_volumes(larger(labelled(2)))
    for ax, name in zip(figure.axes, ("CSF", "grey matter", "white matter", "brain"), strict=True):
        assert [line.get_xdata()[0] for line in ax.lines] == [describe.SIGMA_MM3[name]]  # in view: on the study's grid


def test_tissue_volumes_without_labels_are_refused():
    with pytest.raises(ValueError, match="no tissue can be measured"):
        figures.tissue_volumes(unlabelled(2))


def test_mean_and_sd_has_a_column_a_plane_and_a_row_a_map():
    assert len(pictures(figures.mean_and_sd(labelled(3)))) == 6
    figure = figures.mean_and_sd(labelled(1))
    assert len(pictures(figure)) == 3 and figure.axes[0].get_ylabel() == "scan"
    extents = [tuple(np.round(image.get_extent(), 6)) for image in pictures(figure)]
    assert extents == [tuple(map(float, extent)) for extent in EXTENT_MM.values()]


def test_augmentations_shows_each_transform_and_what_it_changed():
    volume = unlabelled(1).volumes(16)[0]
    figure = figures.augmentations(volume)
    titles = [ax.get_title().split("\n")[0] for ax in figure.axes if ax.get_title()]
    assert titles == ["original", *TRANSFORMS]
    assert len(pictures(figure)) == 1 + 2 * len(TRANSFORMS)
    assert len(pictures(figures.augmentations(volume, FULL.only("flip")))) == 1 + 2
    differences = [ax.images[0].get_array() for ax in figure.axes if ax.images and not ax.get_title()]
    assert all(np.abs(difference).max() > 0 for difference in differences)


def test_augmentations_are_drawn_at_their_size_in_mm():
    left, right, bottom, top = pictures(figures.augmentations(unlabelled(1).volumes(16)[0]))[0].get_extent()
    assert (right - left, top - bottom) == (24, 24)  # 64 voxels of 0.375 mm, whatever the cube's side


def test_the_split_diagram_counts_animals_and_hatches_the_held_out_ones():
    subjects = ["a", "a", "b", "c", "d"]
    figure = figures.split_diagram(*toy_cohort(random_images(5), subjects=subjects).split(3, seed=1))
    squares = figure.axes[0].patches
    assert len(squares) == 4
    assert sum(square.get_hatch() is not None for square in squares) == 1
    train, held_out = toy_cohort(random_images(5), subjects=subjects).split(3, seed=1)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [f"$D_r^{{{len(side)}}}$" in text for side, text in zip((train, held_out), legend, strict=True)] == [
        True
    ] * 2
