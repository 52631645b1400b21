import collections
import json
import os
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pytest
import torch

from labkit import figures
from labkit.evidence.judging import answers, cues, observers
from labkit.evidence.judging.results import Results
from labkit.evidence.judging.session import Session, Stimuli
from labkit.evidence.judging.trials import QUESTIONS, REAL, TASKS, needs, plan, truth
from labkit.evidence.sample import Sample, at_resolution
from labkit.tests.rats import ellipsoids
from labkit.tests.test_training import FAST
from labkit.training import train

MODELS = ["adni", "sigmarat2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    rats = ellipsoids(tmp_path_factory.mktemp("judging") / "rats", n=44)
    folder = tmp_path_factory.mktemp("runs")
    return [train(model, rats, "smoke", folder / model, n_train=12, **FAST) for model in MODELS]


@pytest.fixture(scope="module")
def session(runs):
    return Session(runs, trials=12)


@pytest.fixture
def fresh(session):
    """The session with nothing answered."""
    shutil.rmtree(session.folder, ignore_errors=True)
    return session


def right_answer(session, trial):
    return truth(session.task, [item.source for item in trial.items])


def answer(session, trial, wrong=False):
    right = right_answer(session, trial) == REAL
    return "real" if right != wrong else "synthetic"


@pytest.mark.parametrize("n", [2, 7, 24, 61])
@pytest.mark.parametrize("seed", range(5))
def test_half_is_real_and_generators_share_the_rest(n, seed):
    counts = needs(plan("real_or_synthetic", MODELS, n, seed))
    assert abs(counts.get(REAL, 0) - n / 2) <= 0.5
    assert abs(counts.get("adni", 0) - counts.get("sigmarat2", 0)) <= 1


@pytest.mark.parametrize("task", ["pair", "preference"])
@pytest.mark.parametrize("seed", range(5))
def test_sides_are_balanced_and_no_scan_is_shown_twice(task, seed):
    trials = plan(task, MODELS, 24, seed)
    sides = collections.Counter(tuple(item.source for item in trial.items) for trial in trials)
    assert all(abs(count - sides[sources[::-1]]) <= 1 for sources, count in sides.items())
    pairs = collections.Counter(tuple(sorted(sources)) for sources in sides.elements())
    assert len(set(pairs.values())) == 1 and len(pairs) == (2 if task == "pair" else 3)
    shown = [item for trial in trials for item in trial.items]
    assert len(set(shown)) == len(shown) == 48


def test_the_seed_decides_the_order_and_nothing_else_does():
    one, again, other = (plan("real_or_synthetic", MODELS, 24, seed) for seed in (3, 3, 4))
    assert one == again and one != other
    kinds = [[trial.items[0].source == REAL for trial in plan("rating", MODELS, 30, seed)] for seed in range(200)]
    assert np.abs(np.mean(kinds, 0) - 1 / 3).max() < 0.15  # no place in the session tells


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"task": "guess"}, "pair, rating"), ({"trials": 1}, "at least 2"), ({"seed": -1}, "at least 0")],
)
def test_what_cannot_be_asked_is_refused_with_what_can(runs, wrong, words):
    with pytest.raises(ValueError, match=words):
        Session(runs, **wrong)


def test_more_trials_than_real_animals_are_cut_to_those_there_are(runs):
    cut = Session(runs, task="pair", trials=40)
    assert len(cut.trials) == 32 and cut.needed[REAL] == 32
    assert "40 trials of pair show 40 real animals, each once, and there are 32" in cut.cut
    assert len(Results(observers.simulate(cut)).lines) == 32 and not Session(runs, task="pair", trials=32).cut
    with pytest.raises(ValueError, match="two trials of pair show more than 1 real animals"):
        Session(runs, runs[0].held_out(runs[0].cohort())[:1], "pair", 24)


