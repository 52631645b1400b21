"""One NIfTI file: read with every fault named, and written back as if it came from there.

A scan keeps an :class:`Origin`, the record of what its file was; :func:`to_native` turns any array on the cohort's
grid into an image on that file's grid, with its affine, header, data type and orientation, and :func:`restore` a
network's volume.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import os
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel import orientations
from nibabel.volumeutils import apply_read_scaling

from labkit.data import volumes
from labkit.data.grids import STUDY_AXES, ScanFaultError, axis_change, reorient, resample
from labkit.files import whole_file

MOST_PACKED = 1040
"""Bytes that a byte of gzip can unpack to, at most."""

LARGEST = 4 << 30
"""Bytes of stored voxels that are read of a file."""

FAINTEST = 0.02
"""Share of a scan's range that its voxels reach, but for the brightest thousandth, at least."""

EQUAL = 0.8
"""Share of an image's voxels, 0 and its smallest value apart, that may equal their neighbour in a scan."""

AIR = "AirIntensity"
"""In the JSON file beside a scan that labkit made: what it has where there is nothing, if that is not 0."""

PADDING = 1 << 12
"""Zeros that a writer may have put behind the voxels."""


@dataclass(frozen=True)
class Origin:
    """What a scan's file was: enough to write any volume back as if it came from there."""

    path: str
    shape: tuple[int, ...]  # its three spatial extents, voxels, in stored order
    axes: str  # its array axes' directions, e.g. "RAS"
    affine: tuple  # (4, 4), voxel index to mm that the study believes: the header's, unless the caller corrected it
    header: str  # the NIfTI header's bytes, base64
    grid_affine: tuple  # (4, 4), of the cohort's grid the scan was brought to
    resampled: bool  # whether voxels were interpolated on the way; axes permuted or flipped are exact
    low: float  # intensity range on the cohort's grid with its zero padding, the file's own unit, air taken off
    high: float
    air: float = 0.0  # what the file has where there is nothing, and its scan 0: see `air_of`
    kept: float = 1.0  # share of what is bright in the file that lies in the cohort's grid
    fits: str = ""  # axes that fit the embedded anatomy clearly better than those above, if any do

    @classmethod
    def from_json(cls, content: dict) -> Origin:
        """An origin that was kept as JSON, which knows no tuples."""
        matrices = {name: tuple(map(tuple, content[name])) for name in ("affine", "grid_affine")}
        return cls(**{**content, **matrices, "shape": tuple(content["shape"])})


