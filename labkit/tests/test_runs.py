import errno
import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from labkit import files, recording, runs
from labkit.files import write_json
from labkit.runs import RunError
from labkit.variants import SCALES, VARIANTS, asdict


def nested():
    return {
        "iteration": 7,
        "networks": {"G": {"weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}},
        "optimiser": {"state": {0: {"step": torch.tensor(2.0)}, 1: {}}, "groups": [{"lr": 1e-4, "betas": [0.9, 0.99]}]},
        "rng": torch.arange(5, dtype=torch.uint8),
        "nothing": None,
    }


def test_nested_state_comes_back_as_it_was(tmp_path):
    files.save_state(tmp_path / "a.safetensors", nested())
    back = files.load_state(tmp_path / "a.safetensors")
    assert back["iteration"] == 7 and back["nothing"] is None and back["optimiser"]["groups"][0]["lr"] == 1e-4
    assert list(back["optimiser"]["state"]) == [0, 1] and back["optimiser"]["state"][0]["step"] == 2
    assert torch.equal(back["networks"]["G"]["weight"], nested()["networks"]["G"]["weight"])
    assert back["rng"].dtype == torch.uint8


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    import safetensors.torch

    path = tmp_path / "a.safetensors"
    files.save_state(path, nested())
    before = path.read_bytes()

    def full(tensors, target, metadata):
        target.write_bytes(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left.*previous file, if any, is untouched"):
        files.save_state(path, nested() | {"iteration": 8})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_damaged_checkpoint_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    files.save_state(path, nested())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(files.DamagedFileError, match="a.safetensors is damaged"):
        files.load_state(path)


def test_a_pickle_is_not_opened(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"x": Payload()}, tmp_path / "a.safetensors")
    with pytest.raises(files.DamagedFileError):
        files.load_state(tmp_path / "a.safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_second_process_is_kept_out_and_the_lock_dies_with_its_holder(tmp_path):
    hold = "import sys, time; from pathlib import Path; from labkit import runs\n"
    hold += "with runs.locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline().strip() == "held"
        with (
            pytest.raises(RunError, match=f"another process \\(number {holder.pid} on {platform.node()}\\)"),
            runs.locked(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
    with runs.locked(tmp_path):
        pass


def test_a_file_system_that_locks_nothing_is_said_and_used(tmp_path, monkeypatch):
    import fcntl

    def refuse(*words):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.warns(UserWarning, match="cannot be locked .No locks available.: see to it yourself"),
        runs.locked(tmp_path),
    ):
        pass


def test_scratch_of_killed_writers_goes_when_nobody_can_be_writing_there(tmp_path):
    old, new = tmp_path / ".writing-old", tmp_path / ".writing-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "half").write_text("x")
    os.utime(old, (0, 0))
    with files.new_folder(tmp_path / "made") as fresh:
        (fresh / "a").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writing-new", "made"]
    files.sweep(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_files_are_as_readable_for_others_as_the_umask_has_it(tmp_path):
    before = os.umask(0o027)
    try:
        files.save_state(tmp_path / "state.safetensors", {"x": torch.zeros(2)})
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {
        "state.safetensors": "0o640", "a.json": "0o640"
    }  # fmt: skip


def test_a_run_of_a_model_that_there_is_not_is_refused():
    values = asdict(VARIANTS["adni"]) | {"name": "<script>alert(1)</script>"}
    with pytest.raises(ValueError, match="unknown model .*allowed are adni"):
        runs.settings_of(values)


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    config = {"seed": 0, "scale": asdict(SCALES["smoke"]), "train": {"subjects": ["1", "2"]}}
    write_json(tmp_path / "config.json", config)
    longer = asdict(SCALES["smoke"]) | {"iterations": 90, "log_every": 5}
    runs.check_config(tmp_path, json.loads(json.dumps(config)) | {"scale": longer})
    with pytest.raises(RunError, match="scale.size: 16 there, 32 asked"):
        runs.check_config(tmp_path, config | {"scale": longer | {"size": 32}})


def test_a_cohort_that_has_changed_is_refused_in_words_and_not_in_hashes(tmp_path):
    first, second = ({"cohort": {"fingerprint": c * 64, "recipe": {"source": "rats", "seed": 0}},
                      "train": {"digests": ["1" * 64, c * 64]}, "seed": 3} for c in "ab")  # fmt: skip
    write_json(tmp_path / "config.json", first)
    with pytest.raises(RunError) as refused:
        runs.check_config(tmp_path, second)
    said = str(refused.value).splitlines()[1:-1]
    assert said == ["  the cohort's scans or labels, which have changed since"]
    second["cohort"]["recipe"] = {"source": "rats", "seed": 5}
    with pytest.raises(RunError) as refused:
        runs.check_config(tmp_path, {**second, "seed": 4})
    assert str(refused.value).splitlines()[1:-1] == [
        "  cohort.recipe.seed: 0 there, 5 asked",
        "  seed: 3 there, 4 asked",
    ]


def test_a_run_goes_on_where_its_cohort_has_been_moved(tmp_path):
    config = {"cohort": {"fingerprint": "a" * 64, "recipe": {"source": "/here/rats"}}, "seed": 3}
    write_json(tmp_path / "config.json", config)
    moved = {**config, "cohort": {**config["cohort"], "recipe": {"source": "/there/rats"}}}
    runs.check_config(tmp_path, moved)
    with pytest.raises(RunError) as refused:
        runs.check_config(tmp_path, {**moved, "seed": 4})
    assert str(refused.value).splitlines()[1:-1] == ["  seed: 3 there, 4 asked"]


def test_a_run_from_before_a_setting_existed_goes_on_with_its_default(tmp_path):
    now = {"variant": asdict(VARIANTS["adni"]), "scale": asdict(SCALES["smoke"]), "seed": 0}
    before = {**now, "variant": {key: value for key, value in now["variant"].items() if key != "generator_steps"}}
    write_json(tmp_path / "config.json", before)
    runs.check_config(tmp_path, now)
    with pytest.raises(RunError, match="variant.generator_steps: 1 there, 2 asked"):
        runs.check_config(tmp_path, {**now, "variant": now["variant"] | {"generator_steps": 2}})


def test_rows_after_the_checkpoint_are_dropped_with_half_written_ones(tmp_path):
    path = tmp_path / "losses.csv"
    recording.append_rows(path, [{"iteration": i, "loss": i / 3, "x": float("nan")} for i in (10, 20, 30, 40)])
    with path.open("a") as handle:
        handle.write("20,0.")
    recording.cut_rows(path, 30)
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["iteration", "10", "20", "30"]


def test_what_is_no_run_is_answered_with_the_runs_there_are(tmp_path):
    write_json(tmp_path / "sigmarat2-sigma-laptop-s0" / "config.json", {})
    with pytest.raises(RunError, match="no config.json.*; runs in .*: sigmarat2-sigma-laptop-s0"):
        runs.load_run(tmp_path / "sigmarat2")
