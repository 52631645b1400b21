"""Execute all chapters, or take them from the cache, and build the book from them. Called by ``ci/book``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import diagrams
import nbformat
import vendor
import yaml
from cache import NAMED, ROOT, data_digest, digest, sources_digest
from chapters import (
    BOOK,
    JOBS,
    LIMITS,
    MODELS,
    SECONDS,
    Page,
    code_of,
    comes_trained,
    execute,
    fitted,
    git,
    pages,
    pictured,
    shown,
)

import labkit
from labkit import figures
from labkit.cards import CONTROLS, as_good
from labkit.data import common_grid, splits
from labkit.evidence.sweeps import read_sweep
from labkit.markup import plain
from labkit.widgets import rat


def provenance(page: Page, known: dict[str, Any], scale: str, cohort: str) -> str:
    """What a page ends with: where its numbers come from. Runs are found from where chapters are executed."""
    runs = ",".join(str(page.parameters.get(name, "")) for name in ("run_dir", "run_dirs")).strip(",").split(",")
    configs = [labkit.load_run(run).config for run in runs if run]
    prints = [config["train"]["fingerprint"][:12] for config in configs]
    rows = {
        "executed at commit": known["commit"],
        "scale": scale,
        "cohort": cohort if cohort in NAMED else Path(cohort).name,
        "training scans": ", ".join(dict.fromkeys(prints)) or "none",
        "parameters": "; ".join(f"{k} = {v}" for k, v in page.parameters.items() if k != "cohort"),
        "device": known["device"],
        "executed in": f"{known['seconds']:.0f} s",
    }
    table = "\n".join(f"| {name} | {plain(value)} |" for name, value in rows.items())
    links = (
        f"Notebook: {{download}}`as in the repository <notebooks/{page.notebook}.ipynb>`, "
        f"{{download}}`executed <notebooks/executed/{page.stem}.ipynb>`"
    )
    return f":::{{dropdown}} Where this page comes from\n\n| | |\n|---|---|\n{table}\n\n{links}\n:::\n"


def launch(page: Page, repository: str | None, branch: str) -> str:
    """Links that open a chapter with a live kernel: on Binder and Colab where the repository is public, or at home."""
    home, words = f"`ci/live {page.notebook}`", "Words of the other field: [glossary](glossary.md)."
    if repository is None:
        return f"Run it live: {home} in a clone of the repository. {words}"
    path = f"book/{page.notebook}.ipynb"
    binder = f"https://mybinder.org/v2/gh/{repository}/{quote(branch, safe='')}?labpath={quote(path, safe='')}"
    colab = f"https://colab.research.google.com/github/{repository}/blob/{branch}/{path}"
    install = f"`%pip install git+https://github.com/{repository}@{branch}`"
    return f"Run it live: [Binder]({binder}), [Colab]({colab}) (there {install} first), or {home} in a clone. {words}"


def origin() -> str | None:
    """``OWNER/NAME`` of the repository on GitHub from which this one was cloned, if it was."""
    address = git("remote", "get-url", "origin")
    found = re.fullmatch(r"(?:https://|ssh://git@|git@)github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?", address)
    return found[1] if found else None


SHOWN_LINES = 2
"""Lines of a cell that a page shows; longer code is folded, a click away."""

BANNERS = {
    "smoke": "Built at smoke scale: networks of four channels after 20 iterations on a handful of volumes of 16³. It "
    "shows that everything works, and nothing about animals. What the numbers mean is told for larger scales.",
    "laptop": "Built at laptop scale: volumes of 32³, a quarter of the paper's channels and a hundredth of its "
    "iterations. Findings are about models of this size.",
}

COHORTS = {
    "phantom": "Shown are simulated rats, computed from a procedural head: no animal was scanned.",
    "sigma": "Shown are simulated rats, computed from SIGMA's maps of real ones: no animal was scanned for them.",
    "mice": "Shown are real mice, not rats: 8 wild-type and 17 transgenic ones, 7 of these treated; brains cut out of "
    "in vivo scans ([Ma et al. 2019](https://doi.org/10.3389/fnins.2019.00011); GPL-3.0, which may extend to "
    "what a model makes of them). CSF is the ventricles alone; cerebellum and brain stem count as grey matter. So few "
    "animals can show a large fault, and cannot show that there is none.",
}


def shown_animals(cohort: str) -> str:
    """What a reader has to know of the animals that a page shows."""
    own = Path(cohort).name.replace("`", "")
    return COHORTS.get(cohort, f"Shown are the animals of `{own}`, which are not the study's rats.")


PROGRESS = re.compile(r"^iteration \d+ of \d+: .* left\n", re.MULTILINE)
"""What a training says while it runs, for those who wait and not for those who read."""


KERNEL_FILE = re.compile(re.escape(tempfile.gettempdir()) + r"/ipykernel_\d+/\d+\.py")
"""What a kernel calls the cell that a warning comes from."""


def without_paths(notebook: nbformat.NotebookNode, cohort: str, work: Path) -> nbformat.NotebookNode:
    """Take the folders of the machine that built it, and its progress, out of a notebook: a page is given to others."""
    names = {str(work): ".", str(ROOT): ".", str(Path.home()): "~"}
    names |= {} if cohort in NAMED else {cohort: Path(cohort).name}
    # the longest first, as one may lie in another; a home that is the root of all would take every slash with it
    folders = sorted((folder for folder in names if len(folder) > 1), key=len, reverse=True)

    def cleaned(text: str, guard: str = "") -> str:
        text = KERNEL_FILE.sub("a cell above", text)
        for folder in folders:
            text = re.sub(rf"{guard}{re.escape(folder)}(?![\w-])", lambda _, name=names[folder]: name, text)
        return text

    for cell in notebook.cells:
        cell.source = cleaned(cell.source)
        for output in cell.get("outputs", []):
            if "text" in output:
                output.text = cleaned(PROGRESS.sub("", output.text))
            for kind, value in output.get("data", {}).items():
                if kind.startswith("text/") and isinstance(value, str):
                    # letters before it are those of a picture within the page
                    output.data[kind] = cleaned(value, "(?<![A-Za-z0-9+])" if kind == "text/html" else "")
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("text", "some")]
    return notebook


def write_page(
    page: Page, notebook: nbformat.NotebookNode, known: dict[str, Any], target: Path, args: Any, work: Path
) -> None:
    """Put an executed chapter among the sources of the book, with banner, provenance and downloads."""
    notebook = without_paths(notebook, args.cohort, work)
    kept = target / "notebooks" / "executed" / f"{page.stem}.ipynb"
    kept.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, kept)
    shutil.copy(BOOK / f"{page.notebook}.ipynb", target / "notebooks")
    first = notebook.cells[0]
    if page.notebook == "02_train":
        first.source = first.source.replace("# Training", f"# Training {page.parameters['model']}", 1)
    first.source += f"\n\n{launch(page, args.repository, args.branch)}"
    if page.notebook != "08_sweep":  # which has animals and a scale of its own
        words = "\n\n".join(filter(None, [shown_animals(args.cohort), BANNERS.get(args.scale)]))
        first.source += f"\n\n```{{note}}\n{words}\n```"
    end = provenance(page, known, args.scale, args.cohort)
    if any("interactive-figure" in str(cell.get("outputs", "")) for cell in notebook.cells):
        end += '\n<script defer src="_static/plotly/plotly.min.js"></script>\n'
    notebook.cells.append(nbformat.v4.new_markdown_cell(end, id="provenance"))
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if rat.MARK in (text := output.get("data", {}).get("text/html", "")):
                output.data["text/html"] = shared_script(text, target)
        if cell.cell_type == "code" and len(cell.source.splitlines()) > SHOWN_LINES:
            cell.metadata["tags"] = folded(cell.metadata.get("tags", []))
    nbformat.write(notebook, target / f"{page.stem}.ipynb")


def folded(tags: list[str]) -> list[str]:
    """Tags of a cell whose code is folded, where its output is, too, both in one, which the cell has words for."""
    if "hide-output" not in tags:
        return [*tags, "hide-input"]
    return [*(tag for tag in tags if tag != "hide-output"), "hide-cell"]


def write_left_out(stem: str, reason: str, target: Path) -> None:
    """A page in place of a chapter that this cohort does not allow."""
    title = nbformat.read(BOOK / f"{stem}.ipynb", 4).cells[0].source.splitlines()[0]
    text = f"{title}\n\nThis chapter was left out: {plain(reason.rstrip('.'))}.\n"
    (target / f"{stem}.md").write_text(text, encoding="utf-8")


def vendored(target: Path) -> None:
    """Scripts that pages need, beside `_static` and not in it: what lies there loads on every page."""
    from plotly.offline import get_plotlyjs

    shutil.copytree(vendor.fetch("mathjax"), target / "vendor" / "mathjax")
    (target / "vendor" / "plotly").mkdir(parents=True)
    (target / "vendor" / "plotly" / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")


def tour(folders: list[Path], target: Path) -> None:
    """The picture of the first page: a held-out scan, one of each run, and the training scan nearest to the last."""
    runs = [labkit.load_run(folder) for folder in folders]
    cohort = runs[0].cohort()
    train, made = runs[0].train_part(cohort), [labkit.generate(run, 1, seed=0) for run in runs]
    distances = (train.volumes(32) - made[-1].volumes(32)).square().mean((1, 2, 3, 4))
    scans = [(runs[0].held_out(cohort) or cohort)[0], *(one[0] for one in made), train[int(distances.argmin())]]
    names = ["real", *(run.variant.name for run in runs), "training"]
    figures.three_planes(scans, names=names).savefig(target / "assets" / "tour.png", dpi=150, bbox_inches="tight")


RATS = "<!-- rats -->"
"""Where the first page has the machine that makes rats."""

SCRIPT = re.compile(rf"<script {rat.MARK}>(.*?)</script>", re.DOTALL)
"""The machine's script in the output of a cell."""


