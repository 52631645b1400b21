"""The atlas: fitted, resumed bit for bit, drawn from, encoded; labels come along and keep their volume."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from labkit.atlas import Atlas
from labkit.evidence.metrics.memorisation import moved, new_poses
from labkit.fields import from_dict
from labkit.files import load_state, save_state
from labkit.registration import AtlasLearner, modes, noise_level
from labkit.rendering import Geometry, resolutions, schedule
from labkit.variants import ATLAS_SCALES, AtlasSettings
from labkit.warps import index_grid, jacobian

SMOKE = ATLAS_SCALES["smoke"]
NOISE = 0.02
CSF, BRAIN = 40, 7  # numbers of no particular coding


def animals(n: int, seed: int = 0, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Scans and labels of balls of differing place and size in a thin shell, in air."""
    rng = torch.Generator().manual_seed(seed)
    grid = index_grid(torch.empty(side, side, side)) - (side - 1) / 2
    middle = 0.7 * torch.randn(n, 3, 1, 1, 1, generator=rng)
    radius = side * (0.26 + 0.02 * torch.randn(n, 1, 1, 1, generator=rng))
    far = (grid - middle).norm(dim=1) - radius
    clean = 0.7 * torch.sigmoid(-2 * far) * (1 + 0.3 * torch.sin(grid[:, 0] - middle[:, 0]))
    clean = clean * (1 - 0.5 * torch.exp(-far.square()))
    noise = NOISE * torch.randn(2, *clean.shape, generator=rng)
    labels = BRAIN * (far < -0.8) + CSF * ((far >= -0.8) & (far < 0.8))
    return torch.hypot(clean + noise[0], noise[1])[:, None], labels[:, None].to(torch.uint8)


def fitted(scans: torch.Tensor, iterations: int = 150, settings: AtlasSettings = SMOKE) -> AtlasLearner:
    learner, rng = AtlasLearner(scans, replace(settings, iterations=iterations)), torch.Generator().manual_seed(0)
    for _ in range(iterations):
        learner.step(learner.draw(rng))
    return learner


@pytest.fixture(scope="module")
def learner():
    return fitted(animals(24)[0])


@pytest.fixture(scope="module")
def atlas(learner):
    return learner.finish().learn_labels(learner.numbers, animals(24)[1])


def some_codes(atlas: Atlas, n: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, atlas.latent_dim, generator=rng), torch.randn(atlas.noise_shape(n), generator=rng)


def test_settings_travel_as_json_and_refuse_what_is_not_allowed():
    assert from_dict(AtlasSettings, json.loads(json.dumps(asdict(SMOKE)))) == SMOKE
    with pytest.raises(ValueError, match="template_factor is 3, allowed are 1, 2"):
        replace(SMOKE, template_factor=3)


def test_a_fit_explains_scans_better_than_their_mean(learner):
    scans = learner.scans
    atlas = learner.finish()
    left = (atlas.decode(atlas.codes(learner.numbers)) - scans).square().mean()
    assert left < 0.35 * (scans.mean(0) - scans).square().mean()


@pytest.mark.parametrize("stop", [7, 40])  # at half the resolution, and at the whole
def test_a_resumed_fit_is_the_same_bit_for_bit(tmp_path, stop):
    scans, settings = animals(6)[0], replace(SMOKE, iterations=50)
    learners = [AtlasLearner(scans, settings) for _ in range(2)]
    rng = torch.Generator().manual_seed(3)
    for iteration in range(50):
        learners[0].step(learners[0].draw(rng))
        if iteration + 1 == stop:
            save_state(tmp_path / "c.safetensors", {"learner": learners[0].state_dict(), "rng": rng.get_state()})
    state = load_state(tmp_path / "c.safetensors")
    rng.set_state(state["rng"])
    learners[1].load_state_dict(state["learner"])
    for _ in range(50 - stop):
        learners[1].step(learners[1].draw(rng))
    assert all(torch.equal(*(getattr(x, name) for x in learners)) for name in ("numbers", "template", "appearances"))


def test_an_atlas_is_its_settings_and_its_tensors(atlas, tmp_path):
    save_state(tmp_path / "atlas.safetensors", atlas.state_dict())
    again = Atlas(from_dict(AtlasSettings, asdict(atlas.settings)), load_state(tmp_path / "atlas.safetensors"))
    z, noise = some_codes(atlas, 2)
    assert torch.equal(again.decode(z, noise), atlas.decode(z, noise))


def test_a_scan_does_not_depend_on_its_company(atlas):
    z, noise = some_codes(atlas, 11)
    together, labels = atlas.decode_labelled(z, noise)
    alone, label = atlas.decode_labelled(z[9:10], noise[9:10])
    assert torch.allclose(together[9:10], alone, atol=1e-5) and (labels[9:10] != label).float().mean() < 1e-3


