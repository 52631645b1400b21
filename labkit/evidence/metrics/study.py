"""Several runs beside one yardstick: the table of the quality chapter, and what is left of it in the runs' folders."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labkit.cards import METRICS
from labkit.data.cohort import Cohort
from labkit.evidence.metrics.compare import AUDITED, PLANTED, Comparison
from labkit.evidence.metrics.controls import controls
from labkit.evidence.metrics.measures import NEIGHBOURS, Measurement, Reader
from labkit.evidence.metrics.yardstick import LeftOut, Yardstick, side_by_side
from labkit.evidence.selection import by_fold, check_same_training, find_runs, named, real_scans
from labkit.fields import whole
from labkit.files import write_json, write_text
from labkit.generation import generate, reconstruct
from labkit.markup import plain, styled
from labkit.recording import card
from labkit.runs import Run

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

RECONSTRUCTION = "reconstruction"
TABLE = "metrics.md"
AT_THE_END = "floor: real", "best is"
VALUE, FLOOR = ["value", "ci_low", "ci_high"], ["floor", "floor_low", "floor_high"]
GROUPS = {
    "the paper's six": ("PSNR", "RMSE", "MAE", "NCC", "MMD", "MS-SSIM"),
    "distributions": (
        "RBF-MMD", "RBF-MMD p", "Fréchet distance", "trace ratio", "precision", "recall", "density", "coverage",
        "classifier AUC", "power ratio",
    ),
    "anatomy": ("Cohen's d", "Wasserstein"),
    "copies": ("suspects", "copies p"),
}  # fmt: skip
"""Metrics by what they are about. Those of reconstructions have the paper's names, and their own flavour."""


