"""The chapters of the book as they are executed: in which order, with which parameters, and when again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nbformat
from cache import ROOT, digest, run_digest

from labkit.data.simulate.library import meaning
from labkit.data.sources import SIMULATED
from labkit.sharing import REFERENCE, packed_run

BOOK = ROOT / "book"
MODELS = ("adni", "sigmarat1", "sigmarat2", "sigmarat3", "atlas")

JOBS = {"smoke": 2, "reference": 2, "laptop": 1, "paper": 1}
"""Chapters executed at a time: larger ones need the whole machine, and measure how fast it is."""

LIMITS = {"smoke": 1200, "laptop": 86_400, "reference": 1_000_000, "paper": 1_000_000}
"""Seconds a cell may take."""

SECONDS = {"reference": {"01": 10, "02": 10, "03": 10, "04": 105, "05": 55, "06": 25, "07": 30, "08": 5}}
"""What chapters added on two idle cores, of scales whose runs come trained, by the first two letters of their names."""

MEASURING = ("04_quality", "07_judge")
"""Chapters that need animals that no model saw; simulated ones can be made anew."""


@dataclass
class Page:
    """A chapter as it is executed: which notebook, with which parameters, after which others."""

    stem: str
    notebook: str
    parameters: dict[str, Any]
    after: list[str] = field(default_factory=list)
    in_book: bool = True  # further folds are trained, and not shown


SIZED = {
    "smoke": {
        "03_inspect": {"n": 5},
        "04_quality": {"n": 6},
        "05_segmentation": {"seeds": 2},
        "07_judge": {"trials": 8},
    },
}
"""Parameters that fit chapters to a scale."""

FEW = {"01_explore": {"n": 8}, "02_train": {"n": 8}}
"""Parameters at smoke scale where rats are simulated; of a folder all scans are taken."""


def comes_trained(cohort: str, scale: str, *others: Any) -> list[str]:
    """Models that the repository has trained on this cohort at this scale, opened as it is by default."""
    if cohort != "phantom" or scale != "reference" or any(others):
        return []
    return [model for model in MODELS if packed_run(f"reference/{model}")]


def shown(models: Sequence[str]) -> str:
    """The model that chapters about a single run show."""
    return "sigmarat2" if "sigmarat2" in models else models[-1]


def pictured(models: Sequence[str]) -> list[str]:
    """Models of which the first page shows a scan."""
    return [shown(models), *(model for model in ("sigmarat3", "atlas") if model in models and model != shown(models))]


def pages(
    scale: str, cohort: str, n: int | None, models: Sequence[str] = MODELS, data: str = "", grid: str | None = None,
    folds: int = 1, sweep: str | None = None,
) -> list[Page]:  # fmt: skip
    """All chapters in an order in which they can be executed; `data` is what is known of the cohort's content."""
    rats = {"cohort": cohort} | ({"n": n} if n else {}) | ({"grid": grid} if grid else {})
    few = FEW if scale == "smoke" and cohort in SIMULATED else {}
    size = defaultdict(dict, SIZED.get(scale, {}) | few)
    there = comes_trained(cohort, scale, n, grid, folds > 1)
    ready = shown(models) in there
    training, made_by = {}, digest(run_digest(), data, *_making())
    for fold, model in ((fold, model) for fold in range(folds) for model in models):
        parameters = size["02_train"] | rats | {"model": model, "scale": scale} | ({"fold": fold} if fold else {})
        made = f"runs/{model}-{digest(made_by, json.dumps(parameters, sort_keys=True))[:8]}"
        parameters["run_dir"] = f"reference/{model}" if model in there else made
        stem = f"02_train_{model}" + (f"_fold{fold}" if fold else "")
        training[model, fold] = Page(stem, "02_train", parameters, in_book=not fold)
    runs = {key: page.parameters["run_dir"] for key, page in training.items()}
    one, every = {"run_dir": runs[shown(models), 0]}, {"run_dirs": ",".join(runs[model, 0] for model in models)}
    first, all_of_them = [training[shown(models), 0].stem], [page.stem for page in training.values()]
    atlas = [training[model, 0].stem for model in models if model == "atlas"]  # chapters take it from beside the run
    after = {  # the longest first, so that two at a time end together
        "07_judge": (every, all_of_them),
        "05_segmentation": (one, [*first, *atlas]),
        "03_inspect": (one, first),
        # the network of chapter 5 is one more measure of chapter 4, and comes with a run that comes trained
        "04_quality": ({"run_dirs": ",".join(runs.values())}, [*all_of_them, *([] if ready else ["05_segmentation"])]),
        "06_latent": (one, [*first, *atlas]),
    }
    if ready:
        after = {"04_quality": after["04_quality"], **after}
    about_runs = [Page(stem, stem, size[stem] | runs_of, needs) for stem, (runs_of, needs) in after.items()]
    many = Page("08_sweep", "08_sweep", {"sweep": sweep} if sweep else {})
    return [Page("01_explore", "01_explore", size["01_explore"] | rats), *training.values(), *about_runs, many]


