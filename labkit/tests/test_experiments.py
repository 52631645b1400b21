"""The tables of the pages on experiments are those of what the experiments measured."""

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import labkit
from labkit.data.cohort import Cohort
from labkit.evidence import sweeps
from labkit.evidence.segmentation.network import PLANS
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


def test_three_trainings_are_held_against_three_atlases_and_their_labels_against_its():
    reference = script("reference")
    values = dict(zip(reference.PAIR, ((0.3, 0.6, 0.6), (0.2, 0.4, 0.3)), strict=True))
    rows = [(model, *key, value, 0.5, seed) for key in reference.RULE for model, own in values.items()
            for seed, value in enumerate(own)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["model", "metric", "flavour", "value", "floor", "seed"])
    line = reference.by_seed(table).splitlines()[2]
    # Student's t with two degrees of freedom, 4.303, times 0.1 over the root of 3
    assert line == "| recall, regions | 0.30, 0.60, 0.60 | 0.20, 0.40, 0.30 | 0.20 (−0.048 to 0.45) | 0.50 |"
    out = reference.sharing.REPOSITORY
    assert (out / "seeds.md").read_text(encoding="utf-8") == reference.by_seed(pd.read_csv(out / "seeds.csv"))
    labels = pd.read_csv(out / "labels.csv", dtype=reference.TEXT)
    assert (out / "labels.md").read_text(encoding="utf-8") == reference.own_gains(labels)
    beside = pd.concat(reference.packed_scores())
    assert set(labels["arm"]) == set(reference.OWN) and len(beside) == 4 / 2 * len(labels)
    assert set(beside["arm"]) == {name for pair in reference.OWN.values() for name in pair}


def test_reference_runs_are_measured_one_by_one_and_stand_in_one_table():
    reference = script("reference")
    file = reference.sharing.REPOSITORY / "curve.csv"
    table = pd.read_csv(file, keep_default_na=False, na_values=[""])
    assert file.with_name("table.md").read_text(encoding="utf-8") == reference.markdown(table)
    again = reference.joined(file, table[table["model"] == "atlas"].assign(iterations=7))
    assert again[again["model"] != "atlas"].equals(table[table["model"] != "atlas"])
    assert set(again.loc[again["model"] == "atlas", "iterations"]) == {7}
    for model in table["model"].unique():
        if (run := reference.sharing.packed_run(f"reference/{model}")) is not None:
            assert labkit.load_run(run).iteration == table.loc[table["model"] == model, "iterations"].max()


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
    assert not any(collapsed[metric].any() for metric in ("PSNR", "RMSE", "NCC", "precision"))
    assert collapsed["MMD"].mean() < 0.05 and collapsed["MMD, released"].mean() == pytest.approx(0.2, abs=0.05)
    assert not any(blurred[metric].any() for metric in ("PSNR", "RMSE", "NCC"))
    assert blurred["MAE, released"].all()
    assert all(0.4 < blurred[f"{metric}, released"].mean() < 0.65 for metric in ("PSNR", "RMSE"))
    assert all(collapsed[metric].all() for metric in ("recall", "trace ratio", "classifier AUC"))
    for metric in ("coverage", "Wasserstein"):
        by_animals = collapsed[metric].groupby("animals").mean()
        assert by_animals[12] < 0.2 and by_animals[36] > 0.5 and by_animals[108] == 1


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


def rows_measured():
    minutes = script("minutes")
    return [*minutes.SHOWN, minutes.CHOICE]


class Measured:
    """In place of a Study, which takes its time: the table of a run is how long it was trained."""

    yardstick, n, seed = None, 3, 0

    def __init__(self, runs, real, reader=None):
        assert not {animal for run in runs for animal in run.config["train"]["subjects"]} & set(real.subjects)
        self.real = real
        rows = [(run.variant.name, *row, run.iteration, 0.5) for run in runs for row in rows_measured()]
        self.table = pd.DataFrame(rows, columns=["model", "metric", "flavour", "value", "floor"])


class Peer:
    """In place of the model that stands beside: its scans are the animals it was trained on."""

    def __init__(self, train):
        self.train, self.fitted = train, {}

    def fit(self, iterations):
        self.fitted = iterations

    def draw(self, n, seed):
        return sum(self.fitted.values())


