"""sigmarat3: a generator that moves an atlas, trained as the alpha-GANs are, and the four switches of its training."""

import os
import shutil
import signal

import numpy as np
import pytest
import torch

import labkit
from labkit import losses, networks, parallel, published, training, updates, warps
from labkit.evidence.metrics.compare import Comparison
from labkit.evidence.metrics.yardstick import Yardstick
from labkit.figures import architecture
from labkit.files import load_state, save_state
from labkit.networks import Generator
from labkit.rendering import AtlasHead, Geometry, expected, noise_of, scanned
from labkit.runs import MODELS, RunError, find_atlas
from labkit.tests.brains import onions
from labkit.updates import R1_EVERY, Learner, step, view
from labkit.variants import AtlasSettings, resolve

CPU = torch.device("cpu")
NOISE = 0.02


def blob_atlas():
    """A smooth ball of one tissue in air, scans of 32 x 32 x 20 in the middle of a cube of 32."""
    index = torch.stack(torch.meshgrid(*(torch.arange(n) + 0.5 - n / 2 for n in (64, 64, 40)), indexing="ij")) / 2
    distance = index.norm(dim=0)[None, None]
    logits = torch.cat([distance - 7, 7 - distance], 1)
    return {
        "template": 0.8 * torch.exp(-((distance / 7) ** 2)), "appearances": 0.05 * torch.randn(2, 32, 32, 20),
        "spread": torch.full((1, 1, 32, 32, 20), 1e-4), "levels": torch.tensor([NOISE, 0.0, 1e-3]),
        "shape": torch.tensor([32, 32, 20]), "place": torch.tensor([0, 0, 6]),
        "units": torch.tensor([0.4, 0.3, 0.3, 0.07]),
        "filter_x": torch.eye(32), "filter_y": torch.eye(32), "filter_z": torch.eye(20),
        "label_logits": logits, "label_values": torch.tensor([0, 2], dtype=torch.uint8),
    }  # fmt: skip


def generator(atlas, **overrides):
    variant, scale = resolve("sigmarat3", "smoke", size=32, precision="fp32", **overrides)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Generator(variant, scale, atlas)


@pytest.fixture(scope="module")
def atlas():
    return blob_atlas()


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return onions(tmp_path_factory.mktemp("head") / "rats", n=12)


SETTINGS = {"scale": "smoke", "n_train": 8, "iterations": 20, "device": "cpu"}


@pytest.fixture(scope="module")
def run(rats, tmp_path_factory):
    return labkit.train("sigmarat3", rats, run_dir=tmp_path_factory.mktemp("runs") / "third", **SETTINGS)


def codes(n=2, seed=0):
    return torch.randn(n, 64, generator=torch.Generator().manual_seed(seed))


def test_every_code_begins_as_the_atlas_without_a_warp(atlas):
    made = generator(atlas).eval()(codes())
    geometry = Geometry((32, 32, 20), AtlasSettings(iterations=1), CPU)
    seen = expected(geometry.see(atlas["template"], geometry.found(geometry.centres)), NOISE)
    box = made[:, :, 0:32, 0:32, 6:26]
    assert torch.allclose(box, (2 * seen - 1).expand_as(box), atol=1e-5)
    outside = made.clone()
    outside[:, :, 0:32, 0:32, 6:26] = -1
    assert (outside == -1).all() and box.max() > 0


def test_a_velocity_moves_scan_and_labels_together(atlas):
    """A constant one by as many voxels as it says: of DEVIATIONS of the atlas's animals ten of 0.4 voxels here."""
    network = generator(atlas).eval()
    still, still_labels = network.labelled(codes())
    with torch.no_grad():
        network.head.field.bias[0] = (
            3 / 4
        )  # of 32 / 8 voxels: each voxel shows what lies 3 further along the first axis
    moved, labels = network.labelled(codes())
    inside = slice(4, 26), slice(4, 28), slice(8, 24)
    further = slice(7, 29), slice(4, 28), slice(8, 24)
    assert torch.allclose(moved[(..., *inside)], still[(..., *further)], atol=0.02)
    assert not torch.allclose(moved[(..., *inside)], still[(..., *inside)], atol=0.2)
    assert torch.equal(labels[(..., *inside)], still_labels[(..., *further)])
    assert set(labels.unique().tolist()) == {0, 2} and labels.dtype == torch.uint8