class Study:
    """Runs that were trained on the same scans, measured with one yardstick.

    Runs of several folds, each of which holds other animals of one cohort out, are measured fold by fold, and the table
    has the means: a generator meets no animal that it was trained on, and all animals of a small cohort are used.
    What is shown beside the table is of the first fold.

    Parameters
    ----------
    runs : sequence of Run or path, or str, optional
        Trained, on the same animals, or the same models on each fold; folders may be given as one text with commas.
        Default: of the runs in ``runs/`` with the newest's cohort and scale, the newest of each model and fold.
    real : Cohort or str, optional
        Real scans that no run was trained on. Default the animals that the runs held out. ``"fresh"``, for runs on a
        simulated cohort: as many new rats from the same simulator as `n` asks for, which real data cannot offer.
    n : int
        Synthetic scans a run, 6 or more. As many real ones are used, twice, or half of those there are.
    seed : int
        Of codes, parting and chance.
    size : int
        Side of the cubes, voxels.
    reader : labkit.evidence.metrics.measures.Reader, optional
        A segmentation network that measures, too: that of the experiment (chapter 5) in one of the runs learned from
        the same training animals (:func:`labkit.evidence.segmentation.reader.find_reader`).
    names : sequence of str or str, optional
        How the runs are called in tables and figures, in their order, with commas or one by one. Default the model
        where each has another, with the settings that differ where not (:func:`labkit.evidence.selection.named`).

    Attributes
    ----------
    runs : dict of str to Run
        By name.
    folds : list of Study
        One a fold, this one among them; empty where there is one.
    yardstick : Yardstick
    comparisons : dict of str to Comparison
    controls : dict of str to Comparison
        The same of generators that learned nothing (:mod:`labkit.evidence.metrics.controls`).

    Raises
    ------
    ValueError
        Runs of different training scans, or too few scans: needed are 4 held-out animals, 12 for all measures.
    """

    def __init__(
        self,
        runs: Sequence[Run | str | os.PathLike] | str | None = None,
        real: Cohort | str | None = None,
        n: int = 100,
        seed: int = 0,
        size: int = 64,
        reader: Reader | None = None,
        names: Sequence[str] | str | None = None,
    ) -> None:
        n, seed = whole("n", n, NEIGHBOURS + 1, "how many synthetic scans a run"), whole("seed", seed, 0)
        opened, *others = by_fold(find_runs(runs))
        if others and real is not None:
            raise ValueError("runs of several folds are measured with what each held out: leave cohort (real) out")
        self.folds = [self, *(Study(some, None, n, seed, size, names=names) for some in others)] if others else []
        reader = None if others else reader  # its network learned from animals that other folds hold out
        self.runs = named(opened, names)
        self.n, self.seed, self.size = n, seed, size
        first = opened[0]
        check_same_training(self.runs)
        own = first.cohort()
        train = first.train_part(own)
        self.real = real_scans(first, own, real, n, seed)
        self.yardstick = Yardstick(self.real, n, train, seed, size, reader, self.coarsest)
        self.comparisons, self.controls = {}, {}
        for name, made in controls(train, max(NEIGHBOURS + 1, len(self.yardstick.reference)), seed).items():
            self.controls[name] = Comparison(self.yardstick, made, self.real)
        for name, run in self.runs.items():
            made = generate(run, max(n, len(self.yardstick.reference)), seed=seed)
            self.comparisons[name] = Comparison(self.yardstick, made, self.real, reconstruct(run, self.real), run)

    @cached_property
    def table(self) -> pd.DataFrame:
        """All rows of :func:`labkit.evidence.metrics.compare.compare`, with a column ``model`` before them.

        Everything, real scans too, is measured at the resolution of the coarsest run: a finer floor no generator of
        that size could reach.
        """
        if self.folds:
            return over_folds([study.measured for study in self.folds])
        return self.measured

    @cached_property
    def measured(self) -> pd.DataFrame:
        """The table of this fold alone."""
        import pandas as pd

        measured = self.comparisons | self.controls
        found = side_by_side(Comparison.table, list(measured.values()), "measuring runs")
        tables = [table.assign(model=name) for name, table in zip(measured, found, strict=True)]
        return pd.concat(tables, ignore_index=True)[["model", *Measurement._fields]]

    @property
    def rests_on(self) -> str:
        """How many animals all numbers rest on, in words."""
        if not self.folds:
            return self.yardstick.rests_on
        animals = sum(len(study.yardstick.held_out) for study in self.folds)
        n = len(self.yardstick.reference)
        return (
            f"{animals} real animals, each held out in one of {len(self.folds)} folds and measured beside what was "
            f"trained without it, {n} of a fold in A and {n} in B"
        )

    @property
    def coarsest(self) -> int:
        """Side of the smallest cubes that a run makes, voxels."""
        return min(run.scale.size for run in self.runs.values())

    def best(self, metrics: str | Sequence[str] | None = None) -> pd.Series:
        """Which run is best at each measure, where its interval lies apart from every other run's; else empty.

        Returns
        -------
        pandas.Series
            Index (metric, flavour), values names of runs or ``""``. With one run there is nothing to choose.
        """
        import pandas as pd

        own = self._part(metrics)
        groups = own[own["model"].isin(list(self.runs))].groupby(["metric", "flavour"], sort=False)
        found = {key: separate_best(rows) for key, rows in groups}
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
        flavours = self.table["flavour"]
        table = self.table[~flavours.str.contains(PLANTED) & (flavours != RECONSTRUCTION)]
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

    def left_out(self, metrics: str | Sequence[str] | None = None) -> list[LeftOut]:
        """Measures of a group, of metrics, or all, that there are too few held-out animals for."""
        names = GROUPS.get(metrics, (metrics,)) if isinstance(metrics, str) else metrics
        return [one for one in self.yardstick.left_out if names is None or one.metric in names]

    def leaderboard(self, metrics: str | Sequence[str] | None = None) -> pd.DataFrame:
        """The table for people: measures down, models across with intervals, then controls, floors last.

        Measures that there are too few held-out animals for say how many they need.

        Parameters
        ----------
        metrics : str or sequence of str, optional
            One of :data:`GROUPS`, ``"reconstruction"``, a metric or several; default all.
        """
        import pandas as pd

        table = self._part(metrics)
        rows, index, models = [], [], table["model"].unique()
        for key, part in table.groupby(["metric", "flavour"], sort=False):
            by_model = part.set_index("model")
            first = by_model.iloc[0]
            row = {name: self._cell(name, by_model) for name in models}
            way = {"floor": "near floor"}.get(first["direction"], first["direction"])
            rows.append(row | dict(zip(AT_THE_END, (with_interval(*first[FLOOR]), way), strict=True)))
            index.append(key)
        for one in self.left_out(metrics):
            rows.append(dict.fromkeys(models, "") | dict.fromkeys(self.runs, one.words) | dict.fromkeys(AT_THE_END, ""))
            index.append((one.metric, one.flavour))
        names = pd.MultiIndex.from_tuples(index, names=["metric", "flavour"])
        return pd.DataFrame(rows, index=names)

    def _cell(self, model: str, rows: pd.DataFrame) -> str:
        """A value with its interval, of a control without, which would only make the table wider."""
        if model not in rows.index:
            return ""
        return short(rows.loc[model, "value"]) if model in self.controls else with_interval(*rows.loc[model, VALUE])

    def shown(self, metrics: str | Sequence[str] | None = None) -> Styler:
        """:meth:`leaderboard` for a notebook, the best run bold where intervals separate."""
        board, best = self.leaderboard(metrics), self.best(metrics)
        absent = {(one.metric, one.flavour) for one in self.left_out(metrics)}

        def marked(row):
            other = "color: #595959" if row.name in absent else ""
            return ["font-weight: bold" if column == best.get(row.name, "") else other for column in row.index]

        look = "text-align: left; white-space: pre; font-size: 0.77em; padding: 0.2em 0.4em 0.2em 0"
        # the interval below its value, and short, so that four models stand beside each other on a page
        broken = board.map(lambda text: text.replace(" (", "\n(").replace(" held-out", "\nheld-out"))
        broken = broken.map(lambda text: re.sub(r"(?<=\d) to (?=\d)", "–", text))
        caption = f"{self._share(len(board) - len(absent))}. Measured with {self.rests_on}"
        styler = styled(broken, na="", caption=caption).apply(marked, axis=1)
        return styler.set_table_styles([{"selector": "th, td", "props": look}])

    def _share(self, rows: int) -> str:
        """How many of the rows that were looked at a table shows."""
        return f"{rows} of {self.table.groupby(['metric', 'flavour']).ngroups} rows; all are in {TABLE}"

    def markdown(self, metrics: str | Sequence[str] | None = None) -> str:
        """:meth:`leaderboard` as a Markdown table, and how many rows and animals it is of.

        The best run is bold where intervals separate; what is left out is in italics.
        """
        board, best = self.leaderboard(metrics), self.best(metrics)
        absent = {(one.metric, one.flavour) for one in self.left_out(metrics)}
        lines = [
            "| metric | flavour | " + " | ".join(map(plain, board.columns)) + " |",
            "|---" * (2 + len(board.columns)) + "|",
        ]
        for key, row in board.iterrows():
            cells = [f"**{value}**" if column == best.get(key, "") else value for column, value in row.items()]
            cells = [f"*{value}*" if value and key in absent else value for value in cells]
            lines.append("| " + " | ".join([*key, *cells]) + " |")
        share = "" if metrics is None else f"{self._share(len(board) - len(absent))}. "
        lines += ["", f"{share}Measured with {self.rests_on}."]
        return "\n".join(lines) + "\n"

    def save(self) -> list[Path]:
        """Write every run's rows to its folder as ``metrics.json``, and the table of all as ``metrics.md``.

        Returns
        -------
        list of pathlib.Path
            What was written; earlier files of these names are replaced.
        """
        studies = self.folds or [self]
        animals = sum(len(study.real) for study in studies)
        setting = {
            "real": {"name": self.real.name, "fingerprint": self.real.fingerprint, "animals": animals},
            "folds": len(studies),
            "n": len(self.yardstick.reference),
            "seed": self.seed,
            "size": self.size,
            "left_out": [one._asdict() for one in self.yardstick.left_out],
        }
        written, table, verdicts = [], self.markdown(), self.verdicts().to_dict("index")
        setting["controls"] = {name: verdicts[name] for name in self.controls}
        for study, name in ((one, name) for one in studies for name in one.runs):
            run, synthetic = study.runs[name], study.comparisons[name].synthetic
            rows = self.table[self.table["model"] == name].drop(columns="model")
            content = {
                "run": run.path.name,
                "run_fingerprint": run.fingerprint,
                "synthetic": synthetic.fingerprint,
                **setting,
                "verdicts": verdicts[name],
                "rows": json.loads(rows.to_json(orient="records", force_ascii=False)),
            }
            write_json(run.path / METRICS, content)
            write_text(run.path / TABLE, table)
            card(run)
            card(run, synthetic.folder)
            written += [run.path / METRICS, run.path / TABLE]
        return written


