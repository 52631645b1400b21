"""The sources of cohorts: embedded simulated rats, rats on SIGMA's anatomy, published mice, and a folder of scans."""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from labkit.data import bids, common_grid, grids, nifti, orientation, volumes
from labkit.data.cache import Entry
from labkit.data.cohort import Cohort, Scan, scan_digest
from labkit.data.common_grid import Grid
from labkit.data.grids import ScanFaultError
from labkit.data.manifest import data_folder
from labkit.data.nifti import Origin
from labkit.fields import mapping, whole
from labkit.files import located, progress_bar

SIMULATED = ("phantom", "sigma")
NAMED = (*SIMULATED, "mice")
"""Cohorts that are opened by name; all others are folders."""

GRIDS = {"mice": "56x40x64@0.3"}
"""Of cohorts whose usual grid is not the study's: for mice 16.8 x 12 x 19.2 mm, at twice the scans' voxel size."""

AUTO = "auto"
"""Axes that are to be found for each scan."""

MADE = {"Synthetic", "Reconstruction"}
"""In the JSON file beside a scan that a network made."""

LEAST_KEPT = 0.5
"""Share of what is bright in a scan that should lie in the cohort's grid: of a rat's head in a wide field 0.77 does."""

PAPER_N = 210
"""Scans in the paper's real data set, and in a simulated cohort unless told otherwise."""


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


