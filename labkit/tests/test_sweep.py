"""Sweeps: grids are checked before any work, killed jobs go on bit for bit, a bad point stops no other."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import labkit
from labkit import figures
from labkit.evidence import sweeps
from labkit.files import load_state
from labkit.tests.rats import ellipsoids

TOP = Path(__file__).resolve().parents[2]
if not (TOP / "ci" / "sweep.py").exists():
    pytest.skip("sweeps are part of a checkout, not of an installed labkit", allow_module_level=True)
pytest.importorskip("submitit")

SMALL = 'scale = "smoke"\nn = 12\niterations = 200\n'
LONG = 240
"""Seconds within which a small sweep has to end, on a machine that other processes use."""


@pytest.fixture
def sweep(monkeypatch):
    """The module of ci/sweep."""
    monkeypatch.syspath_prepend(str(TOP / "ci"))
    import sweep

    return sweep


def grid(folder, text):
    path = folder / "grid.toml"
    path.write_text(text)
    return path


def started(path, *words, **env):
    command = [sys.executable, str(TOP / "ci" / "sweep.py"), str(path), "--to", str(path.parent / "out"), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=os.environ | env)  # fmt: skip


def until(found, what, seconds=LONG):
    """Wait until `found` gives something; it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.05)
    pytest.fail(f"waited {seconds} s for {what}")


def begun(folder, least=1):
    """Runs that have a checkpoint and are not done."""
    runs = [path.parent for path in folder.glob("out/points/*/run/checkpoint.safetensors")]
    return runs if len(runs) >= least else None


def left_alone(tmp_path, seed):
    """The same training without a sweep."""
    rats = labkit.open_cohort("phantom", n=12)
    return labkit.train("sigmarat2", rats, "smoke", tmp_path / f"alone-{seed}", iterations=200, seed=seed)


def assert_same_run(run, other):
    a, b = (load_state(folder / "models.safetensors") for folder in (run, other))
    flat = [{f"{network}.{name}": tensor for network in one for name, tensor in one[network].items()} for one in (a, b)]
    assert flat[0].keys() == flat[1].keys() and all((flat[0][key] == flat[1][key]).all() for key in flat[0])


def test_a_grid_is_the_product_of_lists_and_the_union_of_tables(sweep, tmp_path):
    several = 'model = ["adni", "sigmarat1"]\nlatent_dim = [4, 8]'
    text = f'every.scale = "smoke"\n[[points]]\n{several}\n[[points]]\nmodel = "atlas"'
    points = sweep.read(grid(tmp_path, text), tmp_path / "out")
    assert [point.varied for point in points] == [
        {"model": "adni", "latent_dim": 4}, {"model": "adni", "latent_dim": 8},
        {"model": "sigmarat1", "latent_dim": 4}, {"model": "sigmarat1", "latent_dim": 8}, {"model": "atlas"},
    ]  # fmt: skip
    first = points[0].training
    assert first["model"] == "adni" and first["overrides"] == {"latent_dim": 4} and first["scale"] == "smoke"
    assert len({point.name for point in points}) == 5


def test_a_point_keeps_its_folder_when_the_grid_grows(sweep, tmp_path):
    small = sweep.read(grid(tmp_path, SMALL.join(["[every]\n", "[[points]]\nseed = [0, 1]"])), tmp_path / "out")
    for point in small:
        point.folder.mkdir(parents=True)
    more = 'seed = [0, 1, 2]\nmodel = ["sigmarat2", "adni"]'
    grown = sweep.read(grid(tmp_path, SMALL.join(["[every]\n", f"[[points]]\n{more}"])), tmp_path / "out")
    assert len(grown) == 6
    same = [point for point in grown if point.folder in {old.folder for old in small}]
    assert [point.varied for point in same] == [{"seed": seed, "model": "sigmarat2"} for seed in (0, 1)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[every]\nmodel = "sigmarat9"', "sigmarat2"),
        ("[[points]]\nlatent_dimension = 3", "latent_dim"),
        ("[[points]]\nseed = [0, 0]", "2 times"),
        ("[chapters.01_explore]", "03_inspect"),
        ("[chapters.04_quality]\nm = 5", "cohort, names, n, seed"),
        ("[point]\nseed = 1", r"\[\[points\]\]"),
        ("points = 3", r"\[\[points\]\]"),
        ("chapters.04_quality = 3", r"write \[chapters.04_quality\]"),
        ("[[points]]\nseed = []", "no point"),
        ("[every]\nseed = 1.5", "seed"),
        ("[every]\nfold = -1", "fold"),
        ("[every]\niterations = 0", "iterations"),
        ("[every]\nprocesses = 2", "--jobs"),
        ('[every]\ndevice = "gpu"', "cuda:1"),
        ('[[points]]\nname = "a"\n[[points]]\nname = "b"\ngenerator_steps = 1', "points a and b"),
        ("[every]\nwhen = 2020-01-01", "true or false"),
        ("[every", "cannot be read"),
    ],
)
def test_a_grid_that_cannot_be_computed_is_refused_before_any_work(sweep, tmp_path, text, words):
    with pytest.raises(sweep.GridError, match=words):
        sweep.read(grid(tmp_path, text), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["paper", "seeds", "gdl"])
