"""Several runs beside one yardstick: the table of the quality chapter, and what is left of it in the runs' folders."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labkit.data.cohort import Cohort
from labkit.evidence.metrics.comparison import AUDITED, COLUMNS, Comparison, beside_floors
from labkit.evidence.metrics.faults import at_resolution
from labkit.evidence.metrics.measures import NEIGHBOURS
from labkit.evidence.metrics.reading import passes, repeats, separate_best, shown
from labkit.evidence.metrics.yardstick import Yardstick
from labkit.evidence.segmentation.reader import find_reader
from labkit.evidence.selection import check_same_training, find_runs, named, real_scans
from labkit.files import progress_bar, write_json, write_text
from labkit.generation import generate, reconstruct
from labkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

RECONSTRUCTION = "reconstruction"
METRICS = "metrics.json"
TABLE = "metrics.md"
GROUPS = {
    "the paper's six": ("PSNR", "RMSE", "MAE", "NCC", "MMD", "MS-SSIM"),
    "distributions": (
        "RBF-MMD", "RBF-MMD p", "Fréchet distance", "trace ratio", "precision", "recall", "density", "coverage",
        "classifier AUC",
    ),
    "anatomy": ("Cohen's d", "Wasserstein"),
    "copies": ("nearer to training", "suspects", "copies p"),
}  # fmt: skip
"""Metrics by what they are about. Those of reconstructions have the paper's names, and their own flavour."""


