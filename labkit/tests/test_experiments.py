"""The tables of the page on methods are those of what the experiments measured."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

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
    return script(name), pd.read_csv(BOOK / "reference" / name / "measured.csv", keep_default_na=name != "coverage")


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


def test_the_page_shows_the_departures_that_were_measured():
    departures, found = experiment("departures")
    assert (departures.OUT / "table.md").read_text(encoding="utf-8") == departures.table(found)


def test_labels_are_held_against_what_most_training_rats_have_there(tmp_path):
    departures = script("departures")
    brains = onions(tmp_path / "brains", 6)
    maps = departures.label_maps(brains)
    taught = torch.cat([maps[:1], maps[:1], maps[1:2]])  # most are as the first
    rows = {row.flavour: row for row in departures.labelling(maps, taught, brains)}
    assert set(rows) == {"whole brain", *departures.VOLUMES[1:]} and {row.value for row in rows.values()} == {1.0}
    alone = next(departures.labelling(maps[:1].expand_as(maps), taught, brains))  # the first rat's labels for all
    assert alone.value == pytest.approx(rows["whole brain"].floor) and 0 < alone.value < 1 and alone.n == 6


def test_a_value_short_of_its_floor_is_bold_in_the_table_of_departures():
    departures = script("departures")
    row = {"metric": "Dice", "flavour": "CSF", "condition": "none", "value": 0.4, "ci_low": 0.3, "ci_high": 0.5,
           "floor": 0.6, "floor_low": 0.55, "floor_high": 0.65, "n": 6, "direction": "higher"}  # fmt: skip
    rows = [row, row | {"condition": "cut", "value": 0.7, "ci_low": 0.6, "ci_high": 0.8}, row | {"metric": "unshown"}]
    lines = departures.table(pd.DataFrame(rows)).splitlines()
    assert lines[0] == "| | none | cut |" and lines[2:] == ["| Dice, CSF | **0.40** / 0.60 | 0.70 / 0.60 |"]
