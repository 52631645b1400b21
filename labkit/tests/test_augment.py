"""The paper's augmentation: how often, how far, in which direction, and what it must leave alone."""

import dataclasses
import json

import pytest
import torch

from labkit.data.augment import (
    AUGMENTATIONS,
    FLIP_ONLY,
    FULL,
    TRANSFORMS,
    Augmentation,
    Draws,
    affine_matrices,
    apply_affine,
    augment,
    draw,
    preview,
)

ALWAYS = dataclasses.replace(FULL, probability=1.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def head(n=1, size=16):
    """Scans (N, 1, S, S, S), smooth and unsymmetrical signal in a ball, exactly -1 outside; labels are its octants."""
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 3, indexing="ij")
    inside = (x**2 + y**2 + z**2 < 0.6).float()
    signal = inside * (0.4 + 0.2 * torch.sin(3 * x + 1) + 0.15 * torch.cos(4 * y) + 0.1 * z)
    labels = inside * (1 + (x > 0).float() + 2 * (y > 0).float() + 4 * (z > 0).float())
    return (2 * signal - 1).expand(n, 1, size, size, size), labels.to(torch.uint8).expand(n, size, size, size)


def one(angles=(0.0, 0.0, 0.0), zoom=1.0, translation=(0.0, 0.0, 0.0)):
    """Geometric parameters of one scan."""
    return Draws(
        torch.tensor([angles]),
        torch.zeros(1, dtype=torch.bool),
        torch.ones(1),
        torch.tensor([zoom]),
        torch.zeros(1),
        torch.tensor([translation]),
    )


def drawn(draws):
    """(N, 6) bool: which transforms were drawn, ordered as TRANSFORMS."""
    return torch.stack(
        [
            (draws.angles_rad != 0).any(1),
            draws.flip,
            draws.factor != 1,
            draws.zoom != 1,
            draws.noise_sd != 0,
            (draws.translation != 0).any(1),
        ],
        1,
    )


def test_each_transform_is_drawn_for_one_scan_in_ten():
    n = 4000
    share = drawn(draw(n, 64, seeded())).float().mean(0)
    five_sd = 5 * (0.1 * 0.9 / n) ** 0.5
    assert (share - 0.1).abs().max() < five_sd, dict(zip(TRANSFORMS, share.tolist(), strict=True))


def test_transforms_are_drawn_independently_of_each_other():
    n = 4000
    both = drawn(draw(n, 64, seeded(1))).float()
    share = (both.T @ both / n)[~torch.eye(6, dtype=torch.bool)]
    assert (share - 0.01).abs().max() < 5 * (0.01 * 0.99 / n) ** 0.5


def test_ranges_are_the_papers_and_are_filled_evenly():
    draws = draw(4000, 64, seeded(2), ALWAYS)
    ranges = {
        "rotation": (draws.angles_rad, -0.052, 0.052),
        "intensity": (draws.factor, 0.9, 1.1),
        "zoom": (draws.zoom, 1.0, 1.1),
        "translation": (draws.translation[:, :2], -4, 4),
    }
    for name, (values, low, high) in ranges.items():
        position = (values - low) / (high - low)
        assert -1e-5 <= position.min() < 0.01 and 0.99 < position.max() <= 1 + 1e-5, name
        assert (position.mean(0) - 0.5).abs().max() < 5 * (1 / 12 / 4000) ** 0.5, name
    assert (draws.noise_sd == 0.01).all()
    assert (draws.translation[:, 2] == 0).all()


def test_the_variants_get_the_augmentation_of_the_paper():
    assert AUGMENTATIONS["full"].transforms == TRANSFORMS
    assert AUGMENTATIONS["flip"].transforms == ("flip",)
    assert AUGMENTATIONS["none"].transforms == ()
    assert FLIP_ONLY.probability == 0.1 and FLIP_ONLY.flip_axis == 0


def test_switching_one_transform_off_leaves_the_draws_of_the_others():
    full, partial = draw(50, 64, seeded()), draw(50, 64, seeded(), FULL.only("zoom", "flip"))
    assert torch.equal(full.zoom, partial.zoom) and torch.equal(full.flip, partial.flip)
    assert torch.equal(drawn(partial).any(0), torch.tensor([name in ("zoom", "flip") for name in TRANSFORMS]))


