"""What a cohort holds, in numbers: headers, tissue volumes, intensities. Tables, no drawing.

World directions follow the study's grid: array axes run right, superior (dorsal in a rodent), anterior (rostral).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from nibabel.affines import voxel_sizes

from labkit.data import nifti
from labkit.data.cohort import Cohort, Scan
from labkit.data.common_grid import Grid
from labkit.data.labels import TISSUE_NAMES, has_tissues
from labkit.evidence.brightness import head_threshold

if TYPE_CHECKING:
    import pandas as pd

SIGMA_MM3 = {"CSF": 305.0, "grey matter": 1280.0, "white matter": 697.0, "brain": 2282.0}
"""Volumes of the SIGMA tissue probability maps, mm3 (Barrière et al. 2019), and their sum."""

SIGMA_IN_VIEW_MM3 = {"CSF": 244.0, "grey matter": 1170.0, "white matter": 618.0, "brain": 2032.0}
"""The same maps summed over the 20 mm that 40 slices of 0.5 mm take in, centred 3 mm caudal of the maps' origin as the
simulated rats are: the field of view cuts off the olfactory bulbs, the medulla and some of the cerebellum."""

LEAST_OF_SIGMA = 0.5
"""Brains with a smaller part of SIGMA's volume than this are not compared with it: a mouse's has a quarter."""

ODD = 3.5
"""Deviations from the median from which a scan is called odd: one in two thousand of a normal distribution."""

LEAST_SPREAD = 0.02
"""Where scans differ by less than this in likeness, or by 2 % in brightness or volume, none of them is odd for it."""

DORSAL_PART = 0.25
"""Part of the brain's height that counts as its dorsal end, and as much as its ventral end."""


class Region(NamedTuple):
    """Where a scan is measured: a mask on its grid, and what it holds (``"brain"``, or ``"head"`` without labels)."""

    mask: np.ndarray
    name: str


def region(scan: Scan) -> Region:
    """The brain (voxels labelled above 0), without labels the head, or what was left of it: (X, Y, Z), never empty."""
    if scan.labels is not None and (scan.labels > 0).any():
        return Region(np.asarray(scan.labels) > 0, "brain")
    return Region(head_mask(scan.image), "head")


def head_mask(image: np.ndarray) -> np.ndarray:
    """The largest connected part of an image (X, Y, Z) brighter than 15 % of its 99th percentile, holes filled.

    It holds scalp, muscle and bone as well.
    """
    from scipy import ndimage

    bright = image > head_threshold(image)
    parts, count = ndimage.label(ndimage.binary_opening(bright))
    if count == 0:  # too thin for an opening: take what is brighter than the average
        return np.asarray(image > image.mean())
    largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return ndimage.binary_fill_holes(parts == largest)


def voxel_mm3(scan: Scan) -> float:
    """Volume of a voxel of the scan's grid."""
    return float(np.abs(np.linalg.det(scan.affine[:3, :3])))


def scan_name(scan: Scan) -> str:
    """Subject, and what tells several scans of it apart: ``"0003"``, ``"0003 ses-2"``; resting state goes unsaid."""
    return " ".join([scan.subject, *(part for part in scan.session.split("_") if part not in ("", "task-rest"))])


def scan_table(cohort: Iterable[Scan]) -> pd.DataFrame:
    """What each file was, and the grid it is on now.

    Returns
    -------
    pandas.DataFrame
        One row a scan. Columns ``subject``, ``session``, ``kind`` (BIDS suffix); of the file ``file voxels``,
        ``file mm`` (voxel size), ``file axes`` (directions of its array axes, e.g. RAS), ``file type``; of the grid
        in use ``grid voxels``, ``grid mm``, ``resampled`` (False: axes were at most turned, no voxel was
        interpolated); ``intensity`` (smallest and largest value) and ``labels`` (the values there are).
    """
    import pandas as pd

    rows = []
    for scan in cohort:
        origin, affine = scan.origin, np.asarray(scan.origin.affine)
        labels = "none" if scan.labels is None else ", ".join(str(label) for label in np.unique(scan.labels))
        rows.append(
            {
                "subject": scan.subject,
                "session": scan.session,
                "kind": scan.suffix,
                "file voxels": _times(origin.shape),
                "file mm": _times(voxel_sizes(affine)),
                "file axes": origin.axes,
                "file type": str(nifti.decode_header(origin.header).get_data_dtype()),
                "grid voxels": _times(scan.image.shape),
                "grid mm": _times(scan.zooms),
                "resampled": origin.resampled,
                "intensity": f"{scan.image.min():.5g} to {scan.image.max():.5g}",
                "labels": labels,
            }
        )
    return pd.DataFrame(rows)


