"""Real scans to measure others with: a reference, as many other real scans for the floors, and the measures."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch

from labkit.data.cohort import Cohort
from labkit.evidence import attributes
from labkit.evidence.metrics import embeddings, measures, released
from labkit.evidence.metrics.measures import FULL, NEEDS, NEIGHBOURS, Effort, Family, Measurement, Pairs, Reader
from labkit.evidence.sample import Sample, at_resolution, check_grid, one_scan_an_animal
from labkit.files import progress_bar

if TYPE_CHECKING:
    import pandas as pd

Given = TypeVar("Given")
Found = TypeVar("Found")

NETWORK = "network"
RIDGE = "off the voxels by ridge regression"
SMALLEST_BOX = 25
"""Voxels along a side that three scales of MS-SSIM need."""

PARTINGS = 20
"""Of the real animals into A and B, over which values and floors are averaged; each with its mirror image."""

TEACHES = 18
"""Real animals from which on a third of them teaches where there are no training scans."""

ONCE = Effort(pairs=12, repeats=1, halves=0, resamples=0, relabellings=0, foldings=1)
"""Of one parting's share in a mean."""

LEAST_REAL = 4
"""Real animals without which nothing is measured: two sets of two."""

MANY_REAL = 2 * max(scans for scans, _ in NEEDS.values())
"""Real animals from which on no measure is left out, where there are training scans."""


def too_few(animals: int) -> str:
    """What to say of fewer than :data:`LEAST_REAL` held-out animals: what they still allow, and what to do."""
    return (
        f"too few scans: {animals} real animals that no model saw, and measures of distributions need {LEAST_REAL} or "
        f"more, two to measure against and two for the floors; all measures need {MANY_REAL}. Reconstruction errors "
        "(in a run's summary) and pictures (chapters 2, 3 and 6) are still there. Hold more animals out in training "
        "(n_train), or pass scans that were not trained on (for a simulated cohort: 'fresh')"
    )


def side_by_side(function: Callable[[Given], Found], items: Sequence[Given], said: str) -> list[Found]:
    """`function` of each, in order, under a progress bar that says what is done.

    Most measures are small steps on one core: cores that torch does not use take other items meanwhile.
    """
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // torch.get_num_threads())) as pool:
        return list(progress_bar(pool.map(function, items), said, len(items)))


class LeftOut(NamedTuple):
    """A measure that there are too few real animals for.

    Attributes
    ----------
    metric, flavour : str
        As :class:`~labkit.evidence.metrics.measures.Measurement` has them; no metric where it is all of a flavour.
    animals : int
        Real animals that would be enough.
    why : str
        What the measure does that these do not allow; a clause that begins with a verb.
    """

    metric: str
    flavour: str
    animals: int
    why: str

    @property
    def words(self) -> str:
        """What stands in place of its number."""
        return f"needs {self.animals} held-out animals"


