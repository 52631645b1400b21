"""The study's acquisition grid, and how a scan on any other grid is brought onto it.

A slice along the third array axis is a coronal section, so array axes run right, superior, anterior (Ferreira et al.
2022: 64 x 64 x 40 voxels of 0.375 x 0.375 x 0.5 mm), while world coordinates are right, anterior, superior (NIfTI).
"""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np
from nibabel import orientations
from nibabel.affines import apply_affine, voxel_sizes

from labkit.fields import option

STUDY_SHAPE = (64, 64, 40)
STUDY_ZOOMS = (0.375, 0.375, 0.5)  # mm
STUDY_AXES = ("R", "S", "A")
HEAD_MM = (8.0, 100.0)
"""Plausible length of what is imaged of a rodent's head, mm: outside it the header's voxel size is not believed."""

REAL_SIZE = option("voxel_mm", STUDY_ZOOMS)

VOXEL_MM = (0.005, 5.0)
"""Plausible voxel sizes along an axis, mm: from microscopy of a brain to the thickest slices."""

FARTHEST_MM = 10_000.0
"""That a scan can lie away from the middle of a scanner's space."""


class ScanFaultError(ValueError):
    """One file cannot be used; the message says why in a few words, without the file's name."""


def grid_affine(
    shape: tuple[int, ...] = STUDY_SHAPE,
    zooms: tuple[float, ...] = STUDY_ZOOMS,
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> np.ndarray:
    """Affine (4, 4), voxel index to mm, of a grid whose array axes run right, superior, anterior.

    `zooms` are mm along the array axes; `centre_mm` is the world position (right, anterior, superior) of the middle of
    the field of view, which is index ``(shape - 1) / 2``.
    """
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]]) * np.asarray(zooms, float)
    affine[:3, 3] = np.asarray(centre_mm, float) - affine[:3, :3] @ ((np.asarray(shape, float) - 1) / 2)
    return affine


def corrected_affine(
    header: nib.Nifti1Header, shape: Sequence[int], axes: str | None, voxel_mm: Sequence[float] | None
) -> np.ndarray:
    """The affine to believe: the header's, or one rebuilt from the axes and voxel size that the caller knows."""
    affine = header.get_best_affine()
    if axes is None and voxel_mm is None:
        return affine
    start = orientations.io_orientation(affine) if axes is None else orientations.axcodes2ornt(tuple(axes))
    zooms = voxel_sizes(affine) if voxel_mm is None else np.asarray(voxel_mm, float)
    rebuilt = np.eye(4)
    rebuilt[:3, :3] = 0
    for axis, (world, sign) in enumerate(start):
        rebuilt[int(world), axis] = sign * zooms[axis]
    rebuilt[:3, 3] = -rebuilt[:3, :3] @ ((np.asarray(shape, float) - 1) / 2)
    return rebuilt


def check_plausible(affine: np.ndarray, shape: Sequence[int]) -> None:
    """ScanFaultError where a voxel cannot be that large or a scan lie there; before anything is computed with it."""
    sizes = voxel_sizes(affine)
    if not ((sizes >= VOXEL_MM[0]) & (sizes <= VOXEL_MM[1])).all():
        told = tuple(float(f"{size:.3g}") for size in sizes)
        raise ScanFaultError(
            f"implausible voxel size {told} mm: along each axis {VOXEL_MM[0]:g} to {VOXEL_MM[1]:g} mm are possible; if "
            f"the header is wrong, pass the true one, e.g. {REAL_SIZE}"
        )
    middle = apply_affine(affine, (np.asarray(shape, float) - 1) / 2)
    if not (np.abs(middle) <= FARTHEST_MM).all():
        raise ScanFaultError(
            f"damaged header: the scan's middle would be {np.abs(middle).max():.3g} mm away from the origin"
        )


def reorient(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Permute and flip a stored array so that its axes run right, superior, anterior: exact, no interpolation."""
    change = axis_change("".join(nib.aff2axcodes(affine)), "".join(STUDY_AXES))
    return (
        orientations.apply_orientation(array, change),
        affine @ orientations.inv_ornt_aff(change, array.shape),
    )


def difference(
    shape: Sequence[int], affine: np.ndarray, other_shape: Sequence[int], other_affine: np.ndarray
) -> str | None:
    """How a grid differs from another in voxels or their size, in words; None if to 1 % it does not."""
    zooms, others = voxel_sizes(affine), voxel_sizes(other_affine)
    if tuple(shape) == tuple(other_shape) and np.allclose(zooms, others, rtol=0.01):
        return None
    return f"{tuple(shape)} at {np.round(zooms, 4)} mm is not {tuple(other_shape)} at {np.round(others, 4)} mm"


def head_box(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """World-space corners, mm, of the box that holds the voxels brighter than 15 % of the 99th percentile.

    ScanFaultError if its longest side is not one a rodent's head can have (:data:`HEAD_MM`).
    """
    index = _bright(array)
    corners = np.array(np.meshgrid(*zip(index.min(0), index.max(0), strict=True))).reshape(3, -1).T
    world = apply_affine(affine, corners)
    low, high = world.min(0), world.max(0)
    longest = float((high - low).max())
    if not HEAD_MM[0] <= longest <= HEAD_MM[1]:
        zooms = tuple(round(float(z), 4) for z in voxel_sizes(affine))
        raise ScanFaultError(
            f"implausible voxel size {zooms} mm: the head would be {longest:.0f} mm long, a rodent's imaged head is "
            f"{HEAD_MM[0]:.0f} to {HEAD_MM[1]:.0f} mm; if the header is wrong, pass the true one, e.g. {REAL_SIZE}"
        )
    return low, high


def share_inside(array: np.ndarray, affine: np.ndarray, shape: Sequence[int], target_affine: np.ndarray) -> float:
    """Share of the bright voxels of an array that lie within another grid of `shape` voxels."""
    places = apply_affine(np.linalg.inv(target_affine) @ affine, _bright(array))
    return float(((places > -0.5) & (places < np.asarray(shape) - 0.5)).all(1).mean())


def _bright(array: np.ndarray) -> np.ndarray:
    """Indices (N, 3) of the voxels brighter than 15 % of the 99th percentile, without lone ones, which are noise."""
    from scipy import ndimage  # only cohorts that are not cached yet come here

    bright = ndimage.binary_opening(array > 0.15 * np.percentile(array, 99))
    return np.argwhere(bright if bright.any() else array > array.mean())


def resample(
    array: np.ndarray, affine: np.ndarray, shape: Sequence[int], target_affine: np.ndarray, labels: bool = False
) -> np.ndarray:
    """Bring an array onto another grid in world space, anti-aliased: float32, or uint8 for labels, of `shape`.

    Where the target's voxels are larger than the source's, the source is first blurred to the target's voxel size
    (Gaussian, full width at half maximum of the difference in quadrature), then interpolated linearly; outside is 0.
    Label maps (`labels`) go through the same, label by label, and the largest share wins.
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


def axis_change(start: str, end: str) -> np.ndarray:
    """nibabel orientation transform between axis codes such as RAS."""
    return orientations.ornt_transform(orientations.axcodes2ornt(start), orientations.axcodes2ornt(end))
