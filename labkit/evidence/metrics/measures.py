"""The measures of the study, in families that share their work: each says what it found and every choice it made.

A family takes a reference sample and another one. Called with synthetic scans it gives values, with other real scans
their floors, and with scans that somebody spoiled on purpose what the measure notices of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from labkit.evidence.metrics import distributions, embeddings, intervals, paired, similarity
from labkit.evidence.sample import Sample

NEIGHBOURS = 5
BATCH = 4
"""Scans a batch of the released MMD, the study's batch of training."""

FOLDINGS = 3
"""Foldings that a classifier's AUC is the mean of."""

NONE = (float("nan"),) * 2


class Found(NamedTuple):
    """What a measure gave."""

    metric: str
    flavour: str
    value: float
    interval: tuple[float, float]
    direction: str
    how: str


@dataclass(frozen=True)
class Effort:
    """How much is computed.

    Attributes
    ----------
    pairs : int
        Pairs of scans an MS-SSIM is the mean of, of each kind.
    repeats : int
        Draws of random partners in the paper's protocol.
    halves, resamples : int
        For intervals (:mod:`labkit.evidence.metrics.intervals`); 0 for none.
    relabellings : int
        Of the permutation test; 0 for none.
    """

    pairs: int = 120
    repeats: int = 10
    halves: int = 60
    resamples: int = 500
    relabellings: int = 500


FULL = Effort()
Family = Callable[[Sample, Sample, np.random.Generator, Effort], Iterator[Found]]

EVEN = "each scan scaled by its own white (labkit.evidence.attributes.white)"


def paper(real: Sample, other: Sample, rng: np.random.Generator, effort: Effort = FULL) -> Iterator[Found]:
    """The paper's protocol: every real scan against a random other one, several times, mean of all; and linear MMD.

    In two flavours, as the paper says and as the released notebook computes.
    """
    n, m = len(real), len(other)
    first = np.tile(np.arange(n), effort.repeats)
    second = np.concatenate([rng.permutation(max(n, m))[:n] % m for _ in range(effort.repeats)])
    scaled = "[0, 1] by each scan's range (generated ones by the range they were written with)"
    how = (
        f"unpaired: each real scan against a random other, mean of {effort.repeats} rounds; {scaled}; blind to collapse"
    )
    measures = {
        "PSNR": (paired.psnr, "higher"), "RMSE": (paired.rmse, "lower"), "MAE": (paired.mae, "lower"),
        "NCC": (paired.ncc, "higher"),
    }  # fmt: skip
    views = {"paper": (real.scanned, other.scanned), "released": (real.cubes, other.cubes)}
    seen = {}
    for name, (measure, direction) in measures.items():
        for flavour in ("paper", "released"):
            padded = flavour == "released" and name in ("MAE", "NCC")
            x, y = views["released" if padded else "paper"]
            if (name, padded) not in seen:
                values = _over_pairs(measure, x, y, first, second)
                interval = intervals.of_pairs(values, first, second, False, rng, effort.resamples)
                seen[name, padded] = values.mean(), interval
            grid = "the padded cube, zeros included" if padded else "the scanned slices"
            yield Found(name, flavour, *seen[name, padded], direction, f"{how}; {grid}")
    x, y = (side.scanned.flatten(1).numpy() for side in (real, other))
    value = distributions.linear_mmd(x, y)
    interval = intervals.of_halves(distributions.linear_mmd, x, y, value, rng, effort.halves, least=0.0)
    kernel = f"linear kernel on the scanned slices' voxels: squared distance of means; {scaled}; blind to collapse"
    yield Found("MMD", "paper", value, interval, "lower", f"{kernel}; all scans at once")
    released = np.mean([_batched_mmd(x, y, rng) for _ in range(effort.repeats)])
    # one round a half: rounds are of the same scans, and are no more animals
    interval = intervals.of_halves(
        lambda u, v: _batched_mmd(u, v, rng), x, y, float(released), rng, effort.halves, least=0.0
    )
    yield Found("MMD", "released", float(released), interval, "lower",
                f"{kernel}; mean over batches of {BATCH}, both sides' spread counts, so collapse pays")  # fmt: skip