def shared_script(html: str, target: Path) -> str:
    """The output of a cell with a machine's script in a file of its own, which several pages can show."""

    def shared(found: re.Match[str]) -> str:
        script = target / "vendor" / "rats" / f"{digest(found[1])[:8]}.js"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(found[1], encoding="utf-8")
        return f'<script src="_static/rats/{script.name}"></script>'

    return SCRIPT.sub(shared, html)


def first_rats(target: Path) -> str:
    """The machine for the first page, if a chapter has one."""
    chapter = target / "06_latent.ipynb"
    cells = nbformat.read(chapter, 4).cells if chapter.exists() else []
    texts = [one.get("data", {}).get("text/html", "") for cell in cells for one in cell.get("outputs", [])]
    shown = next((text for text in texts if f"<div {rat.MARK}" in text), "")
    words = "Move a slider, and a new labelled rat appears, made in your browser ([how to read it](06_latent)):"
    return f"{words}\n\n```{{raw}} html\n{shown}\n```\n" if shown else ""


FINDINGS = "<!-- findings -->"
"""Where the first page has what this book found."""


def findings(runs: dict[str, Path], scale: str) -> str:
    """What the chapters found of the models, a sentence a question; nothing where nothing was measured."""
    files = {model: folder / "metrics.json" for model, folder in runs.items()}
    measured = {model: json.loads(file.read_text(encoding="utf-8")) for model, file in files.items() if file.exists()}
    measured = {model: content for model, content in measured.items() if content.get("verdicts")}
    if not measured:
        return ""
    good = {model: as_good(content["verdicts"]) for model, content in measured.items()}
    controls = {name: as_good(cells)[0] for name, cells in next(iter(measured.values())).get("controls", {}).items()}
    of, best = max(of for _, of in good.values()), max(good, key=lambda model: good[model])
    others = ", ".join(f"`{model}` in {count}" for model, (count, _) in good.items() if model != best)
    nothing = max(controls, key=lambda name: controls[name], default="")
    said = f"Of {of} measures `{best}` is as good as real in {good[best][0]}" + (f", {others}" if others else "")
    said += (
        f"; of what learned nothing, {plain(CONTROLS.get(nothing, nothing))} in {controls[nothing]}" if nothing else ""
    )
    lines = [f"**Are they real?** {said} ([chapter 4](04_quality), which says what these can see)."]
    copies: dict[str, list[str]] = {}
    for model, content in measured.items():
        verdict = content["verdicts"].get("copies", "")
        share = [int(number) for number in re.findall(r"\d+", verdict)]
        words = "no sign of it" if len(share) == 2 and share[0] == share[1] else "not testable with so few animals"
        words = "it seems so" if len(share) == 2 and share[0] < share[1] else words
        copies.setdefault(words, []).append(f"`{model}`")
    each = "; ".join(f"{words} ({', '.join(models)})" for words, models in copies.items())
    lines.append(f"**Are they copies of training animals?** {each[0].upper() + each[1:]} ([chapter 4](04_quality)).")
    concluded = [path for folder in runs.values() for path in sorted(folder.glob("segmentation/*/conclusions.txt"))]
    text = concluded[-1].read_text(encoding="utf-8").splitlines() if concluded else []
    whose = {"s": "an alpha-GAN's scans, labelled by a teacher,", "a": "an atlas's scans with its own labels,"}
    added = [re.match(r"r(\d+)\+([sa])\d+ against r\1, [^:]*: (.*)", line) for line in text]
    gains = {(line[2], line[1]): line[3].rstrip(".") for line in added if line}
    as_published: dict[tuple[str, str], list[str]] = {}  # a sentence a tissue, with what the paper gained
    for line in (
        re.match(r"([^,]+), r(\d+)\+([sa])\d+ against r\2: (\S+ \([^,)]+).*, published (\S+):", s) for s in text
    ):
        if line:
            as_published.setdefault((line[3], line[2]), []).append(f"{line[1]} {line[4]}; published {line[5]})")
    gains |= {key: ", ".join(parts) for key, parts in as_published.items()}
    # of an alpha-GAN beside all real scans, as in the paper; of an atlas beside the fewest, where it has most to give
    kinds = [(kind, shares) for kind in whose if (shares := sorted((s for k, s in gains if k == kind), key=int))]
    told = [f"{whose[kind]} beside {share} % of the real ones: {plain(gains[kind, share])}" for kind, share in
            ((kind, shares[-1] if kind == "s" else shares[0]) for kind, shares in kinds)]  # fmt: skip
    if told:
        said = ". ".join(one[0].upper() + one[1:] for one in told)
        lines.append(f"**Do they help a segmentation network?** {said} ([chapter 5](05_segmentation)).")
    return f"## What this book found\n\nAt `{scale}` scale:\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


