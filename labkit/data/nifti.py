"""One scan's file: what it was, and how a volume is written as if it came from there.

A scan keeps an :class:`Origin`, the record of what its file was; :func:`to_native` turns any array on the cohort's
grid into an image on that file's grid, with its affine, header, data type and orientation, and :func:`restore` a
network's volume.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel import orientations

from labkit.data import volumes
from labkit.data.grids import STUDY_AXES, axis_change, reorient, resample
from labkit.files import whole_file

AIR = "AirIntensity"
"""In the JSON file beside a scan that labkit made: what it has where there is nothing, if that is not 0."""


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
    fits: str = ""  # axes that fit the embedded anatomy clearly better than those above, the best first, with spaces

    @property
    def better_axes(self) -> str:
        """Axes that fit best, where they are others than those that are believed; else empty."""
        best = self.fits.split(" ")[0]
        return "" if best == self.axes else best

    @classmethod
    def from_json(cls, content: dict) -> Origin:
        """An origin that was kept as JSON, which knows no tuples."""
        matrices = {name: tuple(map(tuple, content[name])) for name in ("affine", "grid_affine")}
        return cls(**{**content, **matrices, "shape": tuple(content["shape"])})


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