def test_codes_of_training_animals_have_about_unit_variance(learner):
    atlas = learner.finish()
    codes = atlas.codes(learner.numbers)
    assert codes.mean().abs() < 0.05
    assert 0.6 < codes[:, :8].square().mean() < 1.8


def test_encoding_a_decoded_code_gives_it_back(atlas):
    z, noise = some_codes(atlas, 4)
    found = atlas.encode(atlas.decode(z, noise), steps=80)
    first = slice(0, 4)  # what moves grey values most; later entries hardly show in a scan
    assert torch.nn.functional.cosine_similarity(found[:, first], z[:, first]).min() > 0.8
    again = (atlas.decode(found) - atlas.decode(z)).square().mean()
    assert again < 0.1 * (atlas.decode(z) - atlas.decode(torch.zeros_like(z))).square().mean()


def test_new_animals_vary_as_much_as_others_that_were_not_fitted(atlas):
    others = animals(64, seed=9)[0]
    made = atlas.decode(*some_codes(atlas, 64))
    assert float(made.var(0).sum()) == pytest.approx(float(others.var(0).sum()), rel=0.35)


def test_no_drawn_warp_folds_even_far_out(atlas):
    z, _ = some_codes(atlas, 8)
    for codes in (z, 5 * z):
        points = atlas.geometry.points(atlas.numbers(codes), guarded=True)
        assert jacobian(points - index_grid(points)).min() > 0


def test_the_scanners_noise_is_found_and_given_back(atlas, learner):
    assert learner.noise == pytest.approx(NOISE, rel=0.1)
    real, made = learner.scans[..., :3, :3, :3], atlas.decode(*some_codes(atlas, 24))[..., :3, :3, :3]
    assert float(made.mean()) == pytest.approx(float(real.mean()), rel=0.2)
    # appearances fitted to so few animals hold some of the air's noise, which makes it a little stronger
    assert float(real.std()) * 0.8 < float(made.std()) < float(real.std()) * 1.35


def test_scans_cut_out_of_their_air_have_no_scanner_noise_and_stay_black_outside():
    scans, labels = animals(8)
    scans = torch.where(labels > 0, scans, 0.0)
    noise, black = noise_level(scans)
    assert noise == 0 and 0 < black < 0.3
    atlas = fitted(scans).finish()
    made = atlas.decode(*some_codes(atlas, 4))
    outside = [float((volumes == 0).float().mean()) for volumes in (made, scans)]
    assert outside[0] == pytest.approx(outside[1], abs=0.1)


def test_labels_of_any_coding_come_along_and_keep_their_volume(atlas):
    labels = animals(24)[1]
    drawn = atlas.labels_of(atlas.numbers(some_codes(atlas, 2)[0]))
    assert drawn.unique().tolist() == labels.unique().tolist() == [0, BRAIN, CSF]
    scans, truth = animals(12, seed=5)
    for numbers in (atlas.numbers(atlas.encode(scans)), atlas.register(scans)):
        found = atlas.labels_of(numbers)
        for value in (BRAIN, CSF):
            assert int((found == value).sum()) == pytest.approx(int((truth == value).sum()), rel=0.08)
        assert (found == truth).float().mean() > 0.95


def test_one_labelled_animal_is_enough_for_labels(learner):
    labels = animals(24)[1]
    atlas = learner.finish().learn_labels(learner.numbers[:1], labels[:1])
    found = atlas.labels_of(atlas.numbers(atlas.codes(learner.numbers[1:9])))
    assert (found == labels[1:9]).float().mean() > 0.93


def test_labels_that_were_never_given_are_asked_for(learner):
    with pytest.raises(ValueError, match="no labels yet: give it some with learn_labels"):
        learner.finish().labels_of(learner.numbers[:1])


def test_poses_alone_shift_turn_and_scale(learner):
    geometry, numbers = learner.geometry, learner.numbers
    assert torch.allclose(geometry.without_affine(numbers), numbers, atol=1e-4)
    v = geometry.split(numbers)[0]
    assert v.mean((2, 3, 4)).abs().max() < 1e-4 < v.abs().mean()


def test_modes_say_what_they_move(atlas):
    table = atlas.modes
    assert float(table["share"].sum()) == pytest.approx(1, abs=1e-5) and bool((table["share"].diff() <= 1e-6).all())
    parts = sum(table[name] for name in ("velocity", "pose", "brightness", "appearance"))
    assert torch.allclose(parts, torch.ones(atlas.latent_dim), atol=1e-4)