def outliers(cohort: Sequence[Scan]) -> pd.DataFrame:
    """What sets a scan apart from the others of its cohort, the odd ones first.

    A number does where it lies more than :data:`ODD` median absolute deviations, as large as a standard deviation would
    be, from the median (Iglewicz & Hoaglin 1993), a word where more than half of the scans share another and fewer
    than a quarter this one.

    Returns
    -------
    pandas.DataFrame
        A row a scan, indexed by :func:`scan_name`: its ``place`` in the cohort; ``brightness`` (99.5th percentile, the
        file's unit); ``bright mm3``, the volume of what is not dark; ``likeness``, the correlation of the scan, seen
        coarsely, with the mean of the others (NaN of fewer than three); ``odd``, how far out it is; and ``apart``, why,
        in words, empty for most.
    """
    import pandas as pd

    table = scan_table(cohort)
    coarse = np.stack([_coarse(scan.image) for scan in cohort])
    others = (coarse.sum(0) - coarse) / max(len(coarse) - 1, 1)
    rows = pd.DataFrame({"place": range(len(table))}, index=[scan_name(scan) for scan in cohort])
    rows["brightness"] = [float(np.percentile(scan.image, 99.5)) for scan in cohort]
    rows["bright mm3"] = [voxel_mm3(scan) * int((scan.image > head_threshold(scan.image)).sum()) for scan in cohort]
    few = len(coarse) < 3
    rows["likeness"] = np.nan if few else [np.corrcoef(*pair)[0, 1] for pair in zip(coarse, others, strict=True)]
    words: list[list[str]] = [[] for _ in rows.index]
    odd = np.zeros(len(rows))
    for name in ("brightness", "bright mm3", "likeness"):
        values = rows[name].to_numpy() if name == "likeness" else np.log(np.maximum(rows[name], 1e-30)).to_numpy()
        apart = values - np.median(values)
        scale = max(1.4826 * float(np.median(np.abs(apart))), LEAST_SPREAD)
        far = (-apart if name == "likeness" else np.abs(apart)) / scale  # too like the others there is not
        odd = np.fmax(odd, far)
        for place in np.flatnonzero(far > ODD):
            one, usual = (f"{x:.0f}" if x > 100 else f"{x:.2g}" for x in (rows[name].iloc[place], rows[name].median()))
            words[place].append(f"{name} {one}, usually {usual}")
    for name in ("file voxels", "file mm", "file axes", "file type", "labels"):
        shares = table[name].map(table[name].value_counts(normalize=True))
        for place in np.flatnonzero((shares < 0.25) & (shares.max() > 0.5)):
            odd[place] += 2 * ODD  # no matter of degree
            words[place].append(f"{name} {table[name][place]}")
    rows["odd"], rows["apart"] = odd, ["; ".join(some) for some in words]
    return rows.sort_values("odd", ascending=False, kind="stable")


def _coarse(image: np.ndarray) -> np.ndarray:
    """A scan as from far away, one number for each of 16^3 blocks."""
    from scipy import ndimage

    blurred = ndimage.uniform_filter(image.astype(np.float32), 4)
    return ndimage.zoom(blurred, [16 / side for side in image.shape], order=1).ravel()


def compare_headers(written: nifti.nib.Nifti1Image, original: Scan) -> pd.DataFrame:
    """Header fields and affine of a synthetic scan and of the scan whose file template it has, a row a property.

    Of a scan that was brought to the cohort's grid from another, the header is that of its file on the cohort's grid.
    The free texts are not compared: what is written says there that it is synthetic, and nothing of the animal.
    """
    import pandas as pd

    def facts(header: nifti.nib.Nifti1Header) -> dict[str, str]:
        affine = header.get_best_affine()
        return {
            "voxels": str(tuple(int(side) for side in header.get_data_shape()[:3])),
            "voxel size, mm": str(tuple(round(float(zoom), 5) for zoom in header.get_zooms()[:3])),
            "array axes": "".join(nifti.nib.aff2axcodes(affine)),
            "affine": np.array2string(affine, precision=4, suppress_small=True),
            "qform code, sform code": f"{int(header['qform_code'])}, {int(header['sform_code'])}",
            "units": str(header.get_xyzt_units()),
            "data type": str(header.get_data_dtype()),
        }

    own = nifti.decode_header(nifti.on_grid(original.origin, original.image.shape).header)
    both = pd.DataFrame({"original": facts(own), "written": facts(written.header)})
    return both.assign(equal=both["original"] == both["written"])