SEARCH_FROM_DISK = """
// a page that was opened from a disk may read no other: results come without the text around them
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
"""


def tidy(page: str) -> str:
    """A built page without what the theme puts in twice, for a live kernel on another host, or for other pages.

    Every script once, where it first stands, none of Thebe's, the megabytes of MathJax where there are equations, those
    of plotly where the page itself asks for them at its end; and without the list role that the bibliography gives to
    something that holds no list items.
    """
    seen: set[str] = set()
    head, end, body = page.partition("</head>")
    unwanted = ["thebe", "/plotly/"] + ([] if 'class="math' in body else ["/mathjax/"])

    def once(found: re.Match[str]) -> str:
        whole = found.group(0)
        source = re.search(r'src="([^"]*)"', whole)
        key = source[1] if source else whole
        if any(name in key.lower() for name in unwanted) or key in seen:
            return ""
        seen.add(key)
        return whole

    head = re.sub(r"<script\b[^>]*>.*?</script>", once, head, flags=re.DOTALL)
    body = re.sub(r"<table\b.*?</table>", lambda found: scoped(found[0]), body, flags=re.DOTALL)
    return head + end + body.replace('<div role="list" class="citation-list">', '<div class="citation-list">')


def scoped(table: str) -> str:
    """A table whose header cells say what they are of, for those who hear it."""
    head, end, body = table.rpartition("</thead>")
    named = r"<th\b(?![^>]*\bscope=)"
    return re.sub(named, '<th scope="col"', head) + end + re.sub(named, '<th scope="row"', body)


