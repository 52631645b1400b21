"""A session: real scans and some generators', a task, its trials, and what an answer to one of them is written as."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labkit.data import volumes
from labkit.data.cohort import Cohort
from labkit.evidence import describe
from labkit.evidence.brightness import head_white
from labkit.evidence.judging import answers
from labkit.evidence.judging.trials import REAL, Trial, check_task, fitting, needs, plan
from labkit.evidence.sample import Sample, at_resolution, check_grid, one_scan_an_animal
from labkit.evidence.selection import check_same_training, find_runs, named, real_scans
from labkit.generation import generate
from labkit.runs import Run

FOLDER = "judging"
POOL = 60
"""Scans of each source, at most, that the cue check looks at."""


class Stimuli:
    """Some scans of one source as raters see them: all sources go through one chain, so that only the scan can tell.

    Every scan is averaged to cubes of side `resolution` and brought back; 64 leaves the study's scans as they are. A
    real scan beside one from a generator of 32³ would otherwise be known by its sharpness alone; one from that
    generator is taken as it is. `size` is the side of the cubes they are shown from, voxels.
    """

    def __init__(self, cohort: Cohort, resolution: int = 64, size: int = 64) -> None:
        self.cohort, self.resolution, self.size = cohort, resolution, size

    def __len__(self) -> int:
        return len(self.cohort)

    @cached_property
    def cubes(self) -> Tensor:
        """float32 (N, 1, S, S, S) in [0, 1], steps of 1/255.

        The head alone, black around it (so that neither background, padding nor the noise of air can tell), 0 black
        and :func:`~labkit.evidence.brightness.head_white` white (so that the intensity range cannot).
        """
        sample = at_resolution(Sample.of(self.cohort, self.size), self.resolution)
        shown = torch.zeros_like(sample.cubes)
        where = volumes.scanned_slices(sample.shape, self.size)
        for cube, scan in zip(shown[:, 0], sample.scanned[:, 0].numpy(), strict=True):
            head = describe.head_mask(scan)
            grey = np.round(np.clip(scan / head_white(scan[head]), 0, 1) * 255) / 255
            cube[where] = torch.from_numpy(np.where(head, grey, 0).astype(np.float32))
        return shown

    def slices(self, index: int) -> np.ndarray:
        """Coronal slices of a scan, caudal first: uint8 (slices, rows, columns), dorsal on top, left on the left."""
        inside = volumes.scanned_slices(self.cohort.shape, self.size)
        volume = self.cubes[(index, 0, *inside)].numpy()  # right, superior, anterior
        return np.round(volume * 255).astype(np.uint8).transpose(2, 1, 0)[:, ::-1]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of a coronal slice, mm."""
        (width, height, _), (x, y, _) = self.cohort.shape, self.cohort[0].zooms
        return height * y, width * x


