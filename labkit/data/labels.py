"""The study's labels: 0 background, 1 CSF, 2 grey matter, 3 white matter, and which scans have them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from labkit.data import bids

if TYPE_CHECKING:
    from labkit.data.cohort import Scan

BACKGROUND, CSF, GREY, WHITE = 0, 1, 2, 3

TISSUE_NAMES = {CSF: "CSF", GREY: "grey matter", WHITE: "white matter"}
"""What tables and figures call them; the whole brain is every label above 0."""

TISSUE_LABELS = (BACKGROUND, CSF, GREY, WHITE)

WHOLE_BRAIN = "whole brain"

LABEL_NAMES = {BACKGROUND: "background", CSF: "cerebrospinal fluid", GREY: "grey matter", WHITE: "white matter"}
"""What a data set's ``dseg.tsv`` calls them."""


def has_tissues(labels: np.ndarray | None, need_all: bool = True) -> bool:
    """Whether a label map is the study's, so that tissues can be told; None for a scan without labels.

    A number above 3 says no: in an atlas of regions, 1 is not CSF. With `need_all` each tissue has to be there;
    otherwise grey or white matter is enough: with CSF's number alone the map may as well be a mask of the brain.
    """
    present = set() if labels is None else set(np.unique(labels).tolist()) - {BACKGROUND}
    enough = present >= set(TISSUE_NAMES) if need_all else bool(present & {GREY, WHITE})
    return enough and present <= set(TISSUE_NAMES)


def within(labels: np.ndarray | None, names: Collection[int]) -> bool:
    """Whether a label map holds some of these numbers and no others but 0; None for a scan without labels."""
    present = set() if labels is None else set(np.unique(labels).tolist()) - {BACKGROUND}
    return bool(present) and present <= set(names)


def without_tissues(scans: Iterable[Scan], need_all: bool = True) -> list[str]:
    """Subjects of the scans whose labels are missing or not the study's, by :func:`has_tissues`."""
    return [scan.subject for scan in scans if not has_tissues(scan.labels, need_all)]


def label_names(folder: Path, values: Sequence[int]) -> dict[int, str]:
    """What label maps of a data set call these numbers, 0 left out: its shortest ``*dseg.tsv`` that names all of them.

    Without one 1, 2 and 3 together are the study's tissues, and other names are "label 7".
    """
    wanted = [value for value in values if value]
    tables = (bids.read_table(path) for path in sorted(folder.glob("*dseg.tsv")))
    for rows in sorted(tables, key=len):
        known = {row.get("index", ""): row.get("name", "") for row in rows}
        if all(known.get(str(value)) for value in wanted):
            return {value: known[str(value)] for value in wanted}
    if set(wanted) == set(TISSUE_NAMES):
        return {value: LABEL_NAMES[value] for value in wanted}
    return {value: f"label {value}" for value in wanted}
