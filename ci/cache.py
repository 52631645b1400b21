"""What chapters and runs depend on: when a chapter is executed again, and the name by which a run is found again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from labkit.data.simulate.library import meaning
from labkit.data.sources import NAMED

ROOT = Path(__file__).resolve().parents[1]

COMPUTING = ("torch", "numpy", "scipy", "nibabel", "monai")
"""Packages of whose versions the numbers in a run may depend."""

RUN = ("*.py", "data/**/*.py", "evidence/brightness.py", "evidence/sample.py", "evidence/segmentation/*.py")
"""Of labkit, what the content of a run's folder follows from; chapter 5 leaves its networks there, too."""


def digest(*parts: object) -> str:
    """Hash of anything that has a repeatable text."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def sources_digest() -> str:
    """Of all that a chapter executes besides its own cells: labkit, the manifest, the pinned packages."""
    files = [p for p in (ROOT / "labkit").rglob("*") if p.suffix in (".py", ".js", ".css") and "tests" not in p.parts]
    return _of([*files, *(ROOT / "data_manifest").glob("*.toml"), ROOT / "ci" / "constraints.txt"])


def run_digest() -> str:
    """Of what makes a run besides settings and scans: code, the manifest, the packages that compute."""
    files = [path for pattern in RUN for path in (ROOT / "labkit").glob(pattern)]
    pins = (ROOT / "ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in pins if line.partition("==")[0] in COMPUTING]
    return digest(_of([*files, *(ROOT / "data_manifest").glob("*.toml")]), *pins)


def _of(files: Iterable[Path]) -> str:
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(files)}
    return digest(*((name, digest(meaning(text) if name.endswith(".py") else text)) for name, text in texts.items()))


def data_digest(cohort: str) -> str:
    """Of a folder's scans, by name and content. Cohorts with a name follow from sources, parameters and manifest."""
    if cohort in NAMED:
        return cohort
    files = {path.relative_to(cohort): path for path in sorted(Path(cohort).rglob("*"))
             if path.name.endswith((".nii", ".nii.gz", ".json"))}  # fmt: skip
    seen = {name: path for name, path in files.items() if not any(part.startswith(".") for part in name.parts)}
    return digest(*((name.as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in seen.items()))
