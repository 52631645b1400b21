"""Which files of a folder are scans, which are their labels: BIDS data sets and flat folders, read and written."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from labkit.data import nifti
from labkit.files import write_json, write_text

SUFFIXES = ("boldref", "bold", "T2w", "T2starw", "T1w", "PDw", "inplaneT2", "MTw", "dwi", "sbref", "asl")
"""BIDS suffixes taken as scans, the study's own kind first."""

NOT_SCANS = ("dseg", "probseg", "mask", "brainmask", "seg", "label", "labels", "roi", "phase", "phasediff")

PROCESSING = ("desc-", "space-", "res-", "label-", "atlas-", "den-")
"""Entities that say how a file was made, not which scan it is."""

CONTRASTS = ("acq", "rec", "dir", "echo", "flip", "inv", "mt", "ce", "trc", "mod")
"""Entities of which two values are two kinds of scan, as two suffixes are."""

NOT_MAGNITUDE = {"part-phase", "part-real", "part-imag"}

_ENDING = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True)
class ScanFiles:
    """One scan of a folder: its animal, its session (with run and the like, or ``""``), its file, its labels' file."""

    subject: str
    session: str
    suffix: str
    image: Path
    labels: Path | None


@dataclass(frozen=True)
class Name:
    """A file name taken apart: subject, what tells scans of one subject apart, suffix."""

    subject: str
    session: str
    suffix: str


def parse_name(path: Path) -> Name | None:
    """Take a NIfTI file's name apart; None if it is not one (``.nii``, ``.nii.gz``).

    ``sub-03_ses-1_run-2_T2w.nii.gz`` is subject 03, session ``ses-1_run-2``; ``rat7_dseg.nii`` is subject rat7.
    Entities that describe processing (``desc``, ``space``, ``res``, ``label``, ``atlas``) do not tell scans apart.
    """
    stem = _stem(path)
    if stem == path.name or path.name.startswith("."):
        return None
    parts = stem.split("_")
    if not parts[0].startswith("sub-"):
        known = {suffix.lower() for suffix in (*SUFFIXES, *NOT_SCANS)}
        has_suffix = parts[-1].lower() in known
        return Name("_".join(parts[:-1] if has_suffix else parts) or stem, "", parts[-1] if has_suffix else "")
    suffix = parts.pop() if "-" not in parts[-1] else ""
    kept = [part for part in parts[1:] if not part.startswith(PROCESSING)]
    return Name(parts[0].removeprefix("sub-"), "_".join(kept), suffix)


def find_scans(
    folder: Path,
    suffix: str | None = None,
    labels: str | None = None,
    entities: Mapping[str, str] | None = None,
) -> tuple[list[ScanFiles], dict[Path, str]]:
    """The scans of a BIDS data set or of a flat folder, sorted by subject and session, and their faults by path.

    With ``sub-*`` folders it is read as BIDS (``sub-*/[ses-*/]{func,anat,...}/``; a file in there whose own name says
    no subject is its folder's), else as a flat folder. `suffix` is the kind of scan to take, e.g. ``"T2w"``, in upper
    or lower case; by default of a BIDS data set the one of :data:`SUFFIXES` that most subjects have, so that one cohort
    is one kind of scan, and of a flat folder all. With `labels`, only label files that are named ``desc-<labels>`` are
    taken; with `entities`, ``{"echo": "1"}``, only scans whose names have them. Faults are scans that stand twice under
    one name, and scans that more than one label file fits.
    """
    subjects = sorted(path for path in folder.glob("sub-*") if path.is_dir())
    named = [found for subject in subjects for found in _named_files(subject, subject.name.removeprefix("sub-"))]
    named = named if subjects else _named_files(folder, deep=False)
    scans = [(path, name) for path, name in named if name.suffix.lower() not in NOT_SCANS]
    scans = [(path, name) for path, name in scans if not NOT_MAGNITUDE & set(name.session.split("_"))]
    asked = {f"{key}-{value}" for key, value in (entities or {}).items()}
    scans = [(path, name) for path, name in scans if asked <= set(name.session.split("_"))]
    label_files: dict[str, list[tuple[Path, Name]]] = {}
    for path, name in [*named, *_named_files(folder / "derivatives")]:
        if name.suffix.lower() == "dseg" and (labels is None or f"desc-{labels}" in _stem(path).split("_")):
            for whose in {name.subject, f"file {_stem(path)}"}:
                label_files.setdefault(whose, []).append((path, name))

    wanted = suffix if suffix is not None else (_common_suffix(scans) if subjects else None)
    found: dict[tuple[str, str], ScanFiles] = {}
    faults: dict[Path, str] = {}
    for path, name in scans:
        if wanted is not None and name.suffix.lower() != wanted.lower():
            continue
        key = (name.subject, name.session)
        if key in found:
            what = f"subject {name.subject}" + (f", {name.session}" if name.session else "")
            hint = f"; suffix={name.suffix!r} would take one kind" if name.suffix != found[key].suffix else ""
            faults[path] = f"duplicate: {what} is already {found[key].image.name}{hint}"
            continue
        described = f"_desc-{labels}" if labels else ""
        # rat1_T2w_dseg belongs to rat1_T2w and nothing else
        own = label_files.get(f"file {_stem(path)}{described}_dseg", [])
        fitting = _fitting_labels(path, name, own or label_files.get(name.subject, []))
        if len(fitting) > 1:
            faults[path] = f"{len(fitting)} label files fit it: {', '.join(label.name for label in fitting)}"
        found[key] = ScanFiles(name.subject, name.session, name.suffix, path, fitting[0] if fitting else None)
    return [found[key] for key in sorted(found)], faults


