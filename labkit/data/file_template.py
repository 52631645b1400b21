"""What a written volume should look like: grid, header and intensity range of real scans, none of their identity.

A generator knows cubes in [-1, 1]. A :class:`FileTemplate` knows the files they stand for, so that a generated cohort
opens in any tool as the original does. A run keeps the file_template of its training scans, and needs the scans no
more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import voxel_sizes

from labkit.data import grids, nifti, volumes
from labkit.data.cohort import Scan
from labkit.data.common_grid import Grid
from labkit.data.nifti import Origin

SYNTHETIC = "synthetic: made by a generator, no animal was scanned"
"""What a written header says of itself."""


MOST_VOXELS = 2048
"""Along an axis of a file that is written: a description that somebody sent must not ask for terabytes."""


@dataclass(frozen=True)
class FileTemplate:
    """Grid, header and intensity ranges of scans, without names, paths or free text of them."""

    shape: tuple[int, ...]  # voxels of the cohort's grid, axes right, superior, anterior
    suffix: str  # of BIDS, the kind of scan
    origin: Origin  # the file to be like, on the cohort's grid; path empty, header's texts SYNTHETIC or empty
    ranges: tuple[tuple[float, float], ...]  # smallest and largest intensity of each scan, the files' unit
    label_names: dict[int, str] = field(default_factory=dict)  # what their labels are called, 0 left out
    resampled: bool = False  # whether scans were brought to the cohort's grid from another

    @classmethod
    def of(
        cls, scans: Iterable[Scan], label_names: Mapping[int, str] | None = None, own_files: bool = False
    ) -> FileTemplate:
        """FileTemplate of one scan or more: header of the first, intensity ranges of all, the grid they share.

        With `own_files` it is the grid of the first one's file, where that is another.
        """
        scans = list(scans)
        if not scans:
            raise ValueError("no scans to be like: give at least one")
        first, ranges = scans[0], tuple((float(scan.origin.low), float(scan.origin.high)) for scan in scans)
        # one header stands for many scans, and they may be alike but for a few bytes
        headers = {nifti.encode_header(without_identity(nifti.decode_header(s.origin.header))): None for s in scans}
        decoded = [nifti.decode_header(text) for text in headers]
        header = nifti.encode_header(nifti.with_common_type(decoded[0], decoded[1:]))
        shape = tuple(first.image.shape)
        origin = replace(first.origin, path="", header=header)
        origin = origin if own_files else nifti.on_grid(origin, shape)
        return cls(shape, first.suffix, origin, ranges, dict(label_names or {}), first.origin.resampled)

    @property
    def grid(self) -> str:
        """The `grid` that opens what is written on the same voxels again, e.g. ``"study"``, ``"56x40x64@0.3"``."""
        grid = Grid(self.shape, self.zooms)
        return str(grid) if self.resampled or grid.is_study else "native"

    @property
    def zooms(self) -> tuple[float, ...]:
        """Voxel size of the cohort's grid, mm."""
        return tuple(float(mm) for mm in np.round(voxel_sizes(np.asarray(self.origin.grid_affine)), 5))

    def cube_zooms(self, size: int) -> tuple[float, ...]:
        """Voxel size, mm, of the cubes of `size` voxels a side that stand for its scans."""
        return volumes.cube_zooms(self.shape, self.zooms, size)

    @property
    def opening(self) -> dict[str, Any]:
        """What :func:`labkit.data.sources.open_cohort` has to be told to read what is written as the original was read.

        Its grid; where the original's header is wrong, what the caller knew of it; and that twins are welcome, because
        a generator that makes one scan over and over has to be seen and not refused.
        """
        told: dict[str, Any] = {"grid": self.grid, "twins": True}
        believed, header = np.asarray(self.origin.affine), nifti.decode_header(self.origin.header).get_best_affine()
        if not np.allclose(believed, header, atol=1e-3):
            told |= {"axes": self.origin.axes, "voxel_mm": [float(mm) for mm in voxel_sizes(believed)]}
        return told

    def check_grid(self, scans: Iterable[Scan]) -> None:
        """Refuse scans on another grid than the one this file_template has: a network knows voxels, not mm."""
        for scan in scans:
            apart = grids.difference(scan.image.shape, scan.affine, self.shape, np.asarray(self.origin.grid_affine))
            if apart:
                raise ValueError(
                    f"the scan of {scan.subject}: its grid {apart}, that of the run's training; open the scans with "
                    f"grid={self.grid!r}"
                )

    def image(self, volume: torch.Tensor, rng: np.random.Generator) -> nib.Nifti1Image:
        """A generated volume (1, S, S, S) in [-1, 1] as an image like the file: cropped, in its grid, type and unit.

        [-1, 1] becomes the intensity range of one of the scans, which `rng` chooses. The volume's own range is not
        stretched first: a smooth sample lacks the one brightest voxel that sets the scale of a scan, and would come out
        too bright.
        """
        low, high = self.draw_range(rng)
        return nifti.restore(volume, self.shape, replace(self.origin, low=low, high=high))

    def label_image(self, labels: torch.Tensor) -> nib.Nifti1Image:
        """A label map (1, S, S, S), uint8, as an image like the file, in its grid."""
        return nifti.restore_labels(labels, self.shape, self.origin)

    def draw_range(self, rng: np.random.Generator) -> tuple[float, float]:
        """The intensity range of one of the scans, the files' unit: what -1 and 1 become."""
        return self.ranges[int(rng.integers(len(self.ranges)))]

    def to_json(self) -> dict[str, Any]:
        """As JSON; :meth:`from_json` is the inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> FileTemplate:
        """Inverse of :meth:`to_json`."""
        origin = Origin.from_json(content["origin"])
        ranges = tuple((float(low), float(high)) for low, high in content["ranges"])
        names = {int(label): str(name) for label, name in content.get("label_names", {}).items()}
        shape, resampled = tuple(content["shape"]), content.get("resampled", origin.resampled)
        for sides in (shape, origin.shape):
            if len(sides) != 3 or not all(isinstance(side, int) and 2 <= side <= MOST_VOXELS for side in sides):
                raise ValueError(f"a scan of {sides} voxels: three sides of 2 to {MOST_VOXELS}")
        return cls(shape, content["suffix"], nifti.on_grid(origin, shape), ranges, names, resampled)


def written_range(scan: Scan) -> tuple[float, float]:
    """The intensities that stand for -1 and 1, the file's unit.

    Of a generated scan those it was written with (``IntensityRange`` in its JSON file), because a generator's smooth
    scan need not reach either end; of any other scan its smallest and largest value, padding included.
    """
    try:
        low, high = (float(end) for end in nifti.sidecar(scan.origin.path)["IntensityRange"])
    except (ValueError, KeyError, TypeError):
        return scan.origin.low, scan.origin.high
    return (low, high) if low < high else (scan.origin.low, scan.origin.high)


def made_by_a_generator(scan: Scan) -> bool:
    """Whether a scan's JSON file says that a run of labkit made it."""
    return bool(nifti.sidecar(scan.origin.path).get("RunFingerprint"))


def without_identity(header: nib.Nifti1Header, text: str = SYNTHETIC) -> nib.Nifti1Header:
    """A copy of a header whose free texts, which may name an animal, a study or a person, are gone.

    `text` is the new description, of which 79 characters are kept; extensions are not part of a header.
    """
    fresh = header.copy()
    for name in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
        if name in fresh.structarr.dtype.names:  # NIfTI-2 has no db_name and no data_type
            fresh[name] = b""
    fresh["descrip"] = text.encode("ascii")[:79]
    return fresh