def test_knots_lie_where_the_scan_lies_in_its_cube(atlas):
    """G's voxels two layers before the end, of which the scan's part is taken: a ramp stays the same ramp."""
    head = generator(atlas).head
    geometry, to_knots = head.geometry()
    cells = [(torch.arange(8.0) + 0.5) * 4 for _ in range(3)]  # voxels of the cube
    for axis, (matrix, box) in enumerate(zip(to_knots, head.box, strict=True)):
        knots = geometry.knots[axis]
        centres = box.start + (torch.arange(knots) + 0.5) * (box.stop - box.start) / knots
        assert torch.allclose(matrix @ cells[axis], centres, atol=1e-4)


def test_warps_fold_nowhere_in_use(atlas):
    network = generator(atlas).eval()
    torch.nn.init.normal_(network.head.field.weight, std=4.0, generator=torch.Generator().manual_seed(0))
    geometry, to_knots = network.head.geometry()
    features, _ = network._features(codes(4))
    field = warps.separable(network.head.field(features / (27 * features.shape[1]) ** 0.5), to_knots)
    smallest = [
        warps.jacobian(geometry.moved(4 * field[:, :3], guarded=guarded) - geometry.centres).min().item()
        for guarded in (False, True)
    ]
    assert smallest[0] < -1 and smallest[1] > 0.05  # the guard's floor is 0.2 where the flow is computed
    assert network(codes(4)).isfinite().all()


def test_noise_is_the_atlass_and_follows_from_the_code(atlas):
    network = generator(atlas).eval()
    clean = network(codes())
    network.noisy = True
    noisy, again = network(codes()), network(codes())
    assert torch.equal(noisy, again) and not torch.equal(noisy[0], noisy[1])
    air = (noisy - clean)[:, :, 1:4, 1:4, 8:24] / 2  # magnitudes: Rayleigh, standard deviation 0.655 of the noise
    assert air.std().item() == pytest.approx(0.655 * NOISE, rel=0.15)
    assert clean[0, 0, 2, 2, 12].item() / 2 + 0.5 == pytest.approx(NOISE * (np.pi / 2) ** 0.5, rel=0.05)  # their mean
    noise = noise_of(codes(), network.noise_shape[1:])
    network.train()
    assert torch.allclose(network(codes(), noise).clamp(-1, 1), noisy, atol=1e-6)


def test_all_of_the_end_is_trained(atlas):
    variant, scale = resolve("sigmarat3", "smoke", size=32, precision="fp32")
    learner = Learner(variant, scale, CPU, atlas=atlas)
    before = {name: p.detach().clone() for name, p in learner.G.named_parameters()}
    for seed in range(2):  # what every code begins as has no slope for the layers before the end
        logged = step(learner, draws(learner, seed))
        assert all(value.isfinite() for value in logged.values())
    still = [name for name, p in learner.G.named_parameters() if torch.equal(p, before[name])]
    assert not still and {"head.template", "head.appearances", "head.field.weight", "head.weights.weight",
                          "head.residual.weight"} <= before.keys()  # fmt: skip


def draws(learner, seed=0):
    g, scale, n = torch.Generator().manual_seed(seed), learner.scale, learner.scale.batch_size
    scans = [torch.rand(n, 1, *(scale.size,) * 3, generator=g) * 2 - 1 for _ in range(2)]
    z = [torch.randn(n, learner.variant.latent_dim, generator=g) for _ in range(3)]
    mixes = [torch.rand(n, *axes, generator=g) for axes in ((1,) * 4, (1,) * 4, (1,))]
    noise = torch.randn(n, 4, *learner.G.noise_shape, generator=g) if learner.G.noise_shape else None
    views = torch.rand(n, 5, 5, generator=g) if learner.variant.critic_augmentation else None
    return updates.Draws(scans[0], z[0], scans[1], z[1], z[2], *mixes, noise, views)