def test_the_grids_of_the_book_are_valid(sweep, tmp_path, name):
    points = sweep.read(TOP / "book" / "sweeps" / f"{name}.toml", tmp_path)
    assert len(points) == {"paper": 11, "seeds": 20, "gdl": 20}[name]
    for point in points:
        model, _ = sweep.resolved(point.training)
        assert model.name == point.training["model"]


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("12:30:00", 750), ("1-00:00:00", 1440), ("10:00", 10), ("0:30", 1)]
)
def test_time_limits_are_read_as_slurm_writes_them(sweep, text, minutes):
    assert sweep.minutes(text) == minutes


@pytest.mark.parametrize("options", ["partition", "time=soon", "gpu=1", "nodes=2", "cpus=four"])
def test_options_of_a_cluster_that_there_are_not_are_refused(sweep, options):
    with pytest.raises(sweep.GridError, match=r"--slurm"):
        sweep.slurm_parameters(options, 1)


def test_other_machines_are_told_the_scale(sweep, tmp_path):
    path = grid(tmp_path, 'every.device = "cuda"')
    with pytest.raises(sweep.GridError, match="scale: say which"):
        sweep.read(path, tmp_path / "out", elsewhere=True)
    (point,) = sweep.read(grid(tmp_path, 'every.scale = "paper"\nevery.device = "cuda"'), tmp_path / "out", True)
    assert (point.training["scale"], point.training["device"]) == ("paper", "cuda")
    (point,) = sweep.read(grid(tmp_path, 'every.device = "cpu"'), tmp_path / "out")
    assert point.training["scale"] == "laptop"  # written down, whatever computes it


def test_a_point_whose_chapters_are_asked_otherwise_is_not_finished(sweep, tmp_path):
    text = f"[every]\n{SMALL}[chapters.04_quality]\nn = "
    (point,) = sweep.read(grid(tmp_path, text + "50"), tmp_path / "out")
    point.lay_out()
    for stem in point.chapters:
        (point.folder / f"{stem}.ipynb").touch()
    assert point.finished
    (other,) = sweep.read(grid(tmp_path, text + "60"), tmp_path / "out")
    assert other.folder == point.folder and not other.finished
    other.lay_out()
    assert (other.folder / "02_train.ipynb").exists() and not (other.folder / "04_quality.ipynb").exists()


