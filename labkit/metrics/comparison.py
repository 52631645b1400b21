"""One table: every measure of a synthetic cohort against a real one, with its interval and its floor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from labkit import attributes
from labkit.cohort import Cohort
from labkit.likeness import written_range
from labkit.metrics import embeddings, measures, memorisation
from labkit.metrics.measures import FULL, NEIGHBOURS, NONE, Effort, Family
from labkit.metrics.sample import Sample
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
SMALLEST_BOX = 25
"""Voxels along a side that three scales of MS-SSIM need."""

AUDITED = ("synthetic", "30 % copies planted")


def compare(
    real: Cohort,
    synthetic: Cohort,
    train: Cohort | None = None,
    reconstructions: Cohort | None = None,
    seed: int = 0,
    size: int = 64,
    medicalnet: str | os.PathLike | None = None,
) -> pd.DataFrame:
    """Measure how real synthetic scans are.

    Real scans are parted into two disjoint sets A and B of n animals' scans; n is as large as half the real scans and
    the synthetic ones allow. Values are of n synthetic scans against A, floors of B against A, so that a value at its
    floor is as good as real. Intervals are by bootstrap over animals for means, from random halves for distances and
    ratios (:mod:`labkit.metrics.intervals`).

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
    medicalnet : path, optional
        A MedicalNet weight file (``resnet_10.pth``, say) on this machine: its features become a third embedding.

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
    return Comparison(real, synthetic, train, reconstructions, seed, size, medicalnet).table()