class Study:
    """Runs that were trained on the same scans, measured with one yardstick.

    Parameters
    ----------
    runs : sequence of Run or path, or str, optional
        Trained, on the same animals; folders may be given as one text with commas. Default: of the runs in ``runs/``
        with the training scans and the scale of the newest, the newest of each model.
    real : Cohort or str, optional
        Real scans that no run was trained on. Default the animals that the runs held out. ``"fresh"``, for runs on a
        simulated cohort: as many new rats from the same simulator as `n` asks for, which real data cannot offer.
    n : int
        Synthetic scans a run. As many real ones are used, twice, or half of those there are.
    seed : int
        Of codes, parting and chance.
    size : int
        Side of the cubes, voxels.
    medicalnet : path, optional
        See :func:`labkit.evidence.metrics.comparison.compare`.

    Where the segmentation experiment (chapter 5) was done in one of the runs, its network measures, too: it learned
    from the same training animals.

    Attributes
    ----------
    runs : dict of str to Run
        By name: the model's where each has another, otherwise the folder's.
    yardstick : Yardstick
    comparisons : dict of str to Comparison

    Raises
    ------
    ValueError
        Runs of different training scans, or too few scans.
    """

    def __init__(
        self,
        runs: Sequence[Run | str | os.PathLike] | str | None = None,
        real: Cohort | str | None = None,
        n: int = 100,
        seed: int = 0,
        size: int = 64,
        medicalnet: str | os.PathLike | None = None,
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed={seed!r}: a whole number of at least 0")
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n <= NEIGHBOURS:
            raise ValueError(f"n={n!r}: how many synthetic scans a run, a whole number of at least {NEIGHBOURS + 1}")
        opened = find_runs(runs)
        self.runs = named(opened)
        self.n, self.seed, self.size = n, seed, size
        first = opened[0]
        check_same_training(self.runs)
        own = first.cohort()
        train = first.train_part(own)
        self.real = real_scans(first, own, real, n, seed)
        scan = train[0]
        readers = (find_reader(run.path, scan.image.shape, scan.zooms) for run in opened)
        reader = next((found for found in readers if found is not None), None)
        self.yardstick = Yardstick(self.real, n, train, seed, size, medicalnet, reader)
        self.comparisons = {}
        for name, run in self.runs.items():
            made = generate(run, max(n, len(self.yardstick.reference)), seed=seed)
            self.comparisons[name] = Comparison(self.yardstick, made, self.real, reconstruct(run, self.real))

    @cached_property
    def table(self) -> pd.DataFrame:
        """All rows of :func:`labkit.evidence.metrics.comparison.compare`, with a column ``model`` before them.

        Besides the runs there is a model ``real at 32³`` (the smallest size of the runs, if that is below the cubes'):
        the real scans B at the runs' resolution, which no generator of that size could pass.
        """
        import pandas as pd

        tables = [
            comparison.table().assign(model=name)
            for name, comparison in progress_bar(self.comparisons.items(), "measuring runs", len(self.comparisons))
        ]
        if self.coarsest < self.size:
            tables.append(self._ceiling().assign(model=f"real at {self.coarsest}³"))
        return pd.concat(tables, ignore_index=True)[["model", *COLUMNS]]

    @property
    def coarsest(self) -> int:
        """Side of the smallest cubes that a run makes, voxels."""
        return min(run.scale.size for run in self.runs.values())

    def _ceiling(self) -> pd.DataFrame:
        import pandas as pd

        sample = at_resolution(self.yardstick.other, self.coarsest)
        rows = [row for family in self.yardstick.families for row in beside_floors(self.yardstick, family, sample)]
        return pd.DataFrame(rows, columns=COLUMNS)

    def best(self, metrics: str | Sequence[str] | None = None) -> pd.Series:
        """Which run is best at each measure, where its interval lies apart from every other run's; else empty.

        Returns
        -------
        pandas.Series
            Index (metric, flavour), values names of runs or ``""``. With one run there is nothing to choose.
        """
        import pandas as pd

        found = {}
        own = self._part(metrics)
        for key, rows in own[own["model"].isin(list(self.runs))].groupby(["metric", "flavour"], sort=False):
            found[key] = separate_best(rows)
        return pd.Series(found, name="best", dtype=object)

    def verdicts(self) -> pd.DataFrame:
        """How many measures of each group say *as good as real*: their interval reaches the floor's, or beyond.

        Returns
        -------
        pandas.DataFrame
            Models down, :data:`GROUPS` across, cells such as ``"3 of 6"``. The audit's positive control is left out.
        """
        import pandas as pd

        rows = {}
        table = self.table[~self.table["flavour"].isin([RECONSTRUCTION, *AUDITED[1:]])]
        table = table[~repeats(table)]
        for model, own in table.groupby("model", sort=False):
            row = {}
            for group, metrics in GROUPS.items():
                part = own[own["metric"].isin(metrics)]
                row[group] = f"{sum(passes(one) for _, one in part.iterrows())} of {len(part)}" if len(part) else ""
            if row["copies"] and not self._audit_works(model):
                row["copies"] = "not testable"
            rows[model] = row
        return pd.DataFrame.from_dict(rows, orient="index")

    def _audit_works(self, model: str) -> bool:
        """Whether both positive controls were found."""
        own = self.table[self.table["model"] == model].set_index(["metric", "flavour"])["value"]
        many, one = AUDITED[1:]
        return bool(own["copies p", many] <= 0.05 and own["suspects", one] > own["suspects", AUDITED[0]])

    def _part(self, metrics: str | Sequence[str] | None) -> pd.DataFrame:
        """Rows of a group, of metrics, of the flavour ``reconstruction``, or all."""
        back = self.table["flavour"] == RECONSTRUCTION
        if metrics is None:
            return self.table
        if metrics == RECONSTRUCTION:
            return self.table[back]
        names = GROUPS.get(metrics, (metrics,)) if isinstance(metrics, str) else metrics
        return self.table[self.table["metric"].isin(names) & ~back]

    def leaderboard(self, metrics: str | Sequence[str] | None = None) -> pd.DataFrame:
        """The table for people: measures down, models across, each value with its interval, floors last.

        Parameters
        ----------
        metrics : str or sequence of str, optional
            One of :data:`GROUPS`, ``"reconstruction"``, a metric or several; default all.
        """
        import pandas as pd

        table = self._part(metrics)
        rows, index = [], []
        for key, part in table.groupby(["metric", "flavour"], sort=False):
            by_model = part.set_index("model")
            row = {
                name: shown(by_model.loc[name]) if name in by_model.index else "" for name in table["model"].unique()
            }
            first = by_model.iloc[0]
            row["floor: real"] = shown(first, "floor", "floor_low", "floor_high")
            row["best is"] = {"floor": "near floor"}.get(first["direction"], first["direction"])
            rows.append(row)
            index.append(key)
        names = pd.MultiIndex.from_tuples(index, names=["metric", "flavour"])
        return pd.DataFrame(rows, index=names)

    def shown(self, metrics: str | Sequence[str] | None = None) -> Styler:
        """:meth:`leaderboard` for a notebook, the best run bold where intervals separate."""
        board, best = self.leaderboard(metrics), self.best(metrics)

        def bold(row):
            return ["font-weight: bold" if column == best.get(row.name, "") else "" for column in row.index]

        look = "text-align: left; white-space: pre; font-size: 0.8em; padding: 0.2em 0.6em 0.2em 0"
        broken = board.map(lambda text: text.replace(" (", "\n("))  # the interval below its value
        return broken.style.apply(bold, axis=1).set_table_styles([{"selector": "th, td", "props": look}])

    def markdown(self, metrics: str | Sequence[str] | None = None) -> str:
        """:meth:`leaderboard` as a Markdown table, the best run bold where intervals separate."""
        board, best = self.leaderboard(metrics), self.best(metrics)
        lines = ["| metric | flavour | " + " | ".join(board.columns) + " |", "|---" * (2 + len(board.columns)) + "|"]
        for key, row in board.iterrows():
            cells = [f"**{value}**" if column == best.get(key, "") else value for column, value in row.items()]
            lines.append("| " + " | ".join([*key, *cells]) + " |")
        return "\n".join(lines) + "\n"

    def save(self) -> list[Path]:
        """Write every run's rows to its folder as ``metrics.json``, and the table of all as ``metrics.md``.

        Returns
        -------
        list of pathlib.Path
            What was written; earlier files of these names are replaced.
        """
        setting = {
            "real": {"name": self.real.name, "fingerprint": self.real.fingerprint, "animals": len(self.real)},
            "n": len(self.yardstick.reference),
            "seed": self.seed,
            "size": self.size,
        }
        written = []
        for name, run in self.runs.items():
            rows = self.table[self.table["model"] == name].drop(columns="model")
            content = {
                "run": run.path.name,
                "run_fingerprint": run.fingerprint,
                "synthetic": self.comparisons[name].synthetic.fingerprint,
                **setting,
                "rows": json.loads(rows.to_json(orient="records", force_ascii=False)),
            }
            write_json(run.path / METRICS, content)
            write_text(run.path / TABLE, self.markdown())
            written += [run.path / METRICS, run.path / TABLE]
        return written