def test_an_atlass_voxels_move_by_steps_of_what_animals_differ_by_and_do_not_fade(atlas):
    """Whatever the gradient's size, Adam's first step is the learning rate, here times what no code explains."""
    variant, scale = resolve("sigmarat3", "smoke", size=32, precision="fp32")
    learner = Learner(variant, scale, CPU, atlas=atlas)
    head, before = learner.G.head, learner.G.head.template.detach().clone()
    step(learner, draws(learner))
    moved = (head.template.detach() - before).abs()
    unit = atlas["units"][3].item()
    assert 0 < unit < 0.5 and moved.max() == pytest.approx(variant.lr * unit, rel=0.02)
    assert learner.G.head.field.bias.abs().max() == pytest.approx(variant.lr, rel=0.02)
    still = learner.optimisers["G"].param_groups[1]
    assert still["weight_decay"] == 0 and {id(p) for p in still["params"]} == {id(head.template), id(head.appearances)}
    held = sum(p.numel() for group in learner.optimisers["G"].param_groups for p in group["params"])
    assert held == sum(p.numel() for p in learner.G.parameters())


def test_what_g_says_of_a_code_stays_within_its_bound(atlas):
    """However large the last layer's weights: the residual is a tanh times its bound."""
    network = generator(atlas, residual=0.1).eval()
    still = network(codes())
    torch.nn.init.normal_(network.head.residual.weight, std=100.0)
    apart = (network(codes()) - still)[:, :, :, :, 6:26] / 2
    assert 0.05 < apart.abs().max() <= 0.1 + 0.03  # magnitudes: what is below zero is turned up


def test_a_penalty_at_real_scans_comes_every_few_iterations_with_the_weight_of_all(atlas):
    variant, scale = resolve("sigmarat3", "smoke", size=32, precision="fp32", r1=3.0)
    learner = Learner(variant, scale, CPU, atlas=atlas)
    some = draws(learner)
    x = some.x_critic.clone().requires_grad_()
    with torch.nn.utils.parametrize.cached():
        learner.D.eval()
        (g,) = torch.autograd.grad(learner.D(x).sum(), x)
    expected = g.flatten(1).square().sum(1).mean() / 2
    assert losses.zero_norm_penalty(g).item() == pytest.approx(expected.item(), rel=1e-6)
    learner.D.train()
    terms = [step(learner, some) for _ in range(R1_EVERY + 1)]
    penalties = [term["penalty_D"].item() for term in terms]
    assert penalties[0] == pytest.approx(R1_EVERY * expected.item(), rel=0.05)  # a power iteration later
    assert penalties[1:R1_EVERY] == [0.0] * (R1_EVERY - 1) and penalties[R1_EVERY] > 0
    assert all(value.isfinite() for term in terms for value in term.values())


def test_a_view_shifts_mirrors_and_brightens(atlas):
    x = torch.rand(1, 1, 16, 16, 16) * 1.5 - 1
    middle = torch.tensor([[0.5, 0.5, 0.5, 0.9, 0.5]])
    assert torch.allclose(view(x, middle), x, atol=1e-6)
    shifted = view(x, torch.tensor([[1.0, 0.5, 0.0, 0.9, 0.5]]))  # by a sixteenth of the side: one voxel on and back
    assert torch.allclose(shifted[..., 1:, :, :-1], x[..., :-1, :, 1:], atol=1e-6)
    assert (shifted[..., 0, :, :] == -1).all() and (shifted[..., -1] == -1).all()
    assert torch.allclose(view(x, torch.tensor([[0.5, 0.5, 0.5, 0.1, 0.5]])), x.flip(2), atol=1e-6)
    assert torch.allclose(view(x, torch.tensor([[0.5, 0.5, 0.5, 0.9, 1.0]])) + 1, 1.2 * (x + 1), atol=1e-6)
    x.requires_grad_()
    view(x, middle).sum().backward()
    assert torch.allclose(x.grad, torch.ones_like(x))