class Comparison:
    """What :func:`compare` measures with: the samples, the measures, and on request more than one number each.

    Parameters are those of :func:`compare`.

    Attributes
    ----------
    reference, other, made : labkit.metrics.sample.Sample
        Real scans A and B, and synthetic ones, n each.
    families : dict of str to callable
        The measures (:mod:`labkit.metrics.measures`).
    box : tuple of slice
        The brain box of the real scans, in the cube.
    """

    def __init__(
        self,
        real: Cohort,
        synthetic: Cohort,
        train: Cohort | None = None,
        reconstructions: Cohort | None = None,
        seed: int = 0,
        size: int = 64,
        medicalnet: str | os.PathLike | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        scans = _one_scan_an_animal(real)
        n = min(len(scans) // 2, len(synthetic))
        _check(scans, synthetic, train, reconstructions, real, n)
        self.seed, self.size, self.train = seed, size, train
        self._real, self._back = real, reconstructions
        order = rng.permutation(len(scans))
        self.parts = tuple(scans.subset(np.sort(order[k * n : (k + 1) * n]).tolist()) for k in (0, 1))
        self.chosen = synthetic.subset(np.sort(rng.permutation(len(synthetic))[:n]).tolist())
        self.reference, self.other, self.made = (Sample.of(part, size) for part in (*self.parts, self.chosen))
        self.held_out = scans
        self.box = embeddings.brain_box(train or scans, size)
        self.families = self._families(medicalnet)

    @cached_property
    def teaching(self) -> Sample:
        """The scans that embeddings and gauges are learned from: the training scans, or without them A and B."""
        return Sample.of(self.train or self.held_out, self.size)

    def _families(self, medicalnet: str | os.PathLike | None) -> dict[str, Family]:
        found: dict[str, Family] = {"paper": measures.paper}
        if min(part.stop - part.start for part in self.box) >= SMALLEST_BOX:
            found["MS-SSIM"] = measures.similarities(self.box)
        embedded = {
            "PCA": embeddings.pca(self.teaching.even, self.box),
            "regions": embeddings.regions(self.box),
        }
        if medicalnet is not None:
            embedded["MedicalNet"] = embeddings.medicalnet(medicalnet, self.box)
        found |= {name: measures.distribution(name, embed, self.seed) for name, embed in embedded.items()}
        return found | {"anatomy": measures.anatomy(self.gauge, self._gauge_quality())}

    @cached_property
    def gauge(self) -> attributes.Gauge:
        """Reads attributes off :attr:`~labkit.metrics.sample.Sample.even` cubes in [-1, 1]."""
        return attributes.Gauge.fit(self.teaching.even * 2 - 1, _attributes(self.train or self.held_out))

    def _gauge_quality(self) -> dict[str, str]:
        gauge = self.gauge
        if self.train is None:
            return dict.fromkeys(gauge.names, "the gauge learned from these real scans themselves")
        sides = self.reference, self.other
        tables = [_attributes(part) for part in self.parts]
        shares = [gauge.r2(side.even * 2 - 1, table) for side, table in zip(sides, tables, strict=True)]
        mean = sum(shares) / 2
        return {name: f"R² {mean[name]:.2f} on the real scans, which it did not learn from" for name in mean.index}

    def rng(self, *key: int) -> np.random.Generator:
        """Chance for one measure: the same for values and floors, so that they differ by the scans alone."""
        return np.random.default_rng([self.seed, *key])

    def found(self, family: str, sample: Sample, effort: Effort = FULL) -> list[measures.Found]:
        """One family's measures of `sample` against the reference A."""
        place = list(self.families).index(family)
        return list(self.families[family](self.reference, sample, self.rng(1, place), effort))

    def table(self) -> pd.DataFrame:
        """The table of :func:`compare`."""
        import pandas as pd

        parts: list[Callable[[], Iterator[tuple]]] = [lambda f=name: self._beside_floors(f) for name in self.families]
        if self.train is not None:
            parts.append(self._copies)
        if self._back is not None:
            parts.append(self._reconstructions)
        rows = [row for part in progress_bar(parts, "measuring") for row in part()]
        return pd.DataFrame(rows, columns=COLUMNS)

    def _beside_floors(self, family: str) -> Iterator[tuple]:
        for value, floor in zip(self.found(family, self.made), self.found(family, self.other), strict=True):
            yield _row(value, floor.value, floor.interval, len(self.made))

    @cached_property
    def audits(self) -> dict[str, memorisation.Audit]:
        """The memorisation audit of the synthetic scans, and of the same with copies planted, which it has to catch."""
        if self.train is None:
            raise ValueError("an audit for copies needs the training scans: pass train")
        rng, held_out = self.rng(2), Sample.of(self.held_out, self.size)
        scans, train, others = (self._small(sample) for sample in (self.made, self.teaching, held_out))
        planted = memorisation.plant_copies(scans, train, rng)
        return {
            name: memorisation.audit(voxels, train, others, rng)
            for name, voxels in zip(AUDITED, (scans, planted), strict=True)
        }

    def _small(self, sample: Sample) -> np.ndarray:
        return embeddings.voxels(sample.even, self.box)

    def _copies(self) -> Iterator[tuple]:
        for flavour, audit in self.audits.items():
            how = f"share nearer to training than to held-out scans, {audit.n} of each"
            found = measures.Found("nearer to training", flavour, audit.share, NONE, "floor", f"{how}; {measures.EVEN}")
            yield _row(found, 0.5, (audit.null_low, audit.null_high), len(self.made))
            how = "test that no training animal was copied, all training and held-out scans, relabelled 1000 times"
            found = measures.Found("copies p", flavour, audit.p, NONE, "higher", f"{how}; {measures.EVEN}")
            yield _row(found, 0.5, NONE, len(self.made))

    def _reconstructions(self) -> Iterator[tuple]:
        real = Sample.of(self._real, self.size)
        back = Sample.of(self._back, self.size, [written_range(scan) for scan in self._real])
        for found, floor in measures.reconstruction(real, back, self.rng(3)):
            yield _row(found, *floor, len(real))

    def similar_pairs(self, count: int = 120) -> dict[str, np.ndarray]:
        """MS-SSIM of single pairs, (count,) each: ``real``, ``synthetic``, and ``real and synthetic``."""
        if "MS-SSIM" not in self.families:
            return {}
        made, between = measures.similar_pairs(self.reference, self.made, self.box, self.rng(4), count)
        real, _ = measures.similar_pairs(self.reference, self.reference, self.box, self.rng(4), count)
        return {"real": real.right, "synthetic": made.right, "real and synthetic": between.right}

    def anatomy(self) -> pd.DataFrame:
        """Attributes of single scans as read off their voxels: column ``source`` (real, synthetic) and one each."""
        import pandas as pd

        gauge = self.gauge
        tables = [
            pd.DataFrame(measures.read(gauge, sample), columns=list(gauge.names)).assign(source=source)
            for sample, source in ((self.reference, "real"), (self.other, "real"), (self.made, "synthetic"))
        ]
        return pd.concat(tables, ignore_index=True)


def _row(found: measures.Found, floor: float, floor_interval: tuple[float, float], n: int) -> tuple:
    return (
        found.metric, found.flavour, float(found.value), *found.interval, float(floor), *floor_interval, n,
        found.direction, found.how,
    )  # fmt: skip


def _attributes(scans: Cohort) -> pd.DataFrame:
    return attributes.measure(scans).join(attributes.tissues(scans))


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
