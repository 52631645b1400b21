"""How often does each 95 % interval of the study cover the truth, and each 5 % test reject it? Simulated and counted.

    python book/experiments/coverage.py [--draws 120]

Every interval is computed by the study's own code from draws whose truth is known. What a distance between two sets
estimates depends on how many animals they have; its truth is its mean over all draws of as many. Not part of
acceptance.py, which asks what a reader concludes from whole tables of simulated rats, where no truth is known. Writes
table.md and measured.csv to book/reference/coverage; ten minutes on a core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from scipy.stats import norm

from labkit.evidence.judging import cues, statistics
from labkit.evidence.metrics import distributions, intervals, measures, memorisation, yardstick
from labkit.evidence.sample import Sample
from labkit.evidence.segmentation import gains
from labkit.files import progress_bar, write_json, write_text
from labkit.recording import provenance

OUT = Path(__file__).resolve().parents[1] / "reference" / "coverage"
NAN = float("nan")
SPECTRUM = np.arange(1, 17) ** -0.5
"""Standard deviations of sixteen features, falling as those of principal components do."""


class Seen(NamedTuple):
    """One interval or one p value of a draw; a truth that is NaN is the mean of the values."""

    what: str
    low: float = NAN
    high: float = NAN
    value: float = NAN
    truth: float = NAN
    p: float = NAN


class Points(Sample):
    """A sample that is its features, (N, F), already."""

    def __init__(self, points: np.ndarray) -> None:
        self.points = points

    def __len__(self) -> int:
        return len(self.points)

    def features(self, name: str, embed: Callable) -> np.ndarray:  # noqa: D102 the sample's
        return self.points

    def take(self, index: np.ndarray) -> Points:  # noqa: D102
        return Points(self.points[index])


def beside_floors(family: measures.Family, real: Sample, made: Sample, rng: np.random.Generator) -> Iterator[Seen]:
    """Rows as :meth:`labkit.evidence.metrics.yardstick.Yardstick.beside_floors` makes them, without the floors."""
    parted = [real.take(a) for a, _ in yardstick.partings(rng.permutation(len(real)), len(made), rng)]
    means = [{row.key: row.value for row in family(a, made, rng, yardstick.ONCE)} for a in parted]
    for row in family(parted[0], made, rng):
        name = row.metric if row.flavour in ("features", "paper") else f"{row.metric}, {row.flavour}"
        if not row.is_p:
            row = row.about(float(np.mean([one[row.key] for one in means])))
            yield Seen(name, row.ci_low, row.ci_high, row.value)


def features(rng: np.random.Generator, n: int, apart: float = 0.0) -> Iterator[Seen]:
    """Measures of features: equal distributions, or one that is shifted and narrower."""
    real, made = (Points(SPECTRUM * rng.standard_normal((m, 16))) for m in (2 * n, n))
    made.points = (1 - apart) * made.points + apart * SPECTRUM
    yield from beside_floors(measures.distribution("features", lambda cubes: NAN), real, made, rng)


def anatomy(rng: np.random.Generator, n: int, apart: float = 0.0) -> Iterator[Seen]:
    """Measures of one attribute, likewise."""
    real, made = (Points(rng.standard_normal((m, 1))) for m in (2 * n, n))
    made.points = made.points + apart
    gauge = SimpleNamespace(names=("features",))  # it has nothing to read: the points are what it would read
    yield from beside_floors(measures.anatomy(gauge, np.ones(1), {"features": ""}), real, made, rng)


def paper(rng: np.random.Generator, n: int) -> Iterator[Seen]:
    """The paper's errors and MMD, of cubes that differ by smooth fields and noise."""

    def cubes(m: int) -> Sample:
        coarse, noise = (torch.from_numpy(rng.standard_normal((m, 1, side, side, side))).float() for side in (2, 8))
        smooth = torch.nn.functional.interpolate(coarse, size=(8, 8, 8))
        level = torch.linspace(0.2, 0.8, 8)
        return Sample((level + 0.1 * smooth + 0.05 * noise).clamp(0, 1), (64, 64, 40))

    yield from (row for row in beside_floors(measures.paper, cubes(2 * n), cubes(n), rng) if "released" not in row.what
                or row.what.startswith("MMD"))  # fmt: skip


