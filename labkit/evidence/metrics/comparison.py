"""One table: every measure of a synthetic cohort against a real one, with its interval and its floor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from labkit.data.cohort import Cohort
from labkit.data.file_template import written_range
from labkit.evidence.metrics import embeddings, measures, memorisation
from labkit.evidence.metrics.measures import FULL, NEIGHBOURS, NONE
from labkit.evidence.metrics.yardstick import Yardstick, check_grid
from labkit.evidence.sample import Sample
from labkit.files import progress_bar

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
AUDITED = ("synthetic", "30 % copies planted", "one copy planted")
"""What is searched for copies: the generator's scans, and positive controls."""


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
    ratios (:mod:`labkit.evidence.metrics.intervals`). The audit for copies takes all scans there are.

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
    check_synthetic(real, synthetic)
    if reconstructions is not None:
        check_reconstructions(real, reconstructions)
    yardstick = Yardstick(real, len(synthetic), train, seed, size, medicalnet)
    return Comparison(yardstick, synthetic, real, reconstructions).table()


class Triplet(NamedTuple):
    """A synthetic scan and its neighbours, (S, S, S) in [0, 1], and the neighbours' distances."""

    synthetic: Tensor
    train: Tensor
    held_out: Tensor
    to_train: float
    to_held_out: float


class Comparison:
    """Synthetic scans beside a yardstick: the table, and what lies behind its numbers.

    Parameters
    ----------
    yardstick : labkit.evidence.metrics.yardstick.Yardstick
        May serve several comparisons.
    synthetic : Cohort
        At least as many scans as the yardstick's A; the audit takes all, the other measures so many.
    real, reconstructions : Cohort, optional
        For the paired measures.

    Attributes
    ----------
    made : labkit.evidence.sample.Sample
        The synthetic scans that are measured.
    """

    def __init__(
        self,
        yardstick: Yardstick,
        synthetic: Cohort,
        real: Cohort | None = None,
        reconstructions: Cohort | None = None,
    ) -> None:
        check_synthetic(yardstick.held_out, synthetic)
        n = len(yardstick.reference)
        if len(synthetic) < n:
            raise ValueError(f"{len(synthetic)} synthetic scans for {n} real ones: generate {n} or more")
        self.yardstick, self.synthetic = yardstick, synthetic
        self._real, self._back = real, reconstructions
        chosen = np.sort(yardstick.rng(0).permutation(len(synthetic))[:n])
        self.made = Sample.of(synthetic.subset(chosen.tolist()), yardstick.size)

    def table(self) -> pd.DataFrame:
        """The table of :func:`compare`."""
        import pandas as pd

        families = self.yardstick.families
        parts: list[Callable[[], Iterator[tuple]]] = [
            lambda f=name: beside_floors(self.yardstick, f, self.made) for name in families
        ]
        if self.yardstick.train is not None:
            parts.append(self._copies)
        if self._back is not None:
            parts.append(self._reconstructions)
        rows = [row for part in progress_bar(parts, "measuring") for row in part()]
        return pd.DataFrame(rows, columns=COLUMNS)

    @cached_property
    def audited(self) -> dict[str, Tensor]:
        """Cubes of all synthetic scans, and of the same with many copies or one planted, which must be found.

        (M, 1, S, S, S), as :attr:`labkit.evidence.sample.Sample.even`.
        """
        scans, train = Sample.of(self.synthetic, self.yardstick.size).even, self.yardstick.teaching.even
        planted = [
            memorisation.plant_copies(scans.numpy(), train.numpy(), self.yardstick.rng(2), share)
            for share in (0.3, 1 / len(scans))
        ]
        return dict(zip(AUDITED, (scans, *map(torch.from_numpy, planted)), strict=True))

    @cached_property
    def audits(self) -> dict[str, memorisation.Audit]:
        """The memorisation audit of each of :attr:`audited`."""
        if self.yardstick.train is None:
            raise ValueError("an audit for copies needs the training scans: pass train")
        box = self.yardstick.box
        train, others = (embeddings.voxels(s.even, box) for s in (self.yardstick.teaching, self.yardstick.everyone))
        return {
            name: memorisation.audit(embeddings.voxels(cubes, box), train, others, self.yardstick.rng(3))
            for name, cubes in self.audited.items()
        }

    def triplets(self, source: str = AUDITED[0], n: int = 4) -> list[Triplet]:
        """The synthetic scans that look most like copies, each with its nearest training and its nearest held-out scan.

        Parameters
        ----------
        source : str
            One of :data:`AUDITED`.
        n : int
            How many, the most suspicious first: by the distance to the nearest held-out over that to the nearest
            training scan.
        """
        audit = self.audits[source]
        order = np.argsort(audit.distances[:, 0] / audit.distances[:, 1])[:n]
        cubes = self.audited[source], self.yardstick.teaching.even, self.yardstick.everyone.even
        return [
            Triplet(*(c[j, 0] for c, j in zip(cubes, (i, *audit.nearest[i]), strict=True)), *audit.distances[i])
            for i in order
        ]

    def _copies(self) -> Iterator[tuple]:
        for flavour, audit in self.audits.items():
            how = f"share nearer to training than to held-out scans, {audit.n} of each"
            found = measures.Found("nearer to training", flavour, audit.share, NONE, "floor", f"{how}; {measures.EVEN}")
            yield _row(found, 0.5, (audit.null_low, audit.null_high), len(self.synthetic))
            how = (
                f"share of {len(self.synthetic)} scans that are nearer to a training scan, relative to the nearest of "
                f"{len(self.yardstick.held_out)} held-out ones, than any held-out animal is; floor: chance"
            )
            found = measures.Found("suspects", flavour, len(audit.suspects) / len(self.synthetic), NONE, "lower",
                                   f"{how}; {measures.EVEN}")  # fmt: skip
            yield _row(found, 1 / (1 + len(self.yardstick.held_out)), NONE, len(self.synthetic))
            how = "test that many animals were copied: all training and held-out scans, relabelled 1000 times"
            found = measures.Found("copies p", flavour, audit.p, NONE, "higher", f"{how}; {measures.EVEN}")
            yield _row(found, 0.5, NONE, len(self.synthetic))

    def _reconstructions(self) -> Iterator[tuple]:
        first = [self._real.subjects.index(subject) for subject in dict.fromkeys(self._real.subjects)]
        scans, made = self._real.subset(first), self._back.subset(first)  # one an animal: more are no witnesses more
        real = Sample.of(scans, self.yardstick.size)
        back = Sample.of(made, self.yardstick.size, [written_range(scan) for scan in scans])
        for found, floor in measures.reconstruction(real, back, self.yardstick.rng(4)):
            yield _row(found, *floor, len(real))

    def similar_pairs(self, count: int = FULL.pairs) -> dict[str, np.ndarray]:
        """MS-SSIM of single pairs, (count,) each: ``synthetic`` among themselves, and ``real and synthetic``."""
        return _similar(self.yardstick, self.made, count, ("synthetic", "real and synthetic"))

    def anatomy(self) -> pd.DataFrame:
        """Attributes of the single scans as read off their voxels, one column each, in their units."""
        return anatomy(self.yardstick, self.made)


