"""One NIfTI file: read with every fault named, brought onto the study's grid, and the way back.

A scan keeps an :class:`Origin`, the record of what its file was; :func:`to_native` turns any array on the cohort's
grid into an image on that file's grid, with its affine, header, data type and orientation.
"""

from __future__ import annotations

import base64
import os
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel import orientations

from labkit.grids import STUDY_AXES, STUDY_SHAPE, STUDY_ZOOMS, grid_affine

HEAD_MM = (8.0, 100.0)
"""Plausible length of what is imaged of a rat's head, mm: outside it the header's voxel size is not believed."""


class ScanFaultError(ValueError):
    """One file cannot be used; the message says why in a few words, without the file's name."""


@dataclass(frozen=True)
class Origin:
    """What a scan's file was: enough to write any volume back as if it came from there.

    Attributes
    ----------
    path : str
        The file.
    shape : tuple of int
        Its three spatial extents, voxels, in stored order.
    axes : str
        Its array axes' directions, e.g. ``"RAS"``.
    affine : tuple of tuple of float
        (4, 4) voxel index to mm that the study believes: the header's, unless the caller corrected it.
    header : str
        The NIfTI header's bytes, base64.
    grid_affine : tuple of tuple of float
        (4, 4) of the cohort's grid the scan was brought to.
    resampled : bool
        Whether voxels were interpolated on the way (False: only axes were permuted or flipped, which is exact).
    low, high : float
        Intensity range on the cohort's grid with its zero padding, the file's own unit.
    """

    path: str
    shape: tuple[int, int, int]
    axes: str
    affine: tuple
    header: str
    grid_affine: tuple
    resampled: bool
    low: float
    high: float


def read_array(path: str | os.PathLike, constant: bool = False) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Read a file as one real-valued 3-D array, in stored orientation.

    A 4-D series is averaged over time, complex values become their magnitude.

    Parameters
    ----------
    path : path
        The file.
    constant : bool
        Whether one value everywhere is allowed (it is no scan, but may be a label map).

    Returns
    -------
    array : numpy.ndarray
        float32 (X, Y, Z), header scaling applied.
    header : nibabel.Nifti1Header
        As stored (NIfTI-2 alike).

    Raises
    ------
    ScanFaultError
        Empty, truncated, not NIfTI, colour, 2-D, more than 4-D, NaN or infinite voxels, constant, singular affine.
    """
    path = Path(path)
    if path.stat().st_size == 0:
        raise ScanFaultError("empty file (0 bytes)")
    try:
        image = nib.load(path)
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, ValueError) as error:
        raise ScanFaultError("not a NIfTI file, or its header is damaged") from error
    except (EOFError, OSError, zlib.error) as error:
        raise ScanFaultError("truncated or corrupt gzip") from error
    if not isinstance(image, nib.Nifti1Image):  # NIfTI-2 images are Nifti1Image too
        raise ScanFaultError(f"not a NIfTI file but {type(image).__name__}")
    if image.get_data_dtype().fields:
        raise ScanFaultError("colour (RGB) voxels: a scan needs one value a voxel")
    shape = image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise ScanFaultError(f"2-D: shape {image.shape}, a scan needs three axes of at least 2 voxels")
    if len(shape) > 4:
        raise ScanFaultError(f"{len(shape)}-D: shape {image.shape}, allowed are 3-D scans and 4-D series")
    affine = image.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ScanFaultError("singular affine: the header does not say where voxels are in space")
    try:
        array = np.asanyarray(image.dataobj).reshape(shape)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise ScanFaultError("truncated or corrupt: its voxels end early") from error
    if np.iscomplexobj(array):
        array = np.abs(array)
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise ScanFaultError(f"{bad} of {array.size} voxels are NaN or infinite")
    if array.ndim == 4:
        array = array.mean(axis=-1, dtype=np.float64)
    array = array.astype(np.float32)
    if not constant and array.min() == array.max():
        raise ScanFaultError(f"constant image: every voxel is {array.flat[0]:g}")
    return array, image.header


def read_labels(path: str | os.PathLike, like_shape: Sequence[int], like_affine: np.ndarray) -> np.ndarray:
    """Read a label map that must share its scan's grid: uint8 (X, Y, Z) in stored orientation.

    Raises
    ------
    ScanFaultError
        As for scans, and if the shape or affine is not the scan's, or values are not whole numbers in 0..255.
    """
    array, header = read_array(path, constant=True)
    if array.shape != tuple(like_shape):
        raise ScanFaultError(f"label shape {array.shape} differs from its scan's {tuple(like_shape)}")
    if not np.allclose(header.get_best_affine(), like_affine, atol=1e-2):
        raise ScanFaultError("label affine differs from its scan's: resample the labels onto the scan first")
    if not np.array_equal(array, np.round(array)) or array.min() < 0 or array.max() > 255:
        raise ScanFaultError("labels must be whole numbers from 0 to 255")
    return array.astype(np.uint8)


def corrected_affine(
    header: nib.Nifti1Header, shape: Sequence[int], axes: str | None, voxel_mm: Sequence[float] | None
) -> np.ndarray:
    """The affine to believe: the header's, or one rebuilt from the axes and voxel size that the caller knows."""
    affine = header.get_best_affine()
    if axes is None and voxel_mm is None:
        return affine
    start = orientations.io_orientation(affine) if axes is None else orientations.axcodes2ornt(tuple(axes))
    zooms = nib.affines.voxel_sizes(affine) if voxel_mm is None else np.asarray(voxel_mm, float)
    rebuilt = np.eye(4)
    rebuilt[:3, :3] = 0
    for axis, (world, sign) in enumerate(start):
        rebuilt[int(world), axis] = sign * zooms[axis]
    rebuilt[:3, 3] = -rebuilt[:3, :3] @ ((np.asarray(shape, float) - 1) / 2)
    return rebuilt