def means(rng: np.random.Generator, n: int) -> Iterator[Seen]:
    """Means over scans, over pairs within a set (as MS-SSIM), and the judges' marks."""
    skewed = rng.gamma(4, 0.25, n)
    yield Seen("mean over scans (reconstructions)", *intervals.of_mean(skewed), skewed.mean(), 1.0)
    first, second = measures.similarity.pairs_within(n, 120, rng).T
    x = rng.standard_normal((n, 3))
    alike = np.exp(-np.square(x[first] - x[second]).mean(1) / 2)
    interval = intervals.of_pairs(alike, first, second, True, rng)
    yield Seen("mean over pairs (MS-SSIM)", *interval, alike.mean(), (5 / 3) ** -1.5)
    marks, real = (rng.binomial(4, 0.6, (n, 3)).mean(1) + 1 for _ in range(2))
    yield Seen("mean mark (ratings)", *intervals.of_mean(marks), marks.mean(), 3.4)
    yield Seen("difference of marks", *intervals.of_difference(marks, real), marks.mean() - real.mean(), 0.0)


def networks(rng: np.random.Generator, n: int) -> Iterator[Seen]:
    """Differences in Dice over `n` seeds and 36 animals, with effects of both and of neither."""
    seed, animal, rest = (sd * rng.standard_normal(shape) for sd, shape in ((1, (n, 1)), (1, (1, 36)), (2, (n, 36))))
    values = seed + animal + rest
    low, high, _, p = gains.of_networks(values)
    yield Seen("difference over seeds and animals", low, high, values.mean(), 0.0)
    yield Seen("p of a difference over seeds and animals", p=p)