def open_cohort(
    source: str | os.PathLike,
    n: int | None = None,
    seed: int = 0,
    *,
    grid: str | Sequence | Grid | None = None,
    skip_bad: bool = False,
    suffix: str | None = None,
    axes: str | None = None,
    voxel_mm: Sequence[float] | None = None,
    labels: str | None = None,
    entities: Mapping[str, str | int] | None = None,
    twins: bool = False,
    departures: str | Sequence[str] = (),
) -> Cohort:
    """Open a cohort: the embedded simulated one, the one on SIGMA's anatomy, the mice, or a folder of scans.

    Parameters
    ----------
    source : str or path
        ``"phantom"`` (procedural rat head, nothing to download), ``"sigma"`` (the same simulator on the SIGMA
        anatomy, fetched once), ``"mice"`` (25 real mouse brains, fetched once: :mod:`labkit.data.mice`), or a folder:
        a BIDS data set, or NIfTI files side by side. Labels are ``*_dseg.nii.gz`` beside a scan or under
        ``derivatives/``.
    n : int, optional
        How many scans: simulated rats 0..n-1 (default 210, the paper's), or the first n by name.
    seed : int
        Of the simulation; rat i of a seed is the same whatever n. Scanned animals do not use it.
    grid : str, sequence or labkit.data.common_grid.Grid
        Default ``"study"``, and 56 x 40 x 64 voxels of 0.3 mm for the mice. ``"study"`` brings every scan onto 64 x 64
        x 40 voxels of 0.375 x 0.375 x 0.5 mm, centred on the head (scans that have that matrix and voxel size are only
        turned, never interpolated). So does any other matrix and voxel size, along right, superior, anterior: ``((56,
        40, 64), 0.3)``, or as text ``"56x40x64@0.3"``, ``"64x64x40@0.375x0.375x0.5"``. ``"fitted"`` is one that the
        heads just fill (at most 64 voxels along an axis, ``"fitted:96"`` 96). ``"native"`` keeps the scans' own grid,
        which they must share.
    skip_bad : bool
        Go on without unusable files, with a warning that lists them, instead of stopping. Scans that do not share a
        native grid still stop it: which of them is the odd one is not for a program to say.
    suffix : str, optional
        Kind of scan to take (``"T2w"``); default: of a BIDS folder the kind most animals have, of a flat one all.
    axes : str, optional
        What the stored array axes really are, e.g. ``"RSA"``, where headers are wrong (usual for Bruker exports) or
        say nothing. A warning tells where others fit the embedded anatomy clearly better
        (:mod:`labkit.data.orientation`); ``"auto"`` takes those, for each scan.
    voxel_mm : sequence of float, optional
        The real voxel size along the stored axes, mm, where headers are wrong (some tools enlarge rodents tenfold).
    labels : str, optional
        Which label maps to take where scans have several: those named ``desc-<labels>``, of ``"structures"``
        ``sub-1_desc-structures_dseg.nii.gz``. Default: ``sub-1_dseg.nii.gz``, whose name says least of processing.
    entities : mapping, optional
        Scans whose BIDS names have these, ``{"echo": 1, "acq": "highres"}``. A cohort is one kind of scan: where an
        animal has several in one session (echoes, inversions, flip angles, acquisitions), one has to be chosen.
    twins : bool
        Take scans with the same voxels under two names, which are otherwise a fault: one animal would count twice. For
        a generator's output, where sameness is a finding.
    departures : str or sequence of str
        Of simulated rats, what no smooth warp of one template makes: names, which one text may hold with commas. Each
        rat has each with probability one half (``participants.tsv`` says which), and is otherwise the same animal.
        ``"lesions"``: one oedematous lesion. ``"bulbs"``: no brain ahead of a plane near the root of the olfactory
        bulbs. ``"cut"``: two to six slices at one end lost. ``"warps"``: a second velocity field, of shorter length.

    Returns
    -------
    Cohort

    Raises
    ------
    CohortError
        Nothing to open, an unknown departure, or unusable files: one error that names each of them with its fault,
        before any work.

    Examples
    --------
    >>> labkit.open_cohort("phantom", n=8).fingerprint == rats.fingerprint
    True
    >>> labkit.open_cohort("phantoms")
    Traceback (most recent call last):
    labkit.data.sources.CohortError: cannot open cohort 'phantoms': ... did you mean 'phantom'? ...
    """
    named = str(source) in NAMED  # the name wins over a folder of that name, which "./phantom" still reaches
    simulated = str(source) in SIMULATED
    try:
        grid = common_grid.asked(GRIDS.get(str(source), "study") if grid is None else grid)
        n = None if n is None else whole("n", n, 1, "the number of scans (None for all)")
        seed = whole("seed", seed, 0)
        departed = _departures(departures)
    except ValueError as fault:
        raise CohortError(str(fault)) from None
    axes = AUTO if isinstance(axes, str) and axes.lower() == AUTO else axes
    if axes not in (None, AUTO) and sorted(str(axes).upper().translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
        raise CohortError(f"axes={axes!r}: 'auto', or three letters, one each of R/L, A/P and S/I, e.g. 'RSA'")
    voxel_mm = None if voxel_mm is None else _voxel_size(voxel_mm)
    if departed and not simulated:
        raise CohortError(
            f"departures={departures!r} are of simulated rats ({', '.join(SIMULATED)}); scanned animals, here "
            f"{str(source)!r}, are as they are: leave departures out"
        )
    if named:
        asked, name = str(source), "-".join([str(source), *departed])
        n = PAPER_N if n is None and simulated else n
        folder = _named_folder(asked, n or PAPER_N, seed, departed)
    else:
        folder = _existing_folder(source)
        name = bids.label(folder.resolve().name)
        asked = str(folder)
    options: dict[str, Any] = {
        "grid": grid,
        "axes": axes if axes == AUTO else axes and axes.upper(),
        "voxel_mm": voxel_mm,
    }
    kinds: dict[str, Any] = {"suffix": suffix, "labels": labels}
    if entities:
        kinds["entities"] = {str(key): str(value) for key, value in mapping("entities", entities).items()}
    scans, skipped = _open_folder(folder, n, skip_bad, twins, kinds, options, trusted=named)
    recipe = {"source": asked, "n": n, "seed": seed, "skip_bad": skip_bad, "twins": twins, **kinds, **options}
    if departed:
        recipe["departures"] = list(departed)
    return Cohort(name, folder, scans, skipped, recipe)


def _voxel_size(voxel_mm: Sequence[float]) -> list[float]:
    try:
        sizes = [float(size) for size in voxel_mm]
    except (TypeError, ValueError):
        sizes = []
    if len(sizes) != 3 or not all(0 < size < np.inf for size in sizes):
        raise CohortError(f"voxel_mm={voxel_mm!r}: three voxel sizes in mm, each above 0, e.g. (0.375, 0.375, 0.5)")
    return sizes


def _departures(departures: str | Sequence[str]) -> tuple[str, ...]:
    if not departures:  # as usual: then the simulator is not loaded for it
        return ()
    from labkit.data.simulate.departures import chosen

    return chosen(departures)


def _named_folder(source: str, n: int, seed: int, departures: tuple[str, ...]) -> Path:
    """Folder of one of :data:`NAMED`, with what was not there yet made or fetched."""
    try:
        if source == "mice":
            from labkit.data.mice import mice_dataset

            return mice_dataset()
        from labkit.data.simulate.dataset import simulated_dataset

        return simulated_dataset(source, n, seed, departures)
    except OSError as error:
        if isinstance(error, PermissionError) or error.errno in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            error.add_note(
                f"Scans are kept in {data_folder()}: set LABKIT_DATA to a writable folder with room for them."
            )
        raise


def _existing_folder(source: str | os.PathLike) -> Path:
    folder = located(source).absolute()  # what is remembered of a scan holds from wherever it is read
    if folder.is_dir():
        return folder
    close = difflib.get_close_matches(str(source), NAMED, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    what = "it is a file, name its folder" if folder.exists() else f"there is no folder {folder}"
    raise CohortError(
        f"cannot open cohort {str(source)!r}: {what}{hint} Allowed: "
        f"{', '.join(map(repr, NAMED))}, or a folder of NIfTI scans."
    )


def _open_folder(
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
        first = next(kind for kind in sorted(several) if kind).split("_")[0].split("-")
        raise CohortError(
            f"{len(several)} kinds of scan in {folder}, several of an animal and session: {listed}; a cohort is one "
            f"kind: choose it, e.g. entities={{{first[0]!r}: {first[1]!r}}}"
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
        way = "pass skip_bad=True (in chapters 1 and 2: -y '{opening: {skip_bad: true}}') to go on with the rest."
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
            "scanned, pass voxel_mm; if the animals are that large, grid='fitted'."
        )
    turned: dict[str, list[str]] = {}
    for scan in scans:
        if scan.origin.fits:
            turned.setdefault(scan.origin.fits, []).append(Path(scan.origin.path).name)
    for fits, names in turned.items():
        way = f"look at them, and pass axes={fits!r}, or axes='auto' to take what fits"
        way = "they are taken for that" if axes == AUTO else way
        said.append(
            f"{len(names)} {of} lie otherwise than their headers say, e.g. {names[0]}: with axes {fits} they fit the "
            f"study's anatomy clearly better; {way}."
        )
    silent = [scan.origin for scan in scans if not nifti.says_orientation(scan.origin)]
    if silent and axes is None:
        said.append(
            f"{len(silent)} {of} do not say where their axes point (qform and sform code 0), e.g. "
            f"{Path(silent[0].path).name}: taken for {silent[0].axes}, as nibabel does. Look at them, and pass axes, "
            "e.g. axes='RSA' (right, superior, anterior), where that is wrong."
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
    stored, header = nifti.read_array(files.image)
    labels = None
    if files.labels is not None:
        try:
            labels = nifti.read_labels(files.labels, stored.shape, header.get_best_affine())
        except ScanFaultError as fault:
            raise ScanFaultError(f"its labels {files.labels.name}: {fault}") from fault
    said = nifti.sidecar(files.image)
    if not MADE & said.keys():  # what a network makes has to be seen as it is
        nifti.check_contents(stored)
    air = said.get(nifti.AIR)
    air = float(air) if isinstance(air, int | float) else nifti.air_of(stored)
    stored = stored - np.float32(air) if air else stored
    auto, axes = axes == AUTO, None if axes == AUTO else axes
    affine = grids.corrected_affine(header, stored.shape, axes, voxel_mm)
    grids.check_plausible(affine, stored.shape)
    image, image_affine = grids.reorient(stored, affine)
    fits = ""
    if axes is None and not (trusted or MADE & said.keys()):  # what somebody knows, or a network made, is not doubted
        found = orientation.fit(image, nib.affines.voxel_sizes(image_affine), "".join(nib.aff2axcodes(affine)))
        fits = "" if found.best == found.header else found.axes
    if fits and auto:
        affine = grids.corrected_affine(header, stored.shape, fits, voxel_mm)
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
        fits=fits,
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
