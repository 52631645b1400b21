"""One table: every measure of a synthetic cohort against a real one, with its interval and its floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from labkit import attributes, volumes
from labkit.cohort import Cohort
from labkit.metrics import distributions, embeddings, memorisation, paired, similarity
from labkit.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [
    "metric",
    "flavour",
    "value",
    "ci_low",
    "ci_high",
    "floor",
    "floor_low",
    "floor_high",
    "n",
    "direction",
    "how",
]
PAIRS = 120
"""Pairs of scans an MS-SSIM is taken over, of each kind."""

HALVES = 60
"""Halves of the scans from which an interval is taken."""

REPEATS = 10
"""Draws of random partners in the paper's protocol."""

NEIGHBOURS = 5


class Row(NamedTuple):
    """A line of the table without its floor's interval worked out."""

    metric: str
    flavour: str
    value: float
    interval: tuple[float, float]
    floor: float
    floor_interval: tuple[float, float]
    n: int
    direction: str
    how: str


@dataclass(frozen=True)
class _Side:
    """Scans as the measures take them: [0, 1], cubes (N, 1, S, S, S) and their 40 scanned slices."""

    cubes: Tensor
    shape: tuple[int, int, int]

    @property
    def scanned(self) -> Tensor:
        side, size = volumes.cube_side(self.shape), self.cubes.shape[-1]
        slices = [
            slice(before * size // side, (before + extent) * size // side)
            for (before, _), extent in zip(volumes.padding(self.shape, side), self.shape, strict=True)
        ]
        return self.cubes[(slice(None), slice(None), *slices)]

    def take(self, index: np.ndarray) -> _Side:
        return _Side(self.cubes[torch.from_numpy(np.asarray(index))], self.shape)

    def __len__(self) -> int:
        return len(self.cubes)


def compare(
    real: Cohort,
    synthetic: Cohort,
    train: Cohort | None = None,
    reconstructions: Cohort | None = None,
    seed: int = 0,
    size: int = 64,
) -> pd.DataFrame:
    """Measure how real synthetic scans are.

    Real scans are parted into two disjoint sets A and B of n animals' scans; n is as large as half the real scans and
    the synthetic ones allow. Values are of n synthetic scans against A, floors of B against A, so that a value at its
    floor is as good as real. Intervals of distances and ratios come from :data:`HALVES` random halves of the scans
    (delete-half jackknife, Shao and Wu 1989: a half has the spread about the whole that the whole has about the truth),
    those of means over pairs and repeats from a bootstrap over scans.

    Parameters
    ----------
    real : Cohort
        Best held-out scans; at least 12 animals, one scan each is taken.
    synthetic : Cohort
        At least 6, on the same grid.
    train : Cohort, optional
        What the generator was trained on; with it copies are looked for (`real` has then to be held out).
    reconstructions : Cohort, optional
        Of `real`, scan by scan, for the paired measures.
    seed : int
        Of the parting, of pairs, resampling and folds.
    size : int
        Side of the cubes, voxels; 64 is the study's own, 32 is quicker.

    Returns
    -------
    pandas.DataFrame
        A row a statistic. ``metric``, ``flavour``, ``value``, ``ci_low``, ``ci_high``, ``floor``, ``floor_low``,
        ``floor_high``, ``n``, ``direction`` (``lower``, ``higher`` or ``floor``: which way is better, the last where
        only nearness to the floor is) and ``how``, every choice in words.

    Raises
    ------
    ValueError
        Too few scans, other grids, training animals among the real ones, or reconstructions of other scans.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    real_scans = _one_scan_an_animal(real)
    n = min(len(real_scans) // 2, len(synthetic))
    _check(real_scans, synthetic, train, reconstructions, real, n)
    order = rng.permutation(len(real_scans))
    sides = [_side(real_scans.subset(np.sort(order[k * n : (k + 1) * n]).tolist()), size) for k in (0, 1)]
    made = _side(synthetic.subset(np.sort(rng.permutation(len(synthetic))[:n]).tolist()), size)
    box = embeddings.brain_box(train or real_scans, size)
    teaching = train.volumes(size) if train else torch.cat([side.cubes * 2 - 1 for side in sides])
    parts: list[Callable[[], Iterator[Row]]] = [
        lambda: _paper(*sides, made, rng),
        lambda: _similarity(*sides, made, box, rng),
        lambda: _distributions("PCA", embeddings.pca((teaching + 1) / 2, box), *sides, made, rng, seed),
        lambda: _distributions("regions", embeddings.regions(box), *sides, made, rng, seed),
        lambda: _anatomy(train or real_scans, *sides, made, rng, size),
    ]
    if train is not None:
        held = _side(real_scans, size)
        parts.append(lambda: _copies(made, (teaching + 1) / 2, held, box, rng))
    if reconstructions is not None:
        parts.append(lambda: _pairs(_side(real, size), _side(reconstructions, size), rng))
    rows = [row for part in progress_bar(parts, "measuring") for row in part()]
    flat = [
        (r.metric, r.flavour, r.value, *r.interval, r.floor, *r.floor_interval, r.n, r.direction, r.how) for r in rows
    ]
    return pd.DataFrame(flat, columns=COLUMNS)


def _one_scan_an_animal(cohort: Cohort) -> Cohort:
    first: dict[str, int] = {}
    for index, subject in enumerate(cohort.subjects):
        first.setdefault(subject, index)
    return cohort if len(first) == len(cohort) else cohort.subset(first.values())


def _check(
    real: Cohort, synthetic: Cohort, train: Cohort | None, back: Cohort | None, all_real: Cohort, n: int
) -> None:
    if n <= NEIGHBOURS:
        raise ValueError(
            f"too few scans: {len(real)} real animals and {len(synthetic)} synthetic scans; needed are 12 and 6 or more"
        )
    for name, other in (("synthetic", synthetic), ("training", train), ("reconstructed", back)):
        if other is not None and other.shape != real.shape:
            raise ValueError(f"{name} scans have {other.shape} voxels, real ones {real.shape}: open both on one grid")
    if train is not None and (shared := set(train.digests) & set(real.digests)):
        raise ValueError(f"{len(shared)} of the real scans were trained on: pass held-out ones as real")
    if back is not None and back.subjects != all_real.subjects:
        raise ValueError("reconstructions are not of the real scans, one of each in the same order")


def _side(cohort: Cohort, size: int) -> _Side:
    return _Side((cohort.volumes(size) + 1) / 2, cohort.shape)


def _halves(
    statistic: Callable, x: np.ndarray, y: np.ndarray, value: float, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % interval of a statistic of two sets from random halves of both."""
    found = []
    for _ in range(HALVES):
        first, second = (v[rng.permutation(len(v))[: max(NEIGHBOURS + 1, len(v) // 2)]] for v in (x, y))
        found.append(statistic(first, second))
    # a half is biased as small samples are, and so only its spread is used
    low, high = np.quantile(np.array(found) - np.mean(found), (0.025, 0.975))
    return float(value + min(low, 0)), float(value + max(high, 0))


def _mean_interval(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """95 % interval of a mean by bootstrap."""
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(500)]
    return tuple(float(q) for q in np.quantile(means, (0.025, 0.975)))


def _paper(a: _Side, b: _Side, made: _Side, rng: np.random.Generator) -> Iterator[Row]:
    """The paper's protocol: every real scan against a random synthetic one, repeated; mean over repeats."""
    n = len(made)

    def repeats(measure: Callable, x: Tensor, y: Tensor) -> np.ndarray:
        return np.array([float(measure(x, y[torch.from_numpy(rng.permutation(n))]).mean()) for _ in range(REPEATS)])

    how = f"unpaired: each real scan against a random other, mean of {REPEATS} repeats; [0, 1]; cannot see collapse"
    measures = {
        "PSNR": (paired.psnr, "higher"), "RMSE": (paired.rmse, "lower"), "MAE": (paired.mae, "lower"),
        "NCC": (paired.ncc, "higher"),
    }  # fmt: skip
    for name, (measure, direction) in measures.items():
        for flavour in ("paper", "released"):
            padded = flavour == "released" and name in ("MAE", "NCC")
            views = [side.cubes if padded else side.scanned for side in (a, b, made)]
            value, floor = repeats(measure, views[0], views[2]), repeats(measure, views[0], views[1])
            grid = "padded cube, zeros included" if padded else "the 40 scanned slices"
            yield Row(name, flavour, value.mean(), _mean_interval(value, rng), floor.mean(),
                      _mean_interval(floor, rng), n, direction, f"{how}; {grid}")  # fmt: skip
    flat = [side.scanned.flatten(1).numpy() for side in (a, b, made)]
    value, floor = (distributions.linear_mmd(flat[0], other) for other in (flat[2], flat[1]))
    intervals = [_halves(distributions.linear_mmd, flat[0], o, v, rng) for o, v in ((flat[2], value), (flat[1], floor))]
    for flavour in ("paper", "released"):  # the same formula in both
        yield Row("MMD", flavour, value, intervals[0], floor, intervals[1], n, "lower",
                  "linear kernel on the 40 slices' voxels: squared distance of means; cannot see collapse")  # fmt: skip


def _similarity(a: _Side, b: _Side, made: _Side, box: tuple[slice, ...], rng: np.random.Generator) -> Iterator[Row]:
    """MS-SSIM within and between cohorts."""
    if min(part.stop - part.start for part in box) < 25:
        return  # three scales do not fit
    views = [side.cubes[(slice(None), slice(None), *box)] for side in (a, b, made)]
    n = len(made)

    def of(measure: Callable, x: Tensor, y: Tensor, pairs: np.ndarray) -> np.ndarray:
        return measure(x[torch.from_numpy(pairs[:, 0])], y[torch.from_numpy(pairs[:, 1])]).numpy()

    within = similarity.pairs_within(n, PAIRS, rng)
    across = similarity.pairs_between(n, n, PAIRS, rng)
    how = f"{len(within)} unordered pairs; 3 scales, kernel 7, weights renormalised, brain box; [0, 1]"
    for flavour, measure in (("paper", similarity.ms_ssim), ("released", similarity.released_ms_ssim)):
        value, floor = of(measure, views[2], views[2], within), of(measure, views[0], views[0], within)
        yield Row("MS-SSIM", flavour, value.mean(), _mean_interval(value, rng), floor.mean(),
                  _mean_interval(floor, rng), n, "floor", f"synthetic pairs; floor: real pairs; {how}")  # fmt: skip
    value = of(similarity.ms_ssim, views[0], views[2], across)
    floor = of(similarity.ms_ssim, views[0], views[1], across)
    yield Row("MS-SSIM", "real-synthetic", value.mean(), _mean_interval(value, rng), floor.mean(),
              _mean_interval(floor, rng), n, "floor", f"real with synthetic; floor: real with real; {how}")  # fmt: skip


def _distributions(
    name: str,
    embed: embeddings.Embedding,
    a: _Side,
    b: _Side,
    made: _Side,
    rng: np.random.Generator,
    seed: int,
) -> Iterator[Row]:
    """Distances, neighbourhoods and spread on one embedding."""
    x, y, z = (embed(side.cubes) for side in (a, b, made))
    n, width = len(z), distributions.median_distance(x)
    on = f"{name}, {x.shape[1]} features of the brain box"

    def rows(metric: str, statistic: Callable, direction: str, how: str, most: float = np.inf) -> Row:
        least = -np.inf if metric == "RBF-MMD" else 0.0  # an unbiased estimate may be below 0, nothing else here may
        value, floor = statistic(x, z), statistic(x, y)
        intervals = (_halves(statistic, x, other, seen, rng) for other, seen in ((z, value), (y, floor)))
        value_in, floor_in = (tuple(float(np.clip(end, least, most)) for end in interval) for interval in intervals)
        return Row(metric, name, value, value_in, floor, floor_in, n, direction, f"{how}; {on}")

    yield rows("RBF-MMD", lambda u, v: distributions.rbf_mmd(u, v, width), "lower",
               f"unbiased, bandwidth {width:.3g} (median distance of real scans)")  # fmt: skip
    p, floor = (distributions.rbf_mmd_p(x, other, width, rng) for other in (z, y))
    nothing = (float("nan"),) * 2
    yield Row("RBF-MMD p", name, p, nothing, floor, nothing, n, "higher", f"permutation test, 500 relabellings; {on}")
    yield rows("Fréchet distance", distributions.frechet, "lower", "Gaussians fitted to the features, SVD form")
    yield rows("trace ratio", distributions.trace_ratio, "floor", "total variance, synthetic over real; 0 is collapse")
    for metric in ("precision", "recall", "density", "coverage"):
        yield rows(metric, lambda u, v, m=metric: distributions.neighbourhoods(u, v, NEIGHBOURS)[m], "higher",
                   f"{NEIGHBOURS} nearest neighbours", np.inf if metric == "density" else 1.0)  # fmt: skip
    auc, low, high = distributions.classifier_auc(x, z, seed)
    floor, floor_low, floor_high = distributions.classifier_auc(x, y, seed)
    yield Row("classifier AUC", name, auc, (low, high), floor, (floor_low, floor_high), n, "lower",
              f"support vector machine, Gaussian kernel, 5 folds; 0.5 is not told apart; {on}")  # fmt: skip


def _anatomy(teaching: Cohort, a: _Side, b: _Side, made: _Side, rng: np.random.Generator, size: int) -> Iterator[Row]:
    """Attributes read off the voxels: standardised difference of means, and distance of distributions."""
    from scipy.stats import wasserstein_distance

    gauge = attributes.Gauge.fit(teaching.volumes(size), attributes.measure(teaching))
    x, y, z = (gauge(side.cubes * 2 - 1).numpy() / gauge.spread.numpy() for side in (a, b, made))

    def cohens_d(u: np.ndarray, v: np.ndarray) -> float:
        return float((v.mean() - u.mean()) / np.sqrt((u.var(ddof=1) + v.var(ddof=1)) / 2))

    for place, attribute in enumerate(gauge.names):
        u, v, w = x[:, place], y[:, place], z[:, place]
        for metric, statistic, direction in (
            ("Cohen's d", cohens_d, "floor"), ("Wasserstein", wasserstein_distance, "lower")
        ):  # fmt: skip
            value, floor = float(statistic(u, w)), float(statistic(u, v))
            yield Row(metric, attribute, value, _halves(statistic, u, w, value, rng), floor,
                      _halves(statistic, u, v, floor, rng), len(w), direction,
                      "read off the voxels by ridge regression, in standard deviations of real rats")  # fmt: skip


def _copies(made: _Side, train: Tensor, held: _Side, box: tuple[slice, ...], rng: np.random.Generator) -> Iterator[Row]:
    """The memorisation audit, and the same with copies planted, which it has to catch."""
    view = (slice(None), slice(None), *box)
    factor = max(1, made.cubes.shape[-1] // embeddings.SIDE)
    z, x, y = (
        torch.nn.functional.avg_pool3d(cubes[view], factor, ceil_mode=True).flatten(1).numpy()
        for cubes in (made.cubes, train, held.cubes)
    )
    nothing = (float("nan"),) * 2
    planted = memorisation.plant_copies(z, x, rng)
    for flavour, scans in (("synthetic", z), ("30 % copies planted", planted)):
        found = memorisation.audit(scans, x, y, rng)
        n = min(len(x), len(y))
        how = f"nearer to training than to held-out scans, {n} of each; p = {found.p:.3f} by relabelling"
        yield Row("nearer to training", flavour, found.share, nothing, 0.5, (found.null_low, found.null_high),
                  len(scans), "floor", how)  # fmt: skip


def _pairs(real: _Side, back: _Side, rng: np.random.Generator) -> Iterator[Row]:
    """Paired measures of reconstructions; their floor is the mean of the other real scans in its place."""
    x, y = real.scanned, back.scanned
    others = (x.sum(0, keepdim=True) - x) / max(1, len(x) - 1)
    for name, measure, direction in (
        ("PSNR", paired.psnr, "higher"), ("RMSE", paired.rmse, "lower"), ("MAE", paired.mae, "lower"),
        ("NCC", paired.ncc, "higher"),
    ):  # fmt: skip
        value, floor = measure(x, y).numpy(), measure(x, others).numpy()
        yield Row(name, "reconstruction", float(value.mean()), _mean_interval(value, rng),
                  float(floor.mean()), _mean_interval(floor, rng), len(x), direction,
                  "scan against its own reconstruction; floor: mean of the other scans; [0, 1]")  # fmt: skip