class Compared:
    """In place of a Comparison with those."""

    def __init__(self, yardstick, made, real, back=None, run=None):
        rows = [(*row, made if run is None else run.iteration, 0.5) for row in rows_measured()]
        self.rows = pd.DataFrame(rows, columns=["metric", "flavour", "value", "floor"])

    def table(self):
        return self.rows


def test_equal_minutes_choose_a_size_and_measure_all_beside_the_atlas(tmp_path, monkeypatch, capsys):
    minutes = script("minutes")
    onions(tmp_path / "rats", n=20)
    sizes = {"16³, width 4": {"size": 16, "base_channels": 4}, "16³, width 8": {"size": 16, "base_channels": 8}}
    # seconds an iteration, and of a stage of the peer
    pace = {"sigmarat2": dict(zip(sizes, (30.0, 20.0), strict=True)), "MONAI": {"autoencoder": 10, "diffusion": 3}}
    pace["sigmarat1"] = dict(zip(sizes, (20.0, 30.0), strict=True))
    peers = []
    for name, value in {
        "SIZES": sizes, "Study": Measured, "Comparison": Compared, "TRAINED": 8, "VALIDATION": 6, "LONG": 4,
        "reader": lambda cohort, runs: None,
        "paces": lambda cohort, runs, model: pace[model],
        "peer": lambda cohort, folder, seed: peers.append((folder.name, Peer(cohort))) or peers[-1][1],
    }.items():  # fmt: skip
        monkeypatch.setattr(minutes, name, value)
    train, small = labkit.train, {"size": 16, "base_channels": 4, "iterations": 4}

    def quick(model, *where, **how):  # adni stands for the atlas, which takes its time
        return train("adni", *where, **how, **small) if model == "atlas" else train(model, *where, **how)

    monkeypatch.setattr(labkit, "train", quick)
    words = f"minutes.py --cohort {tmp_path / 'rats'} --minutes 1,2 --seeds 0,1 --runs {tmp_path / 'runs'}"
    words += f" --peer-minutes 2,4 --models sigmarat1,sigmarat2,MONAI=1 --out {tmp_path / 'out'}"
    monkeypatch.setattr(sys, "argv", words.split())
    minutes.main()
    table = pd.read_csv(tmp_path / "out" / "measured.csv").drop_duplicates(["model", "minutes", "seed"])
    # what takes long is trained once, so is an earlier one, and a model as often as it says
    assert table["seed"].tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 0]
    table = table[table["seed"] == 0]
    # the size with the smallest value is chosen: here the one that was trained for fewer iterations; of the peer's
    # minutes each stage gets a half
    assert table[["model", "minutes", "value"]].values.tolist() == [
        ["adni", 0, 4], ["sigmarat1", 1, 3], ["sigmarat2", 1, 2], ["sigmarat2", 2, 4], ["MONAI", 2, 6 + 20],
        ["MONAI", 4, 12 + 40],
    ]  # fmt: skip
    assert [name for name, _ in peers] == ["MONAI-s0-002min", "MONAI-s0-004min"]
    (kept,) = (tmp_path / "runs").iterdir()  # of this cohort
    longer = labkit.load_run(kept / "sigmarat2-16³,width4-s0-002min")
    assert longer.losses.index.tolist() == [2, 4]  # it went on from the smaller budget's
    assert "| sigmarat2 (2) | 1 | " in (shown := capsys.readouterr().out) and "classifier AUC, network |" in shown
    monkeypatch.setattr(sys, "argv", [*words.split(), "--models", "sigmarat9"])
    with pytest.raises(SystemExit):
        minutes.main()
    assert "sigmarat9: allowed are MONAI, adni, sigmarat1, sigmarat2, sigmarat3" in capsys.readouterr().err


def test_the_page_shows_the_equal_minutes_that_were_measured():
    minutes, out = script("minutes"), sweeps.REPOSITORY.parent / "minutes"
    table = pd.read_csv(out / "measured.csv", keep_default_na=False, na_values=[""])
    assert (out / "table.md").read_text(encoding="utf-8") == minutes.markdown(table)