def test_codes_on_a_sphere_are_as_long_as_random_ones():
    variant, scale = resolve("sigmarat3", "smoke", sphere_codes=True)
    z = networks.Encoder(variant, scale)(torch.rand(3, 1, 16, 16, 16))
    assert torch.allclose(z.norm(dim=1), torch.full((3,), 8.0), rtol=1e-5)
    plain = networks.Encoder(*resolve("sigmarat2", "smoke"))(torch.rand(3, 1, 16, 16, 16))
    assert not torch.allclose(plain.norm(dim=1), torch.full((3,), 500**0.5), rtol=0.1)


@pytest.mark.parametrize("switch", [{"critic_augmentation": True}, {"sphere_codes": False}, {"latent_dim": 500}])
def test_a_switch_changes_what_is_learned_and_nothing_breaks(atlas, switch):
    plain, other = (
        Learner(*resolve("sigmarat3", "smoke", size=32, precision="fp32", **some), CPU, atlas=atlas)
        for some in ({}, switch)
    )
    logged = [step(learner, draws(learner)) for learner in (plain, other)]
    assert all(value.isfinite() for value in logged[1].values())
    assert any(logged[0][name] != logged[1][name] for name in logged[0])


def test_a_run_has_its_atlas_labels_and_every_verb(rats, run, tmp_path):
    assert run.variant.name == "sigmarat3" and run.iteration == 20
    assert find_atlas(run).path == run.path / "atlas" and find_atlas(run).variant.name == "atlas"
    assert find_atlas(run).config["train"] == run.config["train"]
    made = labkit.generate(run, 3, tmp_path / "made")
    assert made.labelled and made.shape == rats.shape and set(np.unique(made[0].labels)) <= {0, 1, 2, 3}
    assert (made[0].labels > 0).any()
    again = labkit.generate(run, 2, tmp_path / "again")
    assert np.array_equal(made[1].image, again[1].image) and np.array_equal(made[1].labels, again[1].labels)
    z = labkit.encode(run, rats[:2])
    back = labkit.decode(run, z, "encoded")
    assert back.shape == (2, 1, 16, 16, 16) and back.min() >= -1 and back.max() <= 1
    assert labkit.reconstruct(run, rats[:1])[0].image.shape == rats.shape
    noisy, clean = labkit.decode(run, z), labkit.decode(run, z, noise=False)
    assert not torch.equal(noisy, clean)
    with pytest.raises(ValueError, match="truncation"):
        labkit.generate(run, 1, truncation=0.5)
    mine, its = (labkit.segment(one, rats[:2], tmp_path / one.path.name) for one in (run, find_atlas(run)))
    assert all(np.array_equal(a.labels, b.labels) for a, b in zip(mine, its, strict=True)) and mine.labelled


def test_a_run_that_was_stopped_goes_on_bit_for_bit_and_fits_no_second_atlas(rats, run, tmp_path, monkeypatch):
    draw, count = updates.Learner.update_average, [0]

    def interrupted(self):
        count[0] += 1
        if count[0] == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(self)

    monkeypatch.setattr(updates.Learner, "update_average", interrupted)
    with pytest.raises(KeyboardInterrupt):
        labkit.train("sigmarat3", rats, run_dir=tmp_path / "cut", **SETTINGS)
    monkeypatch.setattr(updates.Learner, "update_average", draw)
    fitted = (tmp_path / "cut" / "atlas" / MODELS).stat().st_mtime_ns
    again = labkit.train("sigmarat3", rats, run_dir=tmp_path / "cut", **SETTINGS)
    assert again.iteration == 20 and (again.path / "atlas" / MODELS).stat().st_mtime_ns == fitted
    mine, whole = (load_state(one.path / MODELS) for one in (again, run))
    assert mine.keys() == whole.keys()
    for name in ("E", "G", "G_encoded", "scanner"):
        assert all(torch.equal(mine[name][key], value) for key, value in whole[name].items())


