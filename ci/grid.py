"""Grids of trainings: what a TOML file asks for, as points that are checked before any work. Read by ``ci/sweep``.

A file of its own because it computes nothing: a grid is understood, or refused, here.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import papermill
from point import BOOK, FAILED, POINT, RUN

import labkit
from labkit import fields, training
from labkit.data.sources import NAMED
from labkit.evidence.sweeps import NAME, said
from labkit.files import write_json
from labkit.runs import choose_device

FIRST = "02_train"
FOLLOW = ("03_inspect", "04_quality", "05_segmentation", "06_latent")
"""Chapters about runs, which may follow a training."""

RUNS = ("run_dir", "run_dirs")
LEAST = {"seed": 0, "fold": 0, "n": 1, "n_train": 1, "iterations": 1}
"""Parameters of chapter 2 that are whole numbers, and the smallest of each."""


class GridError(ValueError):
    """A grid that cannot be computed: says what was given, what is allowed."""


@dataclass(frozen=True)
class Point:
    """A point: what differs in it by name, and the chapters to execute with their parameters.

    Attributes
    ----------
    mark : str
        What is trained, whatever words a grid has for it; the end of its folder's name.
    """

    name: str
    mark: str
    varied: dict[str, Any]
    chapters: dict[str, dict[str, Any]]
    folder: Path

    @property
    def laid_out(self) -> dict[str, dict[str, Any]]:
        """Chapters that its folder was laid out for."""
        file = self.folder / POINT
        return json.loads(file.read_text(encoding="utf-8"))["chapters"] if file.exists() else {}

    @property
    def finished(self) -> bool:
        """Whether all its chapters are executed, with these parameters."""
        done = all((self.folder / f"{stem}.ipynb").exists() for stem in self.chapters)
        return done and self.laid_out == self.chapters

    @property
    def failed(self) -> str:
        """Why it cannot be computed, if that is known."""
        path = self.folder / FAILED
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""

    @property
    def training(self) -> dict[str, Any]:
        """Parameters of chapter 2."""
        return self.chapters[FIRST]

    @property
    def iteration(self) -> int:
        """How far its training has come."""
        path = self.folder / RUN
        return labkit.load_run(path).iteration if (path / "provenance.json").exists() else 0

    def lay_out(self) -> None:
        """Put it where its job finds it; what was computed with other parameters is computed anew."""
        for stem, parameters in self.laid_out.items():
            if self.chapters.get(stem) != parameters:
                (self.folder / f"{stem}.ipynb").unlink(missing_ok=True)
        (self.folder / FAILED).unlink(missing_ok=True)  # whoever starts it again has mended what was wrong
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / POINT, {"chapters": self.chapters})


def read(path: Path, folder: Path, elsewhere: bool = False) -> list[Point]:
    """The points of a grid, of a sweep in `folder`, checked before any work.

    Parameters
    ----------
    path : pathlib.Path
        A TOML file: ``[every]`` has what all points share, each ``[[points]]`` what differs, lists as a product,
        ``[chapters.NAME]`` what follows a training. Names are parameters of chapters or settings.
    folder : pathlib.Path
        Of the sweep.
    elsewhere : bool
        Computed on other machines: what depends on this one has to be said.

    Raises
    ------
    GridError
        All faults at once.
    """
    every, tables, chapters = _parts(path)
    allowed = {stem: papermill.inspect_notebook(str(BOOK / f"{stem}.ipynb")) for stem in (FIRST, *FOLLOW)}
    faults = list(_faults_of_chapters(chapters, allowed))
    points: dict[str, Point] = {}
    configurations = [one for table in tables or [{}] for one in product(every | table)]
    for given, varied in zip(configurations, differences(configurations), strict=True):
        try:
            one = _point(varied, given, chapters, allowed, path.parent, folder, elsewhere)
        except (ValueError, TypeError) as error:
            faults.append(f"point {said(varied)}: {error}")
            continue
        if one.mark in points:
            faults.append(f"points {said(points[one.mark].varied)} and {said(varied)} are 2 times the same training")
        points[one.mark] = one
    if not configurations:
        faults.append("there is no point: a list in it is empty")
    if faults:
        raise GridError(f"{path}:\n" + "\n".join(f"  {fault}" for fault in dict.fromkeys(faults)))
    return list(points.values())


def _parts(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """What stands under ``every``, ``points`` and ``chapters``."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise GridError(f"{path} cannot be read: {error}") from error
    if odd := sorted(set(content) - {"every", "points", "chapters"}):
        raise GridError(f"{path}: unknown part {', '.join(odd)}; a grid has [every], [[points]] and [chapters.NAME]")
    every, tables, chapters = content.get("every", {}), content.get("points", []), content.get("chapters", {})
    if not isinstance(tables, list) or not all(isinstance(part, dict) for part in (every, chapters, *tables)):
        raise GridError(f"{path}: [every] is one table, [[points]] stands in two brackets, once or more often")
    if odd := [stem for stem, table in chapters.items() if not isinstance(table, dict)]:
        raise GridError(f"{path}: write [chapters.{odd[0]}], with its parameters beneath")
    try:
        json.dumps(content)
    except TypeError as error:
        raise GridError(f"{path}: a value is text, a number, true or false, or a list of these ({error})") from error
    return every, tables, chapters


