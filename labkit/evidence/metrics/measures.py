"""The measures of the study, in families that share their work: each says what it found and every choice it made.

A family takes a reference sample and another one. Called with synthetic scans it gives values, with other real scans
their floors, and with scans that somebody spoiled on purpose what the measure notices of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from labkit.evidence.metrics import distributions, embeddings, intervals, similarity
from labkit.evidence.sample import Sample, of_pairs

NEIGHBOURS = 5
FOLDINGS = 3
"""Foldings that a classifier's AUC is the mean of."""

OF_NEIGHBOURS = ("precision", "recall", "density", "coverage")
NEEDS = {
    "RBF-MMD p": (4, "cannot be below 0.05 with so few relabellings"),
    "classifier AUC": (distributions.FOLDS, f"learns in {distributions.FOLDS} folds, with a scan of each side in each"),
    **dict.fromkeys(OF_NEIGHBOURS, (NEIGHBOURS + 1, "have too few neighbours to choose from")),
}
"""Scans a side without which a measure is left out, and why; the others need two."""

SHARES = ("precision", "recall", "coverage", "classifier AUC")
"""Measures that lie between 0 and 1."""

SIGNED = ("RBF-MMD", "Cohen's d", "NCC", "PSNR")
"""Measures that may be below 0."""

NAN = float("nan")
ERRORS = (
    ("PSNR", similarity.psnr, "higher"), ("RMSE", similarity.rmse, "lower"), ("MAE", similarity.mae, "lower"),
    ("NCC", similarity.ncc, "higher"),
)  # fmt: skip
NORMALISED = "each scan scaled by its own white (labkit.evidence.brightness.white)"