def _batched_mmd(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> float:
    """Mean linear MMD over batches; the release skips what does not fill one."""
    first, second = rng.permutation(len(x)), rng.permutation(max(len(x), len(y))) % len(y)
    starts = range(0, len(x) - BATCH + 1, BATCH)
    return float(np.mean([distributions.linear_mmd(x[first[s : s + BATCH]], y[second[s : s + BATCH]]) for s in starts]))


def _over_pairs(measure: Callable, x: Tensor, y: Tensor, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    parts = (
        measure(x[torch.from_numpy(i)], y[torch.from_numpy(j)])
        for i, j in zip(*(np.array_split(v, max(1, len(v) // 16)) for v in (first, second)), strict=True)
    )
    return torch.cat(list(parts)).double().numpy()


def similarities(box: embeddings.Box) -> Family:
    """MS-SSIM of pairs within the other sample, and between it and the reference."""

    def family(real: Sample, other: Sample, rng: np.random.Generator, effort: Effort = FULL) -> Iterator[Found]:
        pairs_rng, rng = rng.spawn(2)  # pairs may be known already, and intervals must not depend on that
        within, between = similar_pairs(real, other, box, pairs_rng, effort.pairs)
        how = f"3 scales, kernel 7, weights renormalised, brain box; {EVEN}"
        for flavour, values in (("paper", within.right), ("released", within.released)):
            interval = intervals.of_pairs(values, within.first, within.second, True, rng, effort.resamples)
            yield Found("MS-SSIM", flavour, values.mean(), interval, "floor",
                        f"{len(values)} unordered pairs of one source; {how}")  # fmt: skip
        interval = intervals.of_pairs(between.right, between.first, between.second, False, rng, effort.resamples)
        yield Found("MS-SSIM", "real-synthetic", between.right.mean(), interval, "floor",
                    f"{len(between.right)} pairs of a real and another scan; {how}")  # fmt: skip

    return family


class Pairs(NamedTuple):
    """MS-SSIM of pairs: which, as defined, and as released."""

    first: np.ndarray
    second: np.ndarray
    right: np.ndarray
    released: np.ndarray


def similar_pairs(
    real: Sample, other: Sample, box: embeddings.Box, rng: np.random.Generator, count: int
) -> tuple[Pairs, Pairs]:
    """MS-SSIM over random pairs within `other`, and between `real` and `other`; `count` of each, no pair twice.

    Computed once for a sample, reference and count; `rng` then goes unused.
    """
    key = ("MS-SSIM", real, count)
    if key in other.kept:
        return other.kept[key]
    found = []
    chosen = (
        similarity.pairs_within(len(other), count, rng),
        similarity.pairs_between(len(real), len(other), count, rng),
    )
    for pairs, left in zip(chosen, (other, real), strict=True):
        x, y = (side.even[(..., *box)] for side in (left, other))
        first, second = pairs.T
        right, released = similarity.both_ms_ssim(x, y, torch.from_numpy(first), torch.from_numpy(second))
        found.append(Pairs(first, second, right.numpy(), released.numpy()))
    other.kept[key] = found[0], found[1]
    return other.kept[key]


def distribution(name: str, embed: embeddings.Embedding, seed: int = 0) -> Family:
    """Distances, neighbourhoods, spread and a classifier, on one embedding."""

    def family(real: Sample, other: Sample, rng: np.random.Generator, effort: Effort = FULL) -> Iterator[Found]:
        x, z = (side.features(name, embed) for side in (real, other))
        width = distributions.median_distance(x)
        on = f"{name}, {x.shape[1]} features of the brain box; {EVEN}"

        def found(metric: str, statistic: Callable, direction: str, how: str, most: float = np.inf) -> Found:
            least = -np.inf if metric == "RBF-MMD" else 0.0  # unbiased, it may be below 0; nothing else here may
            value = statistic(x, z)
            interval = intervals.of_halves(statistic, x, z, value, rng, effort.halves)
            if most == 1 and effort.halves:  # shares: halves of few scans saturate, and 18 of 18 is no certainty
                own = intervals.of_share(value, len(z) if metric == "precision" else len(x))
                interval = np.nanmin([own[0], interval[0]]), np.nanmax([own[1], interval[1]])
            inside = tuple(float(np.clip(end, least, most)) for end in interval)
            return Found(metric, name, value, inside, direction, f"{how}; {on}")

        yield found("RBF-MMD", lambda u, v: distributions.rbf_mmd(u, v, width), "lower",
                    f"unbiased, bandwidth {width:.3g} (median distance of real scans)")  # fmt: skip
        if effort.relabellings:
            p = distributions.rbf_mmd_p(x, z, width, rng, effort.relabellings)
            yield Found("RBF-MMD p", name, p, NONE, "higher",
                        f"permutation test, {effort.relabellings} relabellings; {on}")  # fmt: skip
        yield found("Fréchet distance", distributions.frechet, "lower", "Gaussians fitted to the features, SVD form")
        yield found("trace ratio", distributions.trace_ratio, "floor", "total variance over real scans'; 0 is collapse")
        for metric in ("precision", "recall", "density", "coverage"):
            yield found(metric, lambda u, v, m=metric: distributions.neighbourhoods(u, v, NEIGHBOURS)[m], "higher",
                        f"{NEIGHBOURS} nearest neighbours", np.inf if metric == "density" else 1.0)  # fmt: skip
        aucs = [
            distributions.classifier_auc(x, z, seed + k, effort.resamples if k == 0 else 0) for k in range(FOLDINGS)
        ]
        auc = float(np.mean([found[0] for found in aucs]))
        # about the mean of all foldings, and as wide again as foldings differ
        reach = 2 * float(np.std([found[0] for found in aucs]))
        ends = np.clip((aucs[0][1] - aucs[0][0] + auc - reach, aucs[0][2] - aucs[0][0] + auc + reach), 0, 1)
        yield Found("classifier AUC", name, auc, (min(float(ends[0]), auc), max(float(ends[1]), auc)), "lower",
                    f"support vector machine, Gaussian kernel, 5 folds, {FOLDINGS} times; 0.5, or less with few scans, "
                    f"is not told apart; {on}")  # fmt: skip

    return family


class Instrument(Protocol):
    """Reads attributes off cubes in [-1, 1], (N, 1, S, S, S) -> (N, K): a linear gauge, or a segmentation network."""

    names: tuple[str, ...]

    def __call__(self, cubes: Tensor) -> Tensor:
        """Read."""
        ...


def anatomy(gauge: Instrument, spread: np.ndarray, quality: dict[str, str], key: str = "anatomy") -> Family:
    """Attributes read off the voxels: standardised difference of means, and distance of distributions.

    Parameters
    ----------
    gauge : Instrument
        For :attr:`Sample.even` cubes brought to [-1, 1].
    spread : numpy.ndarray
        (K,), standard deviations of real rats.
    quality : dict of str to str
        How each attribute is read, and how well, in words.
    key : str
        Under which readings are kept with a sample.
    """
    from scipy.stats import wasserstein_distance

    def cohens_d(u: np.ndarray, v: np.ndarray) -> float:
        return float((v.mean() - u.mean()) / max(np.sqrt((u.var(ddof=1) + v.var(ddof=1)) / 2), 1e-12))

    def family(real: Sample, other: Sample, rng: np.random.Generator, effort: Effort = FULL) -> Iterator[Found]:
        x, z = (read(gauge, side, key) / spread for side in (real, other))
        for place, attribute in enumerate(gauge.names):
            u, v = x[:, place], z[:, place]
            for metric, statistic, direction in (
                ("Cohen's d", cohens_d, "floor"), ("Wasserstein", wasserstein_distance, "lower")
            ):  # fmt: skip
                value = float(statistic(u, v))
                least = -np.inf if metric == "Cohen's d" else 0.0
                interval = intervals.of_halves(statistic, u, v, value, rng, effort.halves, least)
                how = f"read {quality[attribute]}, in standard deviations of real rats"
                yield Found(metric, attribute, value, interval, direction, f"{how}; {EVEN}")

    return family


def read(gauge: Instrument, sample: Sample, key: str = "anatomy") -> np.ndarray:
    """Attributes of a sample, (N, K), each in its unit."""
    return sample.features(key, lambda even: gauge(even * 2 - 1).double().numpy())


def reconstruction(
    real: Sample, back: Sample, rng: np.random.Generator, effort: Effort = FULL
) -> Iterator[tuple[Found, tuple[float, tuple[float, float]]]]:
    """Paired measures of scans and their own reconstructions, each with its floor: the mean of the other scans."""
    x, y = real.scanned, back.scanned
    others = (x.sum(0, keepdim=True) - x) / max(1, len(x) - 1)
    own = np.arange(len(x))
    for name, measure, direction in (
        ("PSNR", paired.psnr, "higher"), ("RMSE", paired.rmse, "lower"), ("MAE", paired.mae, "lower"),
        ("NCC", paired.ncc, "higher"), ("SSIM", similarity.ssim, "higher"),
    ):  # fmt: skip
        value, floor = (_over_pairs(measure, x, other, own, own) for other in (y, others))
        how = "scan against its own reconstruction; floor: the mean of the other scans in its place; [0, 1]"
        found = Found(name, "reconstruction", float(value.mean()), intervals.of_mean(value, rng, effort.resamples),
                      direction, how)  # fmt: skip
        yield found, (float(floor.mean()), intervals.of_mean(floor, rng, effort.resamples))
