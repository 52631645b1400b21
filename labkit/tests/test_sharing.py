"""Runs that travel with the code: packed, opened anywhere, used and not trained further."""

import json
import shutil

import pytest
import torch

import labkit
from labkit import runs, sharing
from labkit.evidence.selection import check_same_training
from labkit.files import DamagedFileError, load_state
from labkit.generation import decode, draw_codes, encode
from labkit.runs import RunError
from labkit.tests.rats import ellipsoids


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return ellipsoids(tmp_path_factory.mktemp("cohort") / "rats")


def packed(run, folder):
    """The run as the repository would have it."""
    shutil.copytree(run.path, folder, ignore=shutil.ignore_patterns("*.safetensors", ".lock"))
    (folder / sharing.PACKED).write_bytes(sharing.pack(load_state(run.path / runs.MODELS)))
    return folder


@pytest.fixture(params=["sigmarat2", "sigmarat3", "atlas"])
def run(request, rats, tmp_path_factory):
    return labkit.train(request.param, rats, "smoke", tmp_path_factory.mktemp("runs") / request.param, iterations=20)


def test_packed_weights_make_nearly_the_same_scans_in_a_fraction_of_the_space(run, rats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = packed(run, tmp_path / "small")
    opened = labkit.load_run(folder)
    assert opened.path.parent == tmp_path.relative_to(tmp_path) / "runs" / "reference"
    assert opened.iteration == run.iteration and opened.variant == run.variant
    codes = draw_codes(run, 4)
    pairs = [
        (decode(run, codes, noise=False), decode(opened, codes, noise=False)),
        (decode(run, encode(run, rats), "encoded"), decode(opened, encode(opened, rats), "encoded")),
    ]
    for own, again in pairs:
        assert 0 < (own - again).square().mean().sqrt() < 0.05  # four channels that learned nothing average little
    assert (folder / sharing.PACKED).stat().st_size < (run.path / runs.MODELS).stat().st_size / 4


def test_what_was_packed_is_unpacked_once_and_generates_the_same_everywhere(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = packed(run, tmp_path / "small")
    first = labkit.load_run(folder)
    made = (first.path / runs.MODELS).stat().st_mtime_ns
    assert labkit.load_run(folder).path == first.path
    assert (first.path / runs.MODELS).stat().st_mtime_ns == made
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert labkit.load_run(folder).fingerprint == labkit.Run(tmp_path / first.path).fingerprint


def test_a_packed_run_is_opened_by_training_and_not_trained_further(run, rats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = packed(run, tmp_path / "small")
    name = run.variant.name
    same = labkit.train(name, rats, "smoke", folder, iterations=20)
    assert same.iteration == 20 and not (same.path / runs.CHECKPOINT).exists()
    assert labkit.train(name, rats, "smoke", folder).iteration == 20  # an atlas's scale has 120
    with pytest.raises(RunError, match=r"has done 20 iterations, 25 are asked for.*another run_dir"):
        labkit.train(name, rats, "smoke", folder, iterations=25)
    with pytest.raises(RunError, match="another configuration"):
        labkit.train(name, rats, "smoke", folder, iterations=20, seed=1)


def test_a_packed_run_is_opened_where_another_machine_simulates_with_other_rounding(tmp_path, monkeypatch):
    """The first command of README trains on rats that are made anew on each machine."""
    monkeypatch.chdir(tmp_path)
    rats = labkit.open_cohort("phantom", n=12)
    run = labkit.train("sigmarat2", rats, "smoke", tmp_path / "run", iterations=4)
    folder = packed(run, tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    for part in ("cohort", "train", "held_out"):
        config[part]["fingerprint"] = "0" * 64
    config["train"]["digests"] = ["0" * 64 for _ in config["train"]["digests"]]
    del config["cohort"]["recipe"]["labels"]  # packed before there was this option
    for place in (folder, run.path):
        (place / "config.json").write_text(json.dumps(config))
    opened = labkit.train("sigmarat2", rats, "smoke", folder, iterations=4)
    assert opened.iteration == 4
    here = labkit.train("adni", rats, "smoke", tmp_path / "here", iterations=4)  # its scans, as rounded here
    assert here.trained_as(opened) and check_same_training({"here": here, "there": opened}) is None
    assert opened.digests_of(here.train_part(rats)) == opened.config["train"]["digests"]
    assert here.digests_of(here.train_part(rats)) == here.config["train"]["digests"]
    few = labkit.train("adni", rats, "smoke", tmp_path / "few", iterations=4, n_train=5)
    assert not few.trained_as(opened)
    further = labkit.train("sigmarat2", rats, "smoke", run.path, iterations=6)  # trained there, gone on with here
    assert further.iteration == 6 and len(further.held_out(rats)) == len(opened.held_out(rats))
    with pytest.raises(RunError, match="seed: 0 there, 1 asked"):
        labkit.train("sigmarat2", rats, "smoke", folder, iterations=4, seed=1)
    template = json.loads((folder / runs.FILE_TEMPLATE).read_text())
    template["ranges"] = [[low, high + 9] for low, high in template["ranges"]]
    (folder / runs.FILE_TEMPLATE).write_text(json.dumps(template))
    shutil.rmtree("runs")  # what was unpacked
    with pytest.raises(RunError, match="have changed since"):
        labkit.train("sigmarat2", rats, "smoke", folder, iterations=4)
    brighter = labkit.load_run(folder)
    assert not here.trained_as(brighter)
    assert brighter.digests_of(here.train_part(rats)) == here.config["train"]["digests"]  # which it does not know


def test_the_repositorys_runs_have_short_names(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sharing, "REPOSITORY", tmp_path / "repository")
    packed(run, tmp_path / "repository" / "good")
    assert labkit.load_run("reference/good").path.name.startswith("good-")
    with pytest.raises(RunError, match="book/reference/runs: good"):
        labkit.load_run("reference/god")
    monkeypatch.setattr(sharing, "REPOSITORY", tmp_path / "nowhere")
    with pytest.raises(RunError, match="not with the installed package"):
        labkit.load_run("reference/good")


@pytest.mark.skipif(not sharing.REPOSITORY.parent.is_dir(), reason="packed runs are those of a checkout")
@pytest.mark.parametrize("name", ["sigmarat1", "sigmarat2", "sigmarat3", "atlas"])
def test_the_runs_that_come_with_the_repository_make_scans(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = labkit.generate(f"reference/{name}", 2, "made")
    assert made.shape == (64, 64, 40) and all(scan.image.std() > 0.1 * scan.image.max() for scan in made)
    assert made.labelled == (name in ("sigmarat3", "atlas"))
    held_out = labkit.load_run(f"reference/{name}").config["held_out"]["subjects"]
    assert len(held_out) == 36 and labkit.load_run(f"reference/{name}").scale.name == "reference"


def test_steps_are_a_share_of_a_channels_spread_and_few_numbers_stay_as_they_are():
    rng, sizes = torch.Generator().manual_seed(0), torch.logspace(-3, 2, 6)[:, None, None]
    weights = torch.randn(6, 40, 3, generator=rng) * sizes
    state = {
        "G": {"w": weights, "b": torch.tensor([0.1, 1e-9]), "same": torch.full((2, 3), 7.0), "none": torch.empty(0, 3)},
        "G_encoded": {"w": weights + 1e-4, "b": torch.ones(2)},
    }
    back = sharing.unpack(sharing.pack(state))
    error = (back["G"]["w"] - weights).abs().flatten(1).amax(1)
    spread = weights.flatten(1).std(1, correction=0)
    assert (error <= 0.1501 * spread).all() and (error > 0.03 * spread).all()  # half a step of 0.3
    assert torch.equal(back["G"]["b"], state["G"]["b"]) and back["G"]["none"].shape == (0, 3)
    assert torch.allclose(back["G"]["same"], state["G"]["same"], rtol=1e-4)


@pytest.mark.parametrize("content", [b"", b"no archive", sharing.lzma.compress(b"short")])
def test_damaged_weights_are_said_to_be_damaged(content):
    with pytest.raises(DamagedFileError, match="get the file again"):
        sharing.unpack(content)


def test_packed_weights_that_would_fill_the_memory_are_refused(monkeypatch):
    monkeypatch.setattr(sharing, "LARGEST", 1 << 20)
    bomb = sharing.lzma.compress(bytes(1 << 26))
    assert len(bomb) < 20_000
    with pytest.raises(DamagedFileError, match="hold more than 1 MiB"):
        sharing.unpack(bomb)
    with pytest.raises(DamagedFileError, match="end early"):
        sharing.unpack(sharing.lzma.compress(b"x" * 100)[:-20])


def test_an_interrupted_unpacking_leaves_nothing_behind(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = packed(run, tmp_path / "small")

    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sharing, "save_state", full)
        with pytest.raises(OSError, match="No space"):
            labkit.load_run(folder)
    assert not list((tmp_path / "runs" / "reference").iterdir())
    assert json.loads((labkit.load_run(folder).path / "config.json").read_text())["variant"]["name"] == run.variant.name


def test_a_folder_with_the_configuration_of_another_program_is_refused(rats, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(RunError, match=r"(?s)another configuration.*cohort.n: None there, 7 asked"):
        labkit.train("adni", rats, "smoke", tmp_path, iterations=2)