def test_weights_of_another_head_are_refused(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "other", ignore=shutil.ignore_patterns("atlas", "synthetic", ".lock"))
    state = load_state(tmp_path / "other" / MODELS)
    del state["scanner"]
    save_state(tmp_path / "other" / MODELS, state)
    with pytest.raises(RunError, match="does not hold the networks"):
        labkit.decode(labkit.Run(tmp_path / "other"), codes())


def test_a_scan_that_fills_its_cube_and_a_box_that_fits_have_a_head_as_well(rats, tmp_path):
    run = labkit.train("sigmarat3", rats, run_dir=tmp_path / "fitted", **SETTINGS | {"iterations": 2}, box="fitted")
    assert run.scale.box == "16x16x12" and labkit.decode(run, codes()).shape == (2, 1, 16, 16, 16)


def test_table_and_equations_tell_of_the_head():
    variant, scale = resolve("sigmarat3", "smoke", r1=10, critic_augmentation=True, sphere_codes=True)
    table = architecture.networks_table(variant, scale)["parameters"].xs("G, generator", level="network")
    assert table.drop("in all").sum() == table["in all"] and any("template, learned" == row for row in table.index)
    said = architecture.equations(variant)
    for words in (r"\exp(v)", "every 16th iteration", "mirrored", "same length", r"\tag{6}"):
        assert words in said
    assert r"\exp(v)" not in architecture.equations(resolve("sigmarat2", "smoke")[0])


def test_the_papers_loop_does_not_pretend_to_be_this_model():
    with pytest.raises(ValueError, match="settings that no paper has"):
        published.build(*resolve("sigmarat3", "smoke"))
    assert isinstance(Generator(*resolve("sigmarat3", "smoke")).head, AtlasHead)


def test_a_run_goes_on_from_its_checkpoint_alone(rats, run, tmp_path):
    """Noise and labels are in it: an atlas that is fitted anew elsewhere would be another one."""
    shutil.copytree(
        run.path, tmp_path / "bare", ignore=shutil.ignore_patterns("atlas", "synthetic", "segmented", ".lock")
    )
    longer = SETTINGS | {"iterations": 24}
    mine = labkit.train("sigmarat3", rats, run_dir=tmp_path / "bare", **longer)
    shutil.copytree(run.path, tmp_path / "whole", ignore=shutil.ignore_patterns("synthetic", "segmented", ".lock"))
    other = labkit.train("sigmarat3", rats, run_dir=tmp_path / "whole", **longer)
    assert mine.fingerprint == other.fingerprint != run.fingerprint and not (mine.path / "atlas").exists()
    assert labkit.generate(mine, 1, tmp_path / "made").labelled and mine.own_atlas is None
    with pytest.raises(ValueError, match="has no network of arm r100"):
        labkit.segment(mine, rats[:1])
    assert run.seconds > run.own_atlas.seconds > 0
    assert run.summary()["minutes"] == pytest.approx(run.seconds / 60)


def test_a_box_that_holds_no_whole_scan_is_refused_before_any_work(rats, tmp_path):
    with pytest.raises(ValueError, match="box is 16x16x8, and scans are 16x16x10"):
        labkit.train("sigmarat3", rats, run_dir=tmp_path / "small", **SETTINGS, box="16x16x8")
    assert not (tmp_path / "small").exists()


def test_an_atlas_that_was_stopped_is_not_taken_for_one(rats, run, tmp_path):
    shutil.copytree(run.path, tmp_path / "half", ignore=shutil.ignore_patterns("synthetic", "segmented", ".lock"))
    half = labkit.Run(tmp_path / "half")
    config = half.path / "atlas" / "config.json"
    config.write_text(config.read_text().replace('"iterations": 120', '"iterations": 500'))
    assert half.own_atlas is None and run.own_atlas is not None


