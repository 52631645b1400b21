"""The chapters of the book as they are executed: in which order, with which parameters, and when again."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import sys
import time
import tomllib
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
MODELS = ("adni", "sigmarat1", "sigmarat2")

SHOWN = "sigmarat2"
"""The run that chapters about a single run show."""

LIMITS = {"smoke": 300, "laptop": 7200, "paper": 1_000_000}
"""Seconds a cell may take."""

MEASURING = ("04_quality", "07_judge")
ENOUGH = 12
"""Animals that no model saw, which these chapters need; simulated ones can be made anew."""

SIMULATED = ("phantom", "sigma")
"""Cohorts that need no folder of scans."""


@dataclass
class Page:
    """A chapter as it is executed: which notebook, with which parameters, after which others."""

    stem: str
    notebook: str
    parameters: dict[str, Any]
    after: list[str] = field(default_factory=list)


def sized(scale: str, cohort: str) -> dict[str, dict[str, Any]]:
    """Parameters that fit a chapter to the scale, by notebook."""
    if scale == "laptop":
        # more seeds would take longer than everything else
        return {"05_segmentation": {"seeds": 3}}
    if scale != "smoke":
        return {}
    tables = tomllib.loads((ROOT / "ci" / "smoke_parameters.toml").read_text(encoding="utf-8"))
    simulated = {stem: table.pop("simulated", {}) for stem, table in tables.items()}
    return {stem: table | (simulated[stem] if cohort in SIMULATED else {}) for stem, table in tables.items()}


def pages(scale: str, cohort: str, n: int | None) -> list[Page]:
    """All chapters in the order in which they need each other; the models' runs are shared."""
    rats = {"cohort": cohort} | ({"n": n} if n else {})
    training = [f"02_train_{model}" for model in MODELS]
    runs = {model: f"runs/{model}" for model in MODELS}
    one, every = {"run_dir": runs[SHOWN]}, {"run_dirs": ",".join(runs.values())}
    size = defaultdict(dict, sized(scale, cohort))
    found = [Page("01_explore", "01_explore", size["01_explore"] | rats)]
    found += [
        Page(stem, "02_train", size["02_train"] | rats | {"model": model, "scale": scale, "run_dir": runs[model]})
        for stem, model in zip(training, MODELS, strict=True)
    ]
    after = {
        "03_inspect": (one, training[2:]),
        "05_segmentation": (one, training[2:]),
        # the network of chapter 5 is one more measure of chapter 4
        "04_quality": (every, [*training, "05_segmentation"]),
        "06_latent": (one, training[2:]),
        "07_judge": (every, training),
    }
    return found + [Page(stem, stem, size[stem] | runs_of, needs) for stem, (runs_of, needs) in after.items()]


def fitted(page: Page, run: Path, cohort: str) -> Page | str:
    """A chapter about trained runs as it suits what they were trained on, or why it is left out.

    Parameters
    ----------
    page : Page
        As :func:`pages` has it.
    run : pathlib.Path
        One of the runs: all have the same cohort and held out the same animals.
    cohort : str
        What was given to ``--cohort``.
    """
    import labkit

    trained = labkit.load_run(run)
    unseen = len(set(trained.config["held_out"]["subjects"]))
    if page.notebook in MEASURING and unseen < ENOUGH:
        if cohort in SIMULATED:
            return replace(page, parameters=page.parameters | {"cohort": "fresh"})
        return f"it needs {ENOUGH} animals or more that no model has seen, and of this cohort {unseen} were held out"
    if page.notebook == "05_segmentation" and not trained.cohort().labelled:
        return "it needs scans with labels, and this cohort has none: put `*_dseg.nii.gz` beside the scans"
    return page


def digest(*parts: object) -> str:
    """Hash of anything that has a repeatable text."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def meaning(path: Path) -> str:
    """A file's text; of Python only what runs, without docstrings and comments, so that prose may change."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            body.pop(0)
    return ast.dump(tree)


def sources_digest() -> str:
    """Of all that a chapter executes besides its own cells: labkit, the manifest, the pinned packages."""
    files = [p for p in (ROOT / "labkit").rglob("*") if p.suffix in (".py", ".js", ".css") and "tests" not in p.parts]
    files += [*(ROOT / "data_manifest").glob("*.toml"), ROOT / "ci" / "constraints.txt"]
    return digest(*((path.relative_to(ROOT), digest(meaning(path))) for path in sorted(files)))