class Yardstick:
    """Real scans A to measure against, other real scans B for the floors, and everything learned from real scans.

    Parameters
    ----------
    real : Cohort
        Best held-out scans; at least 4 animals, one scan each is taken. Of fewer than 12 some measures are left out,
        which :attr:`left_out` names.
    n : int, optional
        Animals of A, and of B, 6 or more; default half of them, and where there are not so many, all that there are.
    train : Cohort, optional
        The generator's training scans. Embeddings and gauges are learned from them, so that they owe nothing to the
        scans they are applied to. Without them a third of `real`, which then enters neither A nor B, teaches; with
        fewer than 18 animals nothing is taught, and :attr:`left_out` says which measures that costs.
    seed : int
        Of the parting, and of all chance in the measures.
    size : int
        Side of the cubes, voxels.
    resolution : int, optional
        Side of cubes that every scan, real or not, is averaged to and brought back from before it is measured: that of
        the coarsest generator, or no measure could be passed.
    reader : labkit.evidence.metrics.measures.Reader, optional
        A segmentation network that saw none of `real`: its features are one more embedding, its tissues more anatomy.

    Attributes
    ----------
    parts : (Cohort, Cohort)
        A and B.
    reference, other : labkit.evidence.sample.Sample
        The same as cubes.
    held_out : Cohort
        All of `real`, one scan an animal.
    left_out : tuple of LeftOut
        Measures that there are too few real animals for: to be measured, or to be taught by.
    box : tuple of slice
        The brain box, in the cube.
    families : dict of str to callable
        The measures.
    embedded : dict of str to callable
        The embeddings they use, for features of a :class:`~labkit.evidence.sample.Sample`.

    Raises
    ------
    ValueError
        Too few scans, or some of them were trained on.
    """

    def __init__(
        self,
        real: Cohort,
        n: int | None = None,
        train: Cohort | None = None,
        seed: int = 0,
        size: int = 64,
        reader: Reader | None = None,
        resolution: int | None = None,
    ) -> None:
        self.held_out, self.train, self.seed, self.size = one_scan_an_animal(real), train, seed, size
        self.resolution = min(resolution or size, size)
        order = np.random.default_rng(seed).permutation(len(self.held_out))
        if len(order) < LEAST_REAL:
            raise ValueError(too_few(len(order)))
        if n is not None and n <= NEIGHBOURS:
            raise ValueError(f"too few scans: n={n} of real and of synthetic ones, needed are {NEIGHBOURS + 1} or more")
        taught = len(order) // 3 if train is None and len(order) >= TEACHES else 0
        self._teachers, order = order[:taught], order[taught:]
        n = len(order) // 2 if n is None else min(n, len(order) // 2)
        if train is not None and (shared := set(train.digests) & set(real.digests)):
            raise ValueError(f"{len(shared)} of the real scans were trained on: pass held-out ones as real")
        if train is not None and train.folder == real.folder and (both := set(train.subjects) & set(real.subjects)):
            raise ValueError(
                f"{len(both)} of the real animals were trained on with other scans of theirs (e.g. {sorted(both)[0]}): "
                "pass animals that were held out"
            )
        check_grid(self.held_out, train, "training")
        self._partings = partings(order, n, np.random.default_rng([seed, 1]))
        self.parts = tuple(self.held_out.subset(index.tolist()) for index in self._partings[0])
        self.reference, self.other = (self.everyone.take(index) for index in self._partings[0])
        self.box = embeddings.brain_box(train or self.held_out, size)
        self.reader = reader
        self.families = self._families()
        self.left_out = self._left_out(n)
        self._floors: dict[tuple[str, Effort], list[Measurement]] = {}
        self._mean_floors: dict[str, list[Measurement]] = {}
        self._floors_lock = threading.Lock()

    @property
    def rests_on(self) -> str:
        """How many animals all numbers rest on, in words."""
        n = len(self.reference)
        return f"{len(self.held_out)} real animals that no model saw, {n} of them in A and {n} in B"

    def _left_out(self, n: int) -> tuple[LeftOut, ...]:
        """What sets of `n` animals, and teachers or none, do not allow."""
        found = []
        if self.teaching is None:
            why = "have to be learned from scans that are not measured"
            found += [LeftOut("", flavour, TEACHES, why) for flavour in ("PCA", "anatomy")]
        for metric, (scans, why) in NEEDS.items():
            found += [LeftOut(metric, flavour, 2 * scans, why) for flavour in self.embedded if n < scans]
        return tuple(found)

    def sample(self, scans: Cohort, ranges: Sequence[tuple[float, float]] | None = None) -> Sample:
        """Scans as everything here is measured: cubes of :attr:`size` at :attr:`resolution`."""
        return at_resolution(Sample.of(scans, self.size, ranges), self.resolution)

    @cached_property
    def teaching(self) -> Sample | None:
        """The scans that embeddings and gauges are learned from; None where there are too few animals for any."""
        return None if self._taught is None else self.sample(self._taught)

    @cached_property
    def trained(self) -> Sample:
        """One scan of each training animal: of several scans of one, held-out animals have none beside them.

        Once for all comparisons, and where it can be the very scans that teach: a thousand take a gigabyte.

        Raises
        ------
        ValueError
            Without training scans.
        """
        if self.train is None:
            raise ValueError("an audit for copies needs the training scans: pass train")
        some = one_scan_an_animal(self.train)
        return self.teaching if some is self.train and self.teaching is not None else self.sample(some)

    @property
    def _taught(self) -> Cohort | None:
        if self.train is not None:
            return self.train
        return self.held_out.subset(np.sort(self._teachers).tolist()) if len(self._teachers) else None

    @cached_property
    def everyone(self) -> Sample:
        """All held-out scans, those beyond A and B too."""
        return self.sample(self.held_out)

    @cached_property
    def gauge(self) -> attributes.Gauge:
        """Reads attributes off :attr:`~labkit.evidence.sample.Sample.normalised` cubes in [-1, 1].

        Raises
        ------
        ValueError
            Nothing could be taught.
        """
        if self.teaching is None or self._taught is None:
            raise ValueError(
                f"nothing to learn to read from: pass train, or {TEACHES} real animals or more, where there are "
                f"{len(self.held_out)}"
            )
        return attributes.Gauge.fit(self.teaching.normalised * 2 - 1, _attributes(self._taught))

    def _families(self) -> dict[str, Family]:
        found: dict[str, Family] = {"paper": measures.paper}
        if min(part.stop - part.start for part in self.box) >= SMALLEST_BOX:
            found["MS-SSIM"] = measures.similarities(self.box)
        found["released"] = released.released
        self.embedded = {"regions": embeddings.regions(self.box)}
        if self.teaching is not None:
            self.embedded = {"PCA": embeddings.pca(self.teaching.normalised, self.box), **self.embedded}
        if self.reader is not None:
            self.embedded[NETWORK] = self.reader.features
        found |= {name: measures.distribution(name, embed, self.seed) for name, embed in self.embedded.items()}
        if self.teaching is not None:
            found["anatomy"] = measures.anatomy(self.gauge, self.gauge.spread.double().numpy(), self._gauge_quality())
        if self.reader is not None:
            key = f"{NETWORK} anatomy"
            spread = measures.read(self.reader, self.teaching or self.everyone, key).std(0, ddof=1)
            how = dict.fromkeys(self.reader.names, "by the segmentation network of chapter 5")
            found[key] = measures.anatomy(self.reader, spread, how, key)
        found["spectrum"] = measures.spectrum(self.box)
        return found

    def _gauge_quality(self) -> dict[str, str]:
        gauge = self.gauge
        sides = self.reference, self.other
        tables = [_attributes(part) for part in self.parts]
        mean = sum(gauge.r2(side.normalised * 2 - 1, table) for side, table in zip(sides, tables, strict=True)) / 2
        seen, unseen = f"{RIDGE} with an R² of {{:.2f}} on scans it never saw", f"{RIDGE}, unchecked for want of labels"
        return {name: seen.format(value) if np.isfinite(value) else unseen for name, value in mean.items()}

    def rng(self, *key: int) -> np.random.Generator:
        """Chance for one measure: the same for values and floors, so that they differ by the scans alone."""
        return np.random.default_rng([self.seed, *key])

    def _rng_of(self, family: str) -> np.random.Generator:
        return self.rng(1, list(self.families).index(family))

    def measure(self, family: str, sample: Sample, effort: Effort = FULL) -> list[Measurement]:
        """One family's measures of `sample` against A."""
        return list(self.families[family](self.reference, sample, self._rng_of(family), effort))

    def floors(self, family: str, effort: Effort = FULL) -> list[Measurement]:
        """The same of B against A; computed once."""
        if (family, effort) not in self._floors:
            self._floors[family, effort] = self.measure(family, self.other, effort)
        return self._floors[family, effort]

    def beside_floors(self, family: str, sample: Sample) -> list[Measurement]:
        """One family's measures of `sample`, each beside its floor, both the mean over :data:`PARTINGS` partings.

        A single parting of few animals is an accident. The interval is that of the first parting about the mean; the
        floor's is where 95 % of the partings lie.
        """
        values = [self._values(family, sample, k) for k in range(len(self._partings))]
        with self._floors_lock:  # models are measured side by side, and floors are the same for all
            if family not in self._mean_floors:
                of_real = [self._values(family, self.everyone.take(b), k) for k, (_, b) in enumerate(self._partings)]
                self._mean_floors[family] = [
                    floor if floor.is_p else floor.spread_over([of_one[floor.key] for of_one in of_real])
                    for floor in self.floors(family)
                ]
        pairs = zip(self.measure(family, sample), self._mean_floors[family], strict=True)
        return [
            (value if value.is_p else value.about(float(np.mean([of_one[value.key] for of_one in values])))).beside(
                floor, len(sample)
            )
            for value, floor in pairs
        ]

    def _values(self, family: str, sample: Sample, parting: int) -> dict[tuple[str, str], float]:
        """One family's measures of `sample` against A of one parting, without intervals."""
        reference = self.everyone.take(self._partings[parting][0])
        rng = np.random.default_rng([self.seed, 2, list(self.families).index(family), parting])
        return {found.key: found.value for found in self.families[family](reference, sample, rng, ONCE)}

    def anatomy(self, sample: Sample) -> pd.DataFrame:
        """Attributes of single scans as the gauge reads them off their voxels, one column each, in their units."""
        import pandas as pd

        return pd.DataFrame(measures.read(self.gauge, sample), columns=list(self.gauge.names))

    def similar_pairs(self, sample: Sample, count: int = FULL.pairs) -> tuple[Pairs, Pairs]:
        """MS-SSIM of single pairs within `sample`, and between it and A: those that the table has the mean of.

        Raises
        ------
        ValueError
            The cubes are too small for three scales.
        """
        if "MS-SSIM" not in self.families:
            raise ValueError("MS-SSIM of three scales does not fit cubes of this size: measure at 64 voxels")
        rng = self._rng_of("MS-SSIM").spawn(2)[0]
        return measures.similar_pairs(self.reference, sample, self.box, rng, count)


def partings(animals: np.ndarray, n: int, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of disjoint sets A and B of `n` animals: the first as they stand, others at random, each also reversed.

    Parameters
    ----------
    animals : numpy.ndarray
        (N,) places, at least 2 n of them.
    n : int
        Animals a set.
    rng : numpy.random.Generator
        Of the random ones.
    """
    found: list[tuple[np.ndarray, np.ndarray]] = []
    order = animals
    while len(found) < PARTINGS:
        a, b = np.sort(order[:n]), np.sort(order[n : 2 * n])
        found += [(a, b), (b, a)]
        order = rng.permutation(animals)
    return found


def _attributes(scans: Cohort) -> pd.DataFrame:
    return attributes.measure(scans).join(attributes.tissues(scans))