@pytest.mark.parametrize("task", TASKS)
def test_four_unseen_animals_make_a_session_with_all_that_is_said_of_it(runs, task):
    few = Session(runs, runs[0].held_out(runs[0].cohort())[:4], task, 24)
    assert 4 <= len(few.trials) <= 24 and few.needed[REAL] <= 4 and "there are 4" in few.cut
    found = Results([line for number in (1, 2, 3) for line in observers.simulate(few, number)])
    if task in ("pair", "real_or_synthetic"):
        assert cues.check_cues(few).real == 4 and len(found.scores()) == 3
        assert figures.confidence_and_learning(found) and len(found.trends()) == 3
    assert list(figures.result_figures(found)) and figures.judged_scans(few)
    plt.close("all")


def test_scans_that_were_trained_on_are_refused(runs):
    with pytest.raises(ValueError, match="trained on"):
        Session(runs, runs[0].train_part(runs[0].cohort()), trials=4)


def test_what_is_shown_says_nothing_by_its_frame(session):
    for source in session.sources.values():
        cubes = source.cubes[:, 0].numpy()
        assert (cubes.min((1, 2, 3)) == 0).all() and (cubes.max((1, 2, 3)) == 1).all()
        part = cubes[(slice(None), slice(0, 64), slice(0, 64), slice(12, 52))]
        assert cubes.sum() == pytest.approx(part.sum())  # nothing in the padding
        saturated = [(cube == 1).sum() / (cube > 0).sum() for cube in cubes]
        assert max(saturated) < 0.05
    stacks = [stack for trial in session.trials for stack in session.slices(trial)]
    assert {stack.shape for stack in stacks} == {session.shape} and stacks[0].dtype == np.uint8


def test_slices_have_dorsal_on_top_and_left_on_the_left(session):
    source = session.sources[REAL]
    volume = source.cubes[0, 0, :, :, 12:52]
    stack = source.slices(0)
    assert stack[7][0, 5] == round(255 * float(volume[5, -1, 7]))
    assert stack[30][-1, 60] == round(255 * float(volume[60, 0, 30]))


def test_traces_in_the_files_are_found(session):
    found = cues.check_cues(session, prepared=False)
    assert not found.passes and "name" in found.telling
    assert not cues.check_cues(session, prepared=False, names=False).passes


def test_chance_is_rarely_taken_for_a_trace():
    rng = np.random.default_rng(0)
    names, truth = ["range", "air"], np.repeat([False, True], 30)
    false_alarms = [not cues.classify(rng.normal(size=(60, 2)), truth, names, seed, 19).passes for seed in range(12)]
    assert sum(false_alarms) <= 3
    traced = cues.classify(rng.normal(size=(60, 2)) + truth[:, None] * [0, 2], truth, names, shuffles=19)
    assert not traced.passes and traced.telling.startswith("air")


@pytest.mark.parametrize("trace", [None, "brightness", "noise", "padding"])
def test_a_trace_put_into_half_of_the_real_scans_is_found_and_without_it_nothing(session, trace):
    real = session.sources[REAL].cubes
    halves = {name: Stimuli(session.real.subset(range(k, 32, 2))) for k, name in enumerate((REAL, "adni"))}
    for k, half in enumerate(halves.values()):
        half.__dict__["cubes"] = real[k::2].clone()
    cubes, rng = halves["adni"].cubes, np.random.default_rng(0)
    if trace == "brightness":
        cubes *= 0.98
    elif trace == "noise":
        cubes += torch.from_numpy(0.004 * np.abs(rng.normal(size=cubes.shape)))
    elif trace == "padding":
        cubes[..., [12, 51]] += torch.from_numpy(0.01 * rng.random((*cubes.shape[:-1], 2)))
    parted = Session.__new__(Session)
    parted.__dict__.update(session.__dict__, sources=halves)
    found = cues.check_cues(parted)
    assert found.passes == (trace is None)
    assert (found.accuracy > 0.9) == (trace is not None)