def data_digest(cohort: str) -> str:
    """Of a folder of scans: names and contents. Simulated cohorts follow from the sources and their parameters."""
    if cohort in SIMULATED:
        return cohort
    files = sorted(path for path in Path(cohort).rglob("*") if path.is_file())
    return digest(*((path.relative_to(cohort), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files))


KEPT = {
    "02_train": ("", ("labkit.training", "labkit.sources")),
    "03_inspect": ("synthetic", ("labkit.generation",)),
    "05_segmentation": ("segmentation", ("labkit.segmentation.experiment",)),
}
"""Folders of a run in which a chapter finds what it did before, and what the content of these depends on."""


def reached(modules: tuple[str, ...]) -> list[Path]:
    """Files of the named modules of labkit and of all of labkit that they import, directly or not."""
    found: set[Path] = set()
    waiting = list(modules)
    while waiting:
        stem = ROOT.joinpath(*waiting.pop().split("."))
        path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
        # of labkit/__init__.py every module is reached, and only when asked for
        if path in found or not path.exists() or stem == ROOT / "labkit":
            continue
        found.add(path)
        if stem.is_dir():  # a package may import its parts only when they are asked for
            waiting += [".".join(part.relative_to(ROOT).with_suffix("").parts) for part in stem.rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.startswith("labkit")]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("labkit"):
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return sorted(found)


def set_aside(page: Page, work: Path, data: str) -> None:
    """Move what a chapter would open instead of making it anew, where it was made by other code, settings or scans.

    It goes to ``before`` beside the runs, in place of what was there: a run of days is not lost to a changed line.
    """
    if page.notebook not in KEPT:
        return
    name, modules = KEPT[page.notebook]
    key = digest(data, json.dumps(page.parameters, sort_keys=True), *(digest(meaning(p)) for p in reached(modules)))
    mark = work / "executed" / f"{page.stem}.results"
    if mark.exists() and mark.read_text() == key:
        return
    runs = [work / page.parameters["run_dir"]] if not name else sorted((work / "runs").glob("*"))
    for folder in (run / name for run in runs if (run / name).is_dir()):
        place = work / "before" / folder.relative_to(work / "runs")
        print(
            f"  {page.stem}: {folder.relative_to(work)} was made otherwise, and is moved to {place.relative_to(work)}"
        )
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(place)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(key)


def code_of(notebook: nbformat.NotebookNode) -> list[str]:
    """The cells that are executed: prose around them may change without executing anything again."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def execute(
    page: Page, work: Path, key: str, limit: int, data: str = ""
) -> tuple[nbformat.NotebookNode, dict[str, Any]]:
    """A chapter with its outputs, and how it was executed; from the cache if nothing that matters has changed."""
    source = BOOK / f"{page.notebook}.ipynb"
    done, note = work / "executed" / f"{page.stem}.ipynb", work / "executed" / f"{page.stem}.json"
    known = json.loads(note.read_text()) if note.exists() and done.exists() else {}
    if known.get("key") != key:
        done.parent.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        set_aside(page, work, data)
        print(f"  {page.stem}: executing", flush=True)
        began = time.monotonic()
        _papermill(page, source, done, work, limit)
        known = {"key": key, "seconds": time.monotonic() - began, "device": device()}
        note.write_text(json.dumps(known))
    else:
        print(f"  {page.stem}: unchanged", flush=True)
    return merged(nbformat.read(source, 4), nbformat.read(done, 4)), known


def device() -> str:
    """What this machine computes with, in words."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def _papermill(page: Page, source: Path, done: Path, work: Path, limit: int) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            str(source), str(done), page.parameters, kernel_name="python3", cwd=str(work), execution_timeout=limit,
            progress_bar=False, log_output=False,
        )  # fmt: skip
    except PapermillExecutionError as error:
        sys.exit(f"{page.stem}, cell {error.exec_count}, failed: {error.ename}: {error.evalue}\n\n{error.source}")


def merged(source: nbformat.NotebookNode, executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The prose of `source` with the outputs of `executed`, whose code is the same but for an injected cell."""
    outputs = iter([cell for cell in executed.cells if cell.cell_type == "code"])
    cells = []
    for cell in source.cells:
        if cell.cell_type == "code":
            ran = next(outputs)
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
        cells.append(cell)
        if "parameters" in cell.metadata.get("tags", []):
            injected = next((c for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])), None)
            if injected is not None:
                next(outputs)
                cells.append(injected)
    source.cells = cells
    return source
