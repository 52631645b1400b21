"""A tiny cohort for tests of everything that takes one."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from labkit.data.cohort import Cohort
from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS, grid_affine
from labkit.data.sources import open_cohort


def ellipsoids(folder: Path, n: int = 7, seed: int = 0) -> Cohort:
    """Open `n` labelled scans of noisy ellipsoids of differing size, written to `folder`."""
    rng = np.random.default_rng(seed)
    index = (np.indices(STUDY_SHAPE) - np.reshape(STUDY_SHAPE, (3, 1, 1, 1)) / 2) / np.reshape(
        STUDY_SHAPE, (3, 1, 1, 1)
    )
    affine = grid_affine(STUDY_SHAPE, STUDY_ZOOMS)
    folder.mkdir(parents=True)
    for rat in range(n):
        inside = np.linalg.norm(index, axis=0) < rng.uniform(0.3, 0.42)
        image = inside * (600 + 400 * index[1]) + rng.integers(0, 80, STUDY_SHAPE)
        nib.save(nib.Nifti1Image(image.astype(np.int16), affine), folder / f"sub-{rat}_T2w.nii.gz")
        nib.save(nib.Nifti1Image((2 * inside).astype(np.uint8), affine), folder / f"sub-{rat}_dseg.nii.gz")
    return open_cohort(folder)
