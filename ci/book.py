"""Execute all chapters, or take them from the cache, and build the book from them. Called by ``ci/book``."""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diagrams
import nbformat
import vendor
import yaml

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
MODELS = ("adni", "sigmarat1", "sigmarat2")
SHOWN = "sigmarat2"
"""The run that chapters about a single run show."""

LIMITS = {"smoke": 300, "laptop": 7200, "paper": 1_000_000}
"""Seconds a cell may take."""

ANIMALS = {"smoke": 8}
"""Scans of a simulated cohort, where not all that the chapter takes by itself."""


@dataclass
class Page:
    """A chapter as it is executed: which notebook, with which parameters, after which others."""

    stem: str
    notebook: str
    parameters: dict[str, Any]
    after: list[str] = field(default_factory=list)


def pages(scale: str, cohort: str, n: int | None) -> list[Page]:
    """All chapters in the order in which they need each other; the models' runs are shared."""
    rats = {"cohort": cohort} | ({"n": n} if n else {})
    training = [f"02_train_{model}" for model in MODELS]
    runs = {model: f"runs/{model}" for model in MODELS}
    one, every = {"run_dir": runs[SHOWN]}, {"run_dirs": ",".join(runs.values())}
    small = scale == "smoke"
    fresh = {"cohort": "fresh"} if small and cohort in ("phantom", "sigma") else {}
    found = [Page("01_explore", "01_explore", rats)]
    found += [
        Page(stem, "02_train", {**rats, "model": model, "scale": scale, "run_dir": runs[model]})
        for stem, model in zip(training, MODELS, strict=True)
    ]
    segmentation = {"seeds": 2} if small else {"arms": "least", "seeds": 2} if scale == "laptop" else {}
    found += [
        Page("03_inspect", "03_inspect", one | ({"n": 5} if small else {}), training[2:]),
        Page("05_segmentation", "05_segmentation", one | segmentation, training[2:]),
        # the network of chapter 5 is one more measure of chapter 4
        Page("04_quality", "04_quality", every | fresh | ({"n": 6} if small else {}), [*training, "05_segmentation"]),
        Page("06_latent", "06_latent", one, training[2:]),
        Page("07_judge", "07_judge", every | fresh | ({"trials": 8} if small else {}), training),
    ]
    return found


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
    if cohort in ("phantom", "sigma"):
        return cohort
    files = sorted(path for path in Path(cohort).rglob("*") if path.is_file())
    return digest(*((path.relative_to(cohort), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files))


def code_of(notebook: nbformat.NotebookNode) -> list[str]:
    """The cells that are executed: prose around them may change without executing anything again."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def execute(page: Page, work: Path, key: str, limit: int) -> tuple[nbformat.NotebookNode, float]:
    """A chapter with its outputs, and the seconds it took; from the cache if nothing that matters has changed."""
    source = BOOK / f"{page.notebook}.ipynb"
    done, note = work / "executed" / f"{page.stem}.ipynb", work / "executed" / f"{page.stem}.json"
    known = json.loads(note.read_text()) if note.exists() and done.exists() else {}
    if known.get("key") != key:
        done.parent.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        print(f"  {page.stem}: executing", flush=True)
        began = time.monotonic()
        _papermill(page, source, done, work, limit)
        known = {"key": key, "seconds": time.monotonic() - began}
        note.write_text(json.dumps(known))
    else:
        print(f"  {page.stem}: unchanged", flush=True)
    return merged(nbformat.read(source, 4), nbformat.read(done, 4)), known["seconds"]


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


def provenance(page: Page, seconds: float, scale: str, cohort: str, work: Path) -> str:
    """What a page ends with: where its numbers come from."""
    import torch

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    changed = " with changes that are not committed" if git("status", "--porcelain") else ""
    runs = sorted(work.glob("runs/*/config.json"))
    prints = [json.loads(path.read_text())["train"]["fingerprint"][:12] for path in runs]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    rows = {
        "commit": commit + changed,
        "scale": scale,
        "cohort": cohort if cohort in ("phantom", "sigma") else Path(cohort).name,
        "training scans": ", ".join(dict.fromkeys(prints)) or "none",
        "parameters": "; ".join(f"{k} = {v}" for k, v in page.parameters.items() if k != "cohort"),
        "device": device,
        "executed in": f"{seconds:.0f} s",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    links = (
        f"Notebook: {{download}}`as in the repository <notebooks/{page.notebook}.ipynb>`, "
        f"{{download}}`executed <notebooks/executed/{page.stem}.ipynb>`"
    )
    return f"## Where this page comes from\n\n| | |\n|---|---|\n{table}\n\n{links}\n"


BANNERS = {
    "smoke": "Built at smoke scale: networks of four channels after 20 iterations on a handful of volumes of 16³. It "
    "shows that everything works, and nothing about rats. What the numbers mean is told for larger scales.",
    "laptop": "Built at laptop scale: volumes of 32³, a quarter of the paper's channels and a hundredth of its "
    "iterations. Findings are about models of this size.",
}


def write_page(
    page: Page, notebook: nbformat.NotebookNode, seconds: float, target: Path, args: Any, work: Path
) -> None:
    """Put an executed chapter among the sources of the book, with banner, provenance and downloads."""
    kept = target / "notebooks" / "executed" / f"{page.stem}.ipynb"
    kept.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, kept)
    shutil.copy(BOOK / f"{page.notebook}.ipynb", target / "notebooks")
    first = notebook.cells[0]
    if page.notebook == "02_train":
        model = page.parameters["model"]
        first.source = first.source.replace("\n", f": {model}\n", 1)
    if args.scale in BANNERS:
        first.source += f"\n\n```{{note}}\n{BANNERS[args.scale]}\n```"
    end = provenance(page, seconds, args.scale, args.cohort, work)
    if any("interactive-figure" in str(cell.get("outputs", "")) for cell in notebook.cells):
        end += '\n<script defer src="_static/plotly/plotly.min.js"></script>\n'
    notebook.cells.append(nbformat.v4.new_markdown_cell(end, id="provenance"))
    nbformat.write(notebook, target / f"{page.stem}.ipynb")


def vendored(target: Path) -> None:
    """Scripts that pages need, beside `_static` and not in it: what lies there loads on every page."""
    from plotly.offline import get_plotlyjs

    shutil.copytree(vendor.fetch("mathjax"), target / "vendor" / "mathjax")
    (target / "vendor" / "plotly").mkdir(parents=True)
    (target / "vendor" / "plotly" / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")


def tour(work: Path, target: Path) -> None:
    """The picture of the first page: a held-out real rat, a synthetic one, and the training rat nearest to it."""
    import labkit
    from labkit import figures

    run = labkit.load_run(work / "runs" / SHOWN)
    cohort = run.cohort()
    train, synthetic = run.train_part(cohort), labkit.generate(run, 1, seed=0)
    distances = (train.volumes(32) - synthetic.volumes(32)).square().mean((1, 2, 3, 4))
    shown = [run.held_out(cohort)[0], synthetic[0], train[int(distances.argmin())]]
    figures.three_planes(shown).savefig(target / "assets" / "tour.png", dpi=150, bbox_inches="tight")


def tidy(page: str) -> str:
    """A built page without what the theme puts in twice, or for a live kernel on another host.

    Every script once (of two that differ in ``defer`` the deferred one), none of Thebe's; and the list role that the
    bibliography gives to something that holds no list items.
    """
    seen: set[str] = set()

    def once(found: re.Match[str]) -> str:
        whole = found.group(0)
        source = re.search(r'src="([^"]*)"', whole)
        key = source[1] if source else whole
        if "thebe" in key.lower() or key in seen:
            return ""
        seen.add(key)
        return whole

    head, end, body = page.partition("</head>")
    head = re.sub(r"<script\b[^>]*>.*?</script>", once, head, flags=re.DOTALL)
    return head + end + body.replace('<div role="list" class="citation-list">', '<div class="citation-list">')


def build(work: Path, target: Path) -> Path:
    """Jupyter Book over the assembled sources; its warnings are errors."""
    log = work / "build.log"
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", "-W", "-n",
               "--keep-going", str(target)]  # fmt: skip
    with open(log, "w", encoding="utf-8") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    html = target / "_build" / "html"
    text = re.sub("\x1b\\[[0-9;]*m", "", log.read_text(encoding="utf-8"))
    warned = [line for line in text.splitlines() if "WARNING" in line or "ERROR" in line]
    if code or not (html / "index.html").exists():
        sys.exit("\n".join(warned[:40] or text.splitlines()[-20:]) + f"\n\nthe build failed; all of it is in {log}")
    for path in html.rglob("*.html"):
        path.write_text(tidy(path.read_text(encoding="utf-8")), encoding="utf-8")
    final = BOOK / "_build" / "html"
    shutil.rmtree(final, ignore_errors=True)
    shutil.copytree(html, final)
    return final


def assemble(target: Path) -> None:
    """The hand-written part of the book, afresh."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(BOOK, target, ignore=shutil.ignore_patterns("_build", "vendor", "*.ipynb", ".ipynb_checkpoints"))


def toc_stems() -> set[str]:
    """Pages that the table of contents names."""
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
    return {entry["file"] for part in toc["parts"] for entry in part["chapters"]}


def main() -> None:
    """Parse, execute, assemble, build, and say where it is."""
    parser = argparse.ArgumentParser(prog="ci/book", description=__doc__)
    parser.add_argument("--scale", choices=("smoke", "laptop", "paper"), default="laptop")
    parser.add_argument("--cohort", default="phantom", help="phantom, sigma, or a folder of NIfTI scans")
    parser.add_argument("--n", type=int, help="scans of the cohort; default all, of a simulated one what chapters take")
    parser.add_argument("--here", default=".", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cohort not in ("phantom", "sigma"):
        args.cohort = str((Path(args.here) / args.cohort).resolve())
        if not Path(args.cohort).is_dir():
            parser.error(f"--cohort {args.cohort}: phantom, sigma, or a folder of NIfTI scans that is there")
    if args.n is not None and args.n < 4:
        parser.error(f"--n {args.n}: needed are 4 animals or more, some to train with and some to hold out")
    n = args.n or (ANIMALS.get(args.scale) if args.cohort in ("phantom", "sigma") else None)
    began = time.monotonic()
    work = ROOT / "build" / "book" / f"{args.scale}-{Path(args.cohort).name}{f'-n{args.n}' if args.n else ''}"
    target = work / "source"
    wanted = pages(args.scale, args.cohort, n)
    if missing := {page.stem for page in wanted} - toc_stems():
        sys.exit(f"_toc.yml lacks {', '.join(sorted(missing))}")
    assemble(target)
    vendored(target)
    keys: dict[str, str] = {}
    common = digest(sources_digest(), data_digest(args.cohort))
    print(f"book at {args.scale} scale on {args.cohort}", flush=True)
    for page in wanted:
        own = code_of(nbformat.read(BOOK / f"{page.notebook}.ipynb", 4))
        parameters = json.dumps(page.parameters, sort_keys=True)
        keys[page.stem] = digest(common, own, parameters, *(keys[stem] for stem in page.after))
        notebook, seconds = execute(page, work, keys[page.stem], LIMITS[args.scale])
        write_page(page, notebook, seconds, target, args, work)
    executed = time.monotonic() - began
    diagrams.write(target / "assets")
    tour(work, target)
    final = build(work, target)
    size = sum(path.stat().st_size for path in final.rglob("*") if path.is_file())
    print(
        f"{final / 'index.html'}\n{size / 2**20:.0f} MiB; chapters {executed:.0f} s, pages "
        f"{time.monotonic() - began - executed:.0f} s"
    )


if __name__ == "__main__":
    main()