def _faults_of_chapters(chapters: Mapping[str, Any], allowed: Mapping[str, Mapping[str, Any]]) -> Any:
    for stem, given in chapters.items():
        if stem not in FOLLOW:
            yield f"[chapters.{stem}]: allowed are {', '.join(FOLLOW)}"
            continue
        names = [name for name in allowed[stem] if name not in RUNS]
        yield from (f"[chapters.{stem}] {name}: allowed are {', '.join(names)}" for name in given if name not in names)


def product(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Every choice of one value from each list of a table."""
    choices = [value if isinstance(value, list) else [value] for value in table.values()]
    return [dict(zip(table, values, strict=True)) for values in itertools.product(*choices)]


def differences(configurations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each configuration what not all have alike, its name first."""
    keys = dict.fromkeys([NAME, *(key for one in configurations for key in one)])
    differ = [key for key in keys if len({json.dumps(one.get(key)) for one in configurations}) > 1]
    return [{key: one[key] for key in differ if key in one} for one in configurations]


def _point(
    varied: dict[str, Any], given: dict[str, Any], chapters: dict[str, dict[str, Any]],
    allowed: Mapping[str, Mapping[str, Any]], here: Path, folder: Path, elsewhere: bool,
) -> Point:  # fmt: skip
    """A point's chapters: what chapter 2 does not know by name is a setting; a cohort's folder is beside the grid.

    ValueError for what cannot be trained.
    """
    parameters = {key: value for key, value in given.items() if key in allowed[FIRST] and key not in RUNS}
    extra = {key: value for key, value in given.items() if key not in (*parameters, NAME)}
    parameters["overrides"] = fields.mapping("overrides", parameters.get("overrides", {})) | extra
    if "iterations" in parameters["overrides"]:
        parameters["iterations"] = parameters["overrides"].pop("iterations")
    cohort = str(parameters.get("cohort", "phantom"))
    parameters["cohort"] = cohort if cohort in NAMED else str((here / cohort).resolve())
    parameters["scale"] = _scale(parameters, elsewhere)
    if parameters.get("processes", 1) != 1:
        raise ValueError("processes: the points of a sweep have one each; how many jobs there are, --jobs says")
    for name in set(LEAST) & set(parameters):
        parameters[name] = fields.whole(name, parameters[name], LEAST[name])
    mark = hashlib.sha256(json.dumps(_trained(parameters), sort_keys=True).encode()).hexdigest()[:8]
    words = [str(value) if key == NAME else f"{key}={value}" for key, value in varied.items()]
    called = re.sub(r"[^\w.=-]+", "_", "-".join(words))[:100] or "point"
    own = next((folder / "points").glob(f"*-{mark}"), folder / "points" / f"{called}-{mark}")
    run = str(own / RUN)
    follow = {stem: {**chapters[stem], **{key: run for key in RUNS if key in allowed[stem]}}
              for stem in FOLLOW if stem in chapters}  # fmt: skip
    return Point(own.name, mark, varied, {FIRST: parameters | {"run_dir": run}, **follow}, own)


def _scale(given: dict[str, Any], elsewhere: bool) -> str:
    """The scale by name; what ``auto`` means, the machine says that computes."""
    device, scale = str(given.get("device", "auto")), str(given.get("scale", "auto"))
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ValueError(f"device is {device!r}, allowed are auto, cpu, cuda and cuda:1")
    if scale == "auto" and elsewhere:
        raise ValueError("scale: say which for --slurm, as other machines may have other devices than this one")
    if scale != "auto":
        return scale if elsewhere or device == "auto" or choose_device(device) else ""
    return training.choose_scale(scale, choose_device(device))


def _trained(given: dict[str, Any]) -> list[Any]:
    """What makes a training another one: settings that are not as usual, data, seed. Others may join the usual ones."""
    usual = map(asdict, labkit.resolve(given.get("model", "sigmarat2"), given["scale"]))
    apart = [{key: value for key, value in asdict(own).items() if value != plain[key]}
             for own, plain in zip(resolved(given), usual, strict=True)]  # fmt: skip
    data = {key: given[key] for key in ("n", "grid", "opening", "n_train") if given.get(key)}
    own = [given.get("model", "sigmarat2"), given["scale"], given["cohort"], given.get("seed", 0), given.get("fold", 0)]
    return [*own, *apart, data]


def resolved(given: dict[str, Any]) -> tuple[Any, Any]:
    """Model and scale of chapter 2's parameters with all settings; ValueError for what is not allowed."""
    steps = {"iterations": given["iterations"]} if given.get("iterations") else {}
    return labkit.resolve(given.get("model", "sigmarat2"), given["scale"], **given["overrides"], **steps)
