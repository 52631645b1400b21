"""An atlas as a model beside the others: trained, interrupted, drawn from, encoded and opened by the same verbs."""

import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import labkit
from labkit import training
from labkit.atlas import Atlas
from labkit.data import nifti
from labkit.data.cohort import Cohort, scan_digest
from labkit.evidence.latent import LatentSpace
from labkit.evidence.metrics.compare import AUDITED, MOVED, Comparison
from labkit.evidence.metrics.controls import CONTROLS, controls
from labkit.evidence.metrics.yardstick import Yardstick
from labkit.figures import architecture
from labkit.files import load_state, save_state
from labkit.generation import draw_codes
from labkit.registration import AtlasFit
from labkit.runs import MODELS
from labkit.tests.brains import onions


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return onions(tmp_path_factory.mktemp("atlas") / "rats", n=12)


@pytest.fixture(scope="module")
def run(rats, tmp_path_factory):
    return labkit.train(
        "atlas", rats, "smoke", tmp_path_factory.mktemp("runs") / "atlas", n_train=8, iterations=60, device="cpu"
    )


def test_a_run_of_an_atlas_has_what_every_run_has(rats, run):
    assert run.variant.name == "atlas" and run.iteration == 60 and run.scale.precision == "fp32"
    assert {"rec_mse", "held_out_mse", "mean_scan_mse"} <= set(run.losses.columns)
    last = run.losses.iloc[-1]
    assert last["held_out_mse"] < last["mean_scan_mse"]
    assert run.summary()["reconstruction error, held out"] == last["held_out_mse"]
    assert (run.path / "samples" / "iteration-000060.png").exists()
    table = architecture.networks_table(run.variant, run.scale)
    assert "template T" in table.index.get_level_values("what") and r"\varphi" in architecture.equations(run.variant)


