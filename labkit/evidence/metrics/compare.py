"""One table: every measure of a synthetic cohort against a real one, with its interval and its floor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from labkit.atlas import AtlasEncoder
from labkit.data.cohort import Cohort
from labkit.data.file_template import made_by_a_generator, written_range
from labkit.evidence.metrics import embeddings, measures, memorisation
from labkit.evidence.metrics.measures import NEIGHBOURS, NORMALISED, Measurement
from labkit.evidence.metrics.yardstick import LeftOut, Yardstick
from labkit.evidence.sample import check_grid, first_scans, one_scan_an_animal
from labkit.files import progress_bar
from labkit.generation import encode, in_batches
from labkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd

PLANTED = "planted"
AUDITED = ("synthetic", f"30 % copies {PLANTED}", f"one copy {PLANTED}")
"""What is searched for copies: the generator's scans, and positive controls."""

MOVED = f"30 % moved copies {PLANTED}"
"""The positive control of an audit that an atlas makes: animals put into the scanner once more."""

VARIANCE = 0.9
"""What the modes hold together that codes are compared by; further ones fit noise, of training animals another one."""


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
    floor is as good as real; both are means over 20 partings. Intervals of values are by bootstrap over animals for
    means, from random halves for distances and ratios (:mod:`labkit.evidence.metrics.intervals`), those of floors where
    95 % of the partings lie. The audit for copies takes all animals there are.

    Parameters
    ----------
    real : Cohort
        Best held-out scans; at least 4 animals, one scan each is taken. Rows that need more animals are left out, with
        a warning that names them: with 12 there are all. Without `train` a third of the animals teaches what principal
        components and readings of anatomy need, if there are 18.
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
        A row a statistic, columns as :class:`~labkit.evidence.metrics.measures.Measurement` has them.

    Raises
    ------
    ValueError
        Too few scans, other grids, training animals among the real ones, reconstructions of other scans, or real and
        synthetic scans in each other's place.

    Examples
    --------
    >>> real, made = labkit.open_cohort("phantom", n=24).split(12)
    >>> table = labkit.compare(real, made, size=32)  # a perfect generator: other rats of the same simulator
    >>> set(table["direction"]) == {"lower", "higher", "floor"}
    True
    """
    if made_by_a_generator(real[0]) and not made_by_a_generator(synthetic[0]):
        raise ValueError(
            "the first scans were made by a generator, as their files say, the second were not: real ones come first"
        )
    check_synthetic(real, synthetic)
    if reconstructions is not None:
        check_grid(real, reconstructions, "reconstructed")
        if reconstructions.subjects != real.subjects:
            raise ValueError("reconstructions are not of the real scans, one of each in the same order")
    yardstick = Yardstick(real, len(synthetic), train, seed, size)
    if yardstick.left_out:
        warnings.warn(f"left out: {missing(yardstick.left_out)}. Measured with {yardstick.rests_on}", stacklevel=2)
    return Comparison(yardstick, synthetic, real, reconstructions).table()


def missing(left_out: Iterable[LeftOut]) -> str:
    """Which measures are left out, why, and what they need, in words: a clause for each reason."""
    by_reason: dict[tuple[str, int, bool], dict[str, None]] = {}
    for one in left_out:
        by_reason.setdefault((one.why, one.animals, not one.metric), {})[one.metric or one.flavour] = None
    clauses = []
    for (why, animals, to_teach), measures_ in by_reason.items():
        *names, last = measures_
        listed = f"{', '.join(names)} and {last}" if names else last
        clauses.append(f"{listed}, which {why}: {'pass train, or ' if to_teach else ''}{animals} real animals or more")
    return "; ".join(clauses)


def check_synthetic(real: Cohort, synthetic: Cohort) -> None:
    """Refuse too few synthetic scans, or ones on another grid."""
    if len(synthetic) <= NEIGHBOURS:
        raise ValueError(f"too few scans: {len(synthetic)} synthetic ones, needed are {NEIGHBOURS + 1} or more")
    check_grid(real, synthetic, "synthetic")


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
    run : labkit.runs.Run, optional
        That made the scans; an atlas's, or one that moves an atlas, looks for copies in its coordinates, too.

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
        run: Run | None = None,
    ) -> None:
        check_synthetic(yardstick.held_out, synthetic)
        if reconstructions is not None and real is None:
            raise ValueError("reconstructions without the scans that they are of: pass real")
        n = len(yardstick.reference)
        if len(synthetic) < n:
            raise ValueError(f"{len(synthetic)} synthetic scans for {n} real ones: generate {n} or more")
        self.yardstick, self.synthetic = yardstick, synthetic
        self._real, self._back, self._run = real, reconstructions, run
        chosen = np.sort(yardstick.rng(0).permutation(len(synthetic))[:n])
        self.made = yardstick.sample(synthetic.subset(chosen.tolist()))

    def table(self) -> pd.DataFrame:
        """The table of :func:`compare`."""
        import pandas as pd

        parts: list[Callable[[], Iterable[Measurement]]] = [
            partial(self.yardstick.beside_floors, family, self.made) for family in self.yardstick.families
        ]
        parts += [self._copies, self._reconstructions]
        rows = [row for part in progress_bar(parts, "measuring") for row in part()]
        return pd.DataFrame(rows, columns=Measurement._fields)

    @cached_property
    def audited(self) -> dict[str, Tensor]:
        """Cubes of all synthetic scans, and of the same with many copies or one planted, which must be found.

        (M, 1, S, S, S), as :attr:`labkit.evidence.sample.Sample.normalised`.
        """
        scans, train = self.yardstick.sample(self.synthetic).normalised, self.yardstick.trained.normalised
        planted = [
            memorisation.plant_copies(scans.numpy(), train.numpy(), self.yardstick.rng(2), share)
            for share in (0.3, 1 / len(scans))
        ]
        return dict(zip(AUDITED, (scans, *map(torch.from_numpy, planted)), strict=True))

    @cached_property
    def audits(self) -> dict[str, memorisation.Audit]:
        """The memorisation audit of each of :attr:`audited`."""
        box = self.yardstick.box
        train, others = (
            embeddings.voxels(side.normalised, box) for side in (self.yardstick.trained, self.yardstick.everyone)
        )
        return {
            name: memorisation.audit(embeddings.voxels(cubes, box), train, others)
            for name, cubes in self.audited.items()
        }

    @cached_property
    def atlas_audits(self) -> dict[str, memorisation.Audit]:
        """The audit in the coordinates of the atlas that made the scans, or whose template the generator moved.

        Empty if there is none, or without training scans.

        By flavour: ``aligned``, the scans in the template's pose; ``codes``, the leading modes of their codes, all of
        them found by encoding; each also with :data:`MOVED`, and that alone as it lies: a copy in another pose is a
        stranger to an audit of voxels.
        """
        atlas = self._run and (self._run.own_atlas or self._run)
        encoder = atlas and atlas.encoder()
        if not isinstance(encoder, AtlasEncoder) or atlas is None or self.yardstick.train is None:
            return {}
        trained, size = one_scan_an_animal(self.yardstick.train), atlas.scale.size
        made, held_out, train = (
            (cohort.volumes(size) + 1) / 2 for cohort in (self.synthetic, self.yardstick.held_out, trained)
        )
        rng = self.yardstick.rng(3)
        poses = memorisation.new_poses(len(train), rng)
        planted = torch.from_numpy(memorisation.plant_copies(made.numpy(), train.numpy(), rng, poses=poses))
        changed = (planted != made).flatten(1).any(1)

        # of training scans not the fit's own: a copy's are none
        sides = self.synthetic, self.yardstick.held_out, trained
        z, z_held, z_train = (encode(atlas, cohort, coarse=True) for cohort in sides)
        z_planted = z.clone()
        z_planted[changed] = torch.cat(list(in_batches(encoder, planted[changed] * 2 - 1, coarse=True)))
        box = embeddings.brain_box(trained, size)
        leading = max(1, int((encoder.atlas.modes["share"].cumsum(0) <= VARIANCE).sum()))

        def unposed(cubes: Tensor, z: Tensor) -> np.ndarray:
            return embeddings.voxels(encoder.unposed(cubes, z), box)

        views = {
            MOVED: [embeddings.voxels(cubes, box) for cubes in (planted, train, held_out)],
            "aligned": [unposed(*pair) for pair in ((made, z), (train, z_train), (held_out, z_held))],
            "codes": [some[:, :leading].numpy() for some in (z, z_train, z_held)],
        }
        views[f"aligned, {MOVED}"] = [unposed(planted, z_planted), *views["aligned"][1:]]
        views[f"codes, {MOVED}"] = [z_planted[:, :leading].numpy(), *views["codes"][1:]]
        return {flavour: memorisation.audit(*sides) for flavour, sides in views.items()}

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
        cubes = self.audited[source], self.yardstick.trained.normalised, self.yardstick.everyone.normalised
        return [
            Triplet(*(c[j, 0] for c, j in zip(cubes, (i, *audit.nearest[i]), strict=True)), *audit.distances[i])
            for i in order
        ]

    def _copies(self) -> Iterator[Measurement]:
        if self.yardstick.train is None:
            return
        many, few = len(self.synthetic), len(self.yardstick.held_out)
        for flavour, audit in self.audits.items():
            for metric, value, direction, floor, how in (
                ("suspects", len(audit.suspects) / many, "lower", 1 / (1 + few),
                 f"share of {many} scans that are nearer to a training animal, relative to the nearest of {few} "
                 "held-out ones, than any held-out animal is; floor: chance"),
                ("copies p", audit.p, "higher", 0.5,
                 f"beta-binomial test of the number of suspects, {many} scans and {few} held-out animals"),
            ):  # fmt: skip
                yield Measurement(metric, flavour, value, floor=floor, n=many, direction=direction,
                                  how=f"{how}; {NORMALISED}")  # fmt: skip
        for flavour, audit in self.atlas_audits.items():
            how = f"as for {AUDITED[0]}, in the coordinates of the atlas: {len(audit.suspects)} suspects of {many}"
            yield Measurement("copies p", flavour, audit.p, floor=0.5, n=many, direction="higher", how=how)

    def _reconstructions(self) -> Iterator[Measurement]:
        if self._real is None or self._back is None:
            return
        first = first_scans(self._real)
        scans, made = self._real.subset(first), self._back.subset(first)
        real = self.yardstick.sample(scans)
        back = self.yardstick.sample(made, [written_range(scan) for scan in scans])
        yield from measures.reconstruction(real, back)
