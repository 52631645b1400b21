import io
import signal
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from labkit import files, recording, runs
from labkit.generation import generate
from labkit.runs import RunError, load_run
from labkit.tests.rats import ellipsoids
from labkit.training import DivergedError, default_run_folder, train
from labkit.variants import VARIANTS, resolve

FAST = {"iterations": 6, "checkpoint_every": 3, "sample_every": 3, "log_every": 2, "ema_decay": 0.5, "device": "cpu"}


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return ellipsoids(tmp_path_factory.mktemp("cohort") / "rats")


def tensors(run):
    return files.flatten(files.load_state(run.path / runs.CHECKPOINT))[0]


def same(a, b):
    a, b = tensors(a), tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("model", VARIANTS)
def test_every_variant_leaves_a_run_that_others_can_use(rats, tmp_path, model):
    run = train(model, rats, "smoke", tmp_path / "run", **FAST)
    assert run.iteration == 6 and list(run.losses.index) == [2, 4, 6]
    expected = {"loss_EG", "loss_D", "loss_C", "rec_mse", "wasserstein_D", "z_enc_mean", "z_enc_sd", "grad_G"}
    assert expected <= set(run.losses.columns) and np.isfinite(run.losses["loss_EG"]).all()
    assert np.isfinite(run.losses.loc[6, "held_out_mse"])
    latent = run.variant.latent_dim
    scans = run.generator()(torch.randn(2, latent))
    assert scans.shape == (2, 1, 16, 16, 16) and scans.abs().max() <= 1
    beside, average = run.generator(codes="encoded").state_dict(), run.generator().state_dict()
    assert any(not torch.equal(beside[name], value) for name, value in average.items())
    assert run.encoder()(scans).shape == (2, latent)
    assert run.config["train"]["subjects"] and not set(run.config["train"]["subjects"]) & set(
        run.config["held_out"]["subjects"]
    )
    assert run.provenance["sittings"][0]["torch"] == torch.__version__


def test_the_board_has_held_out_curves_the_fixed_samples_and_settings_to_compare_by(rats, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST, lr=3e-4)
    board = event_accumulator.EventAccumulator(str(run.path / "events")).Reload()
    curve = {point.step: point.value for point in board.Scalars("held_out_mse")}
    assert curve == pytest.approx(run.losses["held_out_mse"].dropna().to_dict(), rel=1e-4) and set(curve) == {4, 6}
    pictures = board.Images("fixed codes; scans beside reconstructions")
    assert [picture.step for picture in pictures] == [3, 6]
    shown = np.asarray(Image.open(io.BytesIO(pictures[-1].encoded_image_string)).convert("L"))
    assert np.array_equal(shown, np.asarray(Image.open(run.path / "samples" / "iteration-000006.png")))
    started = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"latent_dim" in started and b"lr" in started and b"smoke" in started


def test_fixed_samples_start_at_iteration_zero_as_nifti_and_montage(rats, tmp_path):
    run = train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST)
    names = sorted(path.name for path in (run.path / "samples").glob("*.png"))
    assert names == [f"iteration-{i:06d}.png" for i in (0, 3, 6)]
    picture = np.asarray(Image.open(run.path / "samples" / names[-1]))
    assert picture.shape == (6 * 96 + 4, 8 * 96) and picture[300:].std() > 10
    random = nib.load(run.path / "samples" / "iteration-000006_random.nii.gz")
    assert random.shape == (16, 16, 16, 8) and np.allclose(random.header.get_zooms()[:3], (1.5, 1.5, 2.0))


def test_training_twice_with_one_seed_gives_the_same_weights(rats, tmp_path):
    first = train("sigmarat1", rats, "smoke", tmp_path / "a", **FAST)
    again = train("sigmarat1", rats, "smoke", tmp_path / "b", **FAST)
    other = train("sigmarat1", rats, "smoke", tmp_path / "c", seed=1, **FAST)
    assert same(first, again) and not same(first, other)