def over_folds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Means of the rows that all tables have: values, floors, and their intervals about these means.

    Folds hold other animals out, so that errors of a mean are those of its parts over the root of their number. A p is
    the smallest of the folds' times how many there are, at most 1 (Bonferroni).
    """
    import pandas as pd

    keys = ["model", "metric", "flavour"]
    whole = pd.concat(tables, ignore_index=True)
    rows = []
    for _, own in whole.groupby(keys, sort=False):
        if len(own) < len(tables):
            continue
        row = own.iloc[0].copy()
        if row["metric"].endswith(" p"):
            row["value"] = min(1.0, len(own) * own["value"].min())
        for name, low, high in () if row["metric"].endswith(" p") else (VALUE, FLOOR):
            below, above = (float(np.sqrt(((own[name] - own[end]) ** 2).sum())) / len(own) for end in (low, high))
            row[name] = own[name].mean()
            row[low], row[high] = (row[name] - below, row[name] + above) if own[low].notna().all() else (np.nan,) * 2
        row["n"] = own["n"].sum()
        row["how"] = f"{row['how']}; mean of {len(own)} folds"
        rows.append(row)
    return pd.DataFrame(rows, columns=list(whole.columns)).reset_index(drop=True)


def passes(row: pd.Series) -> bool:
    """Whether a row says *as good as real*: its interval reaches the floor's, or lies beyond it."""
    if row["metric"].endswith(" p"):
        return bool(row["value"] > 0.05)
    (low, high), (floor_low, floor_high) = (
        row[names[1:]] if not np.isnan(row[names[1]]) else (row[names[0]],) * 2 for names in (VALUE, FLOOR)
    )
    not_above, not_below = low <= floor_high, high >= floor_low
    return bool({"lower": not_above, "higher": not_below, "floor": not_above and not_below}[row["direction"]])