def read_array(path: str | os.PathLike, constant: bool = False) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Read a file as one real-valued 3-D array, float32 (X, Y, Z), in stored orientation; with its header.

    Header scaling is applied. A 4-D series is averaged over time, complex values become their magnitude. `constant`
    allows one value everywhere (it is no scan, but may be a label map). The header is as stored (NIfTI-2 alike), with
    the scaling of its integers.

    ScanFaultError: not there or not readable, empty, truncated, not NIfTI, misnamed, colour, 2-D, more than 4-D, NaN or
    infinite voxels, constant, singular affine.
    """
    path = Path(path)
    header, raw = _read_whole(path)
    if header.get_data_dtype().fields:
        raise ScanFaultError("colour (RGB) voxels: a scan needs one value a voxel")
    shape = full = header.get_data_shape()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise ScanFaultError(f"2-D: shape {full}, a scan needs three axes of at least 2 voxels")
    if len(shape) > 4:
        raise ScanFaultError(f"{len(shape)}-D: shape {full}, allowed are 3-D scans and 4-D series")
    affine = header.get_best_affine()
    lengths = np.linalg.norm(affine[:3, :3], axis=0)  # the unit does not matter: headers in metres are overruled later
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) <= 1e-6 * lengths.prod():
        raise ScanFaultError("singular affine: the header does not say where voxels are in space")
    slope, inter = _scaling(header)
    array = np.frombuffer(raw, header.get_data_dtype(), count=math.prod(shape)).reshape(shape, order="F")
    if array.ndim == 3:
        # a series is averaged as stored and then scaled: scaled first, an hour of int16 would be four times its size
        array = apply_read_scaling(array, slope, inter)
    if np.iscomplexobj(array):
        array = np.abs(array)
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        raise ScanFaultError(f"{bad} of {array.size} voxels are NaN or infinite")
    if array.ndim == 4:
        array = array.mean(axis=-1, dtype=np.float64) * slope + inter
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ScanFaultError("voxels beyond the range of 32-bit floating point")
    if not constant and array.min() == array.max():
        raise ScanFaultError(f"constant image: every voxel is {array.flat[0]:g}")
    header.set_slope_inter(slope, inter)
    return array, header


def air_of(array: np.ndarray) -> float:
    """What a scan has where there is nothing: 0, or its smallest values where it was stored with an offset.

    With an offset are scans whose darkest voxels are many, alike, and far from 0, measured by the range of all (stored
    as signed integers, standardised). A scan of tissue alone has few voxels near its darkest, and keeps its 0; so does
    one with a fifth of its voxels exactly 0.

    >>> scan = np.r_[np.zeros(50), np.linspace(0, 100, 50)]
    >>> air_of(scan), air_of(scan - 32768), air_of(np.linspace(400, 600, 100))
    (0.0, -32768.0, 0.0)
    """
    if np.count_nonzero(array) < 0.8 * array.size:
        return 0.0
    least, dark, bright = (float(value) for value in np.percentile(array, (0.1, 5, 99.5)))
    reach = 0.1 * (bright - dark)
    return max(float(array.min()), least - reach) if dark - least <= reach and abs(least) > reach else 0.0


def check_contents(array: np.ndarray) -> None:
    """ScanFaultError where an image is none of an animal: few values, the same over whole areas, or lone bright voxels.

    Noise makes neighbours differ in any scan; in a mask, an atlas or a label map most of them are equal.
    """
    least, bright, most = array.min(), np.percentile(array, 99.9), array.max()
    if bright - least < FAINTEST * (most - least):
        raise ScanFaultError(
            f"all but a thousandth of its voxels lie in the lowest {100 * FAINTEST:g} % of its range, {least:g} to "
            f"{most:g}: nothing but its brightest voxels could be seen; cut these off, or leave the file out"
        )
    inside = (array[1:] != least) & (array[1:] != 0)
    equal = (array[1:] == array[:-1])[inside]
    if equal.size and equal.mean() > EQUAL:
        values = len(np.unique(array))
        raise ScanFaultError(
            f"{100 * equal.mean():.0f} % of its voxels equal their neighbours ({values} values in all): a mask, an "
            "atlas or a label map, and no scan; move it elsewhere, or call it *_dseg if it has the labels of a scan"
        )


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    """Slope and intercept of stored values, 1 and 0 where the header has none."""
    try:
        slope, inter = header.get_slope_inter()
    except nib.spatialimages.HeaderDataError as error:
        raise ScanFaultError("damaged header: its intercept is not a number") from error
    return (1.0 if slope is None else float(slope)), (0.0 if inter is None else float(inter))


def _read_whole(path: Path) -> tuple[nib.Nifti1Header, memoryview]:
    """Header and stored voxels of a file that was read to its end, so that the checksum of a packed one was verified.

    Sizes are held against the file's own before memory is asked for.
    """
    _check_beginning(path)
    packed = path.name.lower().endswith(".gz")
    on_disk = path.stat().st_size
    try:
        with gzip.open(path) if packed else open(path, "rb") as stream:
            start = stream.read(nib.Nifti2Header.sizeof_hdr)
            header = _header(start)
            size = math.prod(header.get_data_shape()) * header.get_data_dtype().itemsize
            most = on_disk * (MOST_PACKED if packed else 1)
            begins = _offset(header, None if packed else on_disk - size)
            if begins + size > most:
                raise ScanFaultError(
                    f"truncated, or its header is damaged: shape {header.get_data_shape()} takes {begins + size} bytes "
                    f"and the file {'can hold' if packed else 'has'} {most}"
                )
            if size > LARGEST:
                raise ScanFaultError(
                    f"{size / 2**30:.1f} GiB of voxels, more than the {LARGEST >> 30} GiB that are read"
                )
            whole = bytearray(start)
            # one more than can belong to it, so that what is too long is told apart; a packed file is then at its end
            while len(whole) <= begins + size + PADDING and (part := stream.read(1 << 24)):
                whole += part
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScanFaultError(f"truncated or corrupt gzip: {error}") from error
    except OSError as error:
        raise ScanFaultError(f"cannot be read: {error.strerror or error}") from error
    begins = _offset(header, len(whole) - size)
    if len(whole) < begins + size:
        raise ScanFaultError(
            f"truncated or corrupt: its voxels end early, {begins + size - len(whole)} bytes are missing"
        )
    if len(whole) > begins + size + PADDING or any(whole[begins + size :]):
        raise ScanFaultError(
            f"more bytes than its header tells: shape {header.get_data_shape()} of {header.get_data_dtype()} ends "
            f"{len(whole) - begins - size} or more before the file does"
        )
    return header, memoryview(whole)[begins : begins + size]


def _header(start: bytes) -> nib.Nifti1Header:
    """The header at the beginning of a NIfTI file of either version and endianness."""
    kinds = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
    sizes = {"<": int.from_bytes(start[:4], "little"), ">": int.from_bytes(start[:4], "big")}
    order = next((order for order, size in sizes.items() if size in kinds and len(start) >= size), None)
    if order is None:
        raise ScanFaultError("not a NIfTI file, or its header is damaged")
    block = start[: sizes[order]]
    if block[344:347] == b"ni1" or block[4:7] == b"ni2":
        raise ScanFaultError("half of a pair, its voxels are in an .img file: convert both into one .nii.gz")
    if block[344:347] != b"n+1" and block[4:7] != b"n+2":
        raise ScanFaultError("not a NIfTI file, or its header is damaged")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = kinds[sizes[order]](block, endianness=order)
            shape, _ = header.get_data_shape(), header.get_data_dtype()
    except (nib.spatialimages.HeaderDataError, KeyError, ValueError) as error:
        raise ScanFaultError("not a NIfTI file, or its header is damaged") from error
    if min(shape, default=0) < 1:
        raise ScanFaultError(f"damaged header: shape {shape}")
    return header


def _offset(header: nib.Nifti1Header, rest: int | None) -> int:
    """Where voxels begin; `rest` are the bytes that are no voxels, where they are known."""
    said, least = float(header["vox_offset"]), header.sizeof_hdr + 4
    if said == 0 and (rest is None or rest == least):
        return least  # some writers leave it 0 and mean the end of the header
    if not (np.isfinite(said) and said == int(said) and least - 4 <= said <= LARGEST):
        raise ScanFaultError(f"damaged header: voxels are said to begin at byte {said:g}")
    return int(said)


def _check_beginning(path: Path) -> None:
    """Faults that nibabel would not tell from a damaged header."""
    if path.is_symlink() and not path.exists():
        raise ScanFaultError(f"a link to {os.readlink(path)}, which is not there (`datalad get` or `git annex get` it)")
    try:
        with open(path, "rb") as stream:
            start = stream.read(200)
    except OSError as error:
        raise ScanFaultError(f"cannot be read: {error.strerror}") from error
    if not start:
        raise ScanFaultError("empty file (0 bytes)")
    if start.startswith(b"version https://git-lfs") or b"/annex/objects/" in start:
        raise ScanFaultError(
            "a pointer to a file that was not fetched (`git lfs pull`, `datalad get`, `git annex get`)"
        )
    zipped = start[:2] == b"\x1f\x8b"
    if zipped and not path.name.lower().endswith(".gz"):
        raise ScanFaultError("gzip, but not named so: rename it to .nii.gz")
    if not zipped and path.name.lower().endswith(".gz"):
        raise ScanFaultError("not gzip, though named .gz: if it is a plain NIfTI file, rename it to .nii")


def read_labels(path: str | os.PathLike, like_shape: Sequence[int], like_affine: np.ndarray) -> np.ndarray:
    """Read a label map that must share its scan's grid: uint8 (X, Y, Z) in stored orientation.

    ScanFaultError as for scans, and if the shape or affine is not the scan's, or values are not whole numbers in
    0..255.
    """
    array, header = read_array(path, constant=True)
    if array.shape != tuple(like_shape):
        raise ScanFaultError(f"label shape {array.shape} differs from its scan's {tuple(like_shape)}")
    if not np.allclose(header.get_best_affine(), like_affine, atol=1e-2):
        raise ScanFaultError("label affine differs from its scan's: resample the labels onto the scan first")
    if not np.array_equal(array, np.round(array)) or array.min() < 0 or array.max() > 255:
        raise ScanFaultError("labels must be whole numbers from 0 to 255")
    return array.astype(np.uint8)


def sidecar(path: str | os.PathLike) -> dict[str, Any]:
    """What the JSON file beside a scan says of it; empty where there is none that can be read."""
    place = Path(path)
    place = place.with_name(place.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def to_native(values: np.ndarray, origin: Origin) -> nib.Nifti1Image:
    """Write values (X, Y, Z) on the cohort's grid, in the file's unit above its air, as an image like the scan's file.

    It has the file's shape, affine, header and orientation, and its data type where that is a plain integer or float
    type, float32 otherwise. An integer array is taken as labels (nearest majority, written as uint8).
    """
    labels = np.issubdtype(values.dtype, np.integer)
    if origin.resampled:  # outside is 0, as air
        stored = np.broadcast_to(np.uint8(0), origin.shape)
        turned, turned_affine = reorient(stored, np.asarray(origin.affine))
        values = resample(values, np.asarray(origin.grid_affine), turned.shape, turned_affine, labels)
    values = orientations.apply_orientation(values, axis_change("".join(STUDY_AXES), origin.axes))
    header = decode_header(origin.header)
    dtype = np.dtype(np.uint8) if labels else _plain_dtype(header)
    values = values if labels else values + np.asarray(origin.air, np.float64 if origin.air else values.dtype)
    if dtype.kind in "iu" and not labels:
        info = np.iinfo(dtype)
        values = np.clip(np.round(values), info.min, info.max)
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    return image_class(values.astype(dtype), header.get_best_affine(), header)


def on_grid(origin: Origin, shape: Sequence[int]) -> Origin:
    """The origin of a file that would hold the cohort's grid itself, `shape` voxels, its axes as in `origin`'s file.

    What a network makes of a scan that was resampled is written so: a finer grid would only interpolate it, and
    reading that again blur it.
    """
    if not origin.resampled:
        return origin
    turn = axis_change("".join(STUDY_AXES), origin.axes)
    affine = np.asarray(origin.grid_affine) @ orientations.inv_ornt_aff(turn, tuple(shape))
    stored = orientations.apply_orientation(np.broadcast_to(np.uint8(0), tuple(shape)), turn).shape
    header = decode_header(origin.header)
    header.set_data_shape(stored)
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    nested = tuple(tuple(float(value) for value in row) for row in affine)
    return replace(origin, shape=stored, affine=nested, header=encode_header(header), resampled=False)


def restore(volume: torch.Tensor | np.ndarray, shape: Sequence[int], origin: Origin) -> nib.Nifti1Image:
    """Bring a volume (1, S, S, S) or (S, S, S) in [-1, 1], any S, to a file's grid and intensity range.

    `shape` are the voxels of the cohort's grid.
    """
    cube = volumes.resize(_cube(volume).float(), volumes.cube_side(tuple(shape)))
    values = volumes.from_unit_range(cube, origin.low, origin.high)
    return to_native(volumes.crop_from_cube(values, tuple(shape))[0].numpy(), origin)


def restore_labels(labels: torch.Tensor | np.ndarray, shape: Sequence[int], origin: Origin) -> nib.Nifti1Image:
    """Bring a label map (1, S, S, S) or (S, S, S), uint8, to a file's grid, as :func:`restore`."""
    cube = volumes.resize_labels(_cube(labels).to(torch.uint8), volumes.cube_side(tuple(shape)))
    return to_native(volumes.crop_from_cube(cube, tuple(shape))[0].numpy(), origin)