def _times(values: Iterable[float]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)


def tissue_volumes(cohort: Iterable[Scan]) -> pd.DataFrame:
    """Volume of each tissue in each labelled scan.

    Returns
    -------
    pandas.DataFrame
        One row a labelled scan: ``subject``, ``session``, ``CSF``, ``grey matter``, ``white matter``, ``brain`` in
        mm3. Where labels other than 0 to 3 occur, or no label above 1 (a brain mask), tissues cannot be told: their
        columns are NaN and only ``brain`` is given.

    Raises
    ------
    ValueError
        If no scan has labels.
    """
    import pandas as pd

    rows = []
    for scan in cohort:
        if scan.labels is None:
            continue
        counts = np.bincount(np.asarray(scan.labels).ravel(), minlength=4)
        known = has_tissues(scan.labels, need_all=False)
        volumes = {name: counts[label] * voxel_mm3(scan) if known else np.nan for label, name in TISSUE_NAMES.items()}
        brain = counts[1:].sum() * voxel_mm3(scan)
        rows.append({"subject": scan.subject, "session": scan.session, **volumes, "brain": brain})
    if not rows:
        raise ValueError(
            "none of the scans has labels, so no tissue can be measured: put *_dseg.nii.gz beside them or under "
            "derivatives/ (1 CSF, 2 grey matter, 3 white matter)"
        )
    return pd.DataFrame(rows)


def sigma_volumes(cohort: Sequence[Scan]) -> dict[str, dict[str, float]]:
    """SIGMA's volumes, mm3, that a labelled cohort can be held against: ``SIGMA, whole``, and ``SIGMA, in view``.

    The part in view is of scans on the study's grid; brains of another size than rats' (:data:`LEAST_OF_SIGMA`) have
    nothing to be held against.
    """
    in_view = Grid().holds(cohort[0].image.shape, cohort[0].affine)
    brain = tissue_volumes(cohort)["brain"].mean()
    if brain < LEAST_OF_SIGMA * (SIGMA_IN_VIEW_MM3 if in_view else SIGMA_MM3)["brain"]:
        return {}
    return {"SIGMA, whole": SIGMA_MM3} | ({"SIGMA, in view": SIGMA_IN_VIEW_MM3} if in_view else {})


def intensity_profile(cohort: Iterable[Scan]) -> pd.DataFrame:
    """Mean intensity from the top of the brain to its base, of scans on one grid.

    Returns
    -------
    pandas.DataFrame
        One column a scan (:func:`scan_name`). Index ``depth_mm``: mm below the dorsal end
        of the scan's own brain (head, without labels; see :func:`region`). Values: mean over the horizontal plane's
        brain voxels divided by the mean of the whole brain, 1 = average; NaN below the ventral end. The ends are the
        1st and 99th percentile of the voxels' heights, so that a stray voxel does not move them.
    """
    import pandas as pd

    columns = []
    for scan in cohort:
        mask, _ = region(scan)
        bottom, top = _height(mask)
        inside = np.where(mask, scan.image, 0.0)
        voxels = mask.sum((0, 2))[bottom : top + 1]
        with np.errstate(invalid="ignore"):  # a plane without brain, between two parts of it
            means = inside.sum((0, 2), dtype=np.float64)[bottom : top + 1] / voxels
        relative = means / scan.image[mask].mean(dtype=np.float64)
        depth = np.round(np.arange(len(relative)) * scan.zooms[1], 4)
        columns.append(pd.Series(relative[::-1], index=pd.Index(depth, name="depth_mm"), name=scan_name(scan)))
    return pd.concat(columns, axis=1).sort_index()


def _height(mask: np.ndarray) -> tuple[int, int]:
    """First and last horizontal plane (array axis 1) of a mask, without the outermost 1 % of its voxels either side."""
    share = np.cumsum(mask.sum((0, 2))) / mask.sum()
    return int(np.searchsorted(share, 0.01)), int(np.searchsorted(share, 0.99))


