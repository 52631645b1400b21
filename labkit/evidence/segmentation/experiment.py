"""The experiment: every arm with every seed, each in a folder of its own, none trained twice.

Everybody is kept apart: the generator, the teachers and the networks learn from the run's training animals alone, and
are tested on animals that none of them ever saw.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from labkit import recording
from labkit.data.cohort import Cohort
from labkit.data.labels import has_tissues, within
from labkit.data.sources import SIMULATED, open_cohort
from labkit.evidence.segmentation import gains
from labkit.evidence.segmentation.arms import ARMS, ATLAS_SOURCES, FEW, Arm, chosen
from labkit.evidence.segmentation.network import (
    ABOUT_FILE,
    MODEL_FILE,
    SCORES_FILE,
    SPARE,
    Examples,
    Labelled,
    Plan,
    examples,
    full_labels,
    inputs,
    is_finished,
    load_network,
    plan_called,
    probabilities,
    teach,
    to_json,
    train_network,
)
from labkit.evidence.segmentation.scores import SCORED_TISSUES, SCORES, score, scored
from labkit.evidence.segmentation.sources import ArmsAtlas, arms_animals, gaussian, places_of, synthetic, warped
from labkit.fields import whole
from labkit.files import located, progress_bar, save_state, write_json, write_text
from labkit.runs import Run, find_atlas, load_run

if TYPE_CHECKING:
    import pandas as pd


CURVES = ("r100", "r5", "r5+a200")
"""Arms that are trained with other numbers of steps, too: all real scans, few, and the gain over few."""


NO_ATLAS = "no atlas was trained on these training scans: papermill book/02_train.ipynb -p model atlas"


class LeakError(ValueError):
    """Animals on both sides of the experiment."""


class Experiment:
    """Train and test every arm.

    Parameters
    ----------
    run : Run or path
        The generator's, with animals held out; some of both have labels. Networks learn from and are tested on these;
        training scans without labels are for the arm `r100+u`.
    scale : str or Plan
        Of the segmentation networks; default the run's own scale.
    arms : str or sequence of str
        A set of :data:`labkit.evidence.segmentation.arms.SETS`, or names; default by scale: full, reduced, least; of
        fewer than 20 labelled training scans few. Shares are of the labelled scans.
    seeds : int, optional
        Repeats; default by scale.
    train, test : Cohort, optional
        Real scans to train and to test on; default the run's training and held-out animals.
    cohort : Cohort, str or path, optional
        The cohort that the run was trained on, where it cannot find it again itself.
    out_dir : path, optional
        Default inside the run, a folder for each plan and pair of cohorts.
    atlas : Run or path, optional
        An atlas's run on the same training scans, for the arms with labels of its own; default the run itself if it is
        one, or else the newest beside it. Without one those arms are left out of a set, and refused by name.

    Attributes
    ----------
    train, test : Cohort
        The labelled scans of both sides.
    unlabelled : Cohort
        Training scans without labels.
    tissues : dict of str to tuple of int
        What is scored, and its labels: the study's tissues, or every label of another coding by its name.
    notes : list of str
        Sentences on what is missing, and what follows from it.

    Raises
    ------
    LeakError
        A test animal was seen in training, by generator or network.
    ValueError
        Nothing held out, no training or fewer than two test scans with labels, unknown arms.
    """

    def __init__(
        self,
        run: Run | str | os.PathLike | None = None,
        scale: str | Plan | None = None,
        arms: str | Sequence[str] | None = None,
        seeds: int | None = None,
        train: Cohort | None = None,
        test: Cohort | None = None,
        out_dir: str | os.PathLike | None = None,
        *,
        cohort: Cohort | str | os.PathLike | None = None,
        atlas: Run | str | os.PathLike | None = None,
    ) -> None:
        self.run = run if isinstance(run, Run) else load_run(run)
        self.atlas = find_atlas(self.run) if atlas is None else atlas if isinstance(atlas, Run) else load_run(atlas)
        plan = plan_called(scale or self.run.scale.name)
        self.seeds = whole("seeds", plan.seeds if seeds is None else seeds, 1, "how often every arm is repeated")
        recipe = self.run.config["cohort"].get("recipe") or {}
        self.simulated = recipe if recipe.get("source") in SIMULATED else {}
        moves = self.run.own_atlas is not None
        if arms:  # wrong names stop before any scan is read
            chosen(arms, bool(self.simulated), self.atlas is not None, moves=moves)
        own_train, own_test = train is None, test is None
        if train is None or test is None:
            if isinstance(cohort, str | os.PathLike):
                other = (
                    {"source"} if str(cohort) in SIMULATED else {"source", "departures"}
                )  # a copy has its own already
                cohort = open_cohort(cohort, **{key: value for key, value in recipe.items() if key not in other})
            own = self.run.cohort() if cohort is None else cohort
            train = self.run.train_part(own) if train is None else train
            test = self.run.held_out(own) if test is None else test
        check_no_leak(self.run, train, test)
        self.run.file_template.check_grid(train)
        names = scored_labels(train)
        self.train, self.unlabelled = labelled_part("training", train, 1, names)
        self.test, not_tested = labelled_part("held-out", test, 2, names)
        self.plan = replace(plan, labels=(0, *sorted(names))) if names else plan
        self.tissues = scored(names) if names else SCORED_TISSUES
        usual = {"paper": "full", "smoke": "least"}.get(self.plan.name, "reduced")
        usual = "few" if len(self.train) < FEW else usual
        there = bool(self.simulated), self.atlas is not None, len(self.unlabelled) > 0, moves
        self.arms = chosen(arms or usual, *there)
        self.notes = self._notes(len(not_tested))
        self._last_atlas: tuple[tuple[Path, frozenset[str]], ArmsAtlas] | None = None
        # scans of the run's own are called as it calls them: simulated on another machine they may be rounded otherwise
        config, whole_test = self.run.config, own_test and not len(not_tested)
        trained = config["train"]["fingerprint"] if own_train else train.fingerprint
        tested = config["held_out"]["fingerprint"] if whole_test else self.test.fingerprint
        parts = (to_json(self.plan), trained, tested, self.run.fingerprint)
        key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]
        default = self.run.path / "segmentation" / f"{self.plan.name}-{key}"
        self.folder = located(out_dir) if out_dir else default

    def _notes(self, not_tested: int) -> list[str]:
        notes, bare = [], len(self.unlabelled)
        if bare:
            joined = " The others are added in arm r100+u." if any(arm.unlabelled for arm in self.arms) else ""
            notes.append(
                f"{len(self.train)} of {len(self.train) + bare} training scans have labels: arms' shares are of these."
                f"{joined}"
            )
        if not_tested:
            notes.append(f"{not_tested} held-out scans have no labels, and are left out of the test.")
        return notes

    def counts(self, arm: Arm) -> tuple[int, int]:
        """Real and added scans of an arm."""
        return arm.counts(len(self.train), len(self.unlabelled))

    @property
    def jobs(self) -> list[tuple[Arm, int]]:
        """Arms and seeds in the order in which they are trained: a teacher before its students."""
        ordered = sorted(self.arms, key=lambda arm: (arm.source != "none", list(ARMS).index(arm.name)))
        return [(arm, seed) for arm in ordered for seed in range(self.seeds)]

    def missing(self) -> list[tuple[Arm, int]]:
        """Jobs without a result yet."""
        return [(arm, seed) for arm, seed in self.jobs if not is_finished(self.arm_folder(arm, seed))]

    def go_on(self) -> Experiment:
        """Train and test what is missing; interrupt whenever you like, finished arms are not trained again."""
        for arm, seed in progress_bar(self.missing(), "training and testing arms"):
            self._one(arm, seed)
        return self

    def learning_curve(self, seed: int = 0) -> pd.DataFrame:
        """Have arms converged, and do gains outlast more training? Dice after other numbers of steps.

        Of those of :data:`CURVES` that the experiment has, one network each of a quarter, half, and twice the plan's
        steps, beside the arm's own: each has a whole cycle of learning rates, so that none is a snapshot of another.
        What is missing is trained and kept. Columns ``arm``, ``steps``, ``tissue``, ``dice`` (mean over animals).
        """
        import pandas as pd

        tables, there = [], {arm.name for arm in self.arms}
        for name in (name for name in CURVES if name in there):
            for steps in (max(1, round(part * self.plan.steps)) for part in (0.25, 0.5, 1, 2)):
                folder = self.arm_folder(ARMS[name], seed, steps)
                if not is_finished(folder):
                    self._one(ARMS[name], seed, steps)
                scores = read_scores(folder / SCORES_FILE, self.tissues)
                means = scores.groupby("tissue", sort=False)["dice"].mean().reset_index()
                tables.append(means.assign(arm=name, steps=steps))
        return pd.concat(tables, ignore_index=True)[["arm", "steps", "tissue", "dice"]]

    def arm_folder(self, arm: Arm, seed: int, steps: int | None = None) -> Path:
        """Where a network, its scores and what it was trained on are, or will be."""
        other = f"-steps{steps}" if steps not in (None, self.plan.steps) else ""
        atlas = self._atlas_of(arm.source == "own") if arm.source in ATLAS_SOURCES else None
        other += f"-{atlas.fingerprint[:8]}" if atlas else ""
        return self.folder / f"{arm.name}{other}-seed{seed}"

    def _one(self, arm: Arm, seed: int, steps: int | None = None) -> None:
        began, plan = time.perf_counter(), replace(self.plan, steps=steps or self.plan.steps)
        data, about = self._data(arm, seed)
        network = train_network(data, plan, seed, arm.augmentation)
        images, box = self._tested
        predicted = full_labels(probabilities([network], images, box), self.test.shape, self.plan)
        table = score(predicted, self.test, self.tissues)
        folder = self.arm_folder(arm, seed, steps)
        folder.mkdir(parents=True, exist_ok=True)
        save_state(folder / MODEL_FILE, network.state_dict())
        counts = dict(zip(("real", "added"), self.counts(arm), strict=True))
        about |= {"seconds": round(time.perf_counter() - began, 1), **recording.provenance(torch.device("cpu"))}
        write_json(folder / ABOUT_FILE, {"arm": arm.name, "seed": seed, "plan": to_json(plan), **counts, **about})
        write_text(folder / SCORES_FILE, table.to_csv(index=False))  # last: it says that the arm is finished

    def _data(self, arm: Arm, seed: int) -> tuple[Examples, dict]:
        real = self.real(arm, seed)
        added = self.counts(arm)[1]
        if arm.source == "true":
            return real.join(self._true.take(range(added))), {"labels": "true"}
        if arm.source == "elastic":
            return real.join(warped(real, added, seed)), {"labels": "warped along"}
        if arm.source in ATLAS_SOURCES:
            return real.join(self._from_atlas(arm, seed, added)), {"labels": "the atlas's own"}
        if arm.source in ("teacher", "gaussian"):
            labelled = self.labelled(arm, seed)
            kept = labelled.confidence[labelled.kept]
            certain = {"mean": float(labelled.confidence.mean()), "least_kept": float(kept.min())}
            about = {"labels": "teacher", "generated": len(labelled.confidence), "confidence": certain}
            return real.join(labelled.examples), about
        return real, {"labels": "none added"}

    def real(self, arm: Arm, seed: int) -> Examples:
        """The real scans of an arm, or none: whole animals, other ones for each seed."""
        return self._real.take(places_of(self.train, arms_animals(self.train, arm.real, seed)))

    def _from_atlas(self, arm: Arm, seed: int, n: int) -> Examples:
        """Scans with labels by the atlas, which knows the labels of the arm's real scans, or of its reference's."""
        seen = arms_animals(self.train, arm.real or ARMS[arm.reference].real, seed)
        if arm.source == "own":
            return self.atlas_with(seen, own=True).moved_by(self.run, n, seed)
        atlas = self.atlas_with(seen)
        if arm.unlabelled:
            return atlas.registered(list(range(len(self.train), len(self._everyone))))
        if arm.source == "registered":
            others = [place for place, subject in enumerate(self.train.subjects) if subject not in seen]
            return atlas.registered(others[:n])
        return atlas.drawn(n, seed, contrast=arm.source == "contrast")

    def atlas_with(self, animals: set[str], own: bool = False) -> ArmsAtlas:
        """The atlas with the labels of some training animals and no others; the last one is kept for the next arm.

        `own` is the one that the run's generator moves.
        """
        atlas = self._atlas_of(own)
        if atlas is None:  # arms of an atlas have been refused by then
            raise ValueError(NO_ATLAS)
        key = atlas.path, frozenset(animals)
        if self._last_atlas is None or self._last_atlas[0] != key:
            places = places_of(self.train, animals)
            self._last_atlas = key, ArmsAtlas(atlas, self._everyone, places, self._images, self.plan)
        return self._last_atlas[1]

    def _atlas_of(self, own: bool) -> Run | None:
        return self.run.own_atlas if own else self.atlas

    def labelled(self, arm: Arm, seed: int) -> Labelled:
        """The synthetic scans of an arm, or its Gaussian's, with their teacher's labels."""
        keep = self.counts(arm)[1]
        n = int(np.ceil(SPARE * keep))
        if arm.source == "gaussian":
            images = gaussian(self._images.images, n, seed)
        else:
            images = synthetic(self.run, n, seed, self.plan.size, self.train.shape).normalised.mul_(2).sub_(1)
        return teach(self.teachers(arm, seed), images, self._real.box, keep)

    def teachers(self, arm: Arm, seed: int) -> list[nn.Module]:
        """The networks that label an arm's synthetic scans: they learned from the arm's own real scans alone.

        The first is the arm's reference of the same seed; further ones, where the plan asks for them, are trained on
        the same scans with other initial weights, and kept.
        """
        reference = ARMS[arm.reference]
        found = [self.network(reference, seed)]
        for member in range(1, self.plan.teachers):
            path = self.arm_folder(reference, seed) / f"teacher{member}.safetensors"
            if path.exists():
                found.append(load_network(self.plan, path))
                continue
            data = self.real(reference, seed)
            found.append(train_network(data, self.plan, 1000 * member + seed, reference.augmentation))
            save_state(path, found[-1].state_dict())
        return found

    def network(self, arm: Arm | str, seed: int) -> nn.Module:
        """A trained network of the experiment; ValueError where it is not trained yet."""
        arm = ARMS[arm] if isinstance(arm, str) else arm
        path = self.arm_folder(arm, seed) / MODEL_FILE
        if not path.exists():
            if is_finished(path.parent):
                raise ValueError(f"the network of arm {arm.name} with seed {seed} was not kept: remove {path.parent}, "
                                 "and call go_on() to train it again")  # fmt: skip
            raise ValueError(f"arm {arm.name} with seed {seed} is not trained yet: call go_on() first")
        return load_network(self.plan, path)

    @cached_property
    def _real(self) -> Examples:
        return examples(self.train, self.plan)

    @cached_property
    def _everyone(self) -> Cohort:
        """All training scans, labelled ones first."""
        if not len(self.unlabelled):
            return self.train
        return Cohort(self.train.name, self.train.folder, [*self.train, *self.unlabelled])

    @cached_property
    def _images(self) -> Examples:
        """The same as the network takes them, without labels 0 everywhere."""
        if not len(self.unlabelled):
            return self._real
        images, _ = inputs(self.unlabelled, self.plan)
        return self._real.join(replace(self._real, images=images, labels=torch.zeros_like(images, dtype=torch.uint8)))

    @cached_property
    def _tested(self) -> tuple[torch.Tensor, tuple[slice, ...]]:
        return inputs(self.test, self.plan)

    @cached_property
    def _true(self) -> Examples:
        most = max(self.counts(arm)[1] for arm in self.arms if arm.source == "true")
        asked = {"seed": self.simulated["seed"] + 1, "departures": self.simulated.get("departures", ())}
        rats = open_cohort(self.simulated["source"], n=most, **asked)
        if set(rats.digests) & set(self.test.digests):
            raise LeakError("the control's new rats are among the test animals")
        return examples(rats, self.plan)

    @property
    def scores(self) -> pd.DataFrame:
        """All finished results: ``arm``, ``seed``, ``subject``, ``session``, ``tissue``, and the scores."""
        import pandas as pd

        tables = []
        for arm, seed in self.jobs:
            if is_finished(folder := self.arm_folder(arm, seed)):
                tables.append(read_scores(folder / SCORES_FILE, self.tissues).assign(arm=arm.name, seed=seed))
        if not tables:
            raise ValueError("no arm is finished yet: call go_on() first")
        return pd.concat(tables, ignore_index=True)

    def differences(self, score: str = "dice") -> pd.DataFrame:
        """Every arm against its reference; see :func:`labkit.evidence.segmentation.gains.differences`."""
        names = {arm.name for arm in self.arms}
        references = {arm.name: arm.reference for arm in self.arms if arm.reference in names}
        return gains.differences(self.scores, references, score)

    def conclusions(self) -> list[str]:
        """What the differences of Dice say, in sentences made from the numbers."""
        return gains.conclusions(self.differences()) + gains.rivals(self.scores)

    def means(self, score: str = "dice") -> pd.DataFrame:
        """Mean score of every arm; see :func:`labkit.evidence.segmentation.gains.means`."""
        return gains.means(self.scores, score)

    def table(self) -> pd.DataFrame:
        """Mean scores of every arm: arms down, tissues and scores across; the first column says what the arm is."""
        sizes = len(self.train), len(self.unlabelled)
        found = self.scores.pivot_table(index="arm", columns="tissue", values=list(SCORES), sort=False)
        found = found.reindex([arm.name for arm in self.arms if arm.name in found.index])
        found.insert(0, ("", "trained on"), [ARMS[name].words(*sizes) for name in found.index])
        return found

    def save(self) -> list[Path]:
        """Write ``differences.csv``, ``means.csv`` (all scores) and ``conclusions.txt`` beside the arms."""
        import pandas as pd

        differences, means = (
            pd.concat([table(name).assign(score=name) for name in SCORES], ignore_index=True)
            for table in (self.differences, self.means)
        )
        contents = {
            "differences.csv": differences.to_csv(index=False),
            "means.csv": means.to_csv(index=False),
            "conclusions.txt": "\n".join(self.conclusions()) + "\n",
        }
        for name, text in contents.items():
            write_text(self.folder / name, text)
        recording.card(self.run)
        return [self.folder / name for name in contents]


def read_scores(path: Path, tissues: Iterable[str]) -> pd.DataFrame:
    """A table of scores; ValueError where it is none of these tissues."""
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype={"subject": str, "session": str, "tissue": str}).fillna({"session": ""})
        table = table.astype(dict.fromkeys(SCORES, float))
        fits = set(table["tissue"]) == set(tissues)
    except (ValueError, KeyError):
        fits = False
    if not fits:
        raise ValueError(f"{path} is not the scores of {', '.join(tissues)}: remove its folder to train the arm anew")
    return table


def check_no_leak(run: Run, train: Cohort, test: Cohort) -> None:
    """Refuse test animals that the generator or the networks have seen, by content and by name, or none at all."""
    if not len(test):
        raise ValueError(
            f"{run.path.name} held no animals out: train a generator with fewer (n_train) to test on others"
        )
    seen = {
        "the generator was trained on": (set(run.config["train"]["digests"]), set(run.config["train"]["subjects"])),
        "the networks would be trained on": (set(train.digests), set(train.subjects)),
    }
    for what, (digests, subjects) in seen.items():
        shared = sorted(
            {s for s, digest in zip(test.subjects, test.digests, strict=True) if digest in digests or s in subjects}
        )
        if shared:
            listed = ", ".join(shared[:5]) + (", ..." if len(shared) > 5 else "")
            raise LeakError(
                f"{what} {len(shared)} of the test animals ({listed}), by content or by name: a test on them would "
                "measure memory. Test on the animals that the run held out, or train a generator without these."
            )


def scored_labels(train: Cohort) -> dict[int, str]:
    """Names of the labels of training scans in another coding than the study's; empty where some are the study's."""
    return {} if any(has_tissues(scan.labels) for scan in train) else train.label_names


def labelled_part(name: str, cohort: Cohort, least: int, names: Mapping[int, str]) -> tuple[Cohort, Cohort]:
    """The scans with all the study's labels, or some of `names` and no others, and those without.

    ValueError where fewer than `least` have labels.
    """
    has = [within(scan.labels, names) if names else has_tissues(scan.labels) for scan in cohort]
    if sum(has) < least:
        example = f", e.g. {cohort[has.index(False)].subject}" if False in has else ""
        wanted = f"labels {', '.join(map(str, names))}" if names else "1 CSF, 2 grey matter, 3 white matter"
        raise ValueError(
            f"{sum(has)} of {len(has)} {name} scans have the labels to learn ({wanted}), and {least} or more have to: "
            f"label more animals{example}, and train again, or hold others out (n_train)"
        )
    labelled, others = ([place for place, own in enumerate(has) if own == wanted] for wanted in (True, False))
    return (cohort.subset(labelled), cohort.subset(others)) if others else (cohort, cohort[:0])