def _cube(volume: torch.Tensor | np.ndarray) -> torch.Tensor:
    cube = torch.as_tensor(volume).detach().cpu()
    if cube.ndim not in (3, 4) or len(set(cube.shape[-3:])) != 1 or (cube.ndim == 4 and cube.shape[0] != 1):
        raise ValueError(f"a volume is a cube (S, S, S) or (1, S, S, S); got shape {tuple(cube.shape)}")
    return cube.reshape(1, 1, *cube.shape[-3:])


def image_on_grid(array: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    """An array as a NIfTI image in mm, whole numbers as integers so that files stay small and exact."""
    if (
        array.dtype == np.float32
        and array.max() < 2**15
        and array.min() >= -(2**15)
        and (array == np.rint(array)).all()
    ):
        array = array.astype(np.int16)
    image = nib.Nifti1Image(np.asarray(array), affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    return image


def encode_header(header: nib.Nifti1Header) -> str:
    """A header's bytes as text; extensions, which may name the animal or the operator, are left behind."""
    return base64.b64encode(header.binaryblock).decode("ascii")


def decode_header(text: str) -> nib.Nifti1Header:
    """Inverse of :func:`encode_header`."""
    blob = base64.b64decode(text)
    kind = nib.Nifti2Header if len(blob) == nib.Nifti2Header.sizeof_hdr else nib.Nifti1Header
    return kind(blob)


def says_orientation(origin: Origin) -> bool:
    """Whether the file's header says where its axes point (a qform or sform code that is not 0)."""
    header = decode_header(origin.header)
    return bool(header["qform_code"] or header["sform_code"])


def _plain_dtype(header: nib.Nifti1Header) -> np.dtype:
    """The stored data type if values stand in the file as they are; float32 if they were scaled or complex."""
    dtype, (slope, inter) = header.get_data_dtype(), header.get_slope_inter()
    scaled = slope not in (None, 1.0) or inter not in (None, 0.0)
    if dtype.kind == "f" and dtype.itemsize <= 8 or dtype.kind in "iu" and not scaled:
        return dtype.newbyteorder("=")
    return np.dtype(np.float32)


def with_common_type(header: nib.Nifti1Header, others: Iterable[nib.Nifti1Header]) -> nib.Nifti1Header:
    """The header with a data type that holds what any of these files hold: their own where it is one, else one above.

    float32 where some hold whole numbers and others do not.
    """
    types = {_plain_dtype(one) for one in (header, *others)}
    if len(types) == 1:
        return header
    common = np.result_type(*types) if all(one.kind in "iu" for one in types) else np.dtype(np.float32)
    fresh = header.copy()
    fresh.set_data_dtype(common if common.itemsize <= 4 and common.kind in "iu" else np.float32)
    fresh.set_slope_inter(1, 0)
    return fresh


def save(image: nib.Nifti1Image, path: str | os.PathLike) -> None:
    """Write an image under a temporary name and rename it, so that a crash leaves no half file."""
    with whole_file(Path(path)) as partial:
        nib.save(image, partial)