def dorsal_ventral_ratio(scan: Scan) -> float:
    """How much brighter the top of the brain is than its base, as a surface coil makes it.

    Returns
    -------
    float
        Mean intensity of the brain voxels (head, without labels; see :func:`region`) in the upper 25 % of the brain's
        height over that in the lower 25 %; 1 = even. NaN if the lower mean is 0.
    """
    mask, _ = region(scan)
    bottom, top = _height(mask)
    planes = max(1, round((top - bottom + 1) * DORSAL_PART))
    upper, lower = slice(top + 1 - planes, top + 1), slice(bottom, bottom + planes)
    dorsal, ventral = (
        float(scan.image[:, part][mask[:, part]].mean(dtype=np.float64)) if mask[:, part].any() else 0.0
        for part in (upper, lower)
    )
    return dorsal / ventral if ventral else float("nan")


def unit_range(scan: Scan) -> np.ndarray:
    """The scan's image scaled to [0, 1] as the networks see it ([-1, 1]): min-max with the padding's zeros, float32."""
    low, high = scan.origin.low, scan.origin.high
    return ((np.asarray(scan.image) - low) / (high - low)).astype(np.float32)


def mean_and_sd(cohort: Iterable[Scan], scaled: bool = True) -> tuple[np.ndarray, np.ndarray | None]:
    """Voxel-wise mean and standard deviation over scans as they lie on the grid, not registered to each other.

    Each is `scaled` to [0, 1] by its own range first (:func:`unit_range`), or left in the files' unit.

    Returns
    -------
    mean : numpy.ndarray
        float64 (X, Y, Z), [0, 1] or the files' unit.
    sd : numpy.ndarray or None
        Sample standard deviation, same shape; None for a single scan, which has none.
    """
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for scan in cohort:  # Welford's update: one pass, and no difference of large sums
        count += 1
        values = (unit_range(scan) if scaled else scan.image).astype(np.float64)
        before = values - mean
        mean = mean + before / count
        squares = squares + before * (values - mean)
    if count == 0:
        raise ValueError("a mean needs at least one scan, got none")
    return mean, np.sqrt(squares / (count - 1)) if count > 1 else None


def spread_ratio(real: Cohort, synthetic: Cohort) -> pd.Series:
    """Total variance of a synthetic cohort over that of a real one, beside what two real halves give.

    On one grid, in one unit; two scans or more, four real ones for the comparison.

    Returns
    -------
    pandas.Series
        ``synthetic / real``: 1 is as much variety, 0 a generator that makes one scan; ``real half / other half``, which
        says how far from 1 chance alone goes (NaN with fewer than four).
    """
    import pandas as pd

    def total(scans: Iterable[Scan]) -> float:
        _, sd = mean_and_sd(scans, scaled=False)
        if sd is None:
            raise ValueError("a variance needs two scans or more")
        return float((sd**2).sum())

    halves = [total(real[start::2]) for start in (0, 1)] if len(real) >= 4 else [np.nan, np.nan]
    ratios = {"synthetic / real": total(synthetic) / total(real), "real half / other half": halves[0] / halves[1]}
    return pd.Series(ratios, name="ratio of total variance")


def summary(cohort: Cohort) -> pd.DataFrame:
    """The cohort in a few figures.

    Returns
    -------
    pandas.DataFrame
        Index: the quantity with its unit. Columns ``mean``, ``SD`` (sample; NaN for a single scan) and ``CV %``, and
        what of :func:`sigma_volumes` there is. Tissue volumes are there only for labelled scans.
    """
    import pandas as pd

    ratio = pd.Series([dorsal_ventral_ratio(scan) for scan in cohort])
    quantities, references = {"dorsal / ventral intensity": ratio}, {}
    if any(scan.labels is not None for scan in cohort):
        volumes, references = tissue_volumes(cohort), sigma_volumes(cohort)
        quantities |= {f"{name}, mm³": volumes[name] for name in SIGMA_MM3 if volumes[name].notna().any()}
    rows = {
        name: [values.mean(), values.std(), 100 * values.std() / values.mean()] for name, values in quantities.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "SD", "CV %"])
    for name, known in references.items():
        table[name] = pd.Series({f"{tissue}, mm³": volume for tissue, volume in known.items()})
    return table