def test_an_interrupted_session_goes_on_and_a_torn_line_costs_only_itself(fresh):
    for trial in fresh.trials[:3]:
        fresh.answer(trial, "ana", answer(fresh, trial), 2, 1.5)
    path = fresh.path("ana")
    with open(path, "ab") as file:
        file.write(b'{"format": 1, "sess')  # killed while writing
    assert list(fresh.answered("ana")) == [0, 1, 2]
    for trial in fresh.trials[3:]:
        fresh.answer(trial, "ana", answer(fresh, trial), 3, 2.0)
    assert list(fresh.answered("ana")) == list(range(12))
    results = Results.read(path)
    assert len(results.lines) == 12 and results.left_out == [f"{path.name}:4: half a line"]
    assert results.scores().loc["ana", "accuracy"] == 1


def test_first_answers_count(fresh):
    first = fresh.trials[0]
    fresh.answer(first, "ana", "real")
    with pytest.raises(ValueError, match="answered by ana before"):
        fresh.answer(first, "ana", "synthetic")
    answers.append(fresh.path("ana"), fresh.line(first, "ana", "synthetic"))  # two windows at once
    (line,), left_out = answers.read(fresh.path("ana"))
    assert line["answer"] == "real"
    assert left_out == [f"{fresh.path('ana').name}:2: a second answer of ana to trial 1"]


def test_no_file_overrules_another_whatever_time_it_says(fresh):
    mine = fresh.line(fresh.trials[0], "ana", "real")
    other = fresh.line(fresh.trials[1], "ana", "real")
    theirs = mine | {"time": "1970-01-01T00:00:00+00:00", "answer": "synthetic"}
    for name, lines in (("mine", [mine, other]), ("theirs", [theirs]), ("copy", [other | {"time": "x"}])):
        for line in lines:
            answers.append(fresh.folder / f"{name}.jsonl", line)
    for order in (("mine", "theirs"), ("theirs", "mine")):
        kept, left_out = answers.read([fresh.folder / f"{name}.jsonl" for name in order])
        assert kept == [other]
        (said,) = left_out
        assert said.startswith(f"{order[1]}.jsonl:1: a second answer of ana to trial 1, which contradicts {order[0]}")
    kept, left_out = answers.read([fresh.folder / "mine.jsonl", fresh.folder / "copy.jsonl"])
    assert kept == [mine, other] and left_out == ["copy.jsonl:1: a second answer of ana to trial 2"]


def test_a_line_has_what_a_reader_of_the_file_alone_needs(fresh):
    line = fresh.answer(fresh.trials[5], "ana", "synthetic", 1, 3.25)
    kept = json.loads(fresh.path("ana").read_text())
    assert kept == line
    assert kept["cohorts"][REAL] == fresh.real.fingerprint and kept["seed"] == 0 and kept["trial"] == 5
    assert (kept["rater"], kept["confidence"], kept["seconds"], kept["task"]) == ("ana", 1, 3.25, "real_or_synthetic")


def test_a_full_disk_is_told_and_nothing_counts_as_answered(fresh, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        fresh.answer(fresh.trials[0], "ana", "real")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("ana", "maybe"), "real or synthetic"), (("ana", "real", 4), "1 .guess."), (("ana", "real", True), "guess"),
        (("ana", "real", 1, -2.0), "0 or more"), (("ana", "real", 1, float("nan")), "0 or more"),
        (("../ana", "real"), "pseudonym"), (("", "real"), "pseudonym"), (("simulated 9", "real"), "not human"),
    ],
)  # fmt: skip
def test_answers_that_cannot_be_are_refused_before_anything_is_written(fresh, given, words):
    with pytest.raises(ValueError, match=words):
        fresh.answer(fresh.trials[0], *given)
    assert not fresh.folder.exists()


def test_whole_lines_that_are_no_answers_are_all_named(fresh, tmp_path):
    line = fresh.line(fresh.trials[0], "ana", "real")
    bad = [line | {"answer": "A"}, line | {"format": 2}, [1], {k: v for k, v in line.items() if k != "seed"}]
    bad += [line | {"trial": 12}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [line, *bad])))
    with pytest.raises(
        ValueError, match=r"a.jsonl:2: .*a.jsonl:3: format 2.*a.jsonl:4: not an object.*:5: seed.*:6: trial 12 of 12"
    ):
        answers.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        answers.read(tmp_path / "nothing")


