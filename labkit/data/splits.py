"""Which animals are trained on, and which are held out.

A file of its own because training, chapters and experiments all ask, and only training trains.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from labkit.data.cohort import Cohort
from labkit.data.sources import PAPER_N
from labkit.fields import whole

__all__ = ["PAPER_TRAIN", "default_n_train", "folds", "split"]

PAPER_TRAIN = 174
"""Real scans the paper trains on; the other 36 of its 210 are held out."""

HELD_OUT = 8
"""Animals that a cohort of 20 or more leaves for measuring: 4 a side, the fewest of which a test can reach p = 0.05."""


def default_n_train(animals: int) -> int:
    """How many animals of a cohort are trained on, if nobody says: the paper's 174 in 210, but of few animals fewer.

    Measures need held-out animals: at least :data:`HELD_OUT` of 20 or more, a third of fewer; of fewer than five none.

    Examples
    --------
    >>> [default_n_train(animals) for animals in (210, 70, 40, 24, 12, 4)]
    [174, 58, 32, 16, 8, 4]
    """
    if animals < 5:
        return animals
    least = HELD_OUT if animals >= 20 else round(animals / 3)
    return min(round(animals * PAPER_TRAIN / PAPER_N), animals - least)


def folds(animals: int, n_train: int) -> int:
    """How many folds hold every animal out once, where `n_train` of `animals` are trained on in the first.

    Examples
    --------
    >>> folds(25, 17), folds(210, 174)
    (3, 5)
    """
    return max(2, animals // (animals - n_train))


def split(cohort: Cohort, n_train: int | None = None, fold: int = 0) -> tuple[Cohort, Cohort | None]:
    """The scans to train on, and those that are held out, None where all animals are trained on.

    Always the same animals, whatever the run's seed, so that variants and seeds can be compared on one held-out set.
    Both sides have their share of each group of animals (:attr:`labkit.data.cohort.Cohort.groups`) and, where some
    animals have labels, of these; at least two are held out of three or more in the first fold.

    Parameters
    ----------
    cohort : Cohort
        All scans; those of an animal stay together.
    n_train : int, optional
        Animals to train on; default :func:`default_n_train`. Further folds share the others out and may have more.
    fold : int
        Which animals are held out: :func:`folds` of them hold every animal out once, the next ones part anew.

    Raises
    ------
    ValueError
        If either side would be empty.
    """
    animals, fold = sorted(set(cohort.subjects)), whole("fold", fold, 0, "which animals are held out")
    n_train = default_n_train(len(animals)) if n_train is None else n_train
    if n_train == len(animals):
        if fold:
            raise ValueError(f"fold={fold}, and all {n_train} animals are trained on: hold some out (n_train)")
        return cohort, None
    if not 1 <= n_train < len(animals):
        raise ValueError(
            f"n_train={n_train} leaves one side empty: {cohort.name} has {len(animals)} animals, "
            f"choose 1 to {len(animals)}"
        )
    several = folds(len(animals), n_train)
    order = _shared_out(cohort, len(animals) - n_train, seed=fold // several)
    parts: list[Iterable[str]] = [order[n_train:], *np.array_split(order[:n_train], several - 1)]
    out = {str(subject) for subject in parts[fold % several]}
    inside, outside = ([p for p, subject in enumerate(cohort.subjects) if (subject in out) == own] for own in (0, 1))
    return cohort.subset(inside), cohort.subset(outside)


def _shared_out(cohort: Cohort, held_out: int, seed: int) -> list[str]:
    """Animals in random order, groups and labelled ones spread evenly over it; the last `held_out` are the first fold.

    Of one kind only, the order is :meth:`Cohort.split`'s.
    """
    animals = sorted(set(cohort.subjects))
    labelled = {scan.subject for scan in cohort if scan.labels is not None}
    shuffled = [animals[place] for place in np.random.default_rng(seed).permutation(len(animals))]
    kinds = [(subject in labelled, cohort.groups.get(subject, "")) for subject in shuffled]
    before = [kinds[:place].count(kind) for place, kind in enumerate(kinds)]
    even = [(count + 0.5) / kinds.count(kind) for count, kind in zip(before, kinds, strict=True)]
    order = [shuffled[place] for place in np.argsort(even, kind="stable")]
    first = len(order) - held_out
    wanted = min(2, len(labelled) - 1, held_out) if len(labelled) < len(animals) else 0
    while len(labelled & set(order[first:])) < wanted:
        last = max(place for place in range(first) if order[place] in labelled)
        place = next(place for place in range(first, len(order)) if order[place] not in labelled)
        order[last], order[place] = order[place], order[last]
    return order