def test_a_timing_of_the_peer_that_was_stopped_is_taken_anew(tmp_path, monkeypatch):
    minutes, asked = script("minutes"), []

    def peer(cohort, folder, seed):
        assert not folder.exists()
        folder.mkdir(parents=True)
        return SimpleNamespace(fit=lambda stages: asked.append(stages) or dict.fromkeys(stages, 0.5))

    monkeypatch.setattr(minutes, "peer", peer)
    (tmp_path / "pace-MONAI").mkdir()
    found = minutes.paces(None, tmp_path, "MONAI")
    assert found == {"autoencoder": 0.5, "diffusion": 0.5, "threads": torch.get_num_threads()}
    assert asked == [dict.fromkeys(minutes.STAGES, n) for n in (2, 10)]


def test_who_chooses_a_size_is_not_reported_on_by_another_scan_of_the_same_animal(monkeypatch):
    minutes = script("minutes")
    monkeypatch.setattr(minutes, "VALIDATION", 2)
    scans = Cohort("long", Path(), [SimpleNamespace(subject=name) for name in "abcbad"])
    sides = minutes.parts(SimpleNamespace(held_out=lambda cohort: scans), scans)
    assert [list(side.subjects) for side in sides] == [list("abba"), list("cd")]


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


def mice_scores(gain=0.05, folds=3, noise=0.01):
    rng, rows = np.random.default_rng(0), []
    for fold in range(folds):
        for animal in range(8):
            for labelled in (3, 17):
                for arm, level in (
                    ("registration", 0.78),
                    ("r100", 0.5),
                    ("r100+a1000", 0.5 + gain),
                    ("r100+e1000", 0.52),
                ):
                    for tissue in ("whole brain", "cortex", "fimbria"):
                        dice = level + noise * rng.standard_normal()
                        rows.append((arm, labelled, fold, f"{fold}{animal}", tissue, dice, -0.1))
    return pd.DataFrame(rows, columns=["arm", "labelled", "split", "subject", "tissue", "dice", "volume_bias"])


def test_the_page_shows_what_was_measured_on_mice():
    mice = script("mice")
    found = pd.read_csv(mice.OUT / "dice.csv", dtype={"subject": str})
    for name, made in {"segmentation": mice.levels, "differences": mice.differences, "structures": mice.structures,
                       "holds": mice.holds}.items():  # fmt: skip
        assert (mice.OUT / f"{name}.md").read_text(encoding="utf-8") == made(found), name
    for table, made in {"realism": mice.beside_floors, "groups": mice.volumes}.items():
        found = pd.read_csv(mice.OUT / f"{table}.csv", keep_default_na=False, na_values=[""])
        assert (mice.OUT / f"{table}.md").read_text(encoding="utf-8") == made(found), table
    realism = pd.read_csv(mice.OUT / "realism.csv")
    assert (mice.OUT / "realism_holds.md").read_text(encoding="utf-8") == mice.realism_holds(realism)


def test_what_is_said_of_realism_counts_splits_and_knows_what_an_audit_cannot_see():
    mice, rows = script("mice"), []
    for split in range(3):
        for model, power in (("sigmarat2", 0.3), ("atlas", 1.3 if split else 1.0)):
            rows += [(split, model, "power ratio", band, power, 0, 2, 1, 1) for band in mice.DETAIL]
            rows.append((split, model, "RMSE", "reconstruction", 0.05, 0.04, 0.06, 0.055, 0.05))
            rows.append((split, model, "trace ratio", "PCA", 0.5, 0.4, 0.6, 1, 0.7))
            planted = 0.01 if split and model == "atlas" else 0.2
            rows += [(split, model, "copies p", kind, p, 0, 1, 1, 1)
                     for kind, p in (("synthetic", 0.6), ("30 % copies planted", planted))]  # fmt: skip
    columns = ["split", "model", "metric", "flavour", "value", "ci_low", "ci_high", "floor", "floor_low"]
    lines = mice.realism_holds(pd.DataFrame(rows, columns=columns)).splitlines()[2:]
    assert [line.split(" | ")[-1].strip(" |") for line in lines] == [
        "yes", "in 1 of 3 splits", "no", "yes", "no",
        "cannot be seen in 3 of 3 splits", "cannot be seen in 1 of 3 splits, else yes",
    ]  # fmt: skip