QUEUE = """#!/bin/sh
[ -e {0}/down ] && exit 1
cat {0}/queue
"""


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A cluster that answers what it is told to: the file of numbers that are in its queue."""
    for name in ("sbatch", "srun", "squeue"):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(QUEUE.format(tmp_path))
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "queue").write_text("7_0\n7_1\n")
    return tmp_path / "queue"


def test_a_cluster_is_asked_twice_before_a_job_counts_as_ended(sweep, queue, tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "submitted.json").write_text(json.dumps({"a": "7_0", "b": "7_1", "old": "6"}))
    place = sweep.Slurm(tmp_path, None, 1, "partition=x")
    assert place.alive() == {"a", "b"}  # what an earlier sweep queued and is no longer there has ended
    queue.write_text("7_1\n")
    assert place.alive() == {"a", "b"}
    (tmp_path / "down").touch()
    assert place.alive() == {"a", "b"}  # no answer is no news
    (tmp_path / "down").unlink()
    assert place.alive() == {"b"}


def test_points_that_failed_on_a_cluster_are_computed_when_asked_again(sweep, queue, tmp_path):
    """Even if the cluster has long forgotten their jobs."""
    points = sweep.read(grid(tmp_path, f"[every]\n{SMALL}[[points]]\nseed = [0, 1]"), tmp_path)
    for point in points:
        point.lay_out()
        (point.folder / "failed.txt").write_text("no such folder")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "submitted.json").write_text(json.dumps({points[0].name: "3", points[1].name: "7_1"}))
    sweep.prepare(points, sweep.Slurm(tmp_path, None, 1, ""))
    assert [bool(point.failed) for point in points] == [False, True]  # the second one's job is in the queue
    queue.write_text("")
    sweep.prepare(points, sweep.Slurm(tmp_path, None, 1, ""))
    assert not points[1].failed  # an empty queue is an answer, too


def test_a_killed_job_goes_on_bit_for_bit_and_a_bad_point_stops_no_other(tmp_path):
    text = f"[every]\n{SMALL}[[points]]\nseed = [0, 1]\n[[points]]\nn_train = 99\nseed = 5\n"
    process = started(grid(tmp_path, text), "--jobs", "2")
    (victim, *_) = until(lambda: begun(tmp_path), "a first checkpoint")
    jobs = subprocess.run(["pgrep", "-f", f"submitit.core._submit {tmp_path}"], capture_output=True, text=True).stdout
    for number in jobs.split():
        children = subprocess.run(["pgrep", "-P", number], capture_output=True, text=True).stdout.split()
        for one in [number, *children]:
            os.kill(int(one), signal.SIGKILL)
    output, _ = process.communicate(timeout=LONG)
    assert process.returncode == 1 and "ended early, begun again" in output and "n_train" in output.splitlines()[-1], (
        output
    )
    table, _ = sweeps.read_sweep(tmp_path / "out")
    assert sorted(table["seed"]) == [0, 1] and set(table["trained"]) == {200}
    seed = json.loads((victim / "config.json").read_text())["seed"]
    assert len(labkit.load_run(victim).provenance["sittings"]) > 1
    assert_same_run(victim, left_alone(tmp_path, seed).path)
    again = started(tmp_path / "grid.toml", "--jobs", "2").communicate(timeout=LONG)[0]
    assert "3 points, 2 of them finished" in again
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert "Plotly" in page and not re.search(r"<(script|link|img)[^>]*(src|href)=\"?(https?:)?//", page)


@pytest.mark.parametrize(("kind", "fault"), [("SystemExit", False), ("KeyboardInterrupt", False), ("ValueError", True)])
def test_a_kernel_that_a_signal_ended_is_no_fault_of_the_point(sweep, tmp_path, monkeypatch, kind, fault):
    from papermill.exceptions import PapermillExecutionError

    def executed(*words, **options):
        raise PapermillExecutionError(9, 9, "train()", kind, "143", [])

    monkeypatch.setattr("papermill.execute_notebook", executed)
    (tmp_path / "point.json").write_text(json.dumps({"chapters": {"02_train": {}}}))
    with contextlib.nullcontext() if fault else pytest.raises(PapermillExecutionError):
        sweep.point.compute(tmp_path, threading.Event())
    assert (tmp_path / "failed.txt").exists() == fault


def test_a_stopped_sweep_leaves_checkpoints_and_goes_on(tmp_path):
    path = grid(tmp_path, f"[every]\n{SMALL.replace('200', '400')}\nseed = 7\n")
    process = started(path)
    (run,) = until(lambda: begun(tmp_path), "a first checkpoint")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert "goes on" in output and process.returncode
    done = labkit.load_run(run).iteration
    assert 0 < done < 400
    assert (
        labkit.load_run(run).losses.index[-1] == done
    )  # the checkpoint is where it was stopped, not the last that was due
    process = started(path)
    process.communicate(timeout=LONG)
    sittings = labkit.load_run(run).provenance["sittings"]
    assert [(one["from"], one["to"]) for one in sittings] == [(0, done), (done, 400)] and not process.returncode


def test_a_sweep_that_was_killed_itself_is_begun_again_beside_its_jobs(tmp_path):
    path = grid(tmp_path, f"[every]\n{SMALL.replace('200', '2000')}\nseed = 7\n")
    process = started(path)
    (run,) = until(lambda: begun(tmp_path), "a first checkpoint")
    process.kill()
    process.wait(timeout=60)  # what it wrote to is open yet: its jobs have it, too
    process = started(path)
    first = until(lambda: process.stdout.readline(), "a word")
    assert "1 jobs of a ci/sweep that was killed are ended" in first
    until(lambda: len(labkit.load_run(run).provenance["sittings"]) > 1, "the same training")
    process.send_signal(signal.SIGTERM)
    assert "goes on" in process.communicate(timeout=60)[0]
    sittings = labkit.load_run(run).provenance["sittings"]
    assert [one["from"] for one in sittings] == [0, sittings[0]["to"]] and sittings[0]["to"] > 0


@pytest.fixture
def cluster():
    """A SLURM of this machine alone, and what programs need to know to find it."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
    if missing or os.geteuid():
        pytest.skip(f"needs {', '.join(missing) or 'root'}: apt-get install slurm-wlm munge, as root")
    words = [str(TOP / "ci" / "slurm"), "bash", "-c", "echo $SLURM_CONF; read"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"SLURM_TEST_CORES": "2"})  # fmt: skip
    settings = process.stdout.readline().strip()
    assert settings, "the cluster did not start"
    yield {"SLURM_CONF": settings}
    process.stdin.close()
    process.wait(timeout=60)