def contrasts(found: Iterable[ScanFiles]) -> dict[str, int]:
    """Kinds of scan by :data:`CONTRASTS` and how many there are of each, where an animal has several in one session."""
    kinds: Counter[str] = Counter()
    of_session: dict[tuple[str, str], set[str]] = {}
    for files in found:
        parts = files.session.split("_")
        kind = [part for part in parts if part.split("-")[0] in CONTRASTS]
        kinds["_".join(kind)] += 1
        rest = "_".join(part for part in parts if part not in kind)
        of_session.setdefault((files.subject, rest), set()).add("_".join(kind))
    return dict(kinds) if any(len(some) > 1 for some in of_session.values()) else {}


def passed_over(folder: Path) -> list[str]:
    """What of a flat folder is not taken, in words: scans below it, masks and labels by other names, pairs of files."""
    if any(path.is_dir() for path in folder.glob("sub-*")):
        return []
    said = []
    deeper = [path for path in _files_below(folder) if path.parent != folder and parse_name(path)]
    deeper = [path for path in deeper if path.relative_to(folder).parts[0] != "derivatives"]
    if deeper:
        said.append(
            f"{len(deeper)} files in folders below it, e.g. {deeper[0].relative_to(folder)} (open these folders)"
        )
    here = [(path, name) for path in sorted(folder.iterdir()) if (name := parse_name(path))]
    masks = [path for path, name in here if name.suffix.lower() in NOT_SCANS and name.suffix.lower() != "dseg"]
    if masks:
        said.append(
            f"{len(masks)} masks, label or phase maps, e.g. {masks[0].name} (labels of a scan are called *_dseg)"
        )
    pairs = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".img", ".hdr")]
    if pairs:
        said.append(f"{len(pairs)} files of .hdr/.img pairs, e.g. {pairs[0].name} (convert them to .nii.gz)")
    return said


def _named_files(folder: Path, subject: str = "", deep: bool = True) -> list[tuple[Path, Name]]:
    """NIfTI files of a folder and, if `deep`, of those below it, sorted; `subject` is whose they are by default."""
    paths = sorted(_files_below(folder) if deep else folder.iterdir())
    named = [(path, name) for path in paths if (name := parse_name(path))]
    return [(p, n if p.name.startswith("sub-") or not subject else replace(n, subject=subject)) for p, n in named]


def _files_below(folder: Path) -> Iterator[Path]:
    """Files below a folder: links to folders are followed, once; hidden folders (annexes, half-done work) are not."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error  # a folder that may not be read would silently be rats fewer

    seen = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in files)


def _stem(path: Path) -> str:
    return _ENDING.sub("", path.name)


def _fitting_labels(path: Path, name: Name, candidates: list[tuple[Path, Name]]) -> list[Path]:
    """The label files that speak of no other session or run than the scan's.

    Those beside it come first, then those that name more of its entities, then those with less processing said: of
    fmriprep's ``sub-1_dseg``, ``sub-1_desc-aseg_dseg`` and ``sub-1_space-MNI_dseg`` it is the first.
    """
    entities = set(name.session.split("_"))
    fitting = [(p, n) for p, n in candidates if not n.session or set(n.session.split("_")) <= entities]
    fitting = [(p, n) for p, n in fitting if p.parent == path.parent] or fitting
    exact = max((len(n.session.split("_")) if n.session else 0 for _, n in fitting), default=0)
    paths = [p for p, n in fitting if (len(n.session.split("_")) if n.session else 0) == exact]
    processed = {p: sum(part.startswith(PROCESSING) for part in _stem(p).split("_")) for p in paths}
    return [p for p in paths if processed[p] == min(processed.values())]


def _common_suffix(scans: list[tuple[Path, Name]]) -> str | None:
    """The suffix of SUFFIXES that most subjects have, the first among equals; any other kind only for want of those."""
    holders: dict[str, set[str]] = {}
    for _, name in scans:
        holders.setdefault(name.suffix, set()).add(name.subject)
    rank = {suffix: place for place, suffix in enumerate(SUFFIXES)}
    last = len(rank)
    order = sorted(holders, key=lambda s: (s not in rank, -len(holders[s]), rank.get(s, last), s))
    return order[0] if order else None


def label(text: str) -> str:
    """`text` as a BIDS label: letters and digits only."""
    return re.sub(r"[^0-9A-Za-z]", "", text) or "x"


NOT_IN_NAMES = set('<>:"|?*/\\')
"""What no file's name has everywhere, and what parts paths."""