def test_a_rater_who_left_early_does_not_spoil_agreement(fresh):
    done = [line for number in (1, 2) for line in observers.simulate(fresh, number, 3.0)]
    early = observers.simulate(fresh, 3)[:1]
    elsewhere = [line | {"session": "other"} for line in early]
    alone = Results(done).agreement(("simulated",))
    assert (alone.raters, alone.trials) == (2, 12)
    assert Results([*done, *early, *elsewhere]).agreement(("simulated",)) == alone
    assert Results(done).agreement() is None  # no people


def test_people_and_simulations_are_not_averaged(runs):
    one = Session(runs, task="rating", trials=6)
    simulated = observers.simulate(one)
    mixed = Results([*simulated, *(line | {"kind": "human", "rater": "ana"} for line in simulated)])
    with pytest.raises(ValueError, match="human and simulated raters would be averaged"):
        mixed.ratings()
    few = mixed.only("human").ratings()
    assert set(few["n"]) == {2} and few["low"].isna().all()  # of two scans nobody knows the spread


def test_parts_of_sessions_of_different_length_are_parts(session):
    lines = [
        *observers.simulate(long(session, 40)),
        *(line | {"session": "x"} for line in observers.simulate(long(session, 8))),
    ]
    assert list(Results(lines).learning()["n"]) == [12] * 4


def test_scans_at_the_sessions_resolution_are_not_blurred_again(session, tmp_path):
    from labkit.data.sources import open_cohort

    coarse = at_resolution(Sample.of(session.real, 64), 16)
    written = session.real.subset(range(6)).write(tmp_path / "coarse")
    for place, path in enumerate(sorted(written.rglob("*_T2w.nii.gz"))):
        image = nib.load(path)
        values = coarse.scanned[place, 0].numpy() * 1000
        nib.save(nib.Nifti1Image(values.astype(np.float32), image.affine), path)
    assert {name: session.seen_at(name) for name in session.sources} == {REAL: 16, "adni": 64, "sigmarat2": 64}
    real, perfect = Stimuli(session.real.subset(range(6)), 16), Stimuli(open_cohort(tmp_path / "coarse"), 64)
    once, twice = ((Stimuli(perfect.cohort, side).cubes - real.cubes).abs().mean() for side in (64, 16))
    assert once < 0.3 * twice


def test_several_raters_files_combine(fresh):
    for rater, wrong in (("ana", False), ("ben", True)):
        for trial in fresh.trials:
            fresh.answer(trial, rater, answer(fresh, trial, wrong))
    results = Results.read(fresh.folder)
    assert list(results.scores()["right"]) == [12, 0] and results.raters == ["ana", "ben"]
    assert results.agreement().kappa == pytest.approx(-1)
    assert len(fresh.judged()) == 24 and results.of("ben").raters == ["ben"]
    assert "takes one for the other" in results.sentence("ben")


def long(session, trials=400):
    """The session with more trials, for raters who see no pictures."""
    more = Session.__new__(Session)
    numbered = plan(session.task, list(session.runs), trials, 0)
    stubs = [replace(t, items=tuple(replace(i, place=i.place % 6) for i in t.items)) for t in numbered]
    more.__dict__.update(session.__dict__, trials=stubs)
    return more


@pytest.mark.parametrize(("d_prime", "criterion"), [(0.0, 0.0), (1.0, 0.5), (2.0, -0.5)])
def test_a_simulated_raters_ability_is_recovered_within_its_interval(session, d_prime, criterion):
    many = long(session)
    held = []
    for number in range(1, 21):
        row = Results(observers.simulate(many, number, d_prime, criterion)).scores().iloc[0]
        held.append([row["d′ low"] <= d_prime <= row["d′ high"], row["c low"] <= criterion <= row["c high"]])
    assert (np.mean(held, 0) >= 0.8).all()
    assert row.name == "simulated 20"