def reorient(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip a stored array so that its axes run right, superior, anterior: exact, no interpolation."""
    change = _axis_change("".join(nib.aff2axcodes(affine)), "".join(STUDY_AXES))
    return (
        orientations.apply_orientation(array, change),
        affine @ orientations.inv_ornt_aff(change, array.shape),
    )


def is_study_grid(shape: Sequence[int], affine: np.ndarray) -> bool:
    """Whether an array with axes right, superior, anterior has the study's matrix and voxel size."""
    return tuple(shape) == STUDY_SHAPE and np.allclose(nib.affines.voxel_sizes(affine), STUDY_ZOOMS, rtol=0.01)


def head_box(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World-space corners, mm, of the box that holds the voxels brighter than 15 % of the 99th percentile.

    Raises
    ------
    ScanFaultError
        If the box's longest side is not one a rat's head can have (:data:`HEAD_MM`).
    """
    from scipy import ndimage  # only cohorts that are not cached yet come here

    # opened once, so that lone noise voxels in the air do not stretch the box
    bright = ndimage.binary_opening(array > 0.15 * np.percentile(array, 99))
    index = np.argwhere(bright if bright.any() else array > array.mean())
    corners = np.array(np.meshgrid(*zip(index.min(0), index.max(0), strict=True))).reshape(3, -1).T
    world = nib.affines.apply_affine(affine, corners)
    low, high = world.min(0), world.max(0)
    longest = float((high - low).max())
    if not HEAD_MM[0] <= longest <= HEAD_MM[1]:
        zooms = tuple(round(float(z), 4) for z in nib.affines.voxel_sizes(affine))
        raise ScanFaultError(
            f"implausible voxel size {zooms} mm: the head would be {longest:.0f} mm long, a rat's imaged head is "
            f"{HEAD_MM[0]:.0f} to {HEAD_MM[1]:.0f} mm; if the header is wrong, pass voxel_mm=(x, y, z)"
        )
    return low, high


def study_grid_for(array: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Affine of a study grid centred on the head, without leaving the scan's field of view where that is larger."""
    low, high = head_box(array, affine)
    size = np.asarray(STUDY_SHAPE) * np.asarray(STUDY_ZOOMS)
    size = size[[0, 2, 1]]  # world order: right, anterior, superior
    corners = np.array(np.meshgrid(*[(-0.5, extent - 0.5) for extent in array.shape])).reshape(3, -1).T
    world = nib.affines.apply_affine(affine, corners)
    field_low, field_high = world.min(0), world.max(0)
    inside_low, inside_high = field_low + size / 2, field_high - size / 2
    centre = np.clip((low + high) / 2, np.minimum(inside_low, inside_high), np.maximum(inside_low, inside_high))
    # a field of view smaller than the study's is kept whole, in the middle
    centre = np.where(inside_low > inside_high, (field_low + field_high) / 2, centre)
    return grid_affine(centre_mm=tuple(centre))


def resample(
    array: np.ndarray, affine: np.ndarray, shape: Sequence[int], target_affine: np.ndarray, labels: bool = False
) -> np.ndarray:
    """Bring an array onto another grid in world space, anti-aliased.

    Where the target's voxels are larger than the source's, the source is first blurred to the target's voxel size
    (Gaussian, full width at half maximum of the difference in quadrature), then interpolated linearly; outside is 0.
    Label maps (`labels`) go through the same, label by label, and the largest share wins.

    Returns
    -------
    numpy.ndarray
        `shape`, float32, or uint8 for labels.
    """
    from scipy import ndimage

    step = np.linalg.inv(affine) @ target_affine  # target index -> source index
    extent = np.sqrt((step[:3, :3] ** 2).sum(1))  # one target voxel in source voxels, along each source axis
    sigma = np.sqrt(np.maximum(extent**2 - 1, 0)) / 2.3548

    def bring(values: np.ndarray) -> np.ndarray:
        blurred = ndimage.gaussian_filter(values.astype(np.float32), sigma, mode="nearest") if sigma.any() else values
        return ndimage.affine_transform(
            blurred.astype(np.float32), step[:3, :3], step[:3, 3], tuple(shape), order=1, mode="constant", cval=0.0
        )

    if not labels:
        return bring(array)
    best, share = np.zeros(tuple(shape), np.uint8), 1 - bring(array > 0)
    for label in np.unique(array[array > 0]):
        mine = bring(array == label)
        best[mine > share] = label
        np.maximum(share, mine, out=share)
    return best


def to_native(values: np.ndarray, origin: Origin) -> nib.Nifti1Image:
    """Write values on the cohort's grid as an image like the scan's file.

    Parameters
    ----------
    values : numpy.ndarray
        (X, Y, Z) on the cohort's grid (axes right, superior, anterior), in the file's intensity unit; an integer
        array is taken as labels (nearest majority, written as uint8).
    origin : Origin
        The file to be like.

    Returns
    -------
    nibabel.Nifti1Image
        The file's shape, affine, header and orientation; its data type where that is a plain integer or float type,
        float32 otherwise.
    """
    labels = np.issubdtype(values.dtype, np.integer)
    if origin.resampled:
        stored = np.broadcast_to(np.uint8(0), origin.shape)
        turned, turned_affine = reorient(stored, np.asarray(origin.affine))
        values = resample(values, np.asarray(origin.grid_affine), turned.shape, turned_affine, labels)
    values = orientations.apply_orientation(values, _axis_change("".join(STUDY_AXES), origin.axes))
    header = decode_header(origin.header)
    dtype = np.dtype(np.uint8) if labels else _plain_dtype(header)
    if dtype.kind in "iu" and not labels:
        info = np.iinfo(dtype)
        values = np.clip(np.round(values), info.min, info.max)
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return image_class(values.astype(dtype), header.get_best_affine(), header)


def encode_header(header: nib.Nifti1Header) -> str:
    """A header's bytes as text; extensions, which may name the animal or the operator, are left behind."""
    return base64.b64encode(header.binaryblock).decode("ascii")


def decode_header(text: str) -> nib.Nifti1Header:
    """Inverse of :func:`encode_header`."""
    blob = base64.b64decode(text)
    kind = nib.Nifti2Header if len(blob) == nib.Nifti2Header.sizeof_hdr else nib.Nifti1Header
    return kind(blob)


def _plain_dtype(header: nib.Nifti1Header) -> np.dtype:
    """The stored data type if values stand in the file as they are; float32 if they were scaled or complex."""
    dtype, (slope, inter) = header.get_data_dtype(), header.get_slope_inter()
    scaled = slope not in (None, 1.0) or inter not in (None, 0.0)
    if dtype.kind == "f" and dtype.itemsize <= 8 or dtype.kind in "iu" and not scaled:
        return dtype.newbyteorder("=")
    return np.dtype(np.float32)


def save(image: nib.Nifti1Image, path: str | os.PathLike) -> None:
    """Write an image under a temporary name and rename it, so that a crash leaves no half file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        partial = Path(folder) / f"scan{ending}"
        nib.save(image, partial)
        os.replace(partial, path)


def _axis_change(start: str, end: str) -> np.ndarray:
    """nibabel orientation transform between axis codes such as RAS."""
    return orientations.ornt_transform(orientations.axcodes2ornt(start), orientations.axcodes2ornt(end))
