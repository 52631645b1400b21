"""What the page on differences says of codes is measured by an experiment, which is tried here on two tiny runs."""

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from labkit.tests.rats import ellipsoids
from labkit.tests.test_training import FAST
from labkit.training import train

SCRIPT = Path(__file__).resolve().parents[2] / "book" / "experiments" / "codes.py"
if not SCRIPT.is_file():
    pytest.skip("the experiment is part of a checkout, not of an installed labkit", allow_module_level=True)


@pytest.fixture(scope="module")
def experiment():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        spec = importlib.util.spec_from_file_location("codes_experiment", SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return ellipsoids(tmp_path_factory.mktemp("codes") / "rats", n=12)


@pytest.fixture(scope="module")
def runs(rats, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        model: train(model, rats, "smoke", folder / f"{model}-s0", n_train=6, **FAST) for model in ("sigmarat2", "adni")
    }


def test_random_codes_have_the_textbook_values_and_only_adnis_generator_feels_a_length(experiment, runs, rats):
    moved = {}
    for model, run in runs.items():
        rows = pd.DataFrame(experiment.code_rows(run, rats)).set_index("codes of")
        drawn = rows.loc["random"]
        assert (
            drawn["SD"] == pytest.approx(1, abs=0.02) and abs(drawn["cosine of two"]) < 0.01 and drawn["offset"] < 0.1
        )
        encoded = rows.loc["held-out animals"]
        assert (
            encoded["SD between"] < encoded["SD"] and encoded["cosine of two"] > 0.5
        )  # hardly trained: nearly one code
        assert rows.loc["(real scans)", "spread of pictures"] > 0
        moved[model] = encoded["moved by length"]
    assert moved["sigmarat2"] < 0.01 < 0.1 < moved["adni"]


def test_an_average_with_no_history_makes_the_samples_of_the_weights_themselves(experiment, rats, tmp_path):
    run = train("adni", rats, "smoke", tmp_path / "run", n_train=6, **(FAST | {"ema_decay": 0.0}))
    standing, average = experiment.sample_rows(run, rats)
    for name in ("variance ratio", "sharpness ratio", "nearest real, RMSE"):
        assert standing[name] == pytest.approx(average[name], rel=0.02)


def test_what_is_finished_is_measured_and_nothing_trained(experiment, runs, rats, tmp_path, monkeypatch):
    folder, iterations = runs["adni"].path.parent, runs["adni"].iteration
    assert experiment.finished(folder / "adni-s0", "smoke", iterations + 1) is None
    assert experiment.finished(folder / "sigmarat1-s0", "smoke", 1) is None
    arguments = f"--cohort {rats.folder} --scale smoke --iterations {iterations} --runs {folder} --finished"
    monkeypatch.setattr(sys, "argv", ["codes.py", *arguments.split(), "--out", str(tmp_path)])
    experiment.main()
    table = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert table[0].startswith("At `smoke` scale (16³ voxels)")
    table = table[2:]
    assert len(table) == 2 + 2 * 3 + 1 and table[-1].startswith("|  | (real scans) | 1 |")
    assert len({line.count("|") for line in table}) == 1
    assert set(json.loads((tmp_path / "provenance.json").read_text())["sittings"]) == {"sigmarat2-s0", "adni-s0"}