@pytest.mark.parametrize("wrong", [{"d_prime": {"adny": 1.0}}, {"lapse": 7}])
def test_abilities_that_cannot_be_are_refused(session, wrong):
    with pytest.raises(ValueError, match="adni, sigmarat2"):
        observers.simulate(session, **wrong)


def test_a_rater_who_knows_is_surer_when_right(session):
    results = Results(observers.simulate(long(session), 1, 2.0))
    table = results.by_confidence().set_index("confidence")
    assert table.loc[3, "low"] > table.loc[1, "high"]
    assert results.scores()["sure AUC"].iloc[0] > results.scores()["accuracy"].iloc[0]
    assert list(results.learning()["n"]) == [100] * 4 and results.trends().iloc[0]["p"] > 0.01


def test_pairs_ratings_and_preferences_recover_the_order(runs):
    models = {"adni": 2.5, "sigmarat2": 0.8}
    found = {}
    for task in ("pair", "rating", "preference"):
        many = long(Session(runs, task=task, trials=8), 240)
        found[task] = Results(observers.simulate(many, 1, models))
    by_source = found["pair"].by_source().set_index("shown")["share"]
    assert by_source["adni"] > by_source["sigmarat2"] > 0.5
    marks = found["rating"].ratings().set_index(["question", "source"])
    for question in QUESTIONS:
        assert marks.loc[(question, REAL), "mean"] > marks.loc[(question, "adni"), "mean"]
    preferred = found["preference"].preference()
    assert list(preferred.index) == [REAL, "sigmarat2", "adni"]
    assert preferred.loc["adni", "beats high"] < 0.5 and np.isnan(preferred.loc[REAL, "beats real"])
    with pytest.raises(ValueError, match="answers to rating; this is for"):
        found["rating"].scores()
    with pytest.raises(ValueError, match="name the task"):
        Results([*found["rating"].lines, *found["pair"].lines])


def test_the_model_observer_tells_obvious_fakes_and_learned_on_none_of_them(session):
    lines = observers.model_observer(session)
    assert {line["kind"] for line in lines} == {"model"}
    assert Results(lines).scores()["accuracy"].iloc[0] > 0.9  # networks of a few iterations make no rats
    with pytest.raises(ValueError, match="very scans that are shown"):
        observers.model_observer(session, seed=0)
    with pytest.raises(ValueError, match="no marks"):
        observers.model_observer(Session(list(session.runs.values()), task="rating", trials=4))


def test_a_model_observer_does_not_know_training_scans_by_their_components(session):
    """The scans that components were found from are not those that the classifier learns as real."""
    learned = []

    class Spy(observers.Stimuli):
        def __init__(self, cohort, *rest):
            super().__init__(cohort, *rest)
            learned.append(set(cohort.digests))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observers, "Stimuli", Spy)
        observers.model_observer(session)
        trained = set(session.train.digests)
        real = [digests & trained for digests in learned if digests & trained]
        assert len(real) == 2 and real[0].isdisjoint(real[1]) and real[0] | real[1] == trained
        few = Session(list(session.runs.values()), trials=4)
        few.train = few.train[:3]
        with pytest.raises(ValueError, match="4 training scans or more; this run has 3"):
            observers.model_observer(few)


def test_every_result_has_its_figures_and_its_file(runs, tmp_path):
    for task in TASKS:
        one = Session(runs, task=task, trials=8)
        results = Results([line for number in (1, 2) for line in observers.simulate(one, number)])
        for words, figure in figures.result_figures(results):
            assert words and figure.axes
            assert not plt.fignum_exists(figure.number)
        content = json.loads(results.save(tmp_path / f"{task}.json").read_text())
        assert content["answers"] == 16 and content["task"] == task
    assert len(figures.judged_scans(one, 3).axes) == 9