def test_what_holds_of_mice_is_said_by_intervals_over_animals_and_splits():
    mice = script("mice")
    lines = {line.split(" | ")[0].strip("| "): line for line in mice.holds(mice_scores()).splitlines()}
    gained = lines["with three labelled animals it gains from the draws, too"]
    assert gained.endswith("| yes |") and "3 labelled: +0.05" in gained
    assert lines["where all have labels, draws add nothing"].endswith("| no |")
    assert "it gains more still from the other animals, labelled by registration" not in lines  # no such arm
    lines = mice.holds(mice_scores(gain=-0.05)).splitlines()
    assert sum(line.endswith("| no |") for line in lines) == 3
    quiet = mice.holds(mice_scores(gain=0, noise=0.001)).splitlines()
    lines = {line.split(" | ")[0].strip("| "): line for line in quiet}
    assert lines["where all have labels, draws add nothing"].endswith("| yes |")
    wide = mice_scores(gain=0, noise=0.001)
    wide.loc[wide["arm"] == "r100+a1000", "dice"] += 0.05 * (wide["split"] - 1)  # other in each split, none on average
    lines = {line.split(" | ")[0].strip("| "): line for line in mice.holds(wide).splitlines()}
    assert lines["where all have labels, draws add nothing"].endswith("| cannot be seen |")
    assert all(line.endswith("| cannot be seen |") for line in mice.holds(mice_scores(folds=1)).splitlines()[2:])
    table = pd.DataFrame({"subject": list("abcd"), "split": [0, 0, 1, 1], "x": [1.0, 3.0, 2.0, 6.0]})
    mean, low, high = mice.over_animals_and_splits(table, "x")
    error = np.sqrt(np.var([2, 4], ddof=1) / 2 + np.var([1, 3, 2, 6], ddof=1) / 4)
    assert mean == 3 and high - mean == mean - low == pytest.approx(12.7062 * error, rel=1e-4)


def test_the_experiment_on_mice_runs_of_any_labelled_cohort_and_resumes(tmp_path, monkeypatch):
    mice, rats = script("mice"), onions(tmp_path / "rats", n=16)
    rows = [f"sub-{subject}\t{'AB'[place % 2]}" for place, subject in enumerate(rats.subjects)]
    (rats.folder / "participants.tsv").write_text("\n".join(["participant_id\tgroup", *rows]) + "\n")
    plan = PLANS["smoke"]
    monkeypatch.setattr(mice, "mice", lambda: rats)
    monkeypatch.setattr(mice, "PLANS", {"laptop": plan})
    train = labkit.train

    def small(model, cohort, scale, *rest, **more):
        return train(model, cohort, "smoke", *rest, **more | ({"iterations": 4} if model == "atlas" else {}))

    monkeypatch.setattr(mice.labkit, "train", small)
    scores = pd.concat([mice.segmentation(tmp_path / "runs", fold, 3, 4) for fold in (0, 1)])
    assert set(scores["arm"]) == {*mice.ARMS, "registration"} and set(scores["labelled"]) == {3}
    assert scores.groupby("split")["subject"].nunique().sum() == scores["subject"].nunique()
    assert "| network, + atlas draws − network, these alone |" in mice.differences(scores)
    assert mice.structures(scores).count("\n") == 2 + scores["tissue"].nunique()
    groups = mice.groups(tmp_path / "runs", "sigmarat2", 0, 4)
    assert set(groups["kind"]) == {"held out", "drawn"} and set(groups["told"].dropna()) <= {"A", "B", ""}
    assert mice.volumes(groups).count("all; drawn") == 2
    before = (tmp_path / "runs" / "groups-sigmarat2-0-4.csv").stat().st_mtime_ns
    assert len(mice.groups(tmp_path / "runs", "sigmarat2", 0, 4)) == len(groups)
    assert (tmp_path / "runs" / "groups-sigmarat2-0-4.csv").stat().st_mtime_ns == before


def test_models_that_are_not_asked_of_mice_keep_their_rows_and_others_none(tmp_path, monkeypatch):
    mice = script("mice")
    monkeypatch.setattr(mice, "OUT", tmp_path)

    def rows(model, splits, value):
        made = pd.DataFrame({"model": model, "split": splits, "metric": "recall", "flavour": "PCA", "value": value})
        return made.assign(floor=0.5)

    asked = [rows("sigmarat2", [0, 1], 0.1), rows("atlas", [0, 1], 0.2), rows("mean", [0, 1], 0.0)]
    mice.with_others("realism", asked).to_csv(tmp_path / "realism.csv", index=False)
    again = mice.with_others("realism", [rows("sigmarat3", [0], 0.3), rows("atlas", [0], 0.4), rows("atlas", [0], 0.4)])
    found = again[["model", "split", "value"]].values.tolist()
    assert found == [
        ["sigmarat2", 0, 0.1], ["sigmarat2", 1, 0.1], ["sigmarat3", 0, 0.3], ["atlas", 0, 0.4], ["mean", 0, 0.0],
        ["mean", 1, 0.0],
    ]  # fmt: skip


