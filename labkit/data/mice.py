"""Real animals: 25 in vivo mouse brains with labels, fetched once and written as a BIDS data set.

T2-weighted scans of the rTg4510 mouse (Ma et al. 2019), brain extracted: around the brain they are exactly 0. The
published labels are 20 structures a side, of which the study's tissues are made. Cerebellum and brain stem, which have
grey and white matter in them, are one label each there, and count as grey matter here.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np

from labkit.data import bids, nifti, reading
from labkit.data.labels import CSF, GREY, LABEL_NAMES, WHITE
from labkit.data.manifest import data_folder, fetch, load_manifest
from labkit.files import new_folder, progress_bar, write_json

GROUPS = {
    "WT": "wild type",
    "UT": "transgenic (rTg4510), untreated",
    "TT": "transgenic (rTg4510), treated",
}

STRUCTURES = (
    "hippocampus", "external capsule and corpus callosum", "caudate putamen", "anterior commissure", "globus pallidus",
    "internal capsule", "thalamus", "cerebellum", "superior colliculi", "ventricles", "hypothalamus",
    "inferior colliculi", "central gray", "neocortex", "amygdala", "olfactory bulb", "brain stem", "rest of midbrain",
    "basal forebrain and septum", "fimbria",
)  # fmt: skip
"""What the labels 1 to 20 are on the right, and of structures whose sides are one; on the left they are 21 to 40."""

UNDIVIDED = ("external capsule and corpus callosum", "ventricles", "brain stem")
"""Structures that have one label for both sides everywhere."""

FLUID = ("ventricles",)
FIBRES = ("external capsule and corpus callosum", "anterior commissure", "internal capsule", "fimbria")


def side_names() -> dict[int, str]:
    """Name of each label that the published maps hold, 0 included.

    >>> from labkit.data.mice import side_names
    >>> names = side_names()
    >>> names[1], names[21], names[10], 30 in names
    ('hippocampus, right', 'hippocampus, left', 'ventricles', False)
    """
    names = {0: "background"}
    for label, name in enumerate(STRUCTURES, start=1):
        names[label] = name if name in UNDIVIDED else f"{name}, right"
        if name not in UNDIVIDED:
            names[label + len(STRUCTURES)] = f"{name}, left"
    return dict(sorted(names.items()))


def structures(sides: np.ndarray) -> np.ndarray:
    """Labels 1 to 20 of a map whose left structures are 21 to 40; uint8, same shape."""
    return np.where(sides > len(STRUCTURES), sides - len(STRUCTURES), sides).astype(np.uint8)


def tissues(structures: np.ndarray) -> np.ndarray:
    """The study's labels of a map of structures: 1 ventricles, 3 fibre tracts, 2 all the rest; uint8, same shape."""
    table = np.full(2 * len(STRUCTURES) + 1, GREY, np.uint8)
    table[0] = 0
    for label, name in enumerate(STRUCTURES, start=1):
        kind = CSF if name in FLUID else WHITE if name in FIBRES else GREY
        table[[label, label + len(STRUCTURES)]] = kind
    return table[structures]


def mice_dataset() -> Path:
    """Folder of the BIDS data set, written at the first call from files that are fetched and verified.

    It lies under the data folder (``LABKIT_DATA``) and has the published scans byte for byte, the tissues as ``dseg``,
    the structures as ``desc-structures_dseg``, those of each side, as published, as ``desc-sides_dseg``, and each
    animal's group in ``participants.tsv``.
    """
    manifest = load_manifest("mice")
    known = [[file.sha256 for file in manifest.files], tissues(np.arange(41)).tolist(), side_names(), GROUPS]
    key = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:10]
    folder = data_folder() / "cohorts" / f"mice-{key}"
    if folder.is_dir():
        return folder
    files = fetch("mice")
    images = {name.partition("/")[2]: path for name, path in files.items() if name.startswith("image/")}
    with new_folder(folder) as fresh:
        rows = []
        for name, image in progress_bar(sorted(images.items(), key=_number), "writing mice"):
            subject, group = f"{_number((name, image)):02d}", name.removesuffix(".nii.gz").rpartition("_")[2]
            _write_animal(fresh, subject, image, files[f"label/{name}"])
            rows.append({"participant_id": f"sub-{subject}", "species": "mus musculus", "group": group, "file": name})
        bids.write_table(fresh / "participants.tsv", rows)
        write_json(fresh / "participants.json", {"group": {"Description": "Group of animals", "Levels": GROUPS}})
        bids.write_label_names(fresh, LABEL_NAMES)
        bids.write_label_names(fresh, {0: "background", **dict(enumerate(STRUCTURES, start=1))}, "structures")
        bids.write_label_names(fresh, side_names(), "sides")
        bids.write_description(
            fresh, manifest.title, License=manifest.licence, ReferencesAndLinks=[manifest.citation, manifest.doi],
            SourceDatasets=[{"URL": manifest.files[0].url.rpartition("/")[0]}],
            Note="Mice, not rats; in vivo, brain extracted, so that around the brain all is 0. Tissues are made of the "
            "published structures; cerebellum and brain stem are mixed tissue in them, and count as grey matter.",
        )  # fmt: skip
    return folder


def _number(entry: tuple[str, Path]) -> int:
    """The animal's number in a published file's name, ``tg4510_tp3_10_20130523_UT.nii.gz``."""
    return int(entry[0].split("_")[2])


def _write_animal(folder: Path, subject: str, image: Path, labels: Path) -> None:
    """A scan as published, its tissues and its structures beside it, together and by side."""
    place = folder / bids.scan_path(subject, suffix="T2w")
    place.parent.mkdir(parents=True)
    shutil.copyfile(image, place)
    stored, header = reading.read_array(image)
    affine = header.get_best_affine()
    sides = reading.read_labels(labels, stored.shape, affine)
    maps = {"dseg": tissues(sides), "desc-structures_dseg": structures(sides), "desc-sides_dseg": sides}
    for suffix, array in maps.items():
        stem = re.sub(r"_T2w\.nii\.gz$", "", place.name)
        nifti.save(nifti.image_on_grid(array, affine), place.with_name(f"{stem}_{suffix}.nii.gz"))
