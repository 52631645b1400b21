from dataclasses import replace

import numpy as np
import pytest
import torch

from labkit.evidence.attributes import Gauge, measure, tissues
from labkit.evidence.brightness import white
from labkit.tests.rats import ellipsoids


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return ellipsoids(tmp_path_factory.mktemp("cohort") / "rats", n=24)


def test_attributes_are_those_of_the_labelled_ellipsoid(rats):
    table = measure(rats)
    scan = rats[0]
    voxels = (scan.labels > 0).sum()
    assert table.loc[0, "brain volume, mm³"] == pytest.approx(voxels * 0.375 * 0.375 * 0.5, rel=1e-4)
    assert abs(table.loc[0, "to the right, mm"]) < 0.4 and abs(table.loc[0, "pitch, °"]) < 1
    assert 1.2 < table.loc[0, "dorsal / ventral"] < 1.5  # painted 600 ± 120 from top to base


def test_a_shifted_and_tilted_brain_is_measured_as_such(rats):
    scan = rats[0]
    rolled = type(scan)(**{**vars(scan), "labels": np.roll(scan.labels, (4, 3), (0, 1)), "image": scan.image})
    moved = measure([rolled]).iloc[0] - measure([scan]).iloc[0]
    assert moved["to the right, mm"] == pytest.approx(1.5, abs=1e-6)
    assert moved["dorsal, mm"] == pytest.approx(1.125, abs=1e-6)
    elsewhere = scan.affine.copy()
    elsewhere[:3, 3] += 3  # another place in the scanner, the same voxels
    moved = measure([type(scan)(**{**vars(scan), "affine": elsewhere})]).iloc[0]
    assert moved.to_dict() == pytest.approx(measure([scan]).iloc[0].to_dict(), abs=1e-9)
    z = np.arange(40)
    labels = np.zeros((64, 64, 40), np.uint8)
    for index in z:  # one voxel up for two forward: 0.375 mm in 1 mm
        labels[20:40, 20 + index // 2 : 26 + index // 2, index] = 2
    tilted = type(scan)(**{**vars(scan), "labels": labels})
    assert measure([tilted]).loc[0, "pitch, °"] == pytest.approx(np.degrees(np.arctan(0.375)), abs=1)


def test_a_gauge_reads_animals_it_never_saw(rats):
    table, cubes = measure(rats), rats.volumes(16)
    gauge = Gauge.fit(cubes[:18], table.iloc[:18])
    assert gauge.r2(cubes[18:], table.iloc[18:])["brain volume, mm³"] > 0.9
    assert gauge(cubes).shape == (24, len(gauge.names))


def test_a_gauge_has_the_gradient_of_a_linear_reading(rats):
    gauge = Gauge.fit(rats.volumes(16), measure(rats))
    x = rats[:2].volumes(16).requires_grad_()
    (gradient,) = torch.autograd.grad(gauge(x)[:, 0].sum(), x)
    assert torch.allclose(gradient[0].flatten(), gauge.weights[0])


def test_unlabelled_scans_are_measured_on_the_head(rats):
    scan = rats[0]
    table = measure([type(scan)(**{**vars(scan), "labels": None})])
    assert "head volume, mm³" in table and "ventricles, mm³" not in table


def test_what_does_not_differ_is_not_learned(rats):
    with pytest.raises(ValueError, match="three scans or more"):
        Gauge.fit(rats[:2].volumes(16), measure(rats[:2]))
    table = measure(rats[:4]).assign(same=1.0)
    assert "same" not in Gauge.fit(rats[:4].volumes(16), table).names


def test_tissues_are_measured_where_labels_tell_them(rats):
    assert tissues(rats).empty  # their brains are of one tissue
    scan = rats[0]
    labels = np.zeros(scan.image.shape, np.uint8)
    image = np.full(scan.image.shape, 100.0, np.float32)
    for label, part in ((1, slice(8, 16)), (2, slice(16, 32)), (3, slice(32, 36))):
        labels[part, 20:40, 10:30] = label
        image[part, 20:40, 10:30] = 200.0 * label
    table = tissues([type(scan)(**{**vars(scan), "labels": labels, "image": image})])
    voxel = 0.375 * 0.375 * 0.5
    assert table.loc[0, "CSF volume, mm³"] == pytest.approx(8 * 400 * voxel)
    assert table.loc[0, "white matter volume, mm³"] == pytest.approx(4 * 400 * voxel)
    ratio = table.loc[0, "grey matter intensity, %"] / table.loc[0, "CSF intensity, %"]
    assert ratio == pytest.approx(2)


def test_a_brain_that_was_cut_out_is_measured_alike_with_and_without_labels(rats):
    stripped = [replace(scan, image=np.where(scan.labels > 0, scan.image, 0)) for scan in rats[:4]]
    brains, heads = measure(stripped), measure([replace(scan, labels=None) for scan in stripped])
    assert np.isfinite(brains.to_numpy()).all() and np.isfinite(heads.to_numpy()).all()
    assert heads["head volume, mm³"].to_numpy() == pytest.approx(brains["brain volume, mm³"].to_numpy(), rel=0.01)
    assert heads["dorsal / ventral"].to_numpy() == pytest.approx(brains["dorsal / ventral"].to_numpy(), rel=0.01)


def test_white_of_a_brain_that_was_cut_out_does_not_hang_on_how_much_lies_around_it():
    brain = 500 + 100 * torch.rand(2, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    wide = torch.nn.functional.pad(brain, (20,) * 6)
    assert (brain > 0).sum() < 0.06 * wide.numel()
    for inside, around in zip(white(brain), white(wide), strict=True):
        assert around.item() == pytest.approx(inside.item(), rel=0.05)


def test_white_is_not_moved_by_one_voxel_and_hardly_by_resolution():
    rng = np.random.default_rng(0)
    image = torch.zeros(1, 1, 64, 64, 40)
    image[..., 16:48, 16:48, 8:32] = 400 + 60 * torch.from_numpy(rng.standard_normal((32, 32, 24)).astype(np.float32))
    bright = image.clone()
    bright[..., 30, 30, 20] = 5000
    small = torch.nn.functional.avg_pool3d(image, 2)
    coarse = torch.nn.functional.interpolate(small, scale_factor=2)
    assert white(bright)[0] == pytest.approx(white(image)[0].item(), rel=0.03)
    assert white(coarse)[0] == pytest.approx(white(image)[0].item(), rel=0.01)
    assert coarse.max() < 0.9 * image.max()
    assert white(3 * image)[0] == pytest.approx(3 * white(image)[0].item(), rel=1e-5)
