"""ci/gpu without a GPU: the walk on a processor, and what its parts promise."""

import csv
import importlib.util
import json
import math
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from labkit.runs import load_run
from labkit.tests.rats import ellipsoids
from labkit.training import train

CI = Path(__file__).parents[2] / "ci"
if not (CI / "gpu_run.py").is_file():
    pytest.skip("the script is that of a checkout, not of an installed labkit", allow_module_level=True)
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def script(name):
    spec = importlib.util.spec_from_file_location(name, CI / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, str(CI / "gpu_run.py"), "--dry-run", "--variants", "sigmarat2", "--commit", "a1b2c3"]
    command += ["--out", str(folder / "out"), "--runs", str(folder / "runs"), "--parts-mib", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ONE_THREAD)
    return folder, done


def test_the_dry_run_walks_through_every_stage(walked):
    folder, done = walked
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    report = {stage["stage"]: stage for stage in json.loads((folder / "out" / "report.json").read_text())}
    assert list(report) == ["tests", "check", "bench", "profile", "train sigmarat2", "collect"]
    assert all(stage["exit"] == 0 and stage["seconds"] > 0 for stage in report.values())
    assert report["bench"]["result"]["ratio_fp32"] > 0
    profile = report["profile"]["result"]
    assert profile["tflops"] == pytest.approx(profile["tflop_per_iteration"] * profile["iterations_per_s"])
    assert 0 < sum(profile["share_by_kind"].values()) == pytest.approx(1, abs=1e-2)
    assert report["train sigmarat2"]["result"]["iterations"] == 12


def test_what_is_collected_is_small_and_opens_as_a_run(walked):
    folder, _ = walked
    kept, run = load_run(folder / "runs" / "kept" / "reference" / "sigmarat2"), load_run(folder / "runs" / "sigmarat2")
    names = {str(path.relative_to(kept.path)) for path in kept.path.rglob("*") if path.is_file()}
    assert {"config.json", "losses.csv", "metrics.json", "provenance.json", "models.safetensors"} <= names
    assert "samples/iteration-000012.png" in names and not any("checkpoint" in name for name in names)
    codes = torch.randn(2, 500, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(kept.generator()(codes), run.generator()(codes), rtol=0, atol=5e-3)
    assert kept.provenance["commit"] == "a1b2c3" and kept.config == run.config
    assert (kept.path / "models.safetensors").stat().st_size < 0.3 * (run.path / "models.safetensors").stat().st_size
    parts = sorted((folder / "out").glob("gpu.tar.*"))
    whole = folder / "joined.tar"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert max(part.stat().st_size for part in parts) <= 2**20
    assert {"gpu/bench.txt", "gpu/reference/sigmarat2/config.json"} <= set(tarfile.open(whole).getnames())


def test_training_stops_by_the_clock_and_goes_on_in_the_next_sitting(tmp_path):
    def sit(minutes):
        command = [sys.executable, str(CI / "gpu_reference.py"), "--runs", str(tmp_path), "--scale", "smoke"]
        command += ["--device", "cpu", "train", "sigmarat2", "--minutes", str(minutes), "--iterations", "100000"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ONE_THREAD)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    first, second = sit(0.05), sit(0.05)
    assert 0 < first["iterations"] < second["iterations"] < 100000
    run = load_run(tmp_path / "sigmarat2")
    assert run.iteration == second["iterations"] and len(run.provenance["sittings"]) == 2


def test_a_stage_that_fails_is_reported_and_the_others_still_run(tmp_path, monkeypatch, capfd):
    module = script("gpu_run")
    stages = [("bad", ["-c", "print('no such thing'); raise SystemExit(3)"]), ("good", ["-c", "print('{\"a\": 1}')"])]
    monkeypatch.setattr(module, "commands", lambda options: stages)
    assert module.main(["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]) == 1
    bad, good = json.loads((tmp_path / "out" / "report.json").read_text())
    assert bad["exit"] == 3 and good["exit"] == 0 and good["result"] == {"a": 1}
    assert "FAILED (3): no such thing" in capfd.readouterr().out
    assert (tmp_path / "out" / "bad.txt").read_text() == "no such thing\n"


def test_on_a_gpu_it_asks_for_the_papers_scale_and_the_cohort_it_was_given():
    module = script("gpu_run")
    options = module.options_of(["--cohort", "rats", "--minutes", "4", "--stages", "bench,train", "--variants", "adni"])
    bench, training = module.commands(options)
    assert " ".join(bench[1][1:]).startswith("--scale paper --device cuda")
    assert training[0] == "train adni" and training[1][-4:] == ["--cohort", "rats", "--minutes", "4.0"]
    with pytest.raises(SystemExit):
        module.options_of(["--stages", "bnech"])


def test_losses_are_decimated_to_means_with_the_last_iteration_of_each_stretch():
    module = script("gpu_reference")
    rows = [{"iteration": float(i), "a": float(i), "b": float("nan") if i % 4 else float(i)} for i in range(1, 11)]
    kept = module.decimated(rows, most=4)
    assert [row["iteration"] for row in kept] == [3, 6, 9, 10] and [row["a"] for row in kept] == [2, 5, 8, 10]
    assert math.isnan(kept[0]["b"]) and kept[1]["b"] == 4 and kept[2]["b"] == 8
    assert len(module.decimated(rows * 1000)) <= module.MOST_ROWS and module.decimated([]) == []


def test_of_many_montages_the_last_and_earlier_ones_at_halves_are_kept():
    module = script("gpu_reference")
    assert module.spread(list(range(41))) == [2, 5, 10, 20, 40] and module.spread([]) == []


def test_a_generator_too_large_to_share_is_left_out_and_the_provenance_says_so(tmp_path, monkeypatch):
    module = script("gpu_reference")
    train("sigmarat2", ellipsoids(tmp_path / "rats"), "smoke", tmp_path / "run", 2, device="cpu")
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    module.collect(tmp_path / "run", tmp_path / "kept", "")
    assert not (tmp_path / "kept" / "models.safetensors").exists()
    assert "left out" in load_run(tmp_path / "kept").provenance["weights"]
    with (tmp_path / "kept" / "losses.csv").open() as handle:
        assert [row["iteration"] for row in csv.DictReader(handle)] == ["1", "2"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "optim"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolutions"),
        ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, false, true>", "copies"),
        ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::BFloat16>", "norms"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "other"),
        ("something_else", ""),
    ],
)
def test_kernels_are_told_apart_by_name(name, kind):
    assert script("gpu_profile").kind_of(name).startswith(kind) and bool(script("gpu_profile").kind_of(name)) == bool(
        kind
    )


BARE = """
import sys
for name in ("tqdm", "PIL", "pandas", "scipy", "pooch", "tensorboard", "torch.utils.tensorboard", "monai", "nilearn"):
    sys.modules[name] = None
from labkit.training import train
run = train("sigmarat2", sys.argv[1], "smoke", sys.argv[2], 2, device="cpu")
assert run.iteration == 2 and list((run.path / "samples").glob("*.nii.gz"))
"""


def test_a_folder_of_scans_is_trained_on_with_torch_numpy_nibabel_and_safetensors_alone(tmp_path):
    ellipsoids(tmp_path / "rats")
    environment = {**ONE_THREAD, "LABKIT_DATA": str(tmp_path / "data")}  # nothing read before is found again
    command = [sys.executable, "-c", BARE, str(tmp_path / "rats"), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, cwd=CI.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Pillow is not installed" in done.stderr and "tensorboard is not installed" in done.stderr
