"""What answers say: tables of one rater or several, each number with its uncertainty."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.evidence.judging import answers, statistics
from labkit.evidence.judging.trials import QUESTIONS, REAL, SIDES, truth
from labkit.evidence.metrics import intervals
from labkit.files import located, write_json
from labkit.markup import plain, styled

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Markdown
    from pandas.io.formats.style import Styler

RIGHT_OR_WRONG = ("real_or_synthetic", "pair")
BLOCKS = 4
"""Parts of a session that learning is shown in."""

MARKS = 1, 5
"""The lowest and the highest."""


class Results:
    """Answers of one task, by any number of raters.

    Parameters
    ----------
    lines : iterable of dict
        As :func:`labkit.evidence.judging.answers.read` gives them.
    task : str, optional
        Which task's; may be left out where all are of one.

    Attributes
    ----------
    lines : list of dict
    task : str
    raters : list of str
        Humans first.
    sessions : list of str

    Raises
    ------
    ValueError
        No answers, or several tasks and none named.
    """

    def __init__(self, lines: Iterable[dict[str, Any]], task: str | None = None) -> None:
        lines = list(lines)
        tasks = sorted({line["task"] for line in lines})
        if task is None and len(tasks) > 1:
            raise ValueError(f"these are answers to {', '.join(tasks)}: name the task that is meant")
        self.lines = [line for line in lines if task in (None, line["task"])]
        if not self.lines:
            raise ValueError(f"there are no answers{'' if task is None else f' to {task}'}")
        self.task = self.lines[0]["task"]
        kinds = {line["rater"]: answers.KINDS.index(line["kind"]) for line in self.lines}
        self.raters = sorted(kinds, key=lambda rater: (kinds[rater], rater))
        self.sessions = list(dict.fromkeys(line["session"] for line in self.lines))
        self.left_out: list[str] = []

    @classmethod
    def read(cls, paths: str | os.PathLike | Sequence[str | os.PathLike], task: str | None = None) -> Results:
        """Of files or folders of files; several raters' combine. :attr:`left_out` names lines that do not count."""
        lines, left_out = answers.read(paths)
        results = cls(lines, task)
        results.left_out = left_out
        return results

    def of(self, rater: str) -> Results:
        """One rater's."""
        return Results([line for line in self.lines if line["rater"] == rater])

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row an answer: rater, kind, session, trial, position, shown, answer, correct, confidence, seconds.

        ``position`` goes from 0, a session's first trial, to 1, its last; ``shown`` is the source of the scan, or
        of the synthetic one of a pair; ``correct`` is NaN where no answer is right or wrong.
        """
        import pandas as pd

        rows = []
        for line in self.lines:
            shown = [source for source in line["sources"] if source != REAL] or [REAL]
            row = {name: line.get(name) for name in ("rater", "kind", "session", "trial", "answer", "seconds")}
            row |= {"shown": shown[0], "confidence": line.get("confidence"), "correct": float("nan")}
            if (right := truth(self.task, line["sources"])) is not None:
                row["correct"] = float(line["answer"] == right)
            row["position"] = line["trial"] / max(1, line["trials"] - 1)
            rows.append(row)
        table = pd.DataFrame(rows)
        table[["confidence", "seconds"]] = table[["confidence", "seconds"]].astype(float)
        columns = ["rater", "kind", "session", "trial", "position", "shown", "answer", "correct", "confidence",
                   "seconds"]  # fmt: skip
        return table.sort_values(["session", "rater", "trial"], ignore_index=True)[columns]

    def _checked(self, *tasks: str) -> pd.DataFrame:
        if self.task not in tasks:
            raise ValueError(f"these are answers to {self.task}; this is for {' and '.join(tasks)}")
        return self.table

    def _by_rater(self) -> Iterable[tuple[str, pd.DataFrame]]:
        table = self._checked(*RIGHT_OR_WRONG)
        return ((rater, table[table["rater"] == rater]) for rater in self.raters)

    def scores(self) -> pd.DataFrame:
        """A row a rater: n, right, accuracy, its Wilson interval, exact p against guessing, d′, criterion, median time.

        Where there are several raters, of right-or-wrong tasks. ``sure AUC`` takes confidence into account: area under
        the ROC curve of answers from *sure: real* to *sure: synthetic*.
        """
        import pandas as pd

        rows = {}
        for rater, own in self._by_rater():
            found, detected = statistics.share(int(own["correct"].sum()), len(own)), self._detection(own)
            row = {"kind": own["kind"].iloc[0], "n": found.n, "right": found.k, "accuracy": found.value}
            row |= {"low": found.low, "high": found.high, "p": found.p}
            row |= {"d′": detected.d_prime, "d′ low": detected.d_low, "d′ high": detected.d_high}
            if self.task == "real_or_synthetic":
                row |= {"criterion": detected.criterion, "c low": detected.c_low, "c high": detected.c_high}
                row["sure AUC"] = _graded(own)
            rows[rater] = row | {"seconds": own["seconds"].median()}
        return pd.DataFrame.from_dict(rows, orient="index")

    def _detection(self, own: pd.DataFrame) -> statistics.Detection:
        if self.task == "pair":
            return statistics.forced_choice(int(own["correct"].sum()), len(own))
        said, real = own["answer"] == "synthetic", own["shown"] == REAL
        return statistics.detection(int(said[~real].sum()), int((~real).sum()), int(said[real].sum()), int(real.sum()))

    def by_source(self) -> pd.DataFrame:
        """Confusion: a row for each rater and source, n, share right with its Wilson interval, and p.

        In yes-no trials right means called what it is; in pairs, the real scan was found beside this generator's.
        """
        return self._shares(["rater", "shown"], self._checked(*RIGHT_OR_WRONG))

    def by_confidence(self) -> pd.DataFrame:
        """The same for each rater and level of confidence: whether a rater who is sure is more often right."""
        table = self._checked(*RIGHT_OR_WRONG).dropna(subset=["confidence"])
        return self._shares(["rater", "confidence"], table)

    def learning(self) -> pd.DataFrame:
        """The same for each rater and part of the session (1 to 4), of raters with an answer in each part."""
        table = self._checked(*RIGHT_OR_WRONG)
        part = 1 + (table["position"] * BLOCKS).astype(int).clip(0, BLOCKS - 1)
        return self._shares(["rater", "part"], table.assign(part=part))

    def trends(self) -> pd.DataFrame:
        """A row a rater: how the odds of being right change from the first trial to the last, with interval and p."""
        import pandas as pd

        rows = {
            rater: statistics.trend(own["correct"].to_numpy(bool), own["position"].to_numpy())._asdict()
            for rater, own in self._by_rater()
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    def _shares(self, keys: list[str], table: pd.DataFrame) -> pd.DataFrame:
        import pandas as pd

        rows = [
            [*key, *statistics.share(int(own["correct"].sum()), len(own))[1:]]
            for key, own in table.groupby(keys, sort=True)
        ]
        return pd.DataFrame(rows, columns=[*keys, "n", "share", "low", "high", "p"])

    def agreement(self, kinds: Sequence[str] = ("human",)) -> statistics.Agreement | None:
        """Fleiss' kappa of raters who finished a session; of several sessions, the one with most such raters.

        Parameters
        ----------
        kinds : sequence of str
            Which raters, of ``human``, ``simulated``, ``model``.

        Returns
        -------
        labkit.evidence.judging.statistics.Agreement or None
            None where fewer than two raters finished one session, and for ratings.
        """
        table = self.table[self.table["kind"].isin(kinds)]
        if self.task == "rating" or table.empty:
            return None
        length = {line["session"]: line["trials"] for line in self.lines}
        answered = table.groupby(["session", "rater"]).size()
        finished = [key for key, count in answered.items() if count == length[key[0]]]
        raters = {session: [r for s, r in finished if s == session] for session in self.sessions}
        best = max(self.sessions, key=lambda session: len(raters[session]))
        if len(raters[best]) < 2:
            return None
        own = table[(table["session"] == best) & table["rater"].isin(raters[best])]
        wide = own.pivot(index="trial", columns="rater", values="answer")
        return statistics.fleiss_kappa(np.stack([(wide == name).sum(axis=1) for name in own["answer"].unique()], 1))

    def _check_one_kind(self, task: str) -> None:
        self._checked(task)
        kinds = sorted({line["kind"] for line in self.lines})
        if len(kinds) > 1:
            raise ValueError(f"answers of {' and '.join(kinds)} raters would be averaged: choose one kind with only()")

    def only(self, kind: str) -> Results:
        """The answers of one kind of rater."""
        return Results(line for line in self.lines if line["kind"] == kind)

    def ratings(self) -> pd.DataFrame:
        """Mean rating of each source on each question, and its difference from real scans, a row each.

        Columns question, source, n (scans), mean, low, high, difference, d_low, d_high, p. A scan's mark is the mean
        over raters; intervals are over scans (:func:`~labkit.evidence.metrics.intervals.of_mean`; NaN for fewer than
        three), p from Mann and Whitney's test against real ones.
        """
        import pandas as pd
        from scipy.stats import mannwhitneyu

        self._check_one_kind("rating")
        keys = ["question", "source", "scan"]
        marks = pd.DataFrame(
            [
                [question, line["sources"][0], line["scans"][0], line["answer"][question]]
                for line, question in itertools.product(self.lines, QUESTIONS)
            ],
            columns=[*keys, "mark"],
        )
        of_scans = marks.groupby(keys, sort=False)["mark"].mean()
        means = {key: part.to_numpy() for key, part in of_scans.groupby(keys[:2], sort=False)}
        rows = []
        for question, source in itertools.product(QUESTIONS, sorted(marks["source"].unique())):
            values, real = means[question, source], means.get((question, REAL))
            row = {"question": question, "source": source, "n": len(values), "mean": values.mean()}
            row |= dict(zip(("low", "high"), np.clip(intervals.of_mean(values), *MARKS), strict=True))
            if source != REAL and real is not None:
                row |= {"difference": values.mean() - real.mean(), "p": float(mannwhitneyu(values, real).pvalue)}
                row |= dict(zip(("d_low", "d_high"), intervals.of_difference(values, real), strict=True))
            rows.append(row)
        columns = ["question", "source", "n", "mean", "low", "high", "difference", "d_low", "d_high", "p"]
        return pd.DataFrame(rows).reindex(columns=columns)

    def preference(self) -> pd.DataFrame:
        """Bradley-Terry strengths of the sources, strongest first, all raters together.

        Columns won, of, strength, low, high (log odds, mean of all 0), and ``beats real``: the chance to be preferred
        to a real scan, with ``beats low`` and ``beats high``. Answers count as independent: intervals of few raters
        with many answers each are too narrow for other raters.
        """
        import pandas as pd
        from scipy.special import expit

        self._check_one_kind("preference")
        names = sorted({source for line in self.lines for source in line["sources"]}, key=lambda s: (s != REAL, s))
        wins = np.zeros((len(names), len(names)))
        for line in self.lines:
            chosen = SIDES.index(line["answer"])
            wins[names.index(line["sources"][chosen]), names.index(line["sources"][1 - chosen])] += 1
        found = statistics.bradley_terry(wins)
        table = pd.DataFrame(
            {"won": wins.sum(1).astype(int), "of": (wins.sum(1) + wins.sum(0)).astype(int), "strength": found.value,
             "low": found.low, "high": found.high},
            index=pd.Index(names, name="source"),
        )  # fmt: skip
        if REAL in names:
            cov, real = found.covariance, names.index(REAL)
            error = np.sqrt(np.maximum(np.diag(cov) + cov[real, real] - 2 * cov[real], 0))
            apart = found.value - found.value[real]
            for name, shift in (("beats real", 0), ("beats low", -1), ("beats high", 1)):
                table[name] = np.where(error > 0, expit(apart + shift * statistics.Z * error), np.nan)
        return table.sort_values("strength", ascending=False)

    def save(self, path: str | os.PathLike) -> Path:
        """Write what there is of this task's tables to a JSON file: scores, sources, agreement, marks, strengths."""
        content: dict[str, Any] = {"task": self.task, "sessions": self.sessions, "answers": len(self.lines)}
        if self.task in RIGHT_OR_WRONG:
            tables = {"scores": self.scores().rename_axis("rater").reset_index(), "by source": self.by_source()}
        elif self.task == "rating":
            tables = {"ratings": self.ratings()}
        else:
            tables = {"preference": self.preference().reset_index()}
        for name, table in tables.items():
            content[name] = json.loads(table.to_json(orient="records", force_ascii=False))
        agreed = self.agreement()
        content["kappa"] = agreed and {k: v if np.isfinite(v) else None for k, v in agreed._asdict().items()}
        write_json(path := located(path), content)
        return path

    def in_words(self) -> Markdown:
        """Every rater's result in a sentence, for a notebook."""
        from IPython.display import Markdown

        return Markdown("\n".join(f"- {plain(self.sentence(rater))}" for rater in self.raters))

    def sentence(self, rater: str) -> str:
        """A rater's result in words."""
        if self.task not in RIGHT_OR_WRONG:
            return f"{rater}: {len(self.of(rater).lines)} answers to {self.task}"
        row = self.scores().loc[rater]
        verdict = "cannot be told from guessing" if row["p"] > 0.05 else "is no guessing"
        if row["p"] <= 0.05 and row["accuracy"] < 0.5:
            verdict = "is less than guessing gives: the scans differ, and the rater takes one for the other"
        return (
            f"{rater}: {row['right']:.0f} of {row['n']:.0f} right ({row['accuracy']:.0%}, 95 % interval "
            f"{row['low']:.0%} to {row['high']:.0%}), which {verdict} (p = {row['p']:.2g}); d′ = {row['d′']:.2f} "
            f"({row['d′ low']:.2f} to {row['d′ high']:.2f})"
        )


def padded(table: pd.DataFrame, caption: str = "") -> Styler:
    """A table for a notebook: two decimals, space between columns, a dash where there is no number."""
    look = [
        {
            "selector": "th, td",
            "props": "text-align: left; padding: 0.2em 0.8em 0.2em 0; max-width: 8rem; font-size: 0.9em",
        }
    ]
    return styled(table, 2, caption=caption).set_table_styles(look)


def _graded(own: pd.DataFrame) -> float:
    """Answers with confidence as one scale; those without confidence count as a guess."""
    side = np.where(own["answer"] == "synthetic", 1.0, -1.0)
    return statistics.rank_share(side * own["confidence"].fillna(1.0), own["shown"] != REAL)