def test_a_shift_is_the_same_part_of_a_cube_of_any_size():
    small, large = (draw(20, size, seeded(), ALWAYS).translation for size in (16, 64))
    torch.testing.assert_close(large, 4 * small)


@pytest.mark.parametrize("seed", range(4))
def test_geometry_is_that_of_monais_affine(seed):
    from monai.transforms import Affine

    volume, _ = head(size=24)
    draws = draw(1, 64, seeded(seed), dataclasses.replace(ALWAYS, rotation_rad=0.4, translation_voxels=(3, 2, 1)))
    ours = apply_affine(volume, affine_matrices(draws))
    zoom = draws.zoom.item()
    monai = Affine(
        rotate_params=[-a for a in draws.angles_rad[0].tolist()],
        translate_params=[-t / zoom for t in draws.translation[0].tolist()],
        scale_params=[1 / zoom] * 3,
        padding_mode="zeros",
        image_only=True,
    )(volume[0] + 1)
    assert (volume - ours).abs().max() > 0.2
    torch.testing.assert_close(ours[0], torch.as_tensor(monai) - 1, atol=1e-4, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_positive_angle_carries_the_next_axis_towards_the_one_after(axis):
    volume = torch.full((1, 1, 17, 17, 17), -1.0)
    start, goal = [8, 8, 8], [8, 8, 8]
    start[(axis + 1) % 3], goal[(axis + 2) % 3] = 13, 13
    volume[0, 0][tuple(start)] = 1
    quarter_turn = [torch.pi / 2 if a == axis else 0.0 for a in range(3)]
    turned = apply_affine(volume, affine_matrices(one(angles=quarter_turn)))
    assert turned[0, 0][tuple(goal)] > 0.99


def test_a_translation_moves_the_head_towards_higher_indices():
    volume, labels = head()
    matrices = affine_matrices(one(translation=(2.0, -1.0, 0.0)))
    torch.testing.assert_close(apply_affine(volume, matrices)[..., 2:, :-1, :], volume[..., :-2, 1:, :])
    assert torch.equal(apply_affine(labels[:, None], matrices, "nearest")[..., 2:, :-1, :], labels[:, None, :-2, 1:, :])


def test_a_zoom_enlarges_the_head_by_its_factor():
    volume, _ = head(size=32)
    zoomed = apply_affine(volume, affine_matrices(one(zoom=1.1)))
    assert zoomed.shape == volume.shape
    growth = (zoomed + 1).sum() / (volume + 1).sum()
    assert growth.item() == pytest.approx(1.1**3, rel=0.01)


def test_a_rotation_is_rigid_in_millimetres():
    mm = torch.tensor(FULL.voxel_mm)
    draws = draw(5, 64, seeded(), ALWAYS.only("rotation"))
    linear = affine_matrices(draws, FULL.voxel_mm)[:, :, :3] * mm[:, None] / mm
    torch.testing.assert_close(linear @ linear.mT, torch.eye(3).expand(5, 3, 3), atol=1e-6, rtol=0)
    in_voxels = affine_matrices(draws)[:, :, :3] * mm[:, None] / mm
    assert (in_voxels @ in_voxels.mT - torch.eye(3)).abs().max() > 0.01


@pytest.mark.parametrize("size", [16, 32, 64])
def test_labels_stay_integer_labels_and_follow_the_image(size):
    volume = torch.full((4, 1, size, size, size), -1.0)
    labels = torch.zeros(4, size, size, size, dtype=torch.uint8)
    a, b, c = size // 4, size // 2, size // 8  # off the middle along each axis, so that a flip shows
    volume[:, 0, a : 2 * a, b : b + a, c : c + a] = 0.6
    labels[:, a : 2 * a, b : b + a, c : c + a] = 3
    moved, followed = augment(
        volume, labels, generator=seeded(3), augmentation=ALWAYS.only(*TRANSFORMS[:4], "translation")
    )
    assert followed.dtype == torch.uint8 and followed.shape == labels.shape
    assert followed.unique().tolist() == [0, 3]
    assert not torch.equal(followed, labels)
    half = -1 + 0.5 * (moved.amax((1, 2, 3, 4), keepdim=True) + 1)
    image_mask, label_mask = (moved > half)[:, 0], followed == 3
    dice = 2 * (image_mask & label_mask).sum() / (image_mask.sum() + label_mask.sum())
    assert dice > 0.95
    for name in ("flip", "translation"):
        both = augment(volume, labels[:, None], generator=seeded(), augmentation=ALWAYS.only(name))
        assert both[1].shape == volume.shape and both[1].unique().tolist() == [0, 3]


def test_labels_do_not_change_what_happens_to_the_image():
    volume, labels = head(8)
    alone = augment(volume, generator=seeded())
    assert torch.equal(alone, augment(volume, labels, generator=seeded())[0])


def test_scans_without_a_draw_come_back_bit_for_bit():
    volume, labels = head(40)
    volume = volume.float() + 1e-3 * torch.rand(volume.shape, generator=seeded(9)) * (volume > -1)
    out, out_labels = augment(volume, labels, generator=seeded(4))
    untouched = ~drawn(draw(40, 16, seeded(4))).any(1)
    same = (out == volume).flatten(1).all(1)
    assert 0 < untouched.sum() < 40
    assert torch.equal(same, untouched)
    assert torch.equal(out_labels[untouched], labels[untouched])
    for augmentation in (AUGMENTATIONS["none"], dataclasses.replace(FULL, probability=0.0)):
        assert torch.equal(augment(volume, generator=seeded(), augmentation=augmentation), volume)


def test_a_flip_is_exact_and_its_own_inverse():
    volume, labels = head(3)
    flipped, flipped_labels = augment(volume, labels, generator=seeded(), augmentation=ALWAYS.only("flip"))
    assert torch.equal(flipped, volume.flip(2)) and torch.equal(flipped_labels, labels.flip(1))


def test_the_generator_alone_decides():
    volume, _ = head(6)
    torch.manual_seed(1)
    first = augment(volume, generator=seeded(5))
    torch.manual_seed(2)
    assert torch.equal(first, augment(volume, generator=seeded(5)))
    assert not torch.equal(first, augment(volume, generator=seeded(6)))


def test_how_much_randomness_is_used_does_not_depend_on_the_draws():
    volume, _ = head(4)
    states = []
    for probability in (0.0, 1.0):
        generator = seeded()
        augment(volume, generator=generator, augmentation=dataclasses.replace(FULL, probability=probability))
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_scans_of_one_batch_are_augmented_differently():
    volume, _ = head(4)
    out = augment(volume, generator=seeded(), augmentation=ALWAYS)
    assert all((out[i] - out[j]).abs().max() > 0.05 for i in range(4) for j in range(i))


@pytest.mark.parametrize("size", [16, 32])
def test_background_stays_background_and_intensities_stay_in_range(size):
    volume, _ = head(8, size)
    out = augment(volume, generator=seeded(7), augmentation=ALWAYS)
    assert out.min() == -1 and out.max() <= 1
    assert (out[:, :, 0, 0, 0] == -1).all() and (out[:, :, :, :, -1][..., -1] == -1).all()


def test_intensity_scaling_multiplies_the_signal_above_the_background():
    volume, _ = head(5)
    augmentation = ALWAYS.only("intensity")
    out = augment(volume, generator=seeded(), augmentation=augmentation)
    factor = draw(5, 16, seeded(), augmentation).factor.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close((out + 1) / 2, ((volume + 1) / 2 * factor).clamp(max=1))


def test_noise_is_one_percent_of_the_range_and_leaves_padding_empty():
    volume = torch.zeros(2, 1, 32, 32, 32)
    volume[..., :8] = -1
    change = augment(volume, generator=seeded(), augmentation=ALWAYS.only("noise")) - volume
    assert (change[..., :8] == 0).all()
    assert change[..., 8:].std().item() / 2 == pytest.approx(0.01, rel=0.02)


def test_preview_shows_each_transform_alone_at_its_extreme():
    volume, _ = head(size=32)
    shown = preview(volume[0])
    assert tuple(shown) == TRANSFORMS
    assert all(scan.shape == volume[0].shape and not torch.equal(scan, volume[0]) for scan in shown.values())
    assert torch.equal(shown["flip"], volume[0].flip(1))
    torch.testing.assert_close(shown["intensity"] + 1, ((volume[0] + 1) * 1.1).clamp(max=2))
    torch.testing.assert_close(shown["translation"][:, 2:, 2:], volume[0][:, :-2, :-2], atol=1e-5, rtol=0)
    torch.testing.assert_close(preview(volume[0], at=0.0)["intensity"] + 1, (volume[0] + 1) * 0.9)
    assert tuple(preview(volume[0], augmentation=FLIP_ONLY)) == ("flip",)


def test_resampling_only_what_moves_changes_nothing(monkeypatch):
    volume, labels = head(8)
    chosen = augment(volume, labels, generator=seeded())
    monkeypatch.setattr("labkit.data.augment._reading_is_free", lambda device: False)
    everything = augment(volume, labels, generator=seeded())
    assert all(torch.equal(a, b) for a, b in zip(chosen, everything, strict=True))


def test_nothing_is_read_back_from_a_device_with_a_queue(monkeypatch):
    monkeypatch.setattr("labkit.data.augment._reading_is_free", lambda device: False)
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():  # tensors without values: a branch or an .item() on one is an error
        volume, labels = torch.empty(4, 1, 16, 16, 16), torch.empty(4, 16, 16, 16, dtype=torch.uint8)
        out, out_labels = augment(volume, labels, generator=torch.Generator())
    assert out.shape == volume.shape and out_labels.shape == labels.shape


def test_autocast_does_not_blur_the_geometry():
    volume, _ = head(4)
    exact = augment(volume, generator=seeded(), augmentation=ALWAYS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(exact, augment(volume, generator=seeded(), augmentation=ALWAYS))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtype_is_kept(dtype):
    volume, _ = head(2)
    out = augment(volume.to(dtype), generator=seeded(), augmentation=ALWAYS.only("rotation", "intensity"))
    assert out.dtype == dtype
    expected = augment(volume, generator=seeded(), augmentation=ALWAYS.only("rotation", "intensity"))
    assert (out.float() - expected).abs().max() < 0.03


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_runs_without_synchronising_and_agrees_with_the_cpu():
    volume, labels = head(8, 32)
    draws = draw(8, 32, seeded(), ALWAYS)
    matrices = affine_matrices(draws)
    there = apply_affine(volume.cuda(), matrices.cuda()).cpu()
    torch.testing.assert_close(there, apply_affine(volume, matrices), atol=1e-4, rtol=0)
    generator, volume, labels = torch.Generator("cuda").manual_seed(0), volume.cuda(), labels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out, out_labels = augment(volume, labels, generator=generator, augmentation=ALWAYS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.is_cuda and out_labels.dtype == torch.uint8


@pytest.mark.parametrize(
    ("wrong", "answer"),
    [
        ({"probability": 1.5}, "probability=1.5.*from 0 to 1"),
        ({"flip_axis": 3}, "flip_axis=3.*0, 1 or 2"),
        ({"zoom": (1.1, 1.0)}, "zoom=.*smallest"),
        ({"translation_voxels": (4, 4)}, "three axes"),
        ({"intensity": 1, "noise_sd": -1}, "intensity=1.*noise_sd=-1"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(wrong, answer):
    with pytest.raises(ValueError, match=answer):
        Augmentation(**wrong)


def test_input_that_does_not_fit_is_answered_with_what_does():
    volume, labels = head(2)
    with pytest.raises(ValueError, match=r"give \(N, 1, S, S, S\)"):
        augment(volume[:, 0], generator=seeded())
    with pytest.raises(ValueError, match="floating"):
        augment(volume.to(torch.uint8), generator=seeded())
    with pytest.raises(ValueError, match="labels are .*give integers"):
        augment(volume, labels[:1], generator=seeded())
    with pytest.raises(ValueError, match="give integers"):
        augment(volume, labels.float(), generator=seeded())
    with pytest.raises(ValueError, match=r"torch.Generator\('meta'\)"):
        augment(volume.to("meta"), generator=seeded())
    with pytest.raises(ValueError, match="blur; give any of rotation"):
        FULL.only("blur")


def test_an_augmentation_survives_a_trip_through_json():
    for augmentation in AUGMENTATIONS.values():
        assert Augmentation(**json.loads(json.dumps(dataclasses.asdict(augmentation)))) == augmentation