def with_interval(value: float, low: float, high: float) -> str:
    """A number with its interval, if it has one, for people."""
    return short(value) if np.isnan(low) else f"{short(value)} ({short(low)} to {short(high)})"


def short(value: float) -> str:
    """A number for people, two or three digits."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 or value == 0 else 3
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def separate_best(rows: pd.DataFrame) -> str:
    """The model whose interval lies apart from every other's on the better side, not beyond the floor; else empty."""
    if len(rows) < 2 or rows["ci_low"].isna().any() or (rows["ci_low"] == rows["ci_high"]).all():
        return ""
    direction, floor = rows["direction"].iloc[0], rows["floor"].iloc[0]
    low, high = rows["ci_low"].to_numpy(), rows["ci_high"].to_numpy()
    if direction == "higher":
        low, high = -high, -low
    elif direction == "floor":
        ends = np.abs(np.stack([low - floor, high - floor]))
        low, high = np.where((low <= floor) & (floor <= high), 0.0, ends.min(0)), ends.max(0)
    best = int(np.argmin(high))
    others = np.delete(low, best)
    floor_low, floor_high = rows["floor_low"].iloc[0], rows["floor_high"].iloc[0]
    beyond = {"lower": high[best] < floor_low, "higher": -high[best] > floor_high}.get(direction, False)
    if beyond:  # better than real is a warning
        return ""
    return str(rows["model"].iloc[best]) if high[best] < others.min() else ""
