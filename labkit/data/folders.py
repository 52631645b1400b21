"""From the files of a folder to scans on one grid: read, checked, put right where that was asked for, and kept."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from labkit.data import bids, common_grid, grids, nifti, orientation, reading, volumes
from labkit.data.cache import Entry
from labkit.data.cohort import Scan, scan_digest
from labkit.data.common_grid import Grid
from labkit.data.grids import ScanFaultError
from labkit.data.nifti import Origin
from labkit.fields import option
from labkit.files import progress_bar

AUTO = "auto"
"""Axes that are to be found for each scan."""

MADE = {"Synthetic", "Reconstruction"}
"""In the JSON file beside a scan that a network made."""

LEAST_KEPT = 0.5
"""Share of what is bright in a scan that should lie in the cohort's grid: of a rat's head in a wide field 0.77 does."""


class CohortError(ValueError):
    """Scans that cannot be used, all of them in one message.

    Attributes
    ----------
    faults : dict of str to str
        File and what is wrong with it.
    """

    def __init__(self, message: str, faults: dict[str, str] | None = None):
        super().__init__(message)
        self.faults = dict(faults or {})


def open_folder(
    folder: Path,
    n: int | None,
    skip_bad: bool,
    twins: bool,
    kinds: dict[str, Any],
    options: dict[str, Any],
    trusted: bool,
) -> tuple[list[Scan], dict[str, str]]:
    """Scans of a folder, and what was left out; one error for all that cannot be used, or a warning.

    A grid in `options` that is to be fitted is put there as what it turned out to be.
    """
    found, unfit = bids.find_scans(folder, **kinds)
    if not found and not unfit:
        wanted = f" with suffix {kinds['suffix']!r}" if kinds["suffix"] else ""
        wanted += f" with {kinds['entities']}" if "entities" in kinds else ""
        raise CohortError(
            f"no NIfTI scans{wanted} in {folder}: expected sub-*/[ses-*/]{{func,anat}}/*.nii[.gz] (BIDS), "
            "or *.nii[.gz] side by side (.hdr/.img pairs, DICOM and Bruker's own files have to be converted first)"
        )
    if several := bids.contrasts(found):
        listed = ", ".join(f"{kind or 'none of these'} ({count})" for kind, count in sorted(several.items()))
        entity, value = next(kind for kind in sorted(several) if kind).split("_")[0].split("-")
        raise CohortError(
            f"{len(several)} kinds of scan in {folder}, several of an animal and session: {listed}; a cohort is one "
            f"kind: choose it, e.g. {option('entities', {entity: value})}"
        )
    if kinds["labels"] is not None and not any(files.labels for files in found):
        raise CohortError(
            f"labels={kinds['labels']!r}: no label maps *_desc-{kinds['labels']}_dseg.nii.gz in {folder}; leave labels "
            "out, or name what stands after desc- there"
        )
    if n is not None and n > len(found):
        raise CohortError(f"n={n} scans asked for, but {folder} holds {len(found)}: choose n <= {len(found)}")
    faults = {str(path): fault for path, fault in unfit.items()}
    if options["grid"].startswith("fitted"):
        axes = None if options["axes"] == AUTO else options["axes"]
        heads = common_grid.heads([files.image for files in found[:n]], axes, options["voxel_mm"])
        # where none can be read, reading says why
        options["grid"] = str(common_grid.fitted(heads, options["grid"])) if heads else "study"
    if passed := bids.passed_over(folder):
        warnings.warn(f"not taken of {folder}: {'; '.join(passed)}", stacklevel=3)
    scans = _read_all(folder, found[:n], faults, twins, options, trusted)
    apart = _not_on_one_grid(scans) if options["grid"] == "native" else {}
    faults |= apart
    listed = "\n".join(f"  {path}: {fault}" for path, fault in sorted(faults.items()))
    if faults and not (skip_bad and scans and not apart):
        count = f"{len(faults)} unusable file{'s' if len(faults) > 1 else ''}"
        way = f"pass {option('skip_bad', True)} to go on with the rest."
        hint = "" if skip_bad else f"\nMend or move them, or {way}"
        raise CohortError(f"{count} in {folder}:\n{listed}{hint}", faults)
    if faults:
        warnings.warn(f"left out {len(faults)} unusable files of {folder}:\n{listed}", stacklevel=3)
    for said in _oddities(folder, scans, options["axes"]):
        warnings.warn(said, stacklevel=3)
    return scans, faults


def _oddities(folder: Path, scans: list[Scan], axes: str | None) -> list[str]:
    """What is no fault and may be one: heads that the grid cuts in half, headers that say nothing of axes."""
    said, of = [], f"of {len(scans)} scans in {folder}"
    if cut := [scan for scan in scans if scan.origin.kept < LEAST_KEPT]:
        first = cut[0]
        extent = " x ".join(f"{side * zoom:.3g}" for side, zoom in zip(first.image.shape, first.zooms, strict=True))
        voxel = tuple(float(mm) for mm in np.round(nib.affines.voxel_sizes(np.asarray(first.origin.affine)), 3))
        said.append(
            f"{len(cut)} {of} lie mostly outside the grid of {extent} mm, e.g. {Path(first.origin.path).name}: "
            f"{100 * first.origin.kept:.0f} % of what is bright is inside. If voxels of {voxel} mm are not what was "
            f"scanned, pass the true size, e.g. {grids.REAL_SIZE}; if the animals are that large, grid='fitted'."
        )
    turned: dict[str, list[str]] = {}
    for scan in scans:
        if scan.origin.fits:
            turned.setdefault(scan.origin.fits, []).append(Path(scan.origin.path).name)
    for fits, names in turned.items():
        best, *near = fits.split()
        way = f"look at them, and pass {option('axes', best)}, or axes='auto' to take what fits"
        way = "they are taken for that" if axes == AUTO else way
        doubt = f" (hardly worse: {', '.join(near)}; mind which end is rostral)" if near else ""
        said.append(
            f"{len(names)} {of} lie otherwise than their headers say, e.g. {names[0]}: with axes {best} they fit the "
            f"study's anatomy clearly better{doubt}; {way}."
        )
    silent = [scan.origin for scan in scans if not nifti.says_orientation(scan.origin)]
    if silent and axes is None:
        said.append(
            f"{len(silent)} {of} do not say where their axes point (qform and sform code 0), e.g. "
            f"{Path(silent[0].path).name}: taken for {silent[0].axes}, as nibabel does. Where that is wrong pass the "
            f"true ones, for right, superior, anterior {option('axes', 'RSA')}."
        )
    return said


def _read_all(
    folder: Path, found: list[bids.ScanFiles], faults: dict[str, str], twins: bool, options: dict, trusted: bool
) -> list[Scan]:
    """Usable scans, each from the cache or its file; what is wrong with the others is added to `faults`."""
    scans, unkept = [], None
    voxels_of: dict[bytes, Path] = {}
    for files in progress_bar(found, f"reading {folder.name}"):
        if str(files.image) in faults:
            continue
        entry = Entry(files, options)
        if (scan := entry.load()) is None:
            try:
                scan = _read_one(files, **options, trusted=trusted)
            except ScanFaultError as fault:
                faults[str(files.image)] = str(fault)
                continue
            except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
                # whatever a damaged file provokes is that file's fault, and the others can still be opened
                faults[str(files.image)] = f"cannot be read: {type(error).__name__}, {error}"
                continue
            try:
                if unkept is None:
                    entry.save(scan)
            except OSError as error:
                unkept = f"could not keep scans in {entry.path.parent}: {error}; reading them again next time"
        for array in (scan.image, scan.labels):
            if array is not None:
                array.setflags(write=False)  # the digest is of these voxels
        twin = voxels_of.setdefault(hashlib.sha256(scan.image.data).digest(), files.image)
        if twin is not files.image and not twins:
            faults[str(files.image)] = f"duplicate: the same voxels as {twin.name}, so one animal would count twice"
        else:
            scans.append(scan)
    if unkept:
        warnings.warn(unkept, stacklevel=4)
    return scans


def _read_one(
    files: bids.ScanFiles, grid: str, axes: str | None, voxel_mm: Sequence[float] | None, trusted: bool
) -> Scan:
    """One scan on the cohort's grid, its labels likewise; of a `trusted` cohort the headers are known to be right."""
    stored, header = reading.read_array(files.image)
    labels = None
    if files.labels is not None:
        try:
            labels = reading.read_labels(files.labels, stored.shape, header.get_best_affine())
        except ScanFaultError as fault:
            raise ScanFaultError(f"its labels {files.labels.name}: {fault}") from fault
    said = nifti.sidecar(files.image)
    if not MADE & said.keys():  # what a network makes has to be seen as it is
        reading.check_contents(stored)
    air = said.get(nifti.AIR)
    air = float(air) if isinstance(air, int | float) else reading.air_of(stored)
    stored = stored - np.float32(air) if air else stored
    auto, axes = axes == AUTO, None if axes == AUTO else axes
    affine = grids.corrected_affine(header, stored.shape, axes, voxel_mm)
    grids.check_plausible(affine, stored.shape)
    image, image_affine = grids.reorient(stored, affine)
    fits: list[str] = []
    if axes is None and not (trusted or MADE & said.keys()):  # what somebody knows, or a network made, is not doubted
        told = "".join(nib.aff2axcodes(affine))
        found = orientation.fits(image, nib.affines.voxel_sizes(image_affine), told)
        fits = [] if told in found else found
    if fits and auto:
        affine = grids.corrected_affine(header, stored.shape, fits[0], voxel_mm)
        image, image_affine = grids.reorient(stored, affine)
    labels = None if labels is None else grids.reorient(labels, affine)[0]
    wanted = None if grid == "native" else Grid.named(grid)
    kept = 1.0
    resampled = wanted is not None and not wanted.holds(image.shape, image_affine)
    if wanted is None:
        grids.head_box(image, image_affine)  # only for the voxel size it checks
    elif resampled:
        target = wanted.written(said)
        if target is None:
            target = wanted.around_head(image, image_affine)
        kept = grids.share_inside(image, image_affine, wanted.shape, target)
        image = grids.resample(image, image_affine, wanted.shape, target)
        if labels is not None:
            labels = grids.resample(labels, image_affine, wanted.shape, target, labels=True)
        image_affine = target
    image = np.ascontiguousarray(image, np.float32)
    labels = None if labels is None else np.ascontiguousarray(labels, np.uint8)
    padded = any(extent < volumes.cube_side(image.shape) for extent in image.shape)
    origin = Origin(
        path=str(files.image),
        shape=stored.shape,
        axes="".join(nib.aff2axcodes(affine)),
        affine=_nested(affine),
        header=nifti.encode_header(header),
        grid_affine=_nested(image_affine),
        resampled=bool(resampled),
        low=min(float(image.min()), 0.0) if padded else float(image.min()),
        high=max(float(image.max()), 0.0) if padded else float(image.max()),
        air=air,
        kept=kept,
        fits=" ".join(fits),
    )
    digest = scan_digest(image, labels, image_affine)
    return Scan(files.subject, files.session, image, labels, np.array(image_affine), files.suffix, origin, digest)


def _nested(affine: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in affine)


def _not_on_one_grid(scans: list[Scan]) -> dict[str, str]:
    """Faults of a cohort that is to keep its own grid: scans that do not share the first one's, or outsize cubes."""
    faults = {}
    for scan in scans:
        first = scans[0]
        apart = grids.difference(scan.image.shape, scan.affine, first.image.shape, first.affine)
        if apart:
            faults[scan.origin.path] = f"its grid {apart}, the first scan's; grid='study' brings all onto one"
        elif max(scan.image.shape) > common_grid.SIDES[1]:
            what = f"{max(scan.image.shape)} voxels along an axis; a native grid may have {common_grid.SIDES[1]}"
            faults[scan.origin.path] = what
    return faults
