"""What a chapter depends on: when it is executed again, and when what it left in a run is still good."""

from __future__ import annotations

import ast
import hashlib
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SIMULATED = ("phantom", "sigma")
"""Cohorts that need no folder of scans."""

KEPT = {
    "02_train": (("",), ("labkit.training", "labkit.data.sources")),
    "03_inspect": (("synthetic", "reconstructed"), ("labkit.generation",)),
    "05_segmentation": (("segmentation",), ("labkit.evidence.segmentation.experiment",)),
}
"""Folders of a run in which a chapter finds what it did before, and the modules that their content depends on."""

SHOWN_ONLY = ("labkit.files", "labkit.recording", "labkit.evidence.segmentation.gains")
"""Imported by those, and without a part in what they compute."""


COMPUTING = ("torch", "numpy", "scipy", "nibabel", "monai")
"""Packages of whose versions the numbers in a run may depend."""


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
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [part for part in body if not _only_words(part)] or [ast.Pass()]
    return ast.unparse(tree)


def _only_words(part: ast.stmt) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)


def sources_digest() -> str:
    """Of all that a chapter executes besides its own cells: labkit, the manifest, the pinned packages."""
    files = [p for p in (ROOT / "labkit").rglob("*") if p.suffix in (".py", ".js", ".css") and "tests" not in p.parts]
    return digest(_of(files), manifest_digest(), digest(meaning(ROOT / "ci" / "constraints.txt")))


def manifest_digest() -> str:
    """Of what simulated cohorts are fetched from."""
    return _of((ROOT / "data_manifest").glob("*.toml"))


def _of(files: Iterable[Path]) -> str:
    return digest(*((path.relative_to(ROOT).as_posix(), digest(meaning(path))) for path in sorted(files)))


def data_digest(cohort: str) -> str:
    """Of a folder's scans, by name and content. Simulated cohorts follow from the sources and their parameters."""
    if cohort in SIMULATED:
        return cohort
    folder = Path(cohort)
    files = sorted(path for path in folder.rglob("*") if path.name.endswith((".nii", ".nii.gz", ".json")))
    parts = [(path.relative_to(folder), path) for path in files]
    return digest(
        *(
            (name.as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
            for name, path in parts
            if not any(part.startswith(".") for part in name.parts)
        )
    )


def pins_digest() -> str:
    """Of the pinned versions of the packages that compute."""
    lines = (ROOT / "ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return digest(*(line for line in lines if line.partition("==")[0] in COMPUTING))


def reached(modules: Iterable[str]) -> list[Path]:
    """Files of the named modules of labkit and of all of labkit that they import, directly or not."""
    found: set[Path] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        stem = ROOT.joinpath(*name.split("."))
        path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
        # of labkit/__init__.py every module is reached, and only when asked for
        if path in found or not path.exists() or name in ("labkit", *SHOWN_ONLY):
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


def set_aside(stem: str, notebook: str, run: str, work: Path, settings: str) -> None:
    """Move what a chapter would open instead of making it anew, where other code, settings or scans made it.

    It goes to a folder of its own in ``before``, from where it comes back when code and settings are as they were:
    nothing is deleted.

    Parameters
    ----------
    stem, notebook : str
        The page, and the chapter that it is of.
    run : str
        The run that it trains; other chapters' folders are those of all runs.
    work : pathlib.Path
        Folder of the build.
    settings : str
        Everything but labkit's code and pinned packages that the results depend on.
    """
    if notebook not in KEPT:
        return
    names, modules = KEPT[notebook]
    key = digest(settings, _of(reached(modules)), pins_digest())
    mark = work / "executed" / f"{stem}.results"
    known = mark.read_text(encoding="utf-8") if mark.exists() else ""
    if known == key:
        return
    mark.parent.mkdir(parents=True, exist_ok=True)
    runs = [Path(run).name] if notebook == "02_train" else sorted(path.name for path in (work / "runs").glob("*"))
    places = [f"{name}/{part}" if part else name for name in runs for part in names]
    before = work / "before"
    numbered = (before / f"{stem}-{known[:8] or 'unknown'}{f'-{k}' if k else ''}" for k in itertools.count())
    _move(work / "runs", next(folder for folder in numbered if not folder.exists()), places)
    _move(before / f"{stem}-{key[:8]}", work / "runs", places)
    mark.write_text(key, encoding="utf-8")


def _move(source: Path, target: Path, places: list[str]) -> None:
    from labkit.runs import RunError, locked

    for place in places:
        if not (source / place).is_dir() or (target / place).exists():
            continue
        print(f"  {place} was made otherwise: from {source.name} to {target.name}", flush=True)
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        try:
            with locked(source / place.split("/")[0]):
                (source / place).rename(target / place)
        except RunError as error:
            sys.exit(str(error))
