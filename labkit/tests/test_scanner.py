"""The scanner: field, coil, signal, k-space."""

import dataclasses
import math

import pytest
import torch

from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS
from labkit.data.simulate import TISSUE_PROPERTIES, Individual, Scanner
from labkit.data.simulate.field import AIR_LESS_TISSUE_PPM, GYROMAGNETIC_MHZ_PER_T, field_map
from labkit.data.simulate.individual import draw_variation
from labkit.data.simulate.preparation import FINE, coarse_points, coarse_spacing, prepare
from labkit.data.simulate.scanner import (
    PHASE,
    READ,
    ScanConditions,
    acquire,
    coil_sensitivity,
    dephasing,
    draw_conditions,
    steady_state,
)
from labkit.data.simulate.simulation import _distortion, _scan
from labkit.tests.heads import simple_head

QUIET = Scanner(noise=0.0, gain=1.0)
TWIN = Individual(volume_cv=0, rotation_deg=0, shift_mm=0, warp_mm=0, ventricle_mm=0)


def session(**changes):
    quiet = ScanConditions(
        gain=1.0,
        ghost=0.0,
        ghost_slope=0.0,
        coil_shift_mm=torch.zeros(3),
        field_scale=1.0,
        shim_hz_per_mm=torch.zeros(3),
        noise=torch.zeros(2, *STUDY_SHAPE),
    )
    return dataclasses.replace(quiet, **changes)


def block():
    picture = torch.zeros(1, *FINE)
    picture[:, 40:72, 44:60, 10:20] = 1
    return picture


def test_the_image_stands_where_the_object_is_and_is_as_bright():
    image = acquire(QUIET, block(), [session()])[0]
    inside = image[24:32, 24:28, 14]
    assert inside.mean() == pytest.approx(1, abs=0.03)
    centre = [(image[..., 14].sum(1 - axis) * torch.arange(64)).sum() / image[..., 14].sum() for axis in (0, 1)]
    # fine points 40..71 are voxels 20..35, fine points 44..59 are voxels 22..29
    assert centre[READ] == pytest.approx(27.5, abs=0.1)
    assert centre[PHASE] == pytest.approx(25.5, abs=0.3)
    assert image[..., 30].max() < 1e-5  # other slices are untouched


def test_the_ghost_is_half_a_field_of_view_away_and_as_strong_as_asked():
    image = acquire(QUIET, block(), [session(ghost=0.03)])[0, :, :, 14]
    clean = acquire(QUIET, block(), [session()])[0, :, :, 14]
    ghost = (image**2 - clean**2).clamp(min=0).sqrt()[24:32, 24 + 32 : 28 + 32].mean()
    assert ghost == pytest.approx(math.sin(0.03), rel=0.3)
    there = image[24:32, 22 + 32 : 30 + 32].mean()
    assert there > 3 * image[24:32, 40:50].mean() and there > 3 * image[4:12, 54:62].mean()


def test_noise_in_air_is_rician_and_falls_with_averages():
    still = torch.zeros(1, *FINE)
    for averages in (1, 9):
        scanner = Scanner(averages=averages)
        drawn = draw_conditions(scanner, torch.Generator().manual_seed(3))
        image = acquire(scanner, still, [drawn])
        sigma = scanner.gain * scanner.noise / math.sqrt(averages)
        assert image.min() > 0
        assert image.mean() == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.01)
        assert image.std() == pytest.approx(sigma * math.sqrt(2 - math.pi / 2), rel=0.01)


def test_lines_read_later_are_weaker_and_so_edges_along_the_phase_axis_are_softer():
    sharp, soft = (
        acquire(dataclasses.replace(QUIET, echo_spacing_ms=spacing), block(), [session()])[0, :, :, 14]
        for spacing in (1e-6, 0.5)
    )
    assert soft[28, 21] > 2 * sharp[28, 21]  # one voxel beside the object along the phase axis
    assert soft[19, 25] < 1.5 * sharp[19, 25]  # and along the read-out
    assert soft[24:32, 24:28].mean() == pytest.approx(sharp[24:32, 24:28].mean().item(), rel=0.05)


