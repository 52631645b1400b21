"""A tiny labelled cohort with all three tissues, for tests of everything that needs them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from labkit.data.cohort import Cohort
from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS, grid_affine
from labkit.data.sources import open_cohort


def onions(folder: Path, n: int = 10, seed: int = 0, first: int = 0, labels: bool = True) -> Cohort:
    """Open `n` scans of ellipsoids, CSF in white matter in grey matter, of differing size, written to `folder`.

    Parameters
    ----------
    folder : pathlib.Path
        New.
    n, seed : int
        How many, and of their sizes and noise.
    first : int
        Number of the first animal.
    labels : bool
        Whether label maps are written.
    """
    rng = np.random.default_rng(seed)
    half = np.reshape(STUDY_SHAPE, (3, 1, 1, 1)) / 2
    index = (np.indices(STUDY_SHAPE) - half) / half / 2
    affine = grid_affine(STUDY_SHAPE, STUDY_ZOOMS)
    folder.mkdir(parents=True)
    for rat in range(first, first + n):
        radius = np.linalg.norm(index - rng.uniform(-0.03, 0.03, (3, 1, 1, 1)), axis=0) / rng.uniform(0.34, 0.42)
        maps = np.select([radius < 0.4, radius < 0.7, radius < 1], [1, 3, 2], 0).astype(np.uint8)
        brightness = np.array([20, 900, 600, 300])[maps]
        image = brightness + rng.integers(0, 80, STUDY_SHAPE)
        nib.save(nib.Nifti1Image(image.astype(np.int16), affine), folder / f"sub-{rat:02d}_T2w.nii.gz")
        if labels:
            nib.save(nib.Nifti1Image(maps, affine), folder / f"sub-{rat:02d}_dseg.nii.gz")
    return open_cohort(folder)