@pytest.mark.parametrize("model", ["adni", "sigmarat2"])
def test_resume_continues_bit_for_bit(rats, tmp_path, model):
    whole = train(model, rats, "smoke", tmp_path / "whole", **FAST)
    train(model, rats, "smoke", tmp_path / "parts", **FAST | {"iterations": 3})
    parts = train(model, rats, "smoke", tmp_path / "parts", **FAST)
    assert same(whole, parts)


def test_a_box_is_fitted_to_the_scans_and_their_padding_is_never_computed(rats, tmp_path):
    run = train("sigmarat2", rats, "smoke", tmp_path / "run", iterations=4, box="fitted")
    assert run.scale.box == "16x16x12"  # 40 of 64 slices are 10 of 16
    made = generate(run, 2).volumes(16)
    assert (made[..., :2] == -1).all() and (made[..., 14:] == -1).all() and (made[..., 4:12] > -1).any()
    on = train("sigmarat2", rats, "smoke", tmp_path / "run", iterations=6, box="fitted")
    whole = train("sigmarat2", rats, "smoke", tmp_path / "whole", iterations=6, box="fitted")
    assert same(on, whole)


def test_activation_checkpointing_changes_no_number_of_a_run(rats, tmp_path):
    runs = [
        train("sigmarat1", rats, "smoke", tmp_path / str(lean), iterations=3, activation_checkpointing=lean)
        for lean in (False, True)
    ]
    assert same(*runs)


@pytest.mark.parametrize("model", ["sigmarat2", "atlas"])
@pytest.mark.parametrize("left", ["nothing", "of an earlier checkpoint"])
def test_cut_off_between_a_checkpoints_two_files_a_run_is_made_whole_when_it_is_opened(
    rats, tmp_path, monkeypatch, left, model
):
    options = {"iterations": 6, "checkpoint_every": 3, "device": "cpu"}
    whole = train(model, rats, "smoke", tmp_path / "whole", **options)
    save, killed = files.save_state, [tmp_path / "run" / runs.MODELS] * (1 if left == "nothing" else 2)

    def cut_off(path, state):
        if path in killed and killed.pop() and not killed:
            raise OSError("as if killed, or the disk were full")
        save(path, state)

    monkeypatch.setattr(recording, "save_state", cut_off)
    with pytest.raises(OSError, match="as if killed"):
        train(model, rats, "smoke", tmp_path / "run", **options)
    monkeypatch.undo()
    done = load_run(tmp_path / "run").iteration
    assert done == (3 if left == "nothing" else 6) and (tmp_path / "run" / runs.MODELS).exists() == (done == 6)
    if model != "atlas":  # whose steps follow from how many are asked for
        other = train(model, rats, "smoke", tmp_path / "other", **options | {"iterations": done})
        opened = train(model, rats, "smoke", tmp_path / "run", **options | {"iterations": done})  # finished, so far
        assert same(other, opened) and opened.fingerprint == other.fingerprint
    assert train(model, rats, "smoke", tmp_path / "run", **options).fingerprint == whole.fingerprint


def test_going_on_with_another_number_of_threads_is_said(rats, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST | {"iterations": 3})
    monkeypatch.setattr(recording.torch, "get_num_threads", lambda: threads + 3)
    with pytest.warns(
        UserWarning, match=f"with {threads} threads and goes on with {threads + 3}.*OMP_NUM_THREADS={threads}"
    ):
        train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST)  # finished: only opened


SITTING = """
import sys
from pathlib import Path
from labkit.data.sources import open_cohort
from labkit.training import train
train("sigmarat2", open_cohort(sys.argv[1]), "smoke", sys.argv[2], iterations=int(sys.argv[3]), checkpoint_every=5,
      sample_every=50, log_every=7, device="cpu")
"""


def start(rats, folder, iterations):
    return subprocess.Popen(
        [sys.executable, "-c", SITTING, str(rats.folder), str(folder), str(iterations)],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_checkpoint(folder, process):
    for _ in range(600):
        if (folder / runs.CHECKPOINT).exists() or process.poll() is not None:
            return
        time.sleep(0.1)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2])
