"""A cohort's voxels on disk as memory-mapped arrays, so that opening it again costs no reading.

One store a cohort folder and choice of options; it is rebuilt when any file's size or time of change differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from labkit.data.nifti import Origin

FORMAT = 4
"""Raised whenever what a store holds, or how files are read into it, changes."""


@dataclass(frozen=True)
class Record:
    """What is known of one scan besides its voxels (see :class:`labkit.data.cohort.Scan`)."""

    subject: str
    session: str
    suffix: str
    has_labels: bool
    affine: tuple
    digest: str
    origin: Origin


@dataclass(frozen=True)
class Store:
    """Voxels and records of a cohort: `images` float32 (N, X, Y, Z), `labels` uint8 alike or None."""

    images: np.ndarray
    labels: np.ndarray | None
    records: tuple[Record, ...]
    skipped: dict[str, str]


def scan_digest(image: np.ndarray, labels: np.ndarray | None, affine: np.ndarray) -> str:
    """Content hash of one scan: voxels, labels and place in space, not its name."""
    digest = hashlib.sha256(str(image.shape).encode())
    stored = np.asarray(affine, np.float32).astype(np.float64)  # as a NIfTI file keeps it, or rounding could differ
    digest.update(np.round(stored, 3).astype(np.float32).tobytes())
    digest.update(np.ascontiguousarray(image, np.float32).tobytes())
    digest.update(b"" if labels is None else np.ascontiguousarray(labels, np.uint8).tobytes())
    return digest.hexdigest()


def open_store(folder: Path, key: dict, listing: list, count: int, build: Callable[[], Store]) -> Store:
    """Open the store for `key`, building it if it is missing, stale or damaged.

    Parameters
    ----------
    folder : pathlib.Path
        Where stores are kept.
    key : dict
        JSON-able; the cohort's folder and the options it was opened with. Names the store.
    listing : list
        JSON-able; one entry a file with its size and time of change. A store that begins with the same `count`
        entries serves.
    count : int
        How many scans are asked for.
    build : callable
        Makes the store in memory.

    Returns
    -------
    Store
        Memory-mapped, read-only. If the disk does not take it (full, read-only), the store in memory, with a warning.
    """
    name = hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True).encode()).hexdigest()[:20]
    place = folder / name
    opened = _load(place, listing, count)
    if opened is not None:
        return opened
    store = build()
    try:
        _save(place, store, listing)
    except OSError as error:
        theirs = _load(place, listing, count)  # another process may have put it there in the meantime
        if theirs is None:
            what = f"could not keep the cohort's voxels in {place}: {error}; reading again next time"
            warnings.warn(what, stacklevel=4)
        return theirs or store
    return _load(place, listing, count) or store


def _load(place: Path, listing: list, count: int) -> Store | None:
    try:
        index = json.loads((place / "index.json").read_text())
        if index["listing"][: len(listing)] != json.loads(json.dumps(listing)):
            return None
        if len(index["listing"]) != len(listing) and index["skipped"]:
            return None  # which scans a shorter listing leaves out cannot be told from the arrays
        images = np.load(place / "images.npy", mmap_mode="r")[:count]
        labels = np.load(place / "labels.npy", mmap_mode="r")[:count] if index["labels"] else None
    except (OSError, ValueError, KeyError):
        return None
    records = tuple(_record(record) for record in index["records"][:count])
    return Store(images, labels, records, index["skipped"])


def _record(fields: dict) -> Record:
    affine = tuple(map(tuple, fields["affine"]))  # JSON knows lists only
    return Record(**{**fields, "affine": affine, "origin": Origin.from_json(fields["origin"])})


def _save(place: Path, store: Store, listing: list) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=place.parent) as building:
        fresh = Path(building) / "fresh"
        fresh.mkdir()
        np.save(fresh / "images.npy", store.images)
        if store.labels is not None:
            np.save(fresh / "labels.npy", store.labels)
        index = {
            "listing": listing,
            "labels": store.labels is not None,
            "skipped": store.skipped,
            "records": [asdict(record) for record in store.records],
        }
        (fresh / "index.json").write_text(json.dumps(index))
        if place.exists():  # arrays mapped by another process stay readable until it lets go of them
            shutil.move(str(place), str(Path(building) / "stale"))
        os.replace(fresh, place)