def answers(rng: np.random.Generator, n: int, d_prime: float = 0.0) -> Iterator[Seen]:
    """One rater's `n` answers to as many real as synthetic scans, with a sensitivity."""
    rate = norm.cdf(d_prime / 2)
    hits, false = rng.binomial(n // 2, [rate, 1 - rate])
    right = rng.random(n) < rate
    found, seen = statistics.share(int(right.sum()), n), statistics.detection(hits, n // 2, false, n // 2)
    yield Seen("share right (Wilson)", found.low, found.high, found.value, rate)
    yield Seen("d′", seen.d_low, seen.d_high, seen.d_prime, d_prime)
    yield Seen("criterion", seen.c_low, seen.c_high, seen.criterion, 0.0)
    pair = statistics.forced_choice(int(right.sum()), n)
    yield Seen("d′ of pairs", pair.d_low, pair.d_high, pair.d_prime, 2**0.5 * norm.ppf(rate))
    slope = statistics.trend(right)
    if np.isfinite(slope.low):
        yield Seen("odds ratio of learning", slope.low, slope.high, slope.ratio, 1.0)
        yield Seen("p of learning", p=slope.p)
    if d_prime == 0:
        yield Seen("p of guessing", p=found.p)


def raters(rng: np.random.Generator, n: int) -> Iterator[Seen]:
    """Agreement of three raters on `n` trials, and preferences among four sources in `n` comparisons of each pair."""
    easy = rng.beta(1, 1, n)
    counts = rng.binomial(3, easy)
    found = statistics.fleiss_kappa(np.stack([counts, 3 - counts], 1), int(rng.integers(1 << 31)), 500)
    yield Seen("kappa of three raters", found.low, found.high, found.kappa, 1 / 3)
    strength = np.array([0.8, 0.2, -0.2, -0.8])
    wins = np.zeros((4, 4))
    for i, j in zip(*np.triu_indices(4, 1), strict=True):
        wins[i, j] = rng.binomial(n, expit(strength[i] - strength[j]))
        wins[j, i] = n - wins[i, j]
    fitted = statistics.bradley_terry(wins)
    for low, high, value, truth in zip(fitted.low, fitted.high, fitted.value, strength, strict=True):
        yield Seen("Bradley-Terry strength", low, high, value, truth)


def tests(rng: np.random.Generator, n: int) -> Iterator[Seen]:
    """Tests of copies and of two distributions, where there is nothing to find."""
    train, held_out, fresh = (SPECTRUM * rng.standard_normal((m, 16)) for m in (100, n, n))
    yield Seen("copies p", p=memorisation.audit(fresh, train, held_out).p)
    width = distributions.median_distance(held_out)
    yield Seen("RBF-MMD p", p=distributions.rbf_mmd_p(held_out, fresh, width, rng, 99))


def traces(rng: np.random.Generator, n: int) -> Iterator[Seen]:
    """The check of trivial traces, where there are none."""
    truth = np.arange(2 * n) < n
    yield Seen("p of traces", p=cues.classify(rng.standard_normal((2 * n, 8)), truth, list("abcdefgh"), 0, 19).p)


CASES = [
    *((partial(features, apart=apart), n, said) for n in (12, 36) for apart, said in ((0, "equal"), (0.3, "apart"))),
    *((partial(anatomy, apart=apart), n, said) for n in (12, 36) for apart, said in ((0, "equal"), (0.5, "apart"))),
    *((paper, n, "") for n in (12, 36)), *((means, n, "") for n in (6, 12, 36)), *((networks, n, "") for n in (3, 5)),
    *((partial(answers, d_prime=d), n, f"d′ {d:g}") for n in (20, 60) for d in (0, 1, 2)),
    *((raters, n, "") for n in (20, 60)), *((tests, n, "") for n in (12, 36)), (traces, 12, ""),
]  # fmt: skip
"""What is drawn, with how many, and in which state."""

QUICK = (means, networks, tests, answers, anatomy)
"""Draws of these cost little, and there are five times as many."""


def main() -> None:
    """Count, and write what was found."""
    parser = argparse.ArgumentParser(prog="book/experiments/coverage.py")
    parser.add_argument("--draws", type=int, default=120)
    options = parser.parse_args()
    tables = [counted(place, options.draws) for place in progress_bar(range(len(CASES)), "drawing")]
    found = pd.concat(tables, ignore_index=True).round(4)
    write_text(OUT / "measured.csv", found.to_csv(index=False))
    write_text(OUT / "table.md", table(found))
    write_json(OUT / "provenance.json", vars(options) | provenance(torch.device("cpu")))


def counted(place: int, draws: int) -> pd.DataFrame:
    """Share covered by the intervals of one case, or rejected by its tests at 5 %, with its standard error."""
    draw, n, state = CASES[place]
    draws *= 5 if getattr(draw, "func", draw) in QUICK else 1
    rngs = (np.random.default_rng([place, k]) for k in range(draws))
    seen = pd.DataFrame([row for rng in rngs for row in draw(rng, n)], columns=Seen._fields)
    rows = []
    for what, part in seen.groupby("what", sort=False):
        test = part["p"].notna().all()
        truth = part["truth"].fillna(part["value"].mean())
        hits = part["p"] <= 0.05 if test else (part["low"] <= truth) & (truth <= part["high"])
        known = len(hits)
        about = (hits.sum() + 2) / (known + 4)  # of 0 and 1, too, there is an error (Agresti and Coull 1998)
        error = np.sqrt(about * (1 - about) / known)
        rows.append([what, "test" if test else "interval", n, state, known, hits.mean(), error])
    return pd.DataFrame(rows, columns=["what", "kind", "n", "state", "draws", "share", "error"])


def table(found: pd.DataFrame) -> str:
    """What was counted as Markdown, a row an interval or test."""
    lines = ["| | says | counted, per cent |", "|---|---|---|"]
    for (kind, what), part in found.groupby(["kind", "what"], sort=False):
        cells = []
        for (state, n), own in part.groupby(["state", "n"], sort=False):
            share, error = 100 * own[["share", "error"]].iloc[0]
            cells.append(f"{share:.0f} ± {error:.0f} ({', '.join(filter(None, [f'n {n}', state]))})")
        lines.append(f"| {what} | {95 if kind == 'interval' else 5} | {', '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