def test_modes_after_the_leading_ones_hold_for_animals_not_seen_better_than_a_samples():
    geometry = Geometry((16, 16, 16), SMOKE, torch.device("cpu"))
    n, p = 24, sum(geometry.sizes.values())
    rng = np.random.default_rng(0)
    width = torch.from_numpy(1 / (1 + np.arange(p)) ** 0.5).float()
    seen, unseen = (torch.from_numpy(rng.standard_normal((m, p))).float() * width for m in (n, 400))
    basis, unseen = modes(seen, geometry, torch.ones(p), 200)["basis"], unseen - seen.mean(0)
    length = basis.square().sum(1)
    held = (unseen @ basis.T / length).square().mean(0)
    sample = torch.linalg.svd(seen - seen.mean(0), full_matrices=False)
    of_sample = (unseen @ sample.Vh.T).square().mean(0) / (sample.S.square() / (n - 1))
    assert of_sample[4:12].mean() < 0.35 < 0.6 < held[4:12].mean() < 1.2
    # and together they make more of an unseen animal than as many modes as there are animals
    assert (held * length).sum() > 2 * (unseen @ sample.Vh.T).square().mean(0).sum()


def test_scans_on_another_grid_are_refused(atlas):
    with pytest.raises(ValueError, match=r"scans of \(16, 16, 8\) voxels; this atlas was fitted to \(16, 16, 16\)"):
        atlas.encode(torch.zeros(1, 1, 16, 16, 8))


@pytest.mark.parametrize("shape", [(16, 16, 16), (15, 9, 5), (20, 6, 4)])
def test_any_grid_does(shape):
    learner = fitted(torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0)), 6)
    atlas = learner.finish()
    assert atlas.decode(*some_codes(atlas, 1)).shape == (1, 1, *shape)


def test_a_scan_in_the_templates_pose_has_lost_its_own_and_nothing_else():
    geometry = Geometry((16, 16, 16), SMOKE, torch.device("cpu"))
    x = index_grid(torch.empty(16, 16, 16))
    blob = torch.exp(-((x - torch.tensor([6.0, 8, 9])[:, None, None, None]).square().sum(1, keepdim=True)) / 8)
    numbers = torch.zeros(1, sum(geometry.sizes.values()))
    start = geometry.sizes["velocity"]
    numbers[:, start : start + 12] = torch.tensor([1.5, -1, 0.5, 0.5, -0.8, 0, 0.8, 0.3, 0, 0.4, 0, 0.2])
    lying = geometry.see(blob, geometry.points(numbers))
    assert (lying - blob).abs().max() > 0.3
    assert (geometry.unposed(lying, numbers) - blob).abs().max() < 0.15  # two interpolations


def test_moved_volumes_lie_otherwise_by_about_as_much_as_asked():
    x = index_grid(torch.empty(24, 24, 24))
    middle = torch.tensor([8.0, 12, 15])[:, None, None, None]
    blobs = torch.exp(-((x - middle).square().sum(1, keepdim=True)) / 8).expand(40, -1, -1, -1, -1)
    after = moved(blobs, new_poses(40, np.random.default_rng(0), voxels=1.0))
    centres = (after * x).flatten(2).sum(2) / after.flatten(2).sum(2)
    shifts = centres - middle[:, 0, 0, 0]
    assert 0.7 < shifts.std() < 1.4 and shifts.abs().amin(1).max() > 0.2


def test_twice_the_voxels_are_the_same_atlas():
    settings, device = ATLAS_SCALES["laptop"], torch.device("cpu")
    grids = (64, 40, 64), (128, 80, 128), (96, 60, 96)
    usual, fine, between = (resolutions(Geometry(shape, settings, device)) for shape in grids)
    assert [level.shape for level in usual] == [(32, 20, 32), (64, 40, 64)]
    assert [level.shape for level in fine] == [(32, 20, 32), (64, 40, 64), (128, 80, 128)]
    assert [level.shape[0] for level in between] == [24, 48, 96]
    assert fine[-1].sizes == usual[-1].sizes
    numbers = torch.randn(2, sum(usual[-1].sizes.values()), generator=torch.Generator().manual_seed(0))
    voxels = usual[-1].sizes["velocity"] + usual[-1].sizes["pose"]
    twice = torch.cat([2 * numbers[:, :voxels], numbers[:, voxels:]], 1)  # as far, in smaller voxels
    assert torch.allclose(fine[-1].priors(twice)["prior"], usual[-1].priors(numbers)["prior"])
    assert torch.equal(fine[-1].rates[:voxels], 2 * usual[-1].rates[:voxels])
    assert torch.equal(fine[-1].rates[voxels:], usual[-1].rates[voxels:])
    # where each voxel of the coarse grid is found, on a fine one: twice as far, but for the corner that counts from 0
    small, large = usual[-1].points(numbers / 10), fine[-1].points(twice / 10)
    assert (torch.nn.functional.avg_pool3d(large, 2) - (2 * small + 0.5)).abs().max() < 0.05
    assert schedule(1200, 0.5, usual) == [range(600), range(600, 1200)]
    assert schedule(1200, 0.75, fine) == [range(450), range(450, 900), range(900, 1200)]