def test_growth_is_fitted_as_it_was_made_up_and_the_page_shows_what_was_measured():
    growth, measured = experiment("growth")
    parts = np.array([2.0, 0.5, 3.0, 100.0, 0.25])
    cases = [(size, width) for size in (16, 32, 64) for width in (2, 4, 8)]
    made_up = pd.DataFrame(cases, columns=["size", "width"]).assign(way="plain")
    made_up["seconds"] = [growth.causes(size, width, "seconds") @ parts for size, width in cases]
    np.testing.assert_allclose(growth.fit(made_up, "seconds"), parts, rtol=1e-6)
    fits = {what: growth.fit(measured[measured["way"] == "plain"], what) for what in ("seconds", "mib")}
    assert (growth.OUT / "table.md").read_text(encoding="utf-8") == growth.markdown(measured, fits)


def test_what_the_page_on_differences_says_of_the_gdl_is_what_the_sweep_found():
    table, _ = sweeps.read_sweep()
    page = (BOOK / "differences.md").read_text(encoding="utf-8")
    names = [
        "trace ratio, PCA",
        "recall, regions",
        "precision, regions",
        "Fréchet distance, PCA",
        "RMSE, reconstruction",
    ]
    digits = [2, 2, 2, 1, 3]
    groups = table.groupby("name", sort=False)[names]
    for (arm, mean), (_, spread) in zip(groups.mean().iterrows(), groups.std().iterrows(), strict=True):
        cells = [f"{mean[name]:.{d}f} ± {spread[name]:.{d}f}" for name, d in zip(names, digits, strict=True)]
        assert f"| {' | '.join(cells)} |" in page, arm
    assert table["name"].value_counts().tolist() == [5] * 4


def test_what_is_said_of_the_switches_is_what_the_sweep_found():
    table = pd.read_csv(sweeps.REPOSITORY.parent / "switches" / "sweep.csv")
    page = (BOOK / "experiments.md").read_text(encoding="utf-8")
    digits = {
        "Fréchet distance, PCA": 1, "RBF-MMD, regions": 2, "precision, regions": 2, "recall, regions": 2,
        "trace ratio, PCA": 2, "held_out_mse": 4,
    }  # fmt: skip
    for name, both in table.sort_values("seed").groupby("name"):
        cells = [", ".join(f"{value:.{d}f}" for value in both[measure]) for measure, d in digits.items()]
        assert f"| {name} | {' | '.join(cells)} |" in page, name
    assert table["name"].value_counts().tolist() == [2] * 9


def test_what_is_said_of_how_many_animals_is_what_the_sweep_found():
    folder = sweeps.REPOSITORY.parent / "animals"
    table = pd.concat([pd.read_csv(folder / "sweep.csv"), pd.read_csv(folder / "too_few_iterations.csv")])
    page = (BOOK / "experiments.md").read_text(encoding="utf-8")
    error = "RMSE, reconstruction"  # of models of two resolutions: as a share of the mean rat's
    table[error] /= table[f"{error} floor"]
    digits = {"precision, regions": 2, "recall, regions": 2, "classifier AUC, regions": 2, "trace ratio, PCA": 2,
              error: 2, "copies p, synthetic": 3}  # fmt: skip
    for _, row in table.iterrows():
        cells = " | ".join(f"{row[measure]:.{d}f}" for measure, d in digits.items())
        assert f"| {row['name']} | {cells} |" in page, row["name"]
    assert set(table["name"].str.partition(", ")[0]) == {"atlas", "sigmarat2", "sigmarat3"} and len(table) == 13


def test_a_batch_is_what_a_card_has_memory_for():
    growth = script("growth")
    assert growth.count(40, grows=4 * 2.0, stays=6.0) == "15"  # (36 - 6) / 2 GB a scan
    assert growth.count(24, grows=4 * 30.0, stays=1.0) == "none"
