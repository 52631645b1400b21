"""One training on two processes is the training on one: same gradients, same run, resumed by as many as there are."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import labkit
from labkit import parallel
from labkit.files import load_state
from labkit.runs import MODELS
from labkit.tests.brains import onions
from labkit.updates import Draws, Learner, step
from labkit.variants import resolve

STEPS = 3
TWO_UPDATES = """
import sys
import torch
from labkit import parallel
from labkit.tests.test_parallel import weights_after
team = parallel.join(torch.device("cpu"), 4)
for model in sys.argv[2:]:
    found = weights_after(model, team)
    if team.first:
        torch.save(found, f"{sys.argv[1]}/{model}.pt")
team.wait()
"""


def weights_after(model, team=parallel.ALONE):
    """All weights, the average's among them, after some steps of batch 4 in double precision."""
    own = {"code_norm": "none"} if model == "sigmarat1" else {}  # whose C has a batch norm
    # biases before an instance norm have no gradient but rounding, which a small eps would make steps of
    variant, scale = resolve(model, "smoke", batch_size=4, precision="fp32", eps=1e-3, **own)
    learner, rng = Learner(variant, scale, torch.device("cpu")), torch.Generator().manual_seed(1)
    learner.team = team
    for network in (*learner.networks.values(), learner.average):
        network.double()

    def scans():
        return torch.rand(4, 1, 16, 16, 16, generator=rng, dtype=torch.float64) * 2 - 1

    def codes():
        return torch.randn(4, variant.latent_dim, generator=rng, dtype=torch.float64)

    def mix(*ones):
        return torch.rand(4, *ones, generator=rng, dtype=torch.float64)

    for _ in range(STEPS):
        draws = Draws(scans(), codes(), scans(), codes(), codes(), mix(1, 1, 1, 1), mix(1, 1, 1, 1), mix(1))
        step(learner, draws.part(team))
    networks = learner.networks | {"average": learner.average}
    return {f"{name}/{key}": value for name, network in networks.items() for key, value in network.state_dict().items()}


def torchrun(*words, processes=2, start=subprocess.run, **how):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_port", str(port), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return start(command, env=environment, text=True, **how)


def trained(folder, rats, iterations, *more, processes=2, **how):
    words = ["train", "--cohort", str(rats), "--scale", "smoke", "--run-dir", str(folder), "--n-train", "8",
             "--iterations", str(iterations), "--device", "cpu", *more]  # fmt: skip
    return torchrun("-m", "labkit", *words, processes=processes, **how)


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return onions(tmp_path_factory.mktemp("parallel") / "rats", n=12).folder


