"""Simulated cohorts on disk: a BIDS data set made once, extended when more rats are asked for, opened ever after."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from labkit.data import bids, nifti
from labkit.data.labels import LABEL_NAMES
from labkit.data.manifest import data_folder
from labkit.data.simulate import load_anatomy, parameters, simulate
from labkit.files import progress_bar, write_text

KEEP_EVERY = 10
"""Rats between two writings of participants.tsv: what an interrupted simulation loses at most."""


def simulated_dataset(name: str, n: int, seed: int = 0, departures: Sequence[str] = ()) -> Path:
    """Folder of a BIDS data set with at least the first `n` simulated rats of `seed`; makes those that are missing.

    Rat i of a seed is the same whatever `n`. The folder lies under the data folder (``LABKIT_DATA``), named after the
    anatomy (``"phantom"`` or ``"sigma"``), the `departures`, the seed and a hash of every parameter, of the simulator's
    source and of the anatomy's files, so that changed physics never opens old rats. ``participants.tsv`` says which rat
    has which departures.
    """
    described = parameters(
        name, departures=departures
    )  # the anatomy itself takes seconds, and is built only if rats are missing
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:10]
    folder = data_folder() / "cohorts" / "-".join([name, *departures, f"s{seed}", key])
    rows = _kept(folder)
    missing = [index for index in range(n) if index not in rows]
    if not missing:
        return folder
    anatomy = load_anatomy(name)
    bids.write_description(
        folder,
        f"Simulated rats on the {name} anatomy, seed {seed}" + "".join(f", {one}" for one in departures),
        Simulated=True,
        Note="Computed by a simulator of rat brain MRI. No animal was scanned for these images.",
        GeneratedBy=[{"Name": "labkit.data.simulate"}],
        SourceDatasets=list(anatomy.sources),
        License="CC0-1.0" if name == "phantom" else "Apache-2.0, as the SIGMA maps it is made from",
        Parameters={"seed": seed, **described},
    )
    bids.write_label_names(folder, LABEL_NAMES)
    write_text(folder / "task-rest_boldref.json", json.dumps(described["acquisition"], indent=2) + "\n")
    rats = simulate(anatomy, missing, seed=seed, departures=departures)
    for done, rat in enumerate(progress_bar(rats, f"simulating {name} rats", len(missing)), start=1):
        subject = f"{rat.index + 1:04d}"
        image, labels = (nifti.image_on_grid(array, rat.affine) for array in (rat.image, rat.labels))
        image.header["descrip"] = b"simulated rat, not an animal"
        bids.save_scan(folder, bids.scan_path(subject), image, labels)
        rows[rat.index] = {"participant_id": f"sub-{subject}", **rat.properties}
        if done % KEEP_EVERY == 0 or done == len(missing):
            bids.write_table(folder / "participants.tsv", (rows[index] for index in sorted(rows)))
    return folder


def _kept(folder: Path) -> dict[int, dict]:
    """The rats of a data set that are there in full, by index."""
    table = folder / "participants.tsv"
    if not table.exists():
        return {}
    with table.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    kept = {}
    for row in rows:
        subject = row["participant_id"].removeprefix("sub-")
        image = folder / bids.scan_path(subject)
        labels = image.with_name(image.name.replace("_boldref", "_dseg"))
        if image.exists() and labels.exists():
            kept[int(subject) - 1] = row
    return kept