def test_a_killed_run_started_again_gives_the_same_weights_as_one_left_alone(rats, tmp_path, how):
    process = start(rats, tmp_path / "killed", 4000)
    wait_for_checkpoint(tmp_path / "killed", process)
    process.send_signal(how)
    assert process.wait(30) == (-how if how == signal.SIGKILL else 128 + how)
    done = load_run(tmp_path / "killed").iteration
    assert 0 < done < 4000 and (how != signal.SIGKILL or done % 5 == 0)
    goal = done + 9
    options = {"checkpoint_every": 5, "sample_every": 50, "log_every": 7, "device": "cpu", "iterations": goal}
    resumed = train("sigmarat2", rats, "smoke", tmp_path / "killed", **options)
    alone = train("sigmarat2", rats, "smoke", tmp_path / "alone", **options)
    assert same(resumed, alone)
    assert list(resumed.losses.index) == list(alone.losses.index)
    assert len(resumed.provenance["sittings"]) == 2


def test_a_finished_run_is_reopened_at_once_and_can_be_given_more(rats, tmp_path):
    run = train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST)
    before = (run.path / runs.CHECKPOINT).stat().st_mtime_ns
    train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST)
    assert (run.path / runs.CHECKPOINT).stat().st_mtime_ns == before
    assert train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST | {"iterations": 8}).iteration == 8


def test_another_setting_other_data_and_resume_false_are_refused(rats, tmp_path):
    train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST)
    with pytest.raises(RunError, match="variant.latent_dim: 500 there, 20 asked"):
        train("sigmarat2", rats, "smoke", tmp_path / "run", latent_dim=20, **FAST)
    with pytest.raises(RunError, match=r"configuration:\n  cohort.n: 7 there, 6 asked\n  train.subjects: 5 there, 4"):
        train("sigmarat2", rats.subset(range(6)), "smoke", tmp_path / "run", **FAST)
    with pytest.raises(RunError, match="resume=False"):
        train("sigmarat2", rats, "smoke", tmp_path / "run", resume=False, **FAST)


