"""Scans as a rater sees them: all sources through one chain, so that only what the scan shows can tell them apart."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from labkit.data.cohort import Cohort
from labkit.evidence import describe
from labkit.evidence.brightness import head_white
from labkit.evidence.sample import Sample, at_resolution, scanned_slices


class Stimuli:
    """Some scans of one source, ready to be shown.

    Parameters
    ----------
    cohort : Cohort
        The scans.
    resolution : int
        Side of the cubes that every scan is averaged to and brought back from; 64 leaves the study's scans as they are.
        A real scan beside one from a generator of 32³ would otherwise be known by its sharpness alone; one from that
        generator is taken as it is.
    size : int
        Side of the cubes they are shown from, voxels.
    """

    def __init__(self, cohort: Cohort, resolution: int = 64, size: int = 64) -> None:
        self.cohort, self.resolution, self.size = cohort, resolution, size

    def __len__(self) -> int:
        return len(self.cohort)

    @cached_property
    def cubes(self) -> Tensor:
        """float32 (N, 1, S, S, S) in [0, 1], steps of 1/255.

        The head alone, black around it (so that neither background, padding nor the noise of air can tell), 0 black
        and :func:`~labkit.evidence.brightness.head_white` white (so that the intensity range cannot).
        """
        sample = at_resolution(Sample.of(self.cohort, self.size), self.resolution)
        shown = torch.zeros_like(sample.cubes)
        where = scanned_slices(sample.shape, self.size)
        for cube, scan in zip(shown[:, 0], sample.scanned[:, 0].numpy(), strict=True):
            head = describe.head_mask(scan)
            grey = np.round(np.clip(scan / head_white(scan[head]), 0, 1) * 255) / 255
            cube[where] = torch.from_numpy(np.where(head, grey, 0).astype(np.float32))
        return shown

    def slices(self, place: int) -> np.ndarray:
        """Coronal slices of a scan, caudal first: uint8 (slices, rows, columns), dorsal on top, left on the left."""
        part = self.cubes[
            (place, 0, *scanned_slices(self.cohort.shape, self.size))
        ].numpy()  # right, superior, anterior
        return np.round(part * 255).astype(np.uint8).transpose(2, 1, 0)[:, ::-1]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of a coronal slice, mm."""
        (width, height, _), (x, y, _) = self.cohort.shape, self.cohort[0].zooms
        return height * y, width * x