def scan_path(subject: str, session: str = "", suffix: str = "boldref", description: str = "") -> Path:
    """Relative BIDS path of a scan, e.g. ``sub-0003/func/sub-0003_task-rest_boldref.nii.gz``."""
    for part in (subject, *session.split("_"), suffix, description):
        if part.startswith(".") or set(part) & NOT_IN_NAMES or not part.isprintable():
            raise ValueError(f"{part!r} cannot be a part of a file's name: it could lead elsewhere")
    kind = "func" if suffix in ("bold", "boldref", "sbref") else "anat"
    if kind == "func" and "task-" not in session:  # BIDS wants a task; the study's series are resting state
        session = "_".join(part for part in (session, "task-rest") if part)
    stem = "_".join(part for part in (f"sub-{subject}", session, description and f"desc-{description}") if part)
    ses = next((part for part in session.split("_") if part.startswith("ses-")), "")
    return Path(f"sub-{subject}", ses, kind, f"{stem}_{suffix or 'T2w'}.nii.gz")


def write_table(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write :func:`table_text`."""
    write_text(path, table_text(rows))


def table_text(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as a BIDS table (tab-separated, ``n/a`` for missing), columns in the first row's order."""
    rows = list(rows)
    columns = list(rows[0]) if rows else []
    lines = ["\t".join(columns)]
    lines += ["\t".join(_cell(row.get(column)) for column in columns) for row in rows]
    return "\n".join(lines) + "\n"


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a BIDS table by column; none where it is missing or no text, ``n/a`` as an empty text."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        rows = list(csv.DictReader(lines, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    return [{key: "" if text in (None, "n/a") else text for key, text in row.items() if key} for row in rows]


def _cell(value: object) -> str:
    if value is None or value == "":
        return "n/a"
    if isinstance(value, str):
        text = re.sub(r"[\t\r\n]+", " ", value)  # the format has no quotes
        return f"'{text}" if text[0] in "=+@" else text  # or a spreadsheet would compute it
    if isinstance(value, (float, np.floating)):
        return f"{value:.6g}"
    return str(value)


def dataset_description(name: str, kind: str = "raw", **fields: object) -> dict[str, Any]:
    """What ``dataset_description.json`` holds (BIDS 1.10); `fields` are added as they stand."""
    return {"Name": name, "BIDSVersion": "1.10.0", "DatasetType": kind, **fields}


def write_description(folder: Path, name: str, kind: str = "raw", **fields: object) -> None:
    """Write ``dataset_description.json``, see :func:`dataset_description`."""
    write_json(folder / "dataset_description.json", dataset_description(name, kind, **fields))


SAID = ("Name", "License", "HowToAcknowledge", "ReferencesAndLinks", "DatasetDOI", "Simulated", "Synthetic", "Note")
"""Fields of a data set's description that what is made from it passes on."""

COUNTED = ("species", "strain", "sex", "group")
"""Columns of ``participants.tsv`` that say what kind of animals there are."""


def read_about(folder: Path, subjects: Iterable[str]) -> dict[str, Any]:
    """What a data set says of itself and of these animals; nothing where it has no such files, or damaged ones.

    Fields are those of :data:`SAID`, and ``participants``: how many animals have which value of :data:`COUNTED`.
    """
    try:
        content = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    about = {key: content[key] for key in SAID if content.get(key)} if isinstance(content, dict) else {}
    people = read_participants(folder)
    rows = [people[subject] for subject in sorted(set(subjects) & people.keys())]
    counts = {column: dict(Counter(str(row[column]) for row in rows if row.get(column))) for column in COUNTED}
    return about | {"participants": {column: found for column, found in counts.items() if found}}


def read_participants(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of a data set's ``participants.tsv`` by subject, whether or not ``sub-`` stands before it there."""
    rows = read_table(folder / "participants.tsv")
    return {row.get("participant_id", "").removeprefix("sub-"): row for row in rows}


def write_label_names(folder: Path, names: Mapping[int, str], description: str = "") -> None:
    """Write ``dseg.tsv``, the data set's table of labels, or ``desc-<description>_dseg.tsv``."""
    name = f"desc-{description}_dseg.tsv" if description else "dseg.tsv"
    write_table(folder / name, [{"index": index, "name": name} for index, name in names.items()])


def save_scan(folder: Path, path: Path, image: nifti.nib.Nifti1Image, labels: nifti.nib.Nifti1Image | None) -> None:
    """Save a scan at its relative `path` under `folder`, its labels beside it; ValueError if it leads out of it."""
    if not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path} leads out of {folder}")
    if labels is not None:
        stem = path.name.rsplit("_", 1)[0]
        nifti.save(labels, folder / path.with_name(f"{stem}_dseg.nii.gz"))
    nifti.save(image, folder / path)