def test_a_run_begun_on_another_kind_of_device_is_not_gone_on_with(rats, tmp_path):
    run = train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST | {"iterations": 3})
    state = files.load_state(run.path / runs.CHECKPOINT)
    files.save_state(run.path / runs.CHECKPOINT, state | {"device": "cuda"})
    with pytest.raises(RunError, match="begun on cuda and cannot go on bit for bit on cpu: pass device='cuda'"):
        train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(rats, tmp_path, monkeypatch):
    from labkit import losses

    run = train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST | {"iterations": 3})
    before = (run.path / runs.CHECKPOINT).read_bytes()
    monkeypatch.setattr(losses, "unit_norm_penalty", lambda gradient: gradient.sum() * float("nan"))
    with pytest.raises(DivergedError, match="loss_D.*last good checkpoint is at iteration 3"):
        train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST)
    assert (run.path / runs.CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("sigmarat4", {}, "did you mean 'sigmarat"),
        ("sigmarat2", {"scale": "huge"}, "allowed are smoke, laptop, reference, paper"),
        ("sigmarat2", {"device": "gpu"}, "device 'gpu' is not known"),
        ("sigmarat2", {"latentdim": 3}, "did you mean 'latent_dim'"),
    ],
)
def test_wrong_names_stop_before_any_work(rats, tmp_path, model, options, message):
    with pytest.raises(ValueError, match=message):
        train(model, rats, **{"scale": "smoke", "run_dir": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


def test_the_default_folder_says_what_is_in_it(rats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train("adni", rats, "smoke", seed=3, latent_dim=8, **FAST | {"iterations": 1})
    assert (
        run.path.parts[0] == "runs"
        and run.path.name.startswith("adni-rats-smoke-s3")
        and "latent_dim=8" in run.path.name
    )


def test_a_handful_of_rats_is_trained_on_whole_and_nothing_is_called_held_out(rats, tmp_path):
    with pytest.warns(UserWarning, match="3 animals are too few to hold any out: all are trained on"):
        run = train("sigmarat2", rats.subset(range(3)), "smoke", tmp_path / "run", **FAST | {"iterations": 3})
    assert len(run.config["train"]["subjects"]) == 3 and run.config["held_out"]["subjects"] == []
    assert run.losses["held_out_mse"].isna().all()


def test_of_two_dozen_animals_eight_are_held_out_unless_one_says_otherwise(tmp_path):
    rats = ellipsoids(tmp_path / "rats", n=24)
    run = train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST | {"iterations": 1})
    assert len(run.config["held_out"]["subjects"]) == 8
    other = train("sigmarat2", rats, "smoke", tmp_path / "other", n_train=20, **FAST | {"iterations": 1})
    assert len(other.config["held_out"]["subjects"]) == 4


def test_nothing_in_a_step_waits_for_the_device(monkeypatch):
    from labkit.updates import Draws, Learner, step

    variant, scale = resolve("sigmarat2", "smoke")
    learner = Learner(variant, scale, torch.device("cpu"))
    x, z = torch.rand(4, 1, 16, 16, 16) * 2 - 1, torch.randn(4, 500)
    w, m = torch.rand(4, 1, 1, 1, 1), torch.rand(4, 1)
    draws = Draws(x, z, x, z, z, w, w, m)

    def read(*arguments, **options):
        pytest.fail("a value was read back from the device")

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, name, read)
        terms = step(learner, draws)
    assert all(torch.isfinite(value) for value in terms.values())


def test_signals_are_given_back_after_training(rats, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    train("sigmarat2", rats, "smoke", tmp_path / "run", **FAST | {"iterations": 1})
    assert signal.getsignal(signal.SIGINT) is before


def test_a_fold_has_a_folder_of_its_own(rats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [train("sigmarat2", rats, "smoke", fold=fold, **FAST | {"iterations": 1}) for fold in (0, 1)]
    out = [set(run.config["held_out"]["subjects"]) for run in runs]
    assert runs[0].path != runs[1].path and out[0] and not out[0] & out[1]


def test_an_executed_notebook_is_told_where_its_training_stands(rats, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recording, "in_executed_notebook", lambda: True)
    monkeypatch.setattr(recording, "SECONDS_A_LINE", 0)
    train("sigmarat2", rats, "smoke", tmp_path / "run", iterations=4, log_every=2, sample_every=4, checkpoint_every=4)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("iteration")]
    assert [line.split(":")[0] for line in lines] == ["iteration 2 of 4", "iteration 4 of 4"]
    assert "mse 0" in lines[0] and lines[0].endswith("seconds left") and lines[1].endswith("0 seconds left")


@pytest.mark.parametrize(("left", "words"), [(7200, "2 hours"), (5000, "83 minutes"), (80, "80 seconds")])
def test_time_left_is_told_in_units_that_are_read(left, words):
    assert recording._line(0, left, 1.0, "x") == f"iteration 0 of {left}: x; 1 iterations a second, {words} left"


def test_default_folders_tell_apart_all_that_was_asked(tmp_path):
    variant, scale = resolve("sigmarat2", "smoke")
    phantom = {"source": "phantom", "n": 210, "seed": 0, "grid": "study", "axes": None, "skip_bad": True}

    def name(recipe=None, **overrides):
        cohort = SimpleNamespace(name="rats", recipe=recipe)
        return default_run_folder(variant, cohort, scale, 0, overrides).name

    usual = "sigmarat2-rats-smoke-s0"
    assert name(phantom) == name() == name({"source": "mice", "n": None, "grid": "56x40x64@0.3"}) == usual
    assert name(phantom | {"n": 8, "seed": 3}) == usual + "-n=8-rats=3"
    assert name(phantom | {"source": "/x", "n": None}, n_train=4, fold=1) == usual + "-fold=1-n_train=4"
    raw = {"source": "/x/raw", "axes": "RSA", "voxel_mm": [0.3, 0.3, 0.5], "entities": {"echo": "1"}, "grid": "native"}
    assert name(raw) == usual + "-axes=RSA-entities=echo1-grid=native-voxel_mm=0.3x0.3x0.5"
