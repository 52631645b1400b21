"""Scans as they were read, each kept in a file of its own: a folder opened again reads only what is new in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from labkit.data.bids import ScanFiles
from labkit.data.cohort import Scan
from labkit.data.manifest import data_folder
from labkit.data.nifti import Origin
from labkit.files import whole_file

FORMAT = 10
"""Raised whenever what an entry holds, or how files are read, changes."""


class Entry:
    """Where one scan is kept, and what it must have been made from to serve.

    Its file and its labels' are told by path, size and time of change; `options`, JSON-able, say how they are read.
    """

    def __init__(self, files: ScanFiles, options: dict):
        place = json.dumps([str(files.image), options], sort_keys=True)
        self.path = data_folder() / "cache" / f"{hashlib.sha256(place.encode()).hexdigest()[:20]}.npz"
        named = files.subject, files.session, files.suffix
        self.key = json.dumps([FORMAT, place, named, _stamp(files.image), files.labels and _stamp(files.labels)])

    def load(self) -> Scan | None:
        """The scan, unless it is not kept, made from something else, or damaged."""
        try:
            with np.load(self.path, allow_pickle=False) as entry:
                record = json.loads(str(entry["record"]))
                if record.pop("key") != self.key:
                    return None
                record |= {"affine": np.array(record["affine"]), "origin": Origin.from_json(record["origin"])}
                return Scan(image=entry["image"], labels=entry["labels"] if "labels" in entry else None, **record)
        except Exception:  # zip, numpy and JSON have errors of their own, and one cure: the files are read anew
            return None

    def save(self, scan: Scan) -> None:
        """Keep a scan in place of what was kept of its file before; OSError where the disk does not take it."""
        record = {name: getattr(scan, name) for name in ("subject", "session", "suffix", "digest")}
        record |= {"key": self.key, "affine": scan.affine.tolist(), "origin": asdict(scan.origin)}
        arrays: dict[str, Any] = {"image": scan.image} | ({} if scan.labels is None else {"labels": scan.labels})
        with whole_file(self.path) as partial:
            np.savez(partial, record=np.array(json.dumps(record)), **arrays)


def _stamp(path: Path) -> list:
    if not path.exists():  # a link to nothing is a fault that reading it will tell
        return [str(path), -1, -1]
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]
