"""The study's acquisition grid, and where it stands in the world.

A slice along the third array axis is a coronal section, so array axes run right, superior, anterior (Ferreira et al.
2022: 64 x 64 x 40 voxels of 0.375 x 0.375 x 0.5 mm), while world coordinates are right, anterior, superior (NIfTI).
"""

from __future__ import annotations

import numpy as np

STUDY_SHAPE = (64, 64, 40)
STUDY_ZOOMS = (0.375, 0.375, 0.5)  # mm
STUDY_AXES = ("R", "S", "A")


def grid_affine(
    shape: tuple[int, ...] = STUDY_SHAPE,
    zooms: tuple[float, ...] = STUDY_ZOOMS,
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> np.ndarray:
    """Affine of a grid whose array axes run right, superior, anterior.

    Parameters
    ----------
    shape : tuple of int
        Voxels along each array axis.
    zooms : tuple of float
        Voxel size along each array axis, mm.
    centre_mm : tuple of float
        World position (right, anterior, superior) of the middle of the field of view, mm.

    Returns
    -------
    numpy.ndarray
        (4, 4), voxel index to mm; the middle of the field of view is index ``(shape - 1) / 2``.
    """
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 0]]) * np.asarray(zooms, float)
    affine[:3, 3] = np.asarray(centre_mm, float) - affine[:3, :3] @ ((np.asarray(shape, float) - 1) / 2)
    return affine
