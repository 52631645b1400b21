import json
import subprocess
import sys
from pathlib import Path

import torch

from labkit.updates import choose_precision

CI = Path(__file__).parents[2] / "ci"


def test_the_training_benchmark_ends_with_one_json_object():
    words = ["--scale", "smoke", "--iterations", "2", "--device", "cpu"]
    command = [sys.executable, str(CI / "bench_training.py"), *words]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    result = json.loads(lines[-1])
    assert {"ratio_fp32", "ratio_bf16", "iterations_per_s", "device"} <= result.keys()
    assert result["rounds"] == 2 and result["ratio_fp32"] > 0 and result["device"].startswith("cpu")
    measured = {"reference", "fp32"} | ({"bf16"} if result["ratio_bf16"] else set())
    assert set(result["peak_mib"]) == measured and min(result["peak_mib"].values()) > 50
    native = choose_precision("auto", torch.device("cpu")) == "bf16"
    assert (result["ratio_bf16"] is not None) == native  # emulated, it would take minutes


def test_the_atlas_benchmark_ends_with_one_json_object():
    command = [sys.executable, str(CI / "bench_atlas.py"), "--sides", "16", "--animals", "", "--device", "cpu"]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    (case,) = result["cases"]
    # which is faster, so few voxels do not tell on a machine that does other things
    assert case["side"] == 16 and min(case["coarse_steps_per_s"], case["steps_per_s"]) > 1
    assert case["labelled_draws_per_s"] > 1 and 0 < case["encode_s"] < 10 and case["peak_mib"] > 50
