import json
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from labkit import figures
from labkit.evidence.metrics import faults, study
from labkit.evidence.metrics.controls import CONTROLS
from labkit.evidence.metrics.study import Study, separate_best
from labkit.evidence.sample import Sample, at_resolution
from labkit.evidence.selection import find_runs, named
from labkit.tests.rats import ellipsoids
from labkit.tests.test_training import FAST
from labkit.training import train


@pytest.fixture(scope="module")
def rats(tmp_path_factory):
    return ellipsoids(tmp_path_factory.mktemp("study") / "rats", n=28)


@pytest.fixture(scope="module")
def runs(rats, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [train(model, rats, "smoke", folder / model, n_train=14, **FAST) for model in ("sigmarat2", "adni")]


@pytest.fixture(scope="module")
def measured(runs):
    return Study(runs, n=8, size=32)


def test_runs_stand_beside_one_floor_at_the_resolution_of_the_coarsest(measured):
    table = measured.table
    assert list(table["model"].unique()) == ["sigmarat2", "adni", *CONTROLS] and measured.yardstick.resolution == 16
    floors = table[table["metric"] != "SSIM"].pivot_table(index=["metric", "flavour"], columns="model", values="floor")
    assert np.allclose(floors["sigmarat2"], floors["adni"])
    fine = Sample.of(measured.yardstick.held_out, 32)
    assert torch.equal(measured.yardstick.everyone.cubes, at_resolution(fine, 16).cubes)
    assert set(measured.verdicts().columns) == set(study.GROUPS)
    assert measured.verdicts().loc["adni", "distributions"].endswith("of 22")


def test_best_is_only_named_where_intervals_lie_apart():
    rows = pd.DataFrame({"model": ["a", "b", "c"], "ci_low": [1.0, 3.0, 5.0], "ci_high": [2.0, 4.0, 6.0],
                         "floor": 3.5, "floor_low": 0.5, "floor_high": 6.5, "direction": "lower"})  # fmt: skip
    assert separate_best(rows) == "a"
    assert separate_best(rows.assign(direction="higher")) == "c"
    assert separate_best(rows.assign(direction="floor")) == "b"
    assert separate_best(rows.assign(ci_high=[3.2, 4.0, 6.0])) == ""
    assert separate_best(rows[:1]) == ""
    assert separate_best(rows.assign(floor_low=2.5)) == ""  # better than real is no triumph


def test_results_are_left_in_every_run_as_json_and_markdown(measured, runs):
    measured.save()
    for name, run in zip(("sigmarat2", "adni"), runs, strict=True):
        content = json.loads((run.path / "metrics.json").read_text())
        assert content["run"] == run.path.name and content["n"] == 7 and len(content["rows"]) > 40
        first = content["rows"][0]
        expected = measured.table[measured.table["model"] == name].iloc[0]
        assert first["metric"] == expected["metric"] and first["value"] == pytest.approx(expected["value"])
        lines = (run.path / "metrics.md").read_text().splitlines()
        assert len({line.count("|") for line in lines[:-2]}) == 1 and "floor: real" in lines[0]
        assert lines[-1] == "Measured with 14 real animals that no model saw, 7 of them in A and 7 in B."
        assert content["left_out"] == []


def test_a_table_for_a_page_marks_the_best_run_and_no_reference(measured):
    best = {key: name for key, name in measured.best().items() if name}
    text = measured.markdown()
    assert text.count("**") == 2 * len(best)
    assert set(best.values()) <= {"sigmarat2", "adni"}
    html = measured.shown("the paper's six").to_html()
    assert "RMSE" in html and "reconstruction" not in html


def test_measures_that_need_more_animals_say_how_many_in_grey(rats, tmp_path):
    run = train("sigmarat2", rats, "smoke", tmp_path / "run", n_train=22, **FAST)
    few = Study([run], n=8, size=16)  # six held-out animals, three a side
    board = few.leaderboard("distributions")
    assert board.loc[("recall", "PCA"), "sigmarat2"] == "needs 12 held-out animals"
    assert board.loc[("classifier AUC", "regions")].to_list() == ["needs 10 held-out animals", *[""] * 5]
    assert "needs" not in board.loc[("trace ratio", "PCA"), "sigmarat2"]
    html = few.shown("distributions").to_html()
    assert "color: #595959" in html and "needs 12\nheld-out animals" in html and "3 of them in A and 3 in B" in html
    text = few.markdown("distributions")
    assert "| recall | PCA | *needs 12 held-out animals* |" in text and "10 of " in text and "6 real animals" in text
    assert few.leaderboard("recall").shape == (2, 3) and few.verdicts().loc["mean", "distributions"].endswith(" of 10")
    few.save()
    absent = json.loads((run.path / "metrics.json").read_text())["left_out"]
    assert {"metric": "coverage", "flavour": "PCA"}.items() <= absent[-2].items() and absent[-2]["animals"] == 12
    control = faults.control(few.yardstick, (1.0,))
    drawn = figures.fault_map(control), figures.attribute_distributions(few), figures.embedding_map(few)
    assert all(drawn) and figures.copy_distances(few) and figures.fault_cards(few.yardstick, control).cards
    plt.close("all")


def test_runs_of_other_training_scans_are_refused(rats, runs, tmp_path):
    other = train("sigmarat1", rats, "smoke", tmp_path / "other", n_train=13, **FAST)
    with pytest.raises(ValueError, match="trained on different scans"):
        Study([runs[0], other], n=8)
    with pytest.raises(ValueError, match="the same run twice"):
        Study([runs[0], runs[0]], n=8)
    with pytest.raises(ValueError, match="n=3"):
        Study(runs, n=3)
    with pytest.raises(ValueError, match="was trained on scanned animals"):
        Study(runs, "fresh", n=8)


def test_a_run_that_held_too_few_out_says_what_to_do(rats, tmp_path):
    run = train("sigmarat2", rats, "smoke", tmp_path / "run", n_train=26, **FAST)
    with pytest.raises(ValueError, match="Hold more animals out"):
        Study([run], n=8)


def test_without_names_the_newest_run_of_each_model_is_taken(rats, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model in ("sigmarat2", "adni"):
        train(model, rats, "smoke", f"runs/{model}", n_train=14, **FAST)
    train("sigmarat1", rats, "smoke", "runs/elsewhere", n_train=13, **(FAST | {"iterations": 2}))
    train("sigmarat2", rats, "smoke", "runs/newer", n_train=14, **FAST)
    assert [run.path.name for run in find_runs()] == ["adni", "newer"]
    assert [run.path.name for run in find_runs("runs/adni, runs/sigmarat2")] == ["adni", "sigmarat2"]


def test_figures_of_a_study_have_their_panels(measured):
    control = faults.control(measured.yardstick, (1.0,))
    drawn = {
        "fault_map": figures.fault_map(control),
        "attributes": figures.attribute_distributions(measured),
        "map": figures.embedding_map(measured),
        "copies": figures.copy_distances(measured),
        "triplets": figures.triplets(measured.comparisons["adni"], n=2),
    }
    assert len(drawn["copies"].axes) == 6 and len(drawn["triplets"].axes) == 6 and len(drawn["map"].axes) == 2
    labels = [text.get_text() for text in drawn["fault_map"].axes[0].get_yticklabels()]
    assert {"RMSE, paper", "RMSE, released", "MMD, released"} <= set(labels)
    cards = figures.fault_cards(measured.yardstick, control)
    assert len(cards.cards) == 6  # these rats have no ventricles to erase
    assert cards.cards[0].pictures[0].shape == cards.cards[0].pictures[1].shape and cards.cards[0].pictures[0].ndim == 3
    assert "worse" in cards.cards[0].words[1] and "unmoved" in cards.cards[0].words[0]
    with pytest.raises(ValueError, match="does not fit cubes"):
        figures.similarity_distributions(measured)
    with pytest.raises(ValueError, match="strength=0.3 was not tried"):
        figures.fault_map(control, 0.3)
    with pytest.raises(ValueError, match="no embedding is called 'VGG'"):
        figures.embedding_map(measured, "VGG")
    plt.close("all")


def test_runs_of_several_folds_are_measured_each_with_its_own_animals_and_averaged(tmp_path, monkeypatch):
    rats = ellipsoids(tmp_path / "rats", n=24)
    folds = [train("sigmarat2", rats, "smoke", tmp_path / f"f{fold}", fold=fold, **FAST) for fold in range(3)]
    whole = Study(folds, n=8, size=16)
    held_out = [set(part.yardstick.held_out.subjects) for part in whole.folds]
    assert set().union(*held_out) == set(rats.subjects) and sum(map(len, held_out)) == 24
    assert "24 real animals, each held out in one of 3 folds" in whole.rests_on
    key = ["sigmarat2", "RMSE", "paper"]
    rows = [table.set_index(["model", "metric", "flavour"]).loc[tuple(key)] for table in
            (whole.table, *(part.measured for part in whole.folds))]  # fmt: skip
    values = [row["value"] for row in rows]
    assert values[0] == pytest.approx(np.mean(values[1:])) and len(set(values)) == 4
    widths = [row["ci_high"] - row["ci_low"] for row in rows]
    assert widths[0] == pytest.approx(np.sqrt(np.square(widths[1:]).sum()) / 3, rel=0.2) and widths[0] < min(widths[1:])
    ps = [table[(table["metric"] == "copies p") & (table["flavour"] == "synthetic") & (table["model"] == "sigmarat2")]
          ["value"].iloc[0] for table in (whole.table, *(part.measured for part in whole.folds))]  # fmt: skip
    assert ps[0] == pytest.approx(min(1.0, 3 * min(ps[1:])))
    whole.save()
    said = [json.loads((run.path / "metrics.json").read_text()) for run in folds]
    assert said[1]["rows"] == said[2]["rows"] and said[1]["folds"] == 3 and said[1]["real"]["animals"] == 24
    assert said[1]["run_fingerprint"] == folds[1].fingerprint
    monkeypatch.setattr("labkit.evidence.selection.load_run", lambda: folds[1])
    train(
        "sigmarat2", rats, "smoke", tmp_path / "again", seed=1, n_train=12, **FAST | {"iterations": 1}
    )  # no fold of it
    assert {run.path for run in find_runs()} == {run.path for run in folds}
    with pytest.raises(ValueError, match="leave cohort"):
        Study(folds, rats, n=8, size=16)


def test_a_fold_without_one_of_the_models_is_named(rats, tmp_path):
    runs = [train(model, rats[:24], "smoke", tmp_path / f"{model}{fold}", fold=fold, **FAST | {"iterations": 1})
            for model, fold in (("sigmarat2", 0), ("adni", 0), ("sigmarat2", 1))]  # fmt: skip
    with pytest.raises(ValueError, match="runs of 2 folds, but not the same models in each"):
        Study(runs, n=8)


def some_run(model="sigmarat2", folder="a", **settings):
    variant = {"name": model, **{key: value for key, value in settings.items() if key not in ("seed", "size")}}
    config = {
        "seed": settings.get("seed", 0),
        "scale": {"name": "smoke", "size": settings.get("size", 16)},
        "variant": variant,
    }
    return SimpleNamespace(variant=SimpleNamespace(name=model), path=Path("runs") / folder, config=config)


def test_runs_are_called_by_what_tells_them_apart_or_as_one_likes():
    def names(*runs, called=None):
        return list(named(list(runs), called))

    a, b, c = some_run(), some_run(folder="b", seed=1), some_run("adni", "c", seed=1)
    assert names(a, c) == ["sigmarat2", "adni"]
    assert names(a, b, c) == ["sigmarat2 seed 0", "sigmarat2 seed 1", "adni"]
    longer = some_run(folder="d", latent_dim=1000)
    assert names(a, some_run(folder="d", size=32)) == ["sigmarat2 size 16", "sigmarat2 size 32"]
    many = some_run(folder="e", **{f"w{place}": 1 for place in range(4)}, seed=3)
    assert names(longer, b)[0] == "sigmarat2 seed 0 latent_dim 1000"
    assert names(a, many) == ["a", "e"]  # too many to say
    assert names(a, some_run(folder="f")) == ["a", "f"]  # nothing differs
    assert names(a, b, called="short, long") == names(a, b, called=["short", "long"]) == ["short", "long"]
    for wrong in ("one", "one,one", "one,", "one,two,three"):
        with pytest.raises(ValueError, match="needed are 2 different names, of a, b in turn"):
            names(a, b, called=wrong)
    with pytest.raises(ValueError, match="the same run twice: a, a"):
        names(a, some_run())
