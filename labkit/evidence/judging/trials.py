"""What a rater is shown, in which order: balanced, without repeats, the same for every rater of a seed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labkit.fields import whole

REAL = "real"
"""Name of the source that no generator made."""

SIDES = ("A", "B")
"""What two scans beside each other are called."""

QUESTIONS = ("anatomy", "sharpness", "contrast", "artefacts")
"""What a scan is rated on, 1 to 5, 5 the best: for artefacts, none."""

TASKS = {
    "real_or_synthetic": "Is this scan real or synthetic?",
    "pair": "One of these scans is real. Which?",
    "rating": "How good is this scan?",
    "preference": "Which of these scans looks more like a real one?",
}
"""Tasks, and what they ask."""


def truth(task: str, sources: Sequence[str]) -> str | None:
    """The right answer to a trial that shows scans of these sources; None where there is none."""
    if task == "real_or_synthetic":
        return REAL if sources[0] == REAL else "synthetic"
    return SIDES[list(sources).index(REAL)] if task == "pair" else None


@dataclass(frozen=True)
class Item:
    """A scan that is shown: which source, and which of its scans."""

    source: str
    place: int


@dataclass(frozen=True)
class Trial:
    """One question: a scan, or two beside each other (A left, B right)."""

    number: int
    items: tuple[Item, ...]


def check_task(task: str) -> None:
    """Refuse a task that there is none of."""
    if task not in TASKS:
        raise ValueError(f"task={task!r}: there are {', '.join(TASKS)}")


def plan(task: str, synthetic: Sequence[str], n: int, seed: int = 0) -> list[Trial]:
    """Draw the `n` trials of a session over real scans and `synthetic` ones, which are named by their generators.

    ``real_or_synthetic``: half of the scans real, of an odd number one more or less, the other half in equal parts from
    the generators. ``pair``: a real scan and one of a generator. ``rating``: in equal parts from all sources.
    ``preference``: all pairs of sources equally often. Each kind of scan stands equally often on either side, no scan
    is shown twice (a memory would be a cue), and scans of a source are taken in order from the first.

    `seed` is of order, sides, and which source gets what does not divide evenly; raters who are to be compared get one
    seed. ValueError for an unknown task, no trials, or no generator.
    """
    check_task(task)
    n, seed = whole("trials", n, 2), whole("seed", seed, 0)
    if not synthetic or REAL in synthetic or len(set(synthetic)) < len(synthetic):
        raise ValueError(f"generators {list(synthetic)}: needed is at least one, none twice, and none called {REAL!r}")
    rng = np.random.default_rng(seed)
    if task == "real_or_synthetic":
        real = n // 2 + int(n % 2 and rng.integers(2))
        shown = [(REAL,)] * real + [(name,) for name in _equally(synthetic, n - real, rng)]
    elif task == "pair":
        shown = [(REAL, name) for name in _equally(synthetic, n, rng)]
    elif task == "rating":
        shown = [(name,) for name in _equally([REAL, *synthetic], n, rng)]
    else:
        shown = _equally(list(itertools.combinations([REAL, *synthetic], 2)), n, rng)
    return _numbered(_sides_balanced(shown, rng), rng)


def fitting(task: str, synthetic: Sequence[str], n: int, seed: int, animals: int) -> list[Trial]:
    """:func:`plan` of `n` trials, or of the most that show no more real scans than `animals`, each once.

    ValueError where there are too few for two.
    """
    for fewer in range(n, 1, -1):
        trials = plan(task, synthetic, fewer, seed)
        if needs(trials).get(REAL, 0) <= animals:
            return trials
    raise ValueError(
        f"too few scans: two trials of {task} show more than {animals} real animals that no run was trained on; pass "
        "more unseen scans as cohort"
    )


def _equally(choices: Sequence, n: int, rng: np.random.Generator) -> list:
    """`n` choices, each as often as another; which get the rest is drawn."""
    order = [choices[index] for index in rng.permutation(len(choices))]
    return [order[index % len(order)] for index in range(n)]


def _sides_balanced(shown: list[tuple[str, ...]], rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Turn every other pair of two sources round; which of them, is drawn for each pair of sources."""
    turned, seen = [], {sources: int(rng.integers(2)) for sources in dict.fromkeys(shown)}
    for sources in shown:
        turned.append(sources[::-1] if seen[sources] % 2 else sources)
        seen[sources] += 1
    return turned


def _numbered(shown: list[tuple[str, ...]], rng: np.random.Generator) -> list[Trial]:
    """In random order, each source's scans one after the other."""
    order = rng.permutation(len(shown))
    following = {source: itertools.count() for source in itertools.chain(*shown)}
    return [
        Trial(number, tuple(Item(source, next(following[source])) for source in shown[index]))
        for number, index in enumerate(order)
    ]


def needs(trials: Sequence[Trial]) -> dict[str, int]:
    """How many scans of each source a session shows."""
    return dict(Counter(item.source for trial in trials for item in trial.items))