def test_slurm_computes_a_grid_with_a_job_killed_and_another_preempted(cluster, tmp_path):
    path = grid(tmp_path, f"[every]\n{SMALL}[[points]]\nseed = [0, 1, 2, 3]\n")
    process = started(path, "--slurm", "partition=test,gpus=0,time=30", **cluster)
    until(lambda: begun(tmp_path, 2), "two checkpoints")
    numbers = json.loads((tmp_path / "out" / "jobs" / "submitted.json").read_text())
    killed, preempted = sorted(run.parent.name for run in begun(tmp_path, 2))[:2]
    for name, number in ((killed, "KILL"), (preempted, "USR2")):
        subprocess.run(["scancel", f"--signal={number}", numbers[name]], env=os.environ | cluster, check=True)
    output, _ = process.communicate(timeout=LONG)
    assert process.returncode == 0, output
    table, folder = sweeps.read_sweep(tmp_path / "out")
    assert sorted(table["seed"]) == [0, 1, 2, 3] and set(table["trained"]) == {200}
    logs = (folder / "jobs" / f"{numbers[preempted]}_0_log.out").read_text()
    assert "Requeued job" in logs and "ended early, begun again" in output
    for name in (killed, preempted):
        run = labkit.load_run(folder / "points" / name / "run")
        assert len(run.provenance["sittings"]) > 1
        assert_same_run(run.path, left_alone(tmp_path, run.config["seed"]).path)


