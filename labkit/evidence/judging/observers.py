"""Raters who are no people: simulated ones of known ability, and a classifier. Their answers say what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from labkit.evidence.judging.session import Session, Stimuli
from labkit.evidence.judging.trials import QUESTIONS, REAL, SIDES
from labkit.evidence.metrics import embeddings
from labkit.evidence.metrics.distributions import classifier
from labkit.generation import generate

MODEL = "model observer"
LEARNED = 120
"""Scans of each kind, at most, that the model observer learns from."""


def simulate(
    session: Session,
    number: int = 1,
    d_prime: float | dict[str, float] = 1.0,
    criterion: float = 0.0,
    lapse: float = 0.0,
) -> list[dict[str, Any]]:
    """Answers of a rater whose ability is known, to try the statistics on: never an invented expert.

    Evidence that a scan is synthetic is normal, with standard deviation 1, and on average d′ higher for a synthetic
    than for a real scan. In yes-no trials the rater says *synthetic* where it lies above the middle of the two by more
    than `criterion`; of two scans the one with less evidence is called real, or preferred; ratings fall with the
    evidence, with as much chance again.

    Parameters
    ----------
    session : Session
    number : int
        Which simulated rater: part of the name, and of the seed with the session's.
    d_prime : float or dict
        Of every generator, or by its name.
    criterion : float
        Above 0: slow to say *synthetic*.
    lapse : float
        Share of answers given blindly.

    Returns
    -------
    list of dict
        Lines as :meth:`Session.line` makes them, kind ``simulated``.
    """
    unknown = set(d_prime) - set(session.runs) if isinstance(d_prime, dict) else set()
    if unknown or not 0 <= lapse <= 1:
        raise ValueError(
            f"d_prime for {', '.join(sorted(unknown)) or 'all'}, lapse={lapse!r}: the generators are "
            f"{', '.join(session.runs)}, and a lapse is a share from 0 to 1"
        )
    rng = np.random.default_rng([session.seed, number, 7])

    def evidence(source: str) -> float:
        apart = d_prime.get(source, 0.0) if isinstance(d_prime, dict) else d_prime
        return float(rng.normal(0.0 if source == REAL else apart)) - middle

    middle = float(np.mean(list(d_prime.values()))) / 2 if isinstance(d_prime, dict) else d_prime / 2
    lines = []
    for trial in session.trials:
        seen = [evidence(item.source) for item in trial.items]
        blind = rng.random() < lapse
        answer, margin = _decide(session.task, seen, criterion, blind, rng)
        confidence = None if margin is None else int(np.digitize(margin, (0.4, 1.0))) + 1
        seconds = round(float(rng.lognormal(1.5 - 0.1 * (margin or 0), 0.4)), 2)
        lines.append(session.line(trial, f"simulated {number}", answer, confidence, seconds, "simulated"))
    return lines


def _decide(
    task: str, seen: list[float], criterion: float, blind: bool, rng: np.random.Generator
) -> tuple[str | dict[str, int], float | None]:
    """The answer, and how far the evidence was from the other one."""
    if task == "rating":
        marks = 3 - 1.2 * seen[0] + rng.normal(0, 0.8, len(QUESTIONS))
        return {name: int(np.clip(np.round(mark), 1, 5)) for name, mark in zip(QUESTIONS, marks, strict=True)}, None
    tipped = seen[0] - (seen[1] if len(seen) == 2 else criterion)
    high = bool(rng.integers(2)) if blind else tipped > 0  # more evidence against the first
    names = (SIDES[1], SIDES[0]) if len(seen) == 2 else ("synthetic", REAL)
    return names[0] if high else names[1], abs(tipped)


def model_observer(session: Session, seed: int = 1) -> list[dict[str, Any]]:
    """Chapter 4's classifier as a rater: it sees the pictures that people see, and learned on others of each kind.

    It learns from training animals and from new scans of the generators, both shown as the session shows its own, on
    principal components of the voxels (:func:`labkit.evidence.metrics.embeddings.pca`).

    Of two scans it takes the one that looks less synthetic to it; ``rating`` is no task for it. `seed`, 1 or more, is
    added to the session's for the codes that it learns from: no scan that is shown. Gives lines of kind ``model``.
    """
    if seed < 1:
        raise ValueError(f"seed={seed!r}: 1 or more; with 0 it would learn from the very scans that are shown")
    if session.task == "rating":
        raise ValueError("the model observer tells real from synthetic; it has no marks from 1 to 5 to give")
    score = _learn(session, seed)
    lines = []
    for trial in session.trials:
        seen = [score(item.source, item.place) for item in trial.items]
        answer, _ = _decide(session.task, seen, 0.0, False, np.random.default_rng(0))
        lines.append(session.line(trial, MODEL, answer, None, None, "model"))
    return lines


def _learn(session: Session, seed: int) -> Callable[[str, int], float]:
    """Evidence that a scan of the session is synthetic: above 0 the classifier says so."""
    if len(session.train) < 4:
        raise ValueError(f"the model observer learns from 4 training scans or more; this run has {len(session.train)}")
    order = np.random.default_rng([session.seed, 2]).permutation(len(session.train)).tolist()
    # components fit the scans that they are found from best: the classifier must not learn to know them by that
    half = len(order) // 2
    teaching, train = session.train.subset(order[:half]), session.train.subset(order[half : half + LEARNED])
    real = Stimuli(train, session.resolution)
    share = max(2, -(-len(train) // len(session.runs)))
    made = [
        Stimuli(generate(run, share, seed=session.seed + seed), session.seen_at(name))
        for name, run in session.runs.items()
    ]
    embed = embeddings.pca(Stimuli(teaching, session.resolution).cubes, embeddings.brain_box(session.train, real.size))
    points = [embed(stimuli.cubes) for stimuli in (real, *made)]
    truth = np.repeat([0, 1], [len(points[0]), sum(map(len, points[1:]))])
    model = classifier().set_params(svc__class_weight="balanced").fit(np.concatenate(points), truth)
    scores = {name: model.decision_function(embed(source.cubes)) for name, source in session.sources.items()}
    return lambda source, index: float(scores[source][index])