def anatomy(yardstick: Yardstick, sample: Sample) -> pd.DataFrame:
    """Attributes of a sample's scans as the yardstick's gauge reads them off their voxels, one column each."""
    import pandas as pd

    return pd.DataFrame(measures.read(yardstick.gauge, sample), columns=list(yardstick.gauge.names))


def real_pairs(yardstick: Yardstick, count: int = FULL.pairs) -> np.ndarray:
    """MS-SSIM of single pairs of real scans, (count,); empty where the cubes are too small for three scales."""
    return _similar(yardstick, yardstick.other, count, ("real", ""))["real"]


def _similar(yardstick: Yardstick, sample: Sample, count: int, names: tuple[str, str]) -> dict[str, np.ndarray]:
    if "MS-SSIM" not in yardstick.families:
        return dict.fromkeys(names, np.zeros(0))
    rng = yardstick.rng_of("MS-SSIM").spawn(2)[0]  # that of the table, so that figure and table are of the same pairs
    pairs = measures.similar_pairs(yardstick.reference, sample, yardstick.box, rng, count)
    return {name: part.right for name, part in zip(names, pairs, strict=True)}


def beside_floors(yardstick: Yardstick, family: str, sample: Sample) -> Iterator[tuple]:
    """Rows, as :data:`COLUMNS` has them, of one family's measures of a sample beside their floors."""
    for value, floor in zip(yardstick.found(family, sample), yardstick.floors(family), strict=True):
        yield _row(value, floor.value, floor.interval, len(sample))


def _row(found: measures.Found, floor: float, floor_interval: tuple[float, float], n: int) -> tuple:
    return (
        found.metric, found.flavour, float(found.value), *found.interval, float(floor), *floor_interval, n,
        found.direction, found.how,
    )  # fmt: skip


def check_synthetic(real: Cohort, synthetic: Cohort) -> None:
    """Refuse too few synthetic scans, or ones on another grid."""
    if len(synthetic) <= NEIGHBOURS:
        raise ValueError(f"too few scans: {len(synthetic)} synthetic ones, needed are {NEIGHBOURS + 1} or more")
    check_grid(real, synthetic, "synthetic")


def check_reconstructions(real: Cohort, back: Cohort) -> None:
    """Refuse reconstructions of other scans than `real`."""
    check_grid(real, back, "reconstructed")
    if back.subjects != real.subjects:
        raise ValueError("reconstructions are not of the real scans, one of each in the same order")
