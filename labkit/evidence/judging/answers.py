"""Answers on disk: one line of JSON an answer, written at once, so that a crash loses none."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from labkit.evidence.judging.trials import QUESTIONS, REAL, SIDES, TASKS
from labkit.files import located

FORMAT = 1
KINDS = ("human", "simulated", "model")
SURE = {1: "guess", 2: "fairly sure", 3: "sure"}
"""Levels of confidence."""

FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int, "session": str, "task": str, "trials": int, "seed": int, "cohorts": dict, "kind": str, "rater": str,
    "trial": int, "sources": list, "scans": list, "answer": (str, dict), "time": str,
}  # fmt: skip
"""What every line has. ``confidence`` (1 to 3) and ``seconds`` may be null: a model has neither."""


def check_rater(rater: str, kind: str = "human") -> None:
    """Refuse a name that cannot be a file's, and a human who is called a simulation."""
    if not isinstance(rater, str) or not re.fullmatch(r"[\w.-][\w .-]{0,39}", rater):
        raise ValueError(
            f"rater={rater!r}: a name or number of up to 40 letters, digits, spaces, points, - and _ (it is kept with "
            "every answer: use a pseudonym)"
        )
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: a rater is one of {', '.join(KINDS)}")
    if (kind == "human") == rater.lower().startswith(("simulated", "model")):
        raise ValueError(
            f"rater={rater!r}, kind={kind!r}: names that begin with simulated or model are for raters who are "
            "not human, and no others are"
        )


def check_answer(task: str, answer: Any, confidence: Any = None, seconds: Any = None) -> None:
    """Refuse an answer that the task does not ask for; ValueError says what is allowed."""
    if task == "rating":
        right = isinstance(answer, dict) and set(answer) == set(QUESTIONS)
        right = right and all(type(value) is int and 1 <= value <= 5 for value in answer.values())
        allowed = f"whole numbers from 1 to 5 for {', '.join(QUESTIONS)}"
    else:
        choices = ("real", "synthetic") if task == "real_or_synthetic" else SIDES
        right, allowed = isinstance(answer, str) and answer in choices, " or ".join(choices)
    if not right:
        raise ValueError(f"answer={answer!r}: {TASKS[task]} takes {allowed}")
    if confidence is not None and (isinstance(confidence, bool) or confidence not in SURE):
        raise ValueError(f"confidence={confidence!r}: {', '.join(f'{k} ({v})' for k, v in SURE.items())}, or None")
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (number and 0 <= seconds < 1e6):  # also refuses NaN
        raise ValueError(f"seconds={seconds!r}: time from the picture to the answer, 0 or more, or None")


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def append(path: str | os.PathLike, line: dict[str, Any]) -> None:
    """Add an answer to a file, on disk when this returns.

    A line that an earlier crash tore is left as it is, and the new one begins on a line of its own. OSError where it
    could not be written, for a full disk, say; nothing is kept back that could be written twice.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    with open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                text = b"\n" + text
        if file.write(text) != len(text):
            raise OSError(f"{path}: the disk took only a part of an answer")
        os.fsync(file.fileno())


def read(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> tuple[list[dict[str, Any]], list[str]]:
    """Read files of answers, or folders of ``*.jsonl``, of one rater or of several: the lines, and what was left out.

    Lines are in the files' order. Left out, as ``file:number`` and why, are half a line (a crash while writing); of
    several answers of a rater to a trial in one file all but the first; and of such answers in several files, where
    they differ, all: two people under one name would give them, and so would a file that was made to overrule another,
    whatever time stands in it. ValueError for lines that are whole but wrong, all named: nothing is left out in
    silence. FileNotFoundError where there are none.
    """
    files = _files([paths] if isinstance(paths, str | os.PathLike) else list(paths))
    lines: dict[tuple, tuple[Path, str, dict[str, Any]]] = {}
    left_out, wrong = [], []
    contradicted: set[tuple] = set()
    for path in files:
        for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if not text.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                line = json.loads(text)
            except ValueError:
                left_out.append(f"{where}: half a line")
                continue
            if problem := _problem(line):
                wrong.append(f"{where}: {problem}")
                continue
            key = tuple(line[name] for name in ("session", "kind", "rater", "trial"))
            first, there, before = lines.setdefault(key, (path, where, line))
            if before == line:
                continue
            said = f"{where}: a second answer of {line['rater']} to trial {line['trial'] + 1}"
            if first == path or key in contradicted or before["answer"] == line["answer"]:
                left_out.append(said)
            else:
                contradicted.add(key)
                left_out.append(f"{said}, which contradicts {there}: neither counts")
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError("these lines are no answers: " + "; ".join(wrong[:5]) + more)
    return [line for key, (_, _, line) in lines.items() if key not in contradicted], left_out


def _files(paths: list[str | os.PathLike]) -> list[Path]:
    found = []
    for path in map(located, paths):
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside or not all(file.is_file() for file in inside):
            raise FileNotFoundError(f"{path}: no file of answers, and no folder with *.jsonl of them")
        found += inside
    return found


def _problem(line: Any) -> str | None:
    """What is wrong with a line, or None."""
    if not isinstance(line, dict):
        return "not an object"
    bad = [name for name, kind in FIELDS.items() if not isinstance(line.get(name), kind)]
    if bad:
        return f"{', '.join(bad)} missing or of a wrong type"
    if line["format"] != FORMAT:
        return f"format {line['format']}, known is {FORMAT}"
    shown = {"pair": 2, "preference": 2}.get(line["task"], 1)
    texts = all(isinstance(text, str) for text in [*line["sources"], *line["scans"]])
    if line["task"] not in TASKS or not len(line["sources"]) == len(line["scans"]) == shown or not texts:
        return f"task {line['task']!r} with {len(line['sources'])} sources of {len(line['scans'])} scans"
    if isinstance(line["trial"], bool) or not 0 <= line["trial"] < line["trials"]:
        return f"trial {line['trial']} of {line['trials']}, counted from 0"
    if line["task"] == "pair" and line["sources"].count(REAL) != 1:
        return "a pair without exactly one real scan"
    try:
        check_rater(line["rater"], line["kind"])
        check_answer(line["task"], line["answer"], line.get("confidence"), line.get("seconds"))
    except ValueError as error:
        return str(error)
    return None
