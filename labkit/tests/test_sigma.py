"""The head of the SIGMA maps, and rats simulated from it; needs the published files."""

import numpy as np
import pytest
import torch

from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS
from labkit.data.labels import LABEL_NAMES
from labkit.data.simulate import Individual, Scanner, sigma_anatomy, simulate
from labkit.data.simulate.sigma import FILES, HALF_WIDTH_MM, Volume, white_matter_rim

N = 3


@pytest.fixture(scope="module")
def files(mirror):
    return {name: mirror / "sigma" / name for name in FILES}


@pytest.fixture(scope="module")
def anatomy(files):
    return sigma_anatomy(files)


@pytest.fixture(scope="module")
def rats(anatomy):
    return list(simulate(anatomy, range(N)))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="not given: .*_wm.nii.gz.*SIGMA_template_zoom.nii"):
        sigma_anatomy({FILES[0]: tmp_path / FILES[0]})


def test_fractions_are_fractions(anatomy):
    assert anatomy.maps.min() >= 0 and anatomy.air.min() >= 0
    assert (anatomy.maps.sum(0) + anatomy.air).max() < 1 + 1e-4
    assert anatomy.texture[anatomy.label_maps().sum(0) > 0.9].mean() == pytest.approx(1, abs=0.05)


def test_the_head_goes_on_where_the_template_ends(anatomy):
    tissue = anatomy.maps.sum(0) + anatomy.air
    right = anatomy.affine[0, 3] + 0.2 * np.arange(tissue.shape[0])
    middle = tissue[:, 50:70, 50:80]  # the height of the thalamus, from striatum to midbrain
    inside = torch.from_numpy(np.abs(right) < HALF_WIDTH_MM - 1.5)
    assert middle[inside].min() > 0.95
    signal = (anatomy.maps[anatomy.tissues.index("muscle")] * anatomy.texture)[:, 50:70, 50:80].mean((1, 2)).numpy()
    steps = np.abs(np.diff(signal))
    edge = np.abs(np.abs(right[1:]) - 9.5) < 0.5
    assert steps[edge].max() < 2 * np.median(steps[np.abs(right[1:]) > 8])
    assert tissue[:, -1].max() == 0  # and there is only air above it


def test_the_rim_of_the_white_matter_map_is_thin_and_on_the_surface(files):
    white, mask = Volume.read(files[FILES[1]]), Volume.read(files[FILES[3]])
    rim = white_matter_rim(white, mask)
    assert 90 < rim.sum() * white.spacing**3 < 110
    right, superior, anterior = (o + white.spacing * np.arange(n) for o, n in zip(white.origin, rim.shape, strict=True))
    dorsal = np.ix_(np.abs(right) < 5, superior > 6.3, (anterior > -5) & (anterior < 3))  # cortex, no callosum
    assert rim[dorsal].sum() > 0.8 * white.data[dorsal].sum()
    deep = np.ix_(np.abs(right) < 4, (superior > 0) & (superior < 4.5), (anterior > -5) & (anterior < 1))
    assert rim[deep].sum() < 0.001 * white.data[deep].sum()


def test_tissue_volumes_are_those_of_the_maps_within_the_field_of_view(files, rats, anatomy):
    voxel = np.prod(STUDY_ZOOMS)
    for label, part in ((1, "csf"), (2, "gm"), (3, "wm")):
        volume = Volume.read(files[next(name for name in FILES if part in name)])
        anterior = volume.origin[2] + volume.spacing * np.arange(volume.data.shape[2])
        seen = np.abs(anterior - anatomy.centre_mm[1]) < STUDY_SHAPE[2] * STUDY_ZOOMS[2] / 2
        reference = volume.data[..., seen].sum().item() * volume.spacing**3
        found = np.mean([(rat.labels == label).sum() * voxel / rat.properties["size"] ** 3 for rat in rats])
        assert found == pytest.approx(reference, rel=0.15), LABEL_NAMES[label]


def test_the_dorsal_brain_is_two_to_three_and_a_half_times_as_bright_as_its_base(rats):
    ratios = []
    for rat in rats:
        for image, labels in zip(rat.image[..., 10:30].T, rat.labels[..., 10:30].T, strict=True):
            rows = np.flatnonzero((labels > 0).any(1))
            quarter = len(rows) // 4
            top, base = slice(rows[-1] + 1 - quarter, rows[-1] + 1), slice(rows[0], rows[0] + quarter)
            ratios.append(image[top][labels[top] > 0].mean() / image[base][labels[base] > 0].mean())
    assert 2 < np.mean(ratios) < 3.5


def test_signal_drops_out_at_the_ears(anatomy):
    still = Individual(volume_cv=0, rotation_deg=0, shift_mm=0, warp_mm=0, ventricle_mm=0)
    quiet = {"noise": 0.0, "field_cv": 0.0, "shim_hz_per_mm": 0.0, "gain_cv": 0.0, "ghost": 0.0, "coil_shift_mm": 0.0}
    at_11_7, at_1 = (
        next(simulate(anatomy, [0], individual=still, scanner=Scanner(b0_tesla=b0, **quiet))) for b0 in (11.7, 1.0)
    )
    lost = at_11_7.image / np.maximum(at_1.image, 1)
    brain = (at_11_7.labels > 0) & (at_1.labels > 0)
    height = np.arange(STUDY_SHAPE[1])[:, None] * np.ones(STUDY_SHAPE[2])
    assert lost[brain & (height > 40)].mean() > 0.85
    ears = np.zeros_like(brain)
    ears[8:22, :28, 12:18] = ears[42:56, :28, 12:18] = True
    assert lost[brain & ears].mean() < 0.6


def test_all_labels_are_in_every_rat(rats):
    for rat in rats:
        assert set(np.unique(rat.labels)) == {0, 1, 2, 3}
        assert rat.image.max() < 32767