def _making() -> list[str]:
    """The cells of the training chapter that make the run."""
    cells = code_of(nbformat.read(BOOK / "02_train.ipynb", 4))
    return [meaning(cell) for cell in cells if any(word in cell for word in ("train(", "open_cohort(", "run_dir:"))]


def fitted(page: Page, run: Path, cohort: str) -> Page | str:
    """A chapter about trained runs as it suits what they were trained on, or why it is left out.

    `run` is one of them: all have the same cohort and held out the same animals.
    """
    import labkit
    from labkit.evidence.metrics.yardstick import LEAST_REAL, MANY_REAL, too_few

    trained = labkit.load_run(run)
    unseen = len(set(trained.config["held_out"]["subjects"]))
    if page.notebook in MEASURING and unseen < MANY_REAL and cohort in SIMULATED:
        return replace(page, parameters=page.parameters | {"cohort": "fresh"})
    if page.notebook in MEASURING and unseen < LEAST_REAL:
        showing = f"{unseen} real animals that no model saw are too few to show, each once; needed are {LEAST_REAL}"
        return too_few(unseen) if page.notebook == "04_quality" else showing
    if page.notebook == "05_segmentation":
        from labkit.evidence.segmentation.experiment import Experiment

        try:
            experiment = Experiment(trained, seeds=page.parameters.get("seeds"))
        except ValueError as error:
            return str(error)
        # who asks for a book of runs that come trained does not ask for hours
        if run.parent.name == REFERENCE and (missing := experiment.missing()):
            return (
                f"it takes hours to train its {len(missing)} networks: papermill book/05_segmentation.ipynb out.ipynb"
            )
    return page


def git(*words: str) -> str:
    """What git says in the repository, or nothing."""
    if shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def code_of(notebook: nbformat.NotebookNode) -> list[str]:
    """The cells that are executed: prose around them may change without executing anything again."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def execute(page: Page, work: Path, key: str, limit: int) -> tuple[nbformat.NotebookNode, dict[str, Any]]:
    """A chapter with its outputs, and how it was executed; from the cache if nothing that matters has changed."""
    source = BOOK / f"{page.notebook}.ipynb"
    done, note = work / "executed" / f"{page.stem}.ipynb", work / "executed" / f"{page.stem}.json"
    known = json.loads(note.read_text()) if note.exists() and done.exists() else {}
    if known.get("key") != key:
        done.parent.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        print(f"  {page.stem}: executing", flush=True)
        began = time.monotonic()
        _papermill(page, source, done, limit)
        known = {"key": key, "seconds": time.monotonic() - began, "device": device(), "commit": commit()}
        note.write_text(json.dumps(known))
    else:
        print(f"  {page.stem}: unchanged", flush=True)
    return merged(nbformat.read(source, 4), nbformat.read(done, 4)), known


def commit() -> str:
    """Where the repository stands, in words."""
    changed = " with changes that are not committed" if git("status", "--porcelain") else ""
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + changed


def device() -> str:
    """What this machine computes with, in words."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"


def _papermill(page: Page, source: Path, done: Path, limit: int) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            # not with its cwd: that is the whole process's, and another thread's chapter would set it back in between
            literal(source), literal(done), page.parameters, kernel_name="python3", execution_timeout=limit,
            progress_bar=False, log_output=False,
            # a kernel on this machine is no danger for being reached without encryption, of which it warns
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )  # fmt: skip
    except PapermillExecutionError as error:
        sys.exit(f"{page.stem}, cell {error.exec_count}, failed: {error.ename}: {error.evalue}\n\n{error.source}")


def literal(path: Path) -> str:
    """A path as papermill takes it, which fills in what stands in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


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