def test_two_processes_of_half_a_batch_are_one_of_a_whole(tmp_path):
    """Whatever the reduction of the loss; in double precision, to the rounding of a sum."""
    script, models = tmp_path / "two.py", ["sigmarat1", "sigmarat2", "sigmarat2_released"]
    script.write_text(TWO_UPDATES)
    done = torchrun(str(script), str(tmp_path), *models, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for model in models:
        alone, shared = weights_after(model), torch.load(tmp_path / f"{model}.pt")
        assert alone.keys() == shared.keys()
        for name, value in alone.items():
            assert torch.allclose(value.double(), shared[name].double(), rtol=1e-10, atol=1e-10), (model, name)


@pytest.mark.parametrize("model", ["sigmarat2", "sigmarat3", "atlas"])
def test_a_run_of_two_processes_is_a_run_and_one_process_goes_on_with_it(rats, tmp_path, model):
    batch = ["--model", model, "--set", "batch_size=4"]
    done = trained(tmp_path / "two", rats, 6, *batch, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("6 iterations") == 1  # the first process alone speaks
    run = labkit.load_run(tmp_path / "two")
    assert run.iteration == 6 and run.provenance["sittings"][-1]["processes"] == 2
    if model != "atlas":  # one that has come to its end is at its end: its step size falls on the way there
        labkit.train(model, str(rats), "smoke", tmp_path / "two", 8, device="cpu", n_train=8, batch_size=4)
    iterations = labkit.load_run(tmp_path / "two").iteration
    alone = labkit.train(model, str(rats), "smoke", tmp_path / "one", iterations, device="cpu", n_train=8, batch_size=4)
    mine, other = (pd_rows(folder) for folder in (tmp_path / "two", tmp_path / "one"))
    assert len(mine) == len(other) > 0
    for name in ("rec_mse", "held_out_mse"):
        assert float(mine[-1][name]) == pytest.approx(float(other[-1][name]), rel=0.02), name
    if model == "atlas":
        ours, theirs = (load_state(one.path / MODELS)["atlas"] for one in (run, alone))
        for name in ("template", "numbers", "label_logits"):
            assert torch.allclose(ours[name], theirs[name], atol=2e-3), name
    before = run.provenance["sittings"]
    again = trained(tmp_path / "two", rats, iterations, *batch, capture_output=True, check=False)
    assert again.returncode == 0 and f"{iterations} iterations" in again.stdout  # a finished run is opened
    assert run.provenance["sittings"] == before


def pd_rows(folder):
    with (folder / "losses.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_killed_process_ends_all_with_a_word_and_the_checkpoint_goes_on(rats, tmp_path):
    job = trained(tmp_path / "run", rats, 100_000, "--model", "sigmarat2", "--set", "batch_size=4",
                  "--set", "checkpoint_every=2", start=subprocess.Popen, stderr=subprocess.PIPE)  # fmt: skip
    try:
        wait_for(lambda: (tmp_path / "run" / "checkpoint.safetensors").exists())
        holder = int((tmp_path / "run" / ".lock").read_text().split()[0])
        workers = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True, check=False).stdout
        other = next(int(pid) for pid in workers.split() if int(pid) != holder)
        os.kill(other, signal.SIGKILL)
        said = job.communicate(timeout=120)[1]
    finally:
        job.kill()
    assert job.returncode != 0 and "another process of this training has ended" in said
    there = labkit.load_run(tmp_path / "run").iteration
    assert there >= 2
    again = trained(tmp_path / "run", rats, there + 2, "--model", "sigmarat2", "--set", "batch_size=4",
                    "--set", "checkpoint_every=2", capture_output=True, check=False)  # fmt: skip
    assert again.returncode == 0, again.stderr[-2000:]
    assert labkit.load_run(tmp_path / "run").iteration == there + 2


def wait_for(there, seconds=90):
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "nothing came"
        time.sleep(0.2)


def test_what_several_processes_cannot_train_is_refused(rats, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="take 1, 2, 4 processes"):
        labkit.train("sigmarat2", str(rats), "smoke", tmp_path / "run", batch_size=4, n_train=8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "join", lambda device, batch: parallel.Team(0, 2))
    for model in ("adni", "sigmarat1"):
        with pytest.raises(ValueError, match="batch norms"):
            labkit.train(model, str(rats), "smoke", tmp_path / "run", batch_size=4, n_train=8)
    assert not (tmp_path / "run").exists()


def test_the_command_line_says_what_is_allowed_and_what_went_wrong(rats, tmp_path):
    def labkit_says(*words):
        done = subprocess.run([sys.executable, "-m", "labkit", *words], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, told = labkit_says("train", "--help")
    assert code == 0 and all(name in told for name in ("sigmarat2", "atlas", "laptop", "phantom"))
    code, told = labkit_says("train", "--model", "sigmarat9", "--cohort", "phantom")
    assert code == 2 and "sigmarat2" in told
    code, told = labkit_says("train", "--model", "atlas", "--cohort", "phantom", "--set", "seed=3")
    assert code == 1 and "has an option of its own, --seed" in told
    code, told = labkit_says("train", "--model", "sigmarat2", "--cohort", str(tmp_path / "nowhere"))
    assert code == 1 and told.startswith("labkit train: ") and "Traceback" not in told
    folder = tmp_path / "run"
    code, told = labkit_says("train", "--model", "atlas", "--cohort", str(rats), "--scale", "smoke", "--n-train", "8",
                             "--iterations", "5", "--run-dir", str(folder))  # fmt: skip
    assert code == 0 and "5 iterations" in told
    code, told = labkit_says("generate", str(folder), "2", str(tmp_path / "made"), "--seed", "3")
    assert code == 0 and "2 scans" in told
    told = json.loads((tmp_path / "made" / "dataset_description.json").read_text())
    assert (told["seed"], told["n"]) == (3, 2)
    code, told = labkit_says("segment", str(folder), str(tmp_path / "made"), str(tmp_path / "labelled"))
    assert code == 0 and len(list((tmp_path / "labelled").rglob("*_dseg.nii.gz"))) == 2


def test_a_notebook_waits_for_no_other_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert parallel.started() == 2
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert parallel.started() == 1
    assert parallel.join(torch.device("cpu"), 4) is parallel.ALONE


def test_several_processes_are_started_from_a_notebook_and_their_run_is_opened(rats, tmp_path):
    asked = {
        "model": "sigmarat2",
        "cohort": str(rats),
        "scale": "smoke",
        "n_train": 8,
        "iterations": 4,
        "device": "cpu",
    }
    parallel.launch(2, {"latent_dim": 8}, run_dir=str(tmp_path / "run"), opening={}, grid=None, **asked)
    run = labkit.load_run(tmp_path / "run")
    assert (run.iteration, run.variant.latent_dim) == (4, 8) and run.provenance["sittings"][0]["processes"] == 2
    with pytest.raises(parallel.TeamError, match="take 1, 2, 4 processes"):
        parallel.launch(3, {}, run_dir=str(tmp_path / "other"), **asked)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda own: None)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert parallel.own_device(torch.device("cuda")) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="process 3 on this machine has no GPU of its own, there are 2: start at most"):
        parallel.own_device(torch.device("cuda"))