def made_up():
    """A sweep of two configurations and three seeds."""
    measured = {"recall, regions floor": 0.9, "trace ratio, PCA floor": 1.0, "seconds": 360, "device": "x"}
    rows = [
        {"point": f"{name}-{seed}", "name": name, "seed": seed, "lr": lr, sweeps.TRAINED: 10,
         "held_out_mse": 0.01 + seed, "recall, regions": base + seed / 100, "recall, regions low": base - 0.1,
         "recall, regions high": base + 0.1, "trace ratio, PCA": 2 * base, **measured}
        for name, lr, base in (("a", 0.1, 0.3), ("b", 0.2, 0.6)) for seed in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_seeds_of_a_configuration_are_averaged():
    table = made_up()
    assert sweeps.settings(table) == ["name", "seed"]  # the name says the learning rate
    found = sweeps.over_seeds(table)
    assert list(found.index) == ["a", "b", "real"] and list(found["trainings"]) == ["3", "3", ""]
    assert found["recall, regions (higher)"].tolist() == ["0.31 ± 0.01", "0.61 ± 0.01", "0.9"]
    assert found["hours"].tolist()[:2] == ["0.1 ± 0", "0.1 ± 0"]


def test_points_without_a_name_are_told_apart_beside_named_ones():
    table = made_up().assign(name=["a"] * 3 + [None] * 3, model=["x"] * 4 + ["y"] * 2)
    table = table[["point", "name", "seed", "model", *made_up().columns[4:]]]
    assert list(sweeps.arms(table)) == ["a, model x"] * 3 + ["model x", "model y", "model y"]
    assert sweeps.said({"latent_dim": 500.0, "lr": 0.5}) == "latent_dim 500, lr 0.5"
    first = figures.parallel_coordinates(table, "held_out_mse").figure.data[0].dimensions[0]
    assert list(first.ticktext) == ["a", "as usual"] and list(first.values) == [0, 0, 0, 1, 1, 1]


def test_the_best_are_best_whichever_way_is_better():
    table = made_up()
    assert sweeps.best(table, "recall, regions", 1)["point"].item() == "b-2"  # the highest
    assert sweeps.best(table, "held_out_mse", 2)["point"].tolist() == ["a-0", "b-0"]  # the lowest
    assert set(sweeps.best(table, "trace ratio, PCA", 3)["name"]) == {"b"}  # 1.2 is nearer to 1 than 0.6 is
    assert sweeps.chosen(table) == "recall, regions"
    with pytest.raises(ValueError, match="recall, regions"):
        sweeps.chosen(table, "recal")


def test_the_sweep_in_the_repository_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table, folder = sweeps.read_sweep()
    assert len(table) == 20 and all((folder / sweeps.SAMPLES / f"{name}.png").exists() for name in table["point"])


def test_a_folder_without_a_sweep_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ci/sweep"):
        sweeps.read_sweep(tmp_path)
    (tmp_path / sweeps.SWEEP).write_text("point,seed\n")
    with pytest.raises(ValueError, match="no point yet"):
        sweeps.read_sweep(tmp_path)


def test_lines_are_darkest_where_the_measure_is_best(tmp_path):
    drawn = figures.parallel_coordinates(made_up(), "recall, regions")
    colours = drawn.figure.data[0].line.color
    assert np.argmin(colours) == 5 and "b, seed 2" in drawn.alt
    labels = [axis.label for axis in drawn.figure.data[0].dimensions]
    assert labels == ["name", "seed", "recall, regions", "trace ratio, PCA", "held_out_mse"]
    assert "recall" in drawn.alt and len(figures.by_arm(made_up()).axes) == 3


def test_iterations_may_be_asked_for_as_any_other_setting(sweep, tmp_path):
    one, other = (
        sweep.read(grid(tmp_path, f'scale = "smoke"\n{asked}\n'.join(("[every]\n", ""))), tmp_path / "out")[0]
        for asked in ("overrides = {iterations = 7}", "iterations = 7")
    )
    assert one.training["iterations"] == 7 and one.training["overrides"] == {} and one.mark == other.mark


def test_what_a_point_trains_on_is_known_before_it_trains(sweep, tmp_path):
    rats = ellipsoids(tmp_path / "rats", n=9)
    assert sweep.trained_on({"cohort": str(rats.folder)}) == 6
    assert sweep.trained_on({"cohort": str(rats.folder), "n_train": 5, "fold": 1}) == 4  # this fold holds five out
    assert sweep.trained_on({"cohort": "sigma"}) == 174 and sweep.trained_on({"cohort": "sigma", "n": 1044}) == 865


def test_hours_count_the_atlas_that_a_model_fits_first(sweep, tmp_path, monkeypatch):
    path = grid(tmp_path, '[every]\nscale = "laptop"\n[[points]]\nmodel = "sigmarat2"\niterations = 1800\n'
                '[[points]]\nmodel = "sigmarat3"\niterations = 900\n'
                '[[points]]\nmodel = "atlas"\nn = 1044\nn_train = 870\n'
                '[[points]]\nmodel = "sigmarat3"\nn = 1050\niterations = 900\n')  # fmt: skip
    cost = {"sigmarat2": 2.0, "sigmarat3": 4.0, "atlas": 3.0}
    seen = []
    monkeypatch.setattr(
        sweep.point, "paces", lambda keys, threads: seen.extend(keys) or [cost[model] for model, *_ in keys]
    )
    points = sweep.read(path, tmp_path / "out")
    one, other, *rats, total = sweep.expected(points, SimpleNamespace(at_once=1)).splitlines()
    fit = labkit.resolve("atlas", "laptop")[1].iterations
    assert ("atlas", "laptop", {"size": 32}, "auto") in seen  # as fine as the networks, and no finer
    assert "1 h  1800 iterations of 2 s: " in one
    assert f"900 iterations of 4 s, after {fit} iterations of 3 s: " in other
    # of more animals than the paper's as many times more, given as n_train, or as chapter 2 would choose
    assert f"{5 * fit} iterations of 3 s: " in rats[0] and f", after {5 * fit} iterations of 3 s: " in rats[1]
    assert f"left: {(2 * 3600 + 3600 + 3 * 11 * fit) / 3600:.2g} h;" in total
