"""The sources of cohorts: embedded simulated rats, rats on SIGMA's anatomy, published mice, and a folder of scans."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labkit.data import bids, common_grid
from labkit.data.cohort import Cohort
from labkit.data.common_grid import Grid
from labkit.data.folders import AUTO, CohortError, open_folder
from labkit.data.manifest import data_folder
from labkit.fields import mapping, whole
from labkit.files import located

SIMULATED = ("phantom", "sigma")
NAMED = (*SIMULATED, "mice")
"""Cohorts that are opened by name; all others are folders."""

GRIDS = {"mice": "56x40x64@0.3"}
"""Of cohorts whose usual grid is not the study's: for mice 16.8 x 12 x 19.2 mm, at twice the scans' voxel size."""

MOST_RATS = 10_000
"""That are simulated: a run that somebody sent may ask for any number."""

PAPER_N = 210
"""Scans in the paper's real data set, and in a simulated cohort unless told otherwise."""


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
    labkit.data.folders.CohortError: cannot open cohort 'phantoms': ... did you mean 'phantom'? ...
    """
    named = str(source) in NAMED  # the name wins over a folder of that name, which "./phantom" still reaches
    simulated = str(source) in SIMULATED
    try:
        grid = common_grid.asked(GRIDS.get(str(source), "study") if grid is None else grid)
        n = None if n is None else whole("n", n, 1, "the number of scans (None for all)")
        if simulated and (n or 0) > MOST_RATS:
            raise ValueError(f"n={n}: at most {MOST_RATS} rats are simulated; a tenth of a second and 1 MB each")
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
    scans, skipped = open_folder(folder, n, skip_bad, twins, kinds, options, trusted=named)
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
