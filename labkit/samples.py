"""Fixed codes and scans, seen again and again while a run trains: montages to look at, NIfTI to open.

The same codes and scans from iteration 0 on, so that what changes between two pictures is the networks. Apart from
:mod:`labkit.recording` because pages draw with it, too.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from labkit.data import nifti
from labkit.data.grids import grid_affine
from labkit.files import whole_file

TILE = 96
"""Smallest side of a tile in a montage, pixels."""


def middle_sections(volume: np.ndarray) -> list[np.ndarray]:
    """Coronal, sagittal and horizontal sections through a cube's middle, (S, S) each, axes right, superior, anterior.

    First row on top: superior up (horizontal: anterior up), right to the right (sagittal: anterior to the right).
    """
    right, superior, anterior = (side // 2 for side in volume.shape)
    coronal, sagittal, horizontal = volume[:, :, anterior], volume[right], volume[:, superior]
    return [coronal.T[::-1], sagittal[::-1], horizontal.T[::-1]]


def montage(columns: list[np.ndarray]) -> np.ndarray:
    """Volumes (S, S, S) in [-1, 1] side by side, one a column, three planes each: uint8 (3 S', n S').

    0 stands for -1 and 255 for 1; S' is a whole multiple of S of at least :data:`TILE`.
    """
    rows = zip(*(middle_sections(volume) for volume in columns), strict=True)
    picture = np.vstack([np.hstack(row) for row in rows])
    grey = np.round((np.clip(picture, -1, 1) + 1) * 127.5).astype(np.uint8)
    times = -(-TILE // columns[0].shape[0])
    return grey.repeat(times, 0).repeat(times, 1)


def first_sections(picture: np.ndarray, size: int) -> list[np.ndarray]:
    """The first row of a picture that begins with a :func:`montage` of cubes of side `size`: (S', S') each."""
    side = size * -(-TILE // size)
    return np.split(picture[:side], range(side, picture.shape[1], side), axis=1)


def save_samples(
    folder: Path,
    iteration: int,
    random: torch.Tensor,
    real: torch.Tensor,
    reconstructed: torch.Tensor,
    zooms: tuple[float, ...],
) -> Path | None:
    """Write what G makes of the fixed codes (`random`) and, by way of E, of the fixed scans, as NIfTI and as montage.

    All are (n, 1, S, S, S) in [-1, 1], `zooms` the cubes' voxel size in mm. The montage, whose path comes back, has
    random samples above and below them each scan beside its reconstruction. Without Pillow there is none, with a
    warning; the NIfTI files hold the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random, real, reconstructed = (t[:, 0].detach().float().cpu().numpy() for t in (random, real, reconstructed))
    stem = f"iteration-{iteration:06d}"
    for what, volumes in (("random", random), ("reconstructed", reconstructed)):
        nifti.save(_series(volumes, zooms), folder / f"{stem}_{what}.nii.gz")
    path = folder / f"{stem}.png"
    try:
        from PIL import Image
    except ImportError:
        warnings.warn(f"Pillow is not installed: no {path.name} beside the NIfTI files", stacklevel=2)
        return None
    pairs = [volume for pair in zip(real, reconstructed, strict=True) for volume in pair]
    upper, lower = montage(list(random)), montage(pairs)
    width = max(upper.shape[1], lower.shape[1])
    upper, lower = (np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in (upper, lower))
    rule = np.full((4, width), 255, np.uint8)
    with whole_file(path) as partial:
        Image.fromarray(np.vstack([upper, rule, lower])).save(partial, format="png", optimize=True)
    return path


def _series(volumes: np.ndarray, zooms: tuple[float, ...]) -> nib.Nifti1Image:
    """Cubes as one 4-D image, 16-bit with a scale factor, at the voxel size the cube stands for."""
    image = nib.Nifti1Image(np.moveaxis(volumes, 0, -1), grid_affine(volumes.shape[1:], zooms))
    image.set_data_dtype(np.int16)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"synthetic: made by a generator, not scanned"
    return image