def build(work: Path, target: Path, final: Path) -> None:
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
    options = html / "_static" / "documentation_options.js"
    options.write_text(options.read_text(encoding="utf-8") + SEARCH_FROM_DISK, encoding="utf-8")
    for path in html.rglob("*.html"):
        path.write_text(tidy(path.read_text(encoding="utf-8")), encoding="utf-8")
    # beside it and then in its place: a full disk leaves the book that was there
    fresh, old = (final.with_name(f".{final.name}-{kind}") for kind in ("new", "old"))
    for folder in (fresh, old):
        shutil.rmtree(folder, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(html, fresh)
    if final.exists():
        final.rename(old)
    fresh.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def assemble(target: Path, models: list[str], cohort: str) -> None:
    """The hand-written part of the book, afresh, without pages and links of models that were not asked for.

    The first page says of which animals it is.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(BOOK, target, ignore=shutil.ignore_patterns("_build", "vendor", "*.ipynb", ".ipynb_checkpoints"))
    toc = yaml.safe_load((target / "_toc.yml").read_text(encoding="utf-8"))
    unwanted = {f"02_train_{model}" for model in MODELS if model not in models}
    for part in toc["parts"]:
        part["chapters"] = [entry for entry in part["chapters"] if entry["file"] not in unwanted]
    (target / "_toc.yml").write_text(yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
    page = target / "intro.md"
    text = page.read_text(encoding="utf-8").replace("(02_train_sigmarat2)", f"(02_train_{shown(models)})")
    for model in set(MODELS) - set(models):
        text = text.replace(f"[`{model}`](02_train_{model})", f"`{model}`")
    seen = pictured(models)
    text = text.replace("one by `sigmarat2`, one by `atlas`", ", ".join(f"one by `{model}`" for model in seen))
    text = text.replace("sigmarat2, one by the model atlas", ", one by the model ".join(seen))
    text = text.replace(RATS, f"```{{note}}\n{shown_animals(cohort)}\n```\n\n{RATS}", 1)
    page.write_text(text, encoding="utf-8")


def toc_stems() -> set[str]:
    """Pages that the table of contents names."""
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
    return {entry["file"] for part in toc["parts"] for entry in part["chapters"]}


LEAST = 5
"""Animals of which one is held out."""


def replaceable(folder: Path) -> bool:
    """Whether nothing is lost with a folder: it is empty, or a built book without a repository around it."""
    if not folder.is_dir():
        return False
    inside = list(folder.iterdir())
    hidden = any(path.name.startswith(".") and path.name not in (".buildinfo", ".nojekyll") for path in inside)
    return not inside or (folder / "_static" / "book.css").exists() and not hidden


def arguments() -> argparse.Namespace:
    """What was asked for, refused before any work if it cannot be done."""
    parser = argparse.ArgumentParser(prog="ci/book", description=__doc__)
    parser.add_argument(
        "--scale",
        choices=tuple(JOBS),
        help="default reference, the trained runs that come along; of other animals laptop",
    )
    parser.add_argument("--cohort", default="phantom", help=f"{', '.join(NAMED)}, or a folder of NIfTI scans")
    parser.add_argument(
        "--grid", help="of the scans: study, native, fitted, or as 56x40x64@0.3; default the cohort's own"
    )
    parser.add_argument("--n", type=int, help="scans of the cohort; default all, of a simulated one what chapters take")
    parser.add_argument("--models", help="with commas between; default all, at scale reference those that come trained")
    parser.add_argument(
        "--folds", type=int, default=1, help="trainings of each model, each holding out other animals, for chapter 4"
    )
    parser.add_argument("--sweep", help="folder of a sweep for its page; default the one in the repository")
    parser.add_argument("--repository", default=origin(), help="OWNER/NAME on GitHub, for links to Binder and Colab")
    parser.add_argument("--branch", default="main", help="of that repository")
    parser.add_argument("--to", type=Path, help="folder for the pages; default book/_build/html; what it held is gone")
    parser.add_argument("--work", type=Path, help="folder for runs and executed chapters; default build/book")
    parser.add_argument("--here", default=".", help=argparse.SUPPRESS)
    args = parser.parse_args()
    others = args.n, args.grid, args.folds > 1
    there = comes_trained(args.cohort, args.scale or "reference", *others)
    args.scale = args.scale or ("reference" if there else "laptop")
    models = args.models.split(",") if args.models else there if args.scale == "reference" and there else MODELS
    args.models = list(dict.fromkeys(models))
    if unknown := [model for model in args.models if model not in MODELS]:
        parser.error(f"--models {','.join(unknown)}: allowed are {', '.join(MODELS)}")
    try:
        args.grid = args.grid and common_grid.asked(args.grid)
    except ValueError as error:
        parser.error(f"--{error}")
    if args.cohort not in NAMED:
        args.cohort = str((Path(args.here) / args.cohort).resolve())
        if not Path(args.cohort).is_dir():
            parser.error(f"--cohort {args.cohort}: {', '.join(NAMED)}, or a folder of NIfTI scans that is there")
        try:
            animals = len(set(labkit.open_cohort(args.cohort, n=args.n, grid=args.grid).subjects))
        except labkit.CohortError as error:
            parser.error(f"--cohort {args.cohort}: {error}")
        if animals < LEAST:
            parser.error(f"--cohort {args.cohort}: {animals} animals; needed are {LEAST}, one to hold out")
    elif args.n is not None and args.n < LEAST:
        parser.error(f"--n {args.n}: needed are {LEAST} animals or more, some to train with and some to hold out")
    if not 1 <= args.folds <= (most := _folds(args)):
        parser.error(f"--folds {args.folds}: 1 to {most}, which hold every animal out once")
    if args.repository is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", args.repository):
        parser.error(f"--repository {args.repository}: write OWNER/NAME, as in github.com/OWNER/NAME")
    if args.sweep:
        args.sweep = str((Path(args.here) / args.sweep).resolve())
        try:
            read_sweep(args.sweep)
        except ValueError as error:
            parser.error(f"--sweep: {error}")
    args.to = Path(args.here) / args.to if args.to else BOOK / "_build" / "html"
    if args.to.is_symlink() or args.to.exists() and not replaceable(args.to):
        parser.error(f"--to {args.to}: is not an empty folder, nor one that holds a built book and nothing else")
    return args


def _folds(args: argparse.Namespace) -> int:
    """How many folds the cohort has."""
    if args.folds == 1:
        return 1
    animals = len(set(labkit.open_cohort(args.cohort, n=args.n, grid=args.grid).subjects))
    return splits.folds(animals, splits.default_n_train(animals))


def digest_of_sweep(folder: str | None) -> str:
    """Of the table that the page of many trainings shows."""
    table, _ = read_sweep(folder)
    return digest(table.to_csv())


class TimeLeft:
    """How long the chapters that are left will take, told whenever one is done, where a scale's are known.

    A slower machine than that of the estimates shows in the first chapters.
    """

    def __init__(self, scale: str, stems: list[str]) -> None:
        self.left = {stem: SECONDS.get(scale, {}).get(stem[:2], 0) for stem in stems}
        self.all, self.began = sum(self.left.values()), time.monotonic()

    def tell(self, stem: str) -> None:
        """Count a chapter as done."""
        self.left.pop(stem, None)
        ahead = sum(self.left.values())
        if ahead and self.all > ahead:
            seconds = ahead * (time.monotonic() - self.began) / (self.all - ahead)
            print(f"  {stem}: done, chapters take about {max(1, round(seconds / 60))} min more", flush=True)


def write_chapters(args: argparse.Namespace, work: Path, target: Path) -> None:
    """Put every chapter into the book, or why the cohort forbids it."""
    data = data_digest(args.cohort)
    chapters = pages(args.scale, args.cohort, args.n, args.models, data, args.grid, args.folds, args.sweep)
    trained = [page for page in chapters if page.notebook == "02_train" and page.in_book]
    runs = {page.parameters["model"]: page.parameters["run_dir"] for page in trained}
    shown_run, common = Path(runs[shown(args.models)]), digest(sources_digest(), data)
    keys: dict[str, str] = {}
    left = TimeLeft(args.scale, [page.stem for page in chapters])
    done: dict[str, Future[None]] = {}
    fresh = threading.Lock()  # new rats are simulated by the first chapter that asks for them

    def write(page: Page) -> None:
        for other in page.after:
            done[other].result()
        suited = fitted(page, shown_run, args.cohort) if page.after else page
        if isinstance(suited, str):
            print(f"  {page.stem}: left out, {suited}", flush=True)
            write_left_out(page.stem, suited, target)
            keys[page.stem] = ""
            return
        own = code_of(nbformat.read(BOOK / f"{page.notebook}.ipynb", 4))
        parameters = json.dumps(suited.parameters, sort_keys=True)
        of_sweep = (digest_of_sweep(args.sweep),) if page.notebook == "08_sweep" else ()
        keys[page.stem] = digest(common, own, parameters, *of_sweep, *(keys[other] for other in page.after))
        with fresh if suited.parameters.get("cohort") == "fresh" else contextlib.nullcontext():
            notebook, known = execute(suited, work, keys[page.stem], LIMITS[args.scale])
        left.tell(page.stem)
        if not page.in_book:
            return
        write_page(suited, notebook, known, target, args, work)

    jobs = JOBS[args.scale]
    if jobs > 1:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the chapters' kernels
        labkit.open_cohort(
            args.cohort, n=chapters[0].parameters.get("n"), grid=args.grid
        )  # made once, and not by two at once
    with contextlib.chdir(work), ThreadPoolExecutor(jobs) as pool:  # chapters' folders are relative to it
        try:
            for page in chapters:
                done[page.stem] = pool.submit(write, page)
            for waiting in done.values():
                waiting.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        for model, run in runs.items():  # by a name that does not change, for readers and ci/results.py
            Path(model).unlink(missing_ok=True)
            Path(model).symlink_to(labkit.load_run(run).path.resolve().relative_to(work))


def main() -> None:
    """Parse, assemble, execute, build, and say where it is."""
    args = arguments()
    if missing := {page.stem for page in pages(args.scale, args.cohort, args.n, args.models)} - toc_stems():
        sys.exit(f"_toc.yml lacks {', '.join(sorted(missing))}")
    # folders in different places may have one name
    own = "" if args.cohort in NAMED else f"-{digest(args.cohort)[:6]}"
    name = f"{args.scale}-{Path(args.cohort).name}{own}{f'-n{args.n}' if args.n else ''}"
    name += f"-{args.grid.replace(':', '')}" if args.grid else ""
    work = (Path(args.here) / args.work if args.work else ROOT / "build" / "book").resolve() / name
    target = work / "source"
    began = time.monotonic()
    assemble(target, args.models, args.cohort)
    vendored(target)
    print(f"book at {args.scale} scale on {args.cohort}", flush=True)
    write_chapters(args, work, target)
    executed = time.monotonic() - began
    diagrams.write(target / "assets")
    page = target / "intro.md"
    found = findings({model: (work / model).resolve() for model in args.models}, args.scale)
    text = page.read_text(encoding="utf-8").replace(FINDINGS, found).replace(RATS, first_rats(target))
    page.write_text(text, encoding="utf-8")
    tour([work / model for model in pictured(args.models)], target)
    build(work, target, args.to)
    size = sum(path.stat().st_size for path in args.to.rglob("*") if path.is_file())
    print(
        f"{args.to / 'index.html'}\n{size / 2**20:.0f} MiB; chapters {executed:.0f} s, pages "
        f"{time.monotonic() - began - executed:.0f} s"
    )


if __name__ == "__main__":
    main()
