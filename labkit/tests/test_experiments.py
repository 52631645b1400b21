"""The tables of the page on methods are those of what the experiments measured."""

import functools
import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import labkit
from labkit import variants
from labkit.evidence.metrics.controls import CONTROLS
from labkit.tests.brains import onions

BOOK = Path(__file__).resolve().parents[2] / "book"
if not (BOOK / "experiments").is_dir():
    pytest.skip("the experiments are part of a checkout, not of an installed labkit", allow_module_level=True)


def script(name):
    spec = importlib.util.spec_from_file_location(f"{name}_experiment", BOOK / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def experiment(name):
    found = BOOK / "reference" / name / "measured.csv"
    return script(name), pd.read_csv(found, keep_default_na=name == "acceptance")


def test_the_page_shows_the_rejections_that_were_counted():
    acceptance, share = experiment("acceptance")
    for name, text in acceptance.tables(share).items():
        assert (acceptance.OUT / f"{name}.md").read_text(encoding="utf-8") == text, name


def test_what_chapter_4_says_of_the_measures_is_what_was_counted():
    _, share = experiment("acceptance")
    rows = share[(share["generator"] == "perfect") & ~share["metric"].str.endswith(" p")]
    assert (rows["rejected"] * rows["seeds"]).sum() < 0.01 * rows["seeds"].sum()
    sizes = re.findall(r"\d+\.\d", (BOOK / "reference" / "acceptance" / "size.md").read_text(encoding="utf-8"))
    assert len(sizes) == 8 and all(2 < float(per_cent) < 8 for per_cent in sizes)  # of RBF-MMD p at its level of 5 %
    collapsed, blurred = (
        share[share["generator"] == name].set_index(["metric", "animals"])["rejected"]
        for name in ("collapse to the mean", "blur")
    )
    assert not any(collapsed[metric].any() for metric in ("PSNR", "RMSE", "NCC", "MMD", "precision"))
    assert not any(blurred[metric].any() for metric in ("PSNR", "RMSE", "NCC"))
    assert all(collapsed[metric].all() for metric in ("recall", "trace ratio", "classifier AUC"))
    for metric in ("coverage", "Wasserstein"):
        by_animals = collapsed[metric].groupby("animals").mean()
        assert by_animals[12] < 0.1 and by_animals[36] > 0.5 and by_animals[108] == 1


def test_the_page_shows_the_coverage_that_was_counted():
    coverage, found = experiment("coverage")
    assert (coverage.OUT / "table.md").read_text(encoding="utf-8") == coverage.table(found)
    intervals = found[found["kind"] == "interval"]
    assert (intervals["share"] + 2 * intervals["error"] > 0.9).all()  # none covers clearly less than 90 %


@pytest.mark.parametrize("place", [10, 13, 23])
def test_what_is_drawn_has_the_truth_that_it_is_held_against(place):
    coverage, _ = experiment("coverage")
    draw, n, _ = coverage.CASES[place]
    seen = pd.DataFrame([row for k in range(200) for row in draw(np.random.default_rng(k), n)])
    for what, part in seen.dropna(subset="truth").groupby("what"):
        assert part["value"].mean() == pytest.approx(part["truth"].iloc[0], abs=4 * part["value"].sem()), what
    assert seen["p"].dropna().between(0, 1).all()


def test_equal_minutes_choose_a_size_and_measure_it_beside_the_atlas(tmp_path, monkeypatch, capsys):
    minutes = script("minutes")
    onions(tmp_path / "rats", n=34)
    monkeypatch.setattr(minutes, "SIZES", {"16³, width 4": {"size": 16, "base_channels": 4}})
    monkeypatch.setattr(minutes, "Study", functools.partial(minutes.Study, n=12, size=16))
    monkeypatch.setattr(minutes, "TRAINED", 10)
    monkeypatch.setattr(minutes, "VALIDATION", 12)
    monkeypatch.setattr(minutes, "seconds_an_iteration", lambda *_: 30.0)
    monkeypatch.setitem(variants.ATLAS_SCALES, "laptop", replace(variants.ATLAS_SCALES["smoke"], iterations=6))
    monkeypatch.setattr(
        sys, "argv", [*f"minutes.py --cohort {tmp_path / 'rats'} --minutes 1,2 --seeds 0".split(), "--runs",
                      str(tmp_path / "runs"), "--out", str(tmp_path / "out")],
    )  # fmt: skip
    minutes.main()
    table = pd.read_csv(tmp_path / "out" / "measured.csv")
    assert set(table["model"]) == {"sigmarat2", "atlas", *CONTROLS} and set(table["minutes"]) == {1, 2}
    runs = [labkit.load_run(tmp_path / "runs" / f"16³,width4-s0-{n:03d}min") for n in (1, 2)]
    assert [run.iteration for run in runs] == [2, 4]
    assert runs[1].losses["iteration"].tolist() == [1, 2, 3, 4]  # it went on from the smaller budget's
    assert "| classifier AUC, PCA |" in capsys.readouterr().out