def test_copies_are_looked_for_in_the_coordinates_of_the_atlas_that_is_moved(rats, run, tmp_path):
    """A copy in another pose is a stranger to an audit of voxels."""
    shutil.copytree(run.path, tmp_path / "alone", ignore=shutil.ignore_patterns("atlas", ".lock"))
    made, yardstick = labkit.generate(run, 6), Yardstick(run.held_out(rats), None, run.train_part(rats), size=32)
    found = Comparison(yardstick, made, run=run).atlas_audits
    assert {"aligned", "codes", "aligned, 30 % moved copies planted"} <= found.keys()
    assert not Comparison(yardstick, made, run=labkit.Run(tmp_path / "alone")).atlas_audits


def test_the_atlass_minutes_count_where_its_weights_were_left_out(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "packed", ignore=shutil.ignore_patterns("atlas", ".lock"))
    packed = labkit.Run(tmp_path / "packed")
    alone = packed.seconds
    (packed.path / "atlas").mkdir()
    shutil.copy(run.path / "atlas" / "provenance.json", packed.path / "atlas")
    assert packed.own_atlas is None and packed.seconds == run.seconds > alone > 0


def test_few_animals_of_several_scans_each_are_trained_on(rats, tmp_path):
    (tmp_path / "long").mkdir()
    for place, scan in enumerate(rats[:4]):
        name = f"sub-{place // 2:02d}_ses-{place % 2}_T2w.nii.gz"
        shutil.copy(scan.origin.path, tmp_path / "long" / name)
    cohort = labkit.open_cohort(tmp_path / "long")
    with pytest.warns(UserWarning, match="too few to hold any out"):
        run = labkit.train("sigmarat3", cohort, "smoke", tmp_path / "run", iterations=2, device="cpu")
    assert run.iteration == 2 and len(run.own_atlas.config["train"]["digests"]) == 4


def test_several_gpus_and_batches_that_an_atlas_cannot_share(rats, tmp_path, monkeypatch):
    """What the atlas's own training is asked for: the kind of device, which each process makes its own."""
    asked = []

    class Stop(Exception):
        pass

    def fit(model, *where, **how):
        asked.append((model, how))
        raise Stop

    train = training.train
    monkeypatch.setattr(training, "train", fit)
    monkeypatch.setattr(training, "_team", lambda *given: parallel.Team(0, 8))
    monkeypatch.setattr(parallel.Team, "wait", lambda self: None)
    with pytest.raises(Stop):
        train("sigmarat3", rats, run_dir=tmp_path / "eight", **SETTINGS, batch_size=8)
    model, how = asked[0]
    assert model == "atlas" and how["device"] == "cpu" and how["batch_size"] == 8 and how["size"] == 16


def test_generated_batches_of_a_norm_over_the_batch_stay_apart(atlas):
    variant, scale = resolve("sigmarat3", "smoke", size=32, precision="fp32", generator_norm="batch")
    learner = Learner(variant, scale, CPU, atlas=atlas)
    some, passes = draws(learner), []
    learner.G.register_forward_hook(lambda module, given, made: passes.append(len(made)))
    pair = learner.generated(some.z_rand, some.z_critic, noise=some.noise[:, :2])
    assert passes == [4, 4] and len(pair) == 2
    alone = learner.generated(some.z_rand, noise=some.noise[:, :1])[0]
    assert torch.allclose(pair[0], alone)


def test_a_view_blurs_nothing_in_half_precision_either():
    x = torch.rand(2, 1, 16, 16, 16) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(view(x, torch.tensor([[0.5, 0.5, 0.5, 0.9, 0.5]]).expand(2, -1)), x, atol=1e-6)


def test_what_is_black_in_a_scan_cut_out_of_its_head_can_be_lit_again():
    clean = torch.tensor([0.01, 0.04, 0.5]).view(1, 1, 1, 1, 3).requires_grad_()
    scans = scanned(clean, None, None, {}, 0.0, 0.05)
    assert scans.flatten().tolist() == pytest.approx([0.0, 0.0, 0.5], abs=1e-5)
    scans.sum().backward()
    assert torch.allclose(clean.grad, torch.ones(1, 1, 1, 1, 3), atol=1e-3)