class Measurement(NamedTuple):
    """What a measure gave, with its interval and its floor's: a row of every table.

    Attributes
    ----------
    metric, flavour : str
        Which measure, and of which features or as whose code computes it.
    value, ci_low, ci_high : float
        Of the scans; NaN ends where nothing can be said of the spread.
    floor, floor_low, floor_high : float
        The same of real scans; NaN until :meth:`beside` one.
    n : int
        Scans behind the value.
    direction : {"lower", "higher", "floor"}
        Which way is better, the last where only nearness to the floor is.
    how : str
        Every choice in words.
    """

    metric: str
    flavour: str
    value: float
    ci_low: float = NAN
    ci_high: float = NAN
    floor: float = NAN
    floor_low: float = NAN
    floor_high: float = NAN
    n: int = 0
    direction: str = "lower"
    how: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Which measure it is."""
        return self.metric, self.flavour

    @property
    def is_p(self) -> bool:
        """Whether it is a p value, of which there is no mean."""
        return self.metric.endswith(" p")

    def about(self, mean: float) -> Measurement:
        """The same with another value, and the interval moved with it; an end at a bound of the measure stays there."""
        least, most = -np.inf if self.metric in SIGNED else 0.0, 1.0 if self.metric in SHARES else np.inf
        # no scan says how far from a bound that all of them reach the truth may be: that end does not move
        low, high = (end if end in (least, most) else end + mean - self.value for end in (self.ci_low, self.ci_high))
        low, high = np.clip((low, high), least, most)
        return self._replace(value=mean, ci_low=float(low), ci_high=float(high))

    def spread_over(self, values: Sequence[float]) -> Measurement:
        """The same as mean of `values`, with the interval in which 95 % of them lie."""
        low, high = np.quantile(values, intervals.ENDS).tolist()
        return self._replace(value=float(np.mean(values)), ci_low=low, ci_high=high)

    def beside(self, floor: Measurement, n: int) -> Measurement:
        """The same of `n` scans, with what real scans gave as its floor."""
        return self._replace(floor=floor.value, floor_low=floor.ci_low, floor_high=floor.ci_high, n=n)


@dataclass(frozen=True)
class Effort:
    """How much is computed: MS-SSIMs of each kind, rounds of random partners in the paper's protocol, and repetitions.

    `halves` and `resamples` are for intervals (:mod:`labkit.evidence.metrics.intervals`), `relabellings` for the
    permutation test; 0 for none.
    """

    pairs: int = 120
    repeats: int = 10
    halves: int = 60
    resamples: int = 500
    relabellings: int = 500
    foldings: int = FOLDINGS


FULL = Effort()
Family = Callable[[Sample, Sample, np.random.Generator, Effort], Iterator[Measurement]]


def paper(real: Sample, other: Sample, rng: np.random.Generator, effort: Effort = FULL) -> Iterator[Measurement]:
    """The paper's protocol: every real scan against a random other one, several times, mean of all; and linear MMD.

    What the release computes under the same names is :mod:`labkit.evidence.metrics.released`.
    """
    n, m = len(real), len(other)
    first = np.tile(np.arange(n), effort.repeats)
    second = np.concatenate([rng.permutation(max(n, m))[:n] % m for _ in range(effort.repeats)])
    scaled = "[0, 1] by each scan's range (generated ones by the range they were written with); the scanned slices"
    how = (
        f"unpaired: each real scan against a random other, mean of {effort.repeats} rounds; {scaled}; blind to collapse"
    )
    scanned = real.scanned.contiguous(), other.scanned.contiguous()
    for name, measure, direction in ERRORS:
        values = _over_pairs(measure, *scanned, first, second)
        interval = intervals.of_pairs(values, first, second, False, rng, effort.resamples)
        yield Measurement(name, "paper", values.mean(), *interval, direction=direction, how=how)
    x, y = (side.flatten(1).numpy() for side in scanned)
    value = distributions.linear_mmd(x, y)
    interval = intervals.of_halves(distributions.linear_mmd, x, y, value, rng, effort.halves, least=0.0)
    how = f"linear kernel on voxels, all scans at once: squared distance of means; {scaled}; blind to collapse"
    yield Measurement("MMD", "paper", value, *interval, how=how)


def _over_pairs(measure: Callable, x: Tensor, y: Tensor, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    # one pair at a time: it stays in the processor's cache, and nothing is copied
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    return torch.cat([measure(x[i : i + 1], y[j : j + 1]) for i, j in pairs]).double().numpy()


def similarities(box: embeddings.Box) -> Family:
    """MS-SSIM of pairs within the other sample, and between it and the reference."""

    def family(real: Sample, other: Sample, rng: np.random.Generator, effort: Effort = FULL) -> Iterator[Measurement]:
        pairs_rng, rng = rng.spawn(2)  # pairs may be known already, and intervals must not depend on that
        within, between = similar_pairs(real, other, box, pairs_rng, effort.pairs)
        for flavour, pairs, of in (
            ("paper", within, "unordered pairs of one source"),
            ("real-synthetic", between, "pairs of a real and another scan"),
        ):
            values = pairs.values
            interval = intervals.of_pairs(values, pairs.first, pairs.second, pairs is within, rng, effort.resamples)
            how = f"{len(values)} {of}; 3 scales, kernel 7, weights renormalised, brain box; {NORMALISED}"
            yield Measurement("MS-SSIM", flavour, values.mean(), *interval, direction="floor", how=how)

    return family


class Pairs(NamedTuple):
    """MS-SSIM of pairs of scans, (m,) each: which ones, and what it is."""

    first: np.ndarray
    second: np.ndarray
    values: np.ndarray


def similar_pairs(
    real: Sample, other: Sample, box: embeddings.Box, rng: np.random.Generator, count: int
) -> tuple[Pairs, Pairs]:
    """MS-SSIM over random pairs within `other`, and between `real` and `other`; `count` of each, no pair twice.

    Computed once for a sample, reference and count; `rng` then goes unused.
    """

    def similar(x: Sample, y: Sample, i: np.ndarray, j: np.ndarray) -> torch.Tensor:
        pair = (s.normalised[torch.from_numpy(at)][(..., *box)] for s, at in ((x, i), (y, j)))
        return similarity.ms_ssim(*pair)

    def compute() -> tuple[Pairs, Pairs]:
        chosen = (
            similarity.pairs_within(len(other), count, rng),
            similarity.pairs_between(len(real), len(other), count, rng),
        )
        found = []
        for (first, second), left in zip((pairs.T for pairs in chosen), (other, real), strict=True):
            found.append(Pairs(first, second, of_pairs(f"MS-SSIM {box}", left, other, first, second, similar)))
        within, between = found
        return within, between

    return other.once(("MS-SSIM", real, count), compute)


def distribution(name: str, embed: embeddings.Embedding, seed: int = 0) -> Family:
    """Distances, neighbourhoods, spread and a classifier, on one embedding; of few scans without :data:`NEEDS`."""

    def family(real: Sample, other: Sample, rng: np.random.Generator, effort: Effort = FULL) -> Iterator[Measurement]:
        x, z = (side.features(name, embed) for side in (real, other))
        width, n = distributions.median_distance(x), min(len(x), len(z))
        on = f"{name}, {x.shape[1]} features of the brain box; {NORMALISED}"

        def measured(metric: str, statistic: Callable, direction: str, how: str, most: float = np.inf) -> Measurement:
            least = -np.inf if metric == "RBF-MMD" else 0.0  # unbiased, it may be below 0; nothing else here may
            value = statistic(x, z)
            interval = intervals.of_halves(statistic, x, z, value, rng, effort.halves)
            if most == 1 and effort.halves:  # shares: halves of few scans saturate, and 18 of 18 is no certainty
                own = intervals.of_share(value, len(z) if metric == "precision" else len(x))
                interval = np.nanmin([own[0], interval[0]]), np.nanmax([own[1], interval[1]])
            low, high = np.clip(interval, least, most)
            return Measurement(metric, name, value, low, high, direction=direction, how=f"{how}; {on}")

        yield measured("RBF-MMD", lambda u, v: distributions.rbf_mmd(u, v, width), "lower",
                       f"unbiased, bandwidth {width:.3g} (median distance of real scans)")  # fmt: skip
        if effort.relabellings and n >= NEEDS["RBF-MMD p"][0]:
            p = distributions.rbf_mmd_p(x, z, width, rng, effort.relabellings)
            yield Measurement("RBF-MMD p", name, p, direction="higher",
                              how=f"permutation test, {effort.relabellings} relabellings; {on}")  # fmt: skip
        yield measured("Fréchet distance", distributions.frechet, "lower", "Gaussians fitted to the features, SVD form")
        yield measured("trace ratio", distributions.trace_ratio, "floor",
                       "total variance over real scans'; 0 is collapse")  # fmt: skip
        k = neighbours(n)
        for metric in (name for name in OF_NEIGHBOURS if n >= NEEDS[name][0]):
            direction, most = ("floor", np.inf) if metric == "density" else ("higher", 1.0)
            yield measured(metric, lambda u, v, m=metric: distributions.neighbourhoods(u, v, k)[m], direction,
                           f"{k} nearest neighbours", most)  # fmt: skip
        if n < NEEDS["classifier AUC"][0]:
            return
        how = f"support vector machine, Gaussian kernel, 5 folds, {FOLDINGS} times; 0.5, or less with few scans, "
        auc = _mean_auc(x, z, seed, effort)
        yield Measurement("classifier AUC", name, *auc, how=f"{how}is not told apart; {on}")

    return family


def neighbours(n: int) -> int:
    """How many neighbours a neighbourhood reaches to: few enough that real scans do not all lie in each other's."""
    return max(1, round(np.sqrt(n) / 2))