def test_an_interrupted_fit_goes_on_bit_for_bit(rats, run, tmp_path, monkeypatch):
    step = AtlasFit.step

    def interrupted(self, animals):
        if self.iteration == 25:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, animals)

    monkeypatch.setattr(AtlasFit, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        labkit.train("atlas", rats, "smoke", tmp_path / "cut", n_train=8, iterations=60, device="cpu")
    assert labkit.load_run(tmp_path / "cut").iteration == 26
    monkeypatch.setattr(AtlasFit, "step", step)
    again = labkit.train("atlas", rats, "smoke", tmp_path / "cut", n_train=8, iterations=60, device="cpu")
    mine, whole = (load_state(one.path / MODELS, "cpu")["atlas"] for one in (again, run))
    assert mine.keys() == whole.keys() and all(torch.equal(mine[name], whole[name]) for name in mine)


def test_fewer_modes_leave_the_rest_of_a_code_at_zero(run, tmp_path):
    made = labkit.generate(run, 2, modes=5)
    codes = [nifti.sidecar(scan.origin.path)["Code"] for scan in made]
    whole = draw_codes(run, 2)
    assert all(code[5:] == [0.0] * (len(code) - 5) for code in codes)
    assert np.allclose([code[:5] for code in codes], whole[:, :5]) and "-m5" in made[0].origin.path
    with pytest.raises(ValueError, match="modes=0"):
        labkit.generate(run, 2, tmp_path / "none", modes=0)


def test_scans_come_with_noise_and_labels_and_the_same_code_gives_the_same_scan(rats, run, tmp_path):
    made = labkit.generate(run, 3, tmp_path / "made")
    assert made.labelled and set(np.unique(made[0].labels)) <= {0, 1, 2, 3} and (made[0].labels > 0).any()
    assert made.shape == rats.shape
    again = labkit.generate(run, 2, tmp_path / "again")
    assert np.array_equal(made[1].image, again[1].image) and np.array_equal(made[1].labels, again[1].labels)
    codes = torch.randn(2, run.variant.latent_dim, generator=torch.Generator().manual_seed(0))
    noisy, clean = labkit.decode(run, codes), labkit.decode(run, codes, noise=False)
    assert torch.equal(noisy, labkit.decode(run, codes)) and not torch.equal(noisy, clean)
    assert torch.equal(clean, labkit.decode(run, codes, "encoded"))
    about = json.loads(
        next((tmp_path / "made").rglob("*_boldref.json" if made[0].suffix == "boldref" else "*_T2w.json")).read_text()
    )
    assert about["Model"] == "atlas"


def test_training_scans_have_the_codes_of_the_fit_and_others_are_encoded(rats, run):
    mine, others = run.train_part(rats), run.held_out(rats)
    codes = labkit.encode(run, mine, "cpu")
    atlas = run.encoder().atlas
    assert torch.allclose(codes, atlas.codes(atlas.state["numbers"]))
    both = labkit.encode(run, rats, "cpu")
    places = [rats.digests.index(digest) for digest in mine.digests]
    assert torch.equal(both[places], codes)
    back = labkit.decode(run, labkit.encode(run, others), "encoded")
    real = others.volumes(run.scale.size)
    assert (back - real).square().mean() < (mine.volumes(run.scale.size).mean(0) - real).square().mean()


def test_directions_of_an_atlas_are_seen_without_noise(rats, run):
    space = LatentSpace(run, rats, n_codes=8)
    effects = space.effects("random")
    assert effects.loc["principal 1", "image"] > 0
    code = space.random(1)
    assert torch.equal(space.volume(code, "random"), space.volume(code, "random"))


def test_wrong_settings_of_an_atlas_are_refused_with_those_there_are(rats, tmp_path):
    with pytest.raises(ValueError, match="unknown override 'ema_decay'.*knot_spacing"):
        labkit.resolve("atlas", "smoke", ema_decay=0.9)
    with pytest.raises(ValueError, match="template_factor is 3"):
        labkit.resolve("atlas", "smoke", template_factor=3)
    settings, scale = labkit.resolve("atlas", "laptop", iterations=50, size=32)
    assert settings.iterations == scale.iterations == 50 and scale.size == 32


def test_controls_are_cohorts_of_what_learned_nothing(rats):
    made = controls(rats, 5, seed=1)
    assert tuple(made) == CONTROLS and all(len(cohort) == 5 for cohort in made.values())
    mean, gaussian, warped = (torch.stack([torch.from_numpy(scan.image) for scan in made[name]]) for name in CONTROLS)
    real = torch.stack([torch.from_numpy(np.array(scan.image)) for scan in rats])
    assert mean.var(0).sum() < 0.3 * real.var(0).sum()
    assert 0.3 < gaussian.var(0).sum() / real.var(0).sum() < 3
    assert all((one - other).abs().mean() > 1 for one in warped for other in real)
    assert controls(rats, 5, seed=1)[CONTROLS[0]].fingerprint == made[CONTROLS[0]].fingerprint


def test_more_animals_than_the_papers_are_each_visited_as_often(rats, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "PAPER_TRAIN", 4)
    many = {n: labkit.train("atlas", rats, "smoke", tmp_path / str(n), n_train=n) for n in (3, 8)}
    assert [run.iteration for run in many.values()] == [120, 240]
    assert many[8].variant.iterations == many[8].scale.iterations == 240  # the step size falls towards this end
    assert labkit.train("atlas", rats, "smoke", tmp_path / "8", n_train=8).provenance == many[8].provenance
    assert labkit.train("atlas", rats, "smoke", tmp_path / "asked", n_train=8, iterations=6).iteration == 6


def test_an_atlas_looks_for_copies_in_its_own_coordinates_too(tmp_path):
    rats = onions(tmp_path / "rats", n=20)
    run = labkit.train("atlas", rats, "smoke", tmp_path / "run", n_train=8, iterations=30)
    held_out, train = run.held_out(rats), run.train_part(rats)
    copied = Comparison(Yardstick(held_out, None, train, size=32), train, run=run)  # all it was trained on, by heart
    p = {flavour: audit.p for flavour, audit in copied.atlas_audits.items()}
    assert list(p) == [MOVED, "aligned", "codes", f"aligned, {MOVED}", f"codes, {MOVED}"]
    assert p["aligned"] < 1e-3 and p["codes"] < 0.05
    rows = {row.flavour for row in copied._copies()}
    assert {*AUDITED, *p} == rows
    assert not Comparison(copied.yardstick, train).atlas_audits  # nobody's codes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", ["sigmarat2", "sigmarat3", "atlas"])
def test_cuda_verbs_give_what_a_cpu_gives(model, rats, tmp_path):
    options = {} if model == "atlas" else {"precision": "fp32"}
    run = labkit.train(model, rats, "smoke", tmp_path / "run", n_train=8, iterations=20, device="cuda", **options)
    assert run.provenance["sittings"][-1]["device"] == torch.cuda.get_device_name()
    with pytest.raises(labkit.RunError, match="pass device='cuda'"):
        labkit.train(model, rats, "smoke", run.path, n_train=8, iterations=24, device="cpu", **options)
    went_on = labkit.train(model, rats, "smoke", run.path, n_train=8, iterations=24, device="cuda", **options)
    assert went_on.iteration == 24
    there, here = (labkit.generate(run, 4, tmp_path / device, device=device) for device in ("cuda", "cpu"))
    for a, b in zip(there, here, strict=True):
        apart = np.abs(np.asarray(a.image, float) - b.image).mean() / np.std(b.image)
        assert apart < 0.01, f"scans of the same code differ by {apart:.3f} of their spread"
        assert model != "atlas" or (a.labels == b.labels).mean() > 0.999
    held = run.held_out(rats)
    back = [labkit.decode(run, labkit.encode(run, held, device), "encoded", device).cpu() for device in ("cuda", "cpu")]
    assert (back[0] - back[1]).square().mean() < 1e-3 * back[1].var()


def rounded_otherwise(scan):
    """As another machine's simulator makes it: one voxel in a thousand is another grey value."""
    image = scan.image.copy()
    image.flat[::997] += 1
    return replace(scan, image=image, digest=scan_digest(image, scan.labels, scan.affine))


def test_codes_of_an_atlas_are_found_once(rats, run, tmp_path, monkeypatch):
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("encodings*"))
    run, steps = labkit.load_run(tmp_path / "run"), []
    descend = Atlas._descend
    monkeypatch.setattr(Atlas, "_descend", lambda *args: steps.append(1) or descend(*args))
    held = run.held_out(rats)
    found, twice = labkit.encode(run, held), labkit.encode(run, held.subset([1, 0, 1]))
    assert steps and torch.equal(twice, found[[1, 0, 1]])
    counted = len(steps)
    coarse = labkit.encode(run, rats, coarse=True)  # others than those of the fit, and of all scans
    assert len(steps) > counted and not torch.equal(coarse[[list(rats.subjects).index(held.subjects[0])]], found[:1])
    counted = len(steps)
    assert torch.equal(labkit.encode(run, rats, coarse=True), coarse) and torch.equal(labkit.encode(run, held), found)
    assert len(steps) == counted
    again = [rounded_otherwise(scan) for scan in rats]
    assert torch.equal(labkit.encode(run, Cohort("made again", rats.folder, again), coarse=True), coarse)
    assert len(steps) == counted
    other = replace(again[0], image=again[1].image[::-1], digest="of another")
    labkit.encode(run, Cohort("another", rats.folder, [other]), coarse=True)
    assert len(steps) > counted
    for spoil in (lambda file: file.write_bytes(b"nonsense"), lambda file: file.unlink()):
        spoil(tmp_path / "run" / "encodings.safetensors")
        assert torch.equal(labkit.encode(run, held), found)
    assert len(steps) > counted
    kept = load_state(tmp_path / "run" / "encodings.safetensors")
    save_state(tmp_path / "run" / "encodings.safetensors", kept | {"run": "of other weights"})
    counted = len(steps)
    assert torch.equal(labkit.encode(run, held), found) and len(steps) > counted