def test_signal_is_the_spoiled_gradient_echo_equation():
    scanner = Scanner(flip_deg=90)
    signal = steady_state(scanner, ("cortex", "csf", "white"), torch.ones(1, 3, 3))[0]
    cortex = TISSUE_PROPERTIES["cortex"]
    expected = cortex.density * (1 - math.exp(-2000 / cortex.t1_ms)) * math.exp(-17.5 / cortex.t2star_ms)
    assert signal[0] == pytest.approx(expected, rel=1e-5)
    assert signal[1] > signal[0] > signal[2]
    longer = torch.ones(1, 3, 3)
    longer[0, 2] = 1.1
    assert (steady_state(scanner, ("cortex", "csf", "white"), longer)[0] > signal).all()


def test_free_water_recovers_as_slowly_as_at_any_field():
    for name in ("csf", "eye"):
        assert 4000 <= TISSUE_PROPERTIES[name].t1_ms <= 4500
    csf, cortex = steady_state(Scanner(), ("csf", "cortex"), torch.ones(1, 3, 2))[0].tolist()
    assert csf == pytest.approx(0.307, abs=0.002) and 1.1 < csf / cortex < 1.2


def test_the_coil_sees_the_dorsal_cortex_two_to_three_times_better_than_the_base():
    height = torch.tensor([5.0, 4.0, -5.0])[:, None, None]
    points = torch.stack([torch.zeros_like(height), height, torch.zeros_like(height)])
    seen = coil_sensitivity(Scanner(), points, torch.zeros(1, 3)).flatten()
    assert seen[0] == pytest.approx(1, abs=1e-5)
    assert 2 < seen[1] / seen[2] < 3


def test_the_coil_is_symmetric_and_moves_with_its_shift():
    points = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 4
    mirrored = points * torch.tensor([-1.0, 1, 1])[:, None, None, None]
    scanner, still, shift = Scanner(), torch.zeros(1, 3), torch.tensor([[1.0, -0.5, 2.0]])
    seen = coil_sensitivity(scanner, points, still)
    assert torch.allclose(seen, coil_sensitivity(scanner, mirrored, still), rtol=1e-4)
    assert torch.allclose(seen, coil_sensitivity(scanner, points + shift[0][:, None, None, None], shift), rtol=1e-4)


def test_a_linear_field_dephases_by_the_spread_across_the_voxel():
    scanner, spacing = Scanner(), coarse_spacing()
    ramp = 30.0 * coarse_points("cpu")[:, 2]  # Hz per mm along the slice direction
    left = dephasing(scanner, ramp, spacing)
    across = 30.0 * STUDY_ZOOMS[2] * scanner.te_ms / 1000
    assert left.mean() == pytest.approx(math.exp(-((math.pi * across) ** 2) / 6), rel=1e-3)
    assert left.mean() == pytest.approx(math.sin(math.pi * across) / (math.pi * across), rel=0.01)


def test_a_ball_of_air_makes_the_field_of_a_dipole():
    n, spacing, radius = 48, 0.5, 2.0
    axis = spacing * (torch.arange(n) - (n - 1) / 2)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    distance = (x * x + y * y + z * z).sqrt()
    air = ((radius - distance) / spacing + 0.5).clamp(0, 1)
    # no brain, no shim: the fit has nothing to go by
    field = field_map(1 - air, torch.zeros_like(air), (spacing,) * 3, 11.7)
    shell = (distance > 3.5) & (distance < 6)
    hz = (
        -AIR_LESS_TISSUE_PPM
        * GYROMAGNETIC_MHZ_PER_T
        * 11.7
        / 3
        * (radius / distance) ** 3
        * (1 - 3 * z * z / distance**2)
    )
    error = (field - hz)[shell].square().mean().sqrt() / hz[shell].square().mean().sqrt()
    assert error < 0.1


