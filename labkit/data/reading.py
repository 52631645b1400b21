"""What a NIfTI file holds: read to its end, with every fault named, and nothing asked of memory that it cannot hold."""

from __future__ import annotations

import gzip
import math
import os
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.volumeutils import apply_read_scaling

from labkit.data.grids import ScanFaultError

MOST_PACKED = 1040
"""Bytes that a byte of gzip can unpack to, at most."""

LARGEST = 4 << 30
"""Bytes of stored voxels that are read of a file."""

FAINTEST = 0.02
"""Share of a scan's range that its voxels reach, but for the brightest thousandth, at least."""

EQUAL = 0.8
"""Share of an image's voxels, 0 and its smallest value apart, that may equal their neighbour in a scan."""

PADDING = 1 << 12
"""Zeros that a writer may have put behind the voxels."""


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
    least, dark, bright = (float(value) for value in np.percentile(array, (0.1, 12, 99.5)))
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
    if not 1 <= header["dim"][0] <= 7 or min(shape, default=0) < 1:
        raise ScanFaultError(f"damaged header: shape {shape}, of {header['dim'][0]} dimensions")
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