def _mean_auc(x: np.ndarray, z: np.ndarray, seed: int, effort: Effort) -> tuple[float, float, float]:
    """AUC of all foldings, and its interval: as wide as the first folding's, and again as wide as foldings differ."""
    _, low, high = first = distributions.classifier_auc(x, z, seed, effort.resamples)
    aucs = [first[0], *(distributions.classifier_auc(x, z, seed + k, 0)[0] for k in range(1, effort.foldings))]
    auc, reach = float(np.mean(aucs)), 2 * float(np.std(aucs))
    low, high = np.clip((low - first[0] + auc - reach, high - first[0] + auc + reach), 0, 1)
    return auc, min(float(low), auc), max(float(high), auc)


def spectrum(box: embeddings.Box) -> Family:
    """Power of other scans over real ones' in bands of wavelengths (Durall et al. 2020, CVPR, 7890).

    Blur takes it from the short waves, noise and mosaics give them too much.
    """
    powers = embeddings.powers(box)

    def family(real: Sample, other: Sample, rng: np.random.Generator, effort: Effort = FULL) -> Iterator[Measurement]:
        x, z = (side.features("spectrum", powers) for side in (real, other))
        how = f"mean power of the brain box over real scans'; wavelengths in voxels; {NORMALISED}"
        for place, band in enumerate(embeddings.BANDS):
            u, v = x[:, place], z[:, place]
            value = _ratio(u, v)
            interval = intervals.of_halves(_ratio, u, v, value, rng, effort.halves, least=0.0)
            yield Measurement("power ratio", band, value, *interval, direction="floor", how=how)

    return family


