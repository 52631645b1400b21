"""The latent space of a run: directions that mean something, how well they keep their word, and what lies near.

A code is moved along a direction and decoded. Directions are of two sorts: the principal directions of encoded real
scans, and those along which an attribute with a name changes (:mod:`labkit.evidence.attributes`). For the latter the
mean gradient of the attribute with respect to the code is taken; for codes from N(0, I) that is what linear regression
of the attribute on the code would give with endlessly many codes (Stein 1981, Annals of Statistics 9:1135), from far
fewer.

Random and encoded codes live far apart in a trained run, so each of the two kinds has directions of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from labkit.data.cohort import Cohort
from labkit.evidence import attributes
from labkit.evidence.attributes import Gauge
from labkit.files import progress_bar
from labkit.generation import BATCH, draw_codes, encode, in_batches
from labkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("random", "encoded")
PRINCIPAL = 3
"""Principal directions kept."""

FAR = 10_000
"""Number of the first random code that directions are judged on, well past those they are fitted to."""


@dataclass(frozen=True)
class Directions:
    """Directions in code space: principal ones, then those of attributes.

    `vectors` are (K, Z), of length 1; `steps` (K,) are one standard deviation of the codes along each.
    """

    names: tuple[str, ...]
    vectors: Tensor
    steps: Tensor

    def move(self, code: Tensor, moves: dict[str, float]) -> Tensor:
        """Move a code (Z,) or (N, Z) by so many standard deviations along directions, by name."""
        for name, amount in moves.items():
            if name not in self.names:
                raise ValueError(f"no direction is called {name!r}; allowed: {', '.join(self.names)}")
            place = self.names.index(name)
            code = code + amount * self.steps[place] * self.vectors[place]
        return code


class Near(NamedTuple):
    """The training scan that a volume is most like: place, animal, and root mean square difference in [-1, 1]."""

    place: int
    subject: str
    distance: float


class LatentSpace:
    """A run's code space, to move through.

    Parameters
    ----------
    run : Run
        Trained.
    cohort : Cohort
        The one it was trained on; see :meth:`labkit.runs.Run.cohort`.
    seed : int
        Of the random codes that directions are fitted to and judged on.
    n_codes : int, optional
        How many codes of each kind directions are fitted to; default 128, at 64^3 and above 32.

    Raises
    ------
    RunError
        The run has no weights yet, or `cohort` is not its own.
    """

    def __init__(self, run: Run, cohort: Cohort, seed: int = 0, n_codes: int | None = None) -> None:
        self.run, self.seed = run, seed
        self.train, held_out = run.train_part(cohort), run.held_out(cohort)
        if len(self.train) < 2:
            raise ValueError(f"{run.path.name} was trained on one scan: directions between animals need two or more")
        self.has_held_out = len(held_out) > 0
        self.held_out = held_out if self.has_held_out else self.train
        size = run.scale.size
        self.n_codes = n_codes or (128 if size <= 32 else 32)
        self.generators: dict[str, nn.Module] = {kind: run.generator(codes=kind, noise=False) for kind in KINDS}
        for network in self.generators.values():
            network.requires_grad_(False)
        self.scans = self.train.volumes(size)  # (N, 1, S, S, S) in [-1, 1]
        self.held_out_scans = self.held_out.volumes(size)
        self.train_codes = encode(run, self.train, "cpu")
        self.held_out_codes = encode(run, self.held_out, "cpu")

    @property
    def judges(self) -> str:
        """Which animals judge: ``"held out"``, or ``"trained on"`` where the run held none out, which flatters."""
        return "held out" if self.has_held_out else "trained on"

    def random(self, seed: int, truncation: float = 1.0) -> Tensor:
        """Random code (Z,) number `seed`: scan `seed` of ``labkit.generate(run, n, seed=0)``."""
        return draw_codes(self.run, 1, 0, seed, truncation)[0]

    def volumes(self, codes: Tensor, kind: str) -> Tensor:
        """(N, Z) -> (N, 1, S, S, S) in [-1, 1], on the CPU."""
        return torch.cat(list(in_batches(self.generators[kind], codes)))

    @torch.no_grad()
    def volume(self, code: Tensor, kind: str) -> Tensor:
        """One code (Z,) -> (1, S, S, S): as :meth:`volumes`, without filling up a batch, for a slider."""
        return self.generators[kind](code[None])[0].float()

    @cached_property
    def _flat(self) -> tuple[Tensor, Tensor]:
        flat = self.scans.flatten(1)
        return flat, flat.square().sum(1)

    def nearest(self, volume: Tensor) -> Near:
        """The training scan most like a volume (1, S, S, S)."""
        flat, squares = self._flat
        mine = volume.flatten()
        distances = (squares - 2 * (flat @ mine) + mine @ mine).clamp_min(0) / len(mine)  # no copy of the cohort
        place = int(distances.argmin())
        return Near(place, self.train.subjects[place], float(distances[place].sqrt()))

    @cached_property
    def usual_distance(self) -> float:
        """Median distance of held-out scans to their nearest training scan: what "near" means in this cohort."""
        return float(np.median([self.nearest(scan).distance for scan in self.held_out_scans]))

    @cached_property
    def gauges(self) -> tuple[Gauge, Gauge] | None:
        """Two gauges from two halves of the training scans: directions are fitted by one and judged by the other.

        None where there are too few scans, or too equal ones, to learn to read anything off them.
        """
        animals = sorted(set(self.train.subjects))
        sides = [set(animals[start::2]) for start in (0, 1)]  # by animal: the judge must not know the fitter's animals
        halves = [[i for i, subject in enumerate(self.train.subjects) if subject in side] for side in sides]
        if min(len(half) for half in halves) < 3:
            return None
        table, _ = self._measured
        differ = [name for name in table if all(table[name].iloc[half].nunique() > 1 for half in halves)]
        if not differ:
            return None
        fitter, judge = (Gauge.fit(self.scans[half], table[differ].iloc[half]) for half in halves)
        return fitter, judge

    @cached_property
    def _measured(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Attributes of training and of judging scans, measured together: all on brains, or all on heads."""
        table = attributes.measure([*self.train, *self.held_out])
        return table.iloc[: len(self.train)], table.iloc[len(self.train) :]

    @cached_property
    def gauge_quality(self) -> pd.Series:
        """R2 of the judging gauge on the scans that judge (:attr:`judges`): 1 is read without error, 0 not at all."""
        if self.gauges is None:
            raise ValueError("no attribute can be read off so few or so equal training scans: train on more")
        return self.gauges[1].r2(self.held_out_scans, self._measured[1])

    @cached_property
    def directions(self) -> dict[str, Directions]:
        """Directions of each kind of code."""
        return {kind: self._directions(kind) for kind in KINDS}

    def _directions(self, kind: str) -> Directions:
        centred = self.train_codes - self.train_codes.mean(0)
        count = min(PRINCIPAL, len(centred) - 1)
        _, _, principal = torch.linalg.svd(centred, full_matrices=False)
        names, vectors = [f"principal {i + 1}" for i in range(count)], list(principal[:count])
        if self.gauges is not None:
            fitter, _ = self.gauges
            gradients = self._mean_gradients(fitter, kind)
            names += fitter.names
            vectors += list(nn.functional.normalize(gradients, dim=1))
        vectors = torch.stack(vectors)
        # random codes are N(0, I): one along every direction
        steps = torch.ones(len(vectors)) if kind == "random" else (centred @ vectors.T).std(0)
        return Directions(tuple(names), vectors, steps)

    def _mean_gradients(self, gauge: Gauge, kind: str) -> Tensor:
        """Gradient of each attribute with respect to the code, (K, Z), averaged over codes of the kind."""
        network = self.generators[kind]
        codes = draw_codes(self.run, self.n_codes, self.seed) if kind == "random" else self.train_codes[: self.n_codes]
        total = torch.zeros(len(gauge.names), codes.shape[1])
        for part in progress_bar(codes.split(BATCH), f"directions of {kind} codes"):
            part = part.clone().requires_grad_()
            readings = gauge(network(part)).sum(0)  # (K,)
            for place, reading in enumerate(readings):
                total[place] += torch.autograd.grad(reading, part, retain_graph=True)[0].sum(0)
        return total / len(codes)

    def judged_on(self, kind: str, n: int | None = None) -> Tensor:
        """Codes that no direction was fitted to: later random draws, or codes of held-out scans."""
        n = n or (32 if self.run.scale.size <= 32 else 8)
        return draw_codes(self.run, n, self.seed, FAR) if kind == "random" else self.held_out_codes[:n]

    def effects(self, kind: str) -> pd.DataFrame:
        """What a step of one standard deviation along each direction does to each attribute, on held-out codes.

        Returns
        -------
        pandas.DataFrame
            One row a direction, one column an attribute: mean change for a step of one standard deviation of the codes
            (half the difference between a step forth and a step back), in standard deviations of real animals; then
            ``image``, the root mean square change of the voxels, scans in [-1, 1]; and for directions of an attribute
            ``right way``, the share of codes for which it grew, and ``r``, the correlation over codes between place
            along the direction and attribute. Read by the gauge that did not fit the directions. For principal
            directions ``share``, the part of the held-out codes' variance along it.
        """
        import pandas as pd

        base, directions = self.judged_on(kind), self.directions[kind]
        names = self.gauges[1].names if self.gauges else ()
        at_rest = self._read(self.volumes(base, kind))
        rows = []
        for place, name in enumerate(progress_bar(directions.names, f"effects on {kind} codes")):
            ends = [self.volumes(directions.move(base, {name: sign}), kind) for sign in (1.0, -1.0)]
            forth, back = (self._read(end) for end in ends)
            change = (forth - back) / 2  # (n, K), standard deviations of real animals
            row = dict(zip(names, change.mean(0).tolist(), strict=True))
            row["image"] = float(((ends[0] - ends[1]) / 2).square().mean().sqrt())
            if name in names:
                column = names.index(name)
                row["right way"] = float((change[:, column] > 0).float().mean())
                row["r"] = _correlation(base @ directions.vectors[place], at_rest[:, column])
            else:
                spread = self.held_out_codes - self.held_out_codes.mean(0)
                row["share"] = float((spread @ directions.vectors[place]).square().sum() / spread.square().sum())
            rows.append(row)
        return pd.DataFrame(rows, index=list(directions.names))

    def _read(self, cubes: Tensor) -> Tensor:
        if self.gauges is None:
            return torch.zeros(len(cubes), 0)
        return self.gauges[1](cubes) / self.gauges[1].spread


def _correlation(a: Tensor, b: Tensor) -> float:
    if len(a) < 3 or a.std() == 0 or b.std() == 0:
        return float("nan")
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])
