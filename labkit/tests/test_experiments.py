"""The tables of the page on methods are those of what the experiments measured."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BOOK = Path(__file__).resolve().parents[2] / "book"
if not (BOOK / "experiments").is_dir():
    pytest.skip("the experiments are part of a checkout, not of an installed labkit", allow_module_level=True)


def experiment(name):
    spec = importlib.util.spec_from_file_location(f"{name}_experiment", BOOK / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, pd.read_csv(BOOK / "reference" / name / "measured.csv", keep_default_na=name == "acceptance")


def test_the_page_shows_the_rejections_that_were_counted():
    acceptance, share = experiment("acceptance")
    for name, text in acceptance.tables(share).items():
        assert (acceptance.OUT / f"{name}.md").read_text(encoding="utf-8") == text, name


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