def _ratio(real: np.ndarray, other: np.ndarray) -> float:
    return float(other.mean() / max(real.mean(), 1e-12))


class Instrument(Protocol):
    """Reads attributes off cubes in [-1, 1], (N, 1, S, S, S) -> (N, K): a linear gauge, or a segmentation network."""

    @property
    def names(self) -> tuple[str, ...]:
        """What is read, with units."""
        ...

    def __call__(self, cubes: Tensor) -> Tensor:
        """Read."""
        ...


class Reader(Instrument, Protocol):
    """An instrument with features of its own, as :class:`labkit.evidence.segmentation.reader.Reader` is."""

    features: embeddings.Embedding


def anatomy(gauge: Instrument, spread: np.ndarray, quality: dict[str, str], key: str = "anatomy") -> Family:
    """Attributes read off the voxels: standardised difference of means, and distance of distributions.

    Parameters
    ----------
    gauge : Instrument
        For :attr:`Sample.normalised` cubes brought to [-1, 1]; readings are kept with a sample under `key`.
    spread : numpy.ndarray
        (K,), standard deviations of real animals.
    quality : dict of str to str
        How each attribute is read, and how well, in words.
    """
    from scipy.stats import wasserstein_distance

    def cohens_d(u: np.ndarray, v: np.ndarray) -> float:
        return float((v.mean() - u.mean()) / max(np.sqrt((u.var(ddof=1) + v.var(ddof=1)) / 2), 1e-12))

    statistics = (("Cohen's d", cohens_d, "floor", -np.inf), ("Wasserstein", wasserstein_distance, "lower", 0.0))

    def family(real: Sample, other: Sample, rng: np.random.Generator, effort: Effort = FULL) -> Iterator[Measurement]:
        x, z = (read(gauge, side, key) / spread for side in (real, other))
        for place, attribute in enumerate(gauge.names):
            u, v = x[:, place], z[:, place]
            how = f"read {quality[attribute]}, in standard deviations of real animals; {NORMALISED}"
            for metric, statistic, direction, least in statistics:
                value = float(statistic(u, v))
                interval = intervals.of_halves(statistic, u, v, value, rng, effort.halves, least)
                yield Measurement(metric, attribute, value, *interval, direction=direction, how=how)

    return family


def read(gauge: Instrument, sample: Sample, key: str = "anatomy") -> np.ndarray:
    """Attributes of a sample, (N, K), each in its unit."""
    return sample.features(key, lambda cubes: gauge(cubes * 2 - 1).double().numpy())


def reconstruction(real: Sample, back: Sample) -> Iterator[Measurement]:
    """Paired measures of scans and their own reconstructions, each with its floor: the mean of the other scans."""
    x, y = real.scanned, back.scanned
    others = (x.sum(0, keepdim=True) - x) / max(1, len(x) - 1)
    own = np.arange(len(x))
    how = "scan against its own reconstruction; floor: the mean of the other scans in its place; [0, 1]"
    for name, measure, direction in (*ERRORS, ("SSIM", similarity.ssim, "higher")):
        found = []
        for other in (y, others):
            values = _over_pairs(measure, x, other, own, own)
            interval = intervals.of_mean(values)
            found.append(Measurement(name, "reconstruction", values.mean(), *interval, direction=direction, how=how))
        yield found[0].beside(found[1], len(x))