def test_the_shim_takes_away_most_of_a_smooth_field():
    air = torch.zeros(20, 20, 20)
    air[8:12, 15:18, 8:12] = 1
    brain = torch.zeros_like(air)
    brain[4:16, 3:10, 4:16] = 1
    bare = field_map(1 - air, torch.zeros_like(brain), (0.8,) * 3, 11.7)[brain > 0]
    shimmed = field_map(1 - air, brain, (0.8,) * 3, 11.7)[brain > 0]
    assert shimmed.mean().abs() < 0.01
    assert shimmed.std() < 0.6 * bare.std()


def test_the_same_head_has_the_same_field_wherever_it_lies_in_memory():
    air = torch.rand(12, 12, 12, generator=torch.Generator().manual_seed(0))
    fields = []
    for n in range(8):
        kept = [torch.empty(1000 + 17 * n) for _ in range(10 * n)]
        fields.append(field_map(1 - air, air, (0.8,) * 3, 11.7))
        del kept
    assert all(torch.equal(field, fields[0]) for field in fields)


def distort(field_of, **changes):
    head = prepare(simple_head(), 11.7, torch.device("cpu"))
    spacing = head.spacing(head.field.shape)[1]
    superior = spacing * (torch.arange(head.field.shape[1]) - (head.field.shape[1] - 1) / 2)
    head = dataclasses.replace(head, field=field_of(superior)[None, :, None].expand(head.field.shape))
    rat = draw_variation(TWIN, 0, 0, 4, tuple(head.ventricles.shape[1:]), 1.0)
    scanner = Scanner()
    return scanner, *_distortion(head, scanner, [rat], [session(**changes)], coarse_points(torch.device("cpu")))


def test_a_field_moves_the_image_by_its_share_of_the_bandwidth_of_a_voxel():
    scanner = Scanner()
    one_voxel = scanner.hz_per_voxel
    _, shift, brightness = distort(lambda superior: torch.full_like(superior, one_voxel))
    assert shift.mean() == pytest.approx(STUDY_ZOOMS[PHASE], rel=0.03)  # a little held back: largest_shift
    assert brightness == pytest.approx(torch.ones_like(brightness), abs=1e-4)
    assert distort(lambda superior: torch.full_like(superior, -one_voxel))[1].max() < 0


def test_a_field_that_pushes_together_piles_the_signal_up():
    slope = -0.1 * Scanner().hz_per_voxel / STUDY_ZOOMS[PHASE]  # Hz per mm: water is moved by -0.1 of its height
    _, shift, brightness = distort(lambda superior: slope * superior)
    points = coarse_points("cpu")[:, PHASE]
    near = points.abs() < 3
    assert shift[near] == pytest.approx((-0.1 * points / 0.9)[near], abs=0.02)
    dephased = dephasing(Scanner(), slope * points / 0.9, coarse_spacing())
    assert (brightness / dephased)[near].mean() == pytest.approx(1 / 0.9, abs=0.02)


def test_labels_and_image_are_where_the_field_has_moved_them():
    head = prepare(simple_head(), 11.7, torch.device("cpu"))
    scanner = Scanner(field_cv=0, shim_hz_per_mm=0, coil_shift_mm=0)
    rows = torch.arange(STUDY_SHAPE[PHASE])
    centres = []
    for hz in (0.0, scanner.hz_per_voxel):
        moved = dataclasses.replace(head, field=torch.full_like(head.field, hz))
        rat = _scan(moved, [0], 0, TWIN, scanner)[0]
        brain = torch.from_numpy(rat.labels > 0)
        bright = torch.from_numpy(rat.image) * torch.from_numpy(rat.labels == 1)
        centres += [[(weight.sum((0, 2)) * rows).sum() / weight.sum() for weight in (brain, bright)]]
    (brain, bright), (moved_brain, moved_bright) = centres
    assert moved_brain - brain == pytest.approx(1, abs=0.05)
    assert moved_bright - bright == pytest.approx(1, abs=0.1)


def test_a_stronger_air_field_moves_further():
    weak, strong = (distort(lambda superior: 20 * superior.cos(), field_scale=s)[1] for s in (0.5, 1.0))
    assert strong.abs().mean() > 1.5 * weak.abs().mean()