class Session:
    """Trials over real scans and those of trained runs.

    Parameters
    ----------
    runs : sequence of Run or path, or str, optional
        As for :class:`labkit.evidence.metrics.study.Study`: trained on the same animals; default the newest of each
        model.
    real : Cohort or str, optional
        Real scans that no run was trained on; default those that the runs held out. One scan an animal is taken.
    task : str
        One of :data:`labkit.evidence.judging.trials.TASKS`.
    trials : int
        How many; where there are not so many real animals as they show, as many as there can be.
    seed : int
        Of the order, of the codes and of which real animals are shown. Raters to be compared get one seed.
    matched : bool
        Show every scan, also real ones, at the resolution of the coarsest run; otherwise as they are.

    Attributes
    ----------
    runs : dict of str to Run
    trials : list of Trial
    sources : dict of str to Stimuli
        Real scans first; at least as many as are shown.
    cut : str
        Why there are fewer trials than were asked for, in a sentence; empty where there are not.

    Raises
    ------
    ValueError
        Runs of different training scans, an unknown task, or too few real animals for two trials.
    """

    def __init__(
        self,
        runs: Sequence[Run | str | os.PathLike] | str | None = None,
        real: Cohort | str | None = None,
        task: str = "real_or_synthetic",
        trials: int = 24,
        seed: int = 0,
        matched: bool = True,
    ) -> None:
        check_task(task)
        opened = find_runs(runs)
        self.runs = named(opened)
        check_same_training(self.runs)
        self.task, self.seed = task, seed
        wanted = needs(plan(task, list(self.runs), trials, seed)).get(REAL, 1)
        first = opened[0]
        own = first.cohort()
        self.train = first.train_part(own)
        cohort = one_scan_an_animal(real_scans(first, own, real, wanted, seed))
        self._check_real(cohort)
        self.trials = fitting(task, list(self.runs), trials, seed, len(cohort))
        self.needed = needs(self.trials)
        self.cut = ""
        if len(self.trials) < trials:
            self.cut = (
                f"{trials} trials of {task} show {wanted} real animals, each once, and there are {len(cohort)} that no "
                f"run was trained on: cut to {len(self.trials)} trials"
            )
        order = np.random.default_rng([seed, 1]).permutation(len(cohort))
        self.real = cohort.subset(order.tolist())
        self.resolution = min(run.scale.size for run in self.runs.values()) if matched else 64
        pool = max(min(len(self.real), POOL), *self.needed.values())
        cohorts = {REAL: self.real}
        cohorts |= {name: generate(run, pool, seed=seed) for name, run in self.runs.items()}
        self.sources = {name: Stimuli(cohort, self.seen_at(name)) for name, cohort in cohorts.items()}

    def seen_at(self, source: str) -> int:
        """Side of the cubes that a source's scans are averaged to before they are shown.

        Those of a generator of the session's resolution have it already: averaged and brought back once more, they
        would be blurrier than real scans that were averaged once.
        """
        made = self.runs[source].scale.size if source in self.runs else None
        return 64 if made is not None and made <= self.resolution else self.resolution

    def _check_real(self, cohort: Cohort) -> None:
        if shared := set(self.train.digests) & set(cohort.digests):
            raise ValueError(f"{len(shared)} of the real scans were trained on: pass scans that no run has seen")
        check_grid(cohort, self.train, "training")

    @cached_property
    def id(self) -> str:
        """Ten digits that are the same for the same trials of the same scans, and no others."""
        # of generators their weights, since voxels differ in the last digit from machine to machine
        scans = {REAL: self.real.fingerprint} | {name: run.fingerprint for name, run in self.runs.items()}
        setting = [answers.FORMAT, self.task, len(self.trials), self.seed, self.resolution, scans]
        return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:10]

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each source's scans."""
        return {name: source.cohort.fingerprint for name, source in self.sources.items()}

    @property
    def folder(self) -> Path:
        """Where answers are kept: ``judging`` in the first run."""
        return next(iter(self.runs.values())).path / FOLDER

    def slices(self, trial: Trial) -> list[np.ndarray]:
        """What a trial shows: (slices, rows, columns) of uint8 for each scan, left one first."""
        return [self.sources[item.source].slices(item.place) for item in trial.items]

    @property
    def shape(self) -> tuple[int, ...]:
        """Slices, rows and columns of every stack."""
        width, height, depth = self.real.shape
        return depth, height, width

    def stub(self, trial: Trial) -> dict[str, Any]:
        """A line of answers without the answer: what was shown, and by which session. It tells the truth."""
        return {
            "format": answers.FORMAT,
            "session": self.id,
            "task": self.task,
            "trials": len(self.trials),
            "seed": int(self.seed),
            "cohorts": self.fingerprints,
            "trial": trial.number,
            "sources": [item.source for item in trial.items],
            "scans": [self.sources[item.source].cohort.digests[item.place][:16] for item in trial.items],
        }

    def line(
        self,
        trial: Trial,
        rater: str,
        answer: str | dict[str, int],
        confidence: int | None = None,
        seconds: float | None = None,
        kind: str = "human",
    ) -> dict[str, Any]:
        """An answer as it is written; ValueError where rater, answer, confidence or time (s) cannot be."""
        answers.check_rater(rater, kind)
        answers.check_answer(self.task, answer, confidence, seconds)
        given = {"kind": kind, "rater": rater, "answer": answer, "confidence": confidence}
        return {**self.stub(trial), **given, "seconds": seconds, "time": answers.now()}

    def path(self, rater: str) -> Path:
        """A rater's file of this session."""
        answers.check_rater(rater)
        return self.folder / f"{self.task}-{self.id}-{rater.replace(' ', '_')}.jsonl"

    def answered(self, rater: str) -> dict[int, dict[str, Any]]:
        """Lines that a rater's file of this session holds already, by trial: an interrupted session goes on there."""
        path = self.path(rater)
        if not path.exists():
            return {}
        lines, _ = answers.read(path)  # what is left out was half written, or is a second answer
        return {line["trial"]: line for line in lines if line["session"] == self.id and line["rater"] == rater}

    def answer(self, trial: Trial, rater: str, *given: Any, **more: Any) -> dict[str, Any]:
        """Write an answer to the rater's file, on disk when this returns; arguments and errors of :meth:`line`.

        Also refuses a trial that the rater has answered: first answers count. OSError where it could not be written.
        """
        line = self.line(trial, rater, *given, **more)
        if trial.number in self.answered(rater):
            raise ValueError(f"trial {trial.number + 1} was answered by {rater} before; first answers count")
        answers.append(self.path(rater), line)
        return line

    def judged(self) -> list[dict[str, Any]]:
        """Every rater's answers to this session in :attr:`folder`; says which lines were left out."""
        files = sorted(self.folder.glob(f"{self.task}-{self.id}-*.jsonl"))
        if not files:
            return []
        lines, left_out = answers.read(files)
        if left_out:
            warnings.warn(f"not read in {self.folder}: {'; '.join(left_out)}", stacklevel=2)
        return [line for line in lines if line["session"] == self.id]
