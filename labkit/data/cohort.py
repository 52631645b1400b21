"""A cohort is a folder of NIfTI files: open one, check it, split it by animal, turn it into volumes, write it.

Simulated rats, real animals, a user's own scans and a generator's output are all the same kind of folder, so that
training, viewing, measuring and judging each take cohorts and give back cohorts.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import voxel_sizes

from labkit.data import bids, nifti, volumes
from labkit.data.labels import label_names
from labkit.data.nifti import Origin
from labkit.files import located, new_folder


@dataclass(frozen=True)
class Scan:
    """One scan of one animal.

    Attributes
    ----------
    subject, session : str
        The animal, and what tells several scans of it apart (``""`` for one scan an animal).
    image : numpy.ndarray
        float32 (X, Y, Z), axes right, superior, anterior, the file's intensity unit, less what the file has in air
        where that is not 0 (:func:`labkit.data.reading.air_of`). Read-only, as `labels` are.
    labels : numpy.ndarray or None
        uint8 (X, Y, Z).
    affine : numpy.ndarray
        (4, 4), voxel index to mm (right, anterior, superior).
    suffix : str
        BIDS suffix, the kind of scan (``boldref``, ``T2w``).
    origin : labkit.data.nifti.Origin
        The file it came from.
    digest : str
        Content hash, :func:`scan_digest`.

    Examples
    --------
    >>> scan = rats[0]
    >>> scan.subject, scan.image.shape, scan.zooms
    ('0001', (64, 64, 40), (0.375, 0.375, 0.5))
    """

    subject: str
    session: str
    image: np.ndarray
    labels: np.ndarray | None
    affine: np.ndarray
    suffix: str
    origin: Origin
    digest: str

    @property
    def zooms(self) -> tuple[float, ...]:
        """Voxel size along the array's axes, mm."""
        return tuple(float(zoom) for zoom in np.round(voxel_sizes(self.affine), 5))

    def nifti(self) -> nib.Nifti1Image:
        """The scan on the cohort's grid as an image in memory (mm)."""
        return nifti.image_on_grid(self.image, self.affine)

    def restore(self, volume: torch.Tensor | np.ndarray) -> nib.Nifti1Image:
        """Bring a volume back to the scan's file: grid, affine, header, orientation, data type, intensity range.

        Parameters
        ----------
        volume : torch.Tensor or numpy.ndarray
            (1, S, S, S) or (S, S, S) in [-1, 1], any S; as made by :meth:`Cohort.volumes` or a generator.

        Returns
        -------
        nibabel.Nifti1Image
            For a volume of the cube's own side on a grid that was only turned, exactly the file's voxels (to
            rounding of the data type); otherwise interpolated.

        Examples
        --------
        >>> image = rats[0].restore(rats[:1].volumes()[0])
        >>> image.shape, bool(abs(image.get_fdata() - rats[0].image).max() <= 1)
        ((64, 64, 40), True)
        """
        return nifti.restore(volume, self.image.shape, self.origin)

    def restore_labels(self, labels: torch.Tensor | np.ndarray) -> nib.Nifti1Image:
        """Bring a label map (1, S, S, S) or (S, S, S), uint8, back to the scan's file's grid, as :meth:`restore`."""
        return nifti.restore_labels(labels, self.image.shape, self.origin)


def scan_digest(image: np.ndarray, labels: np.ndarray | None, affine: np.ndarray) -> str:
    """Content hash of one scan: voxels, labels and place in space, not its name."""
    digest = hashlib.sha256(str(image.shape).encode())
    stored = np.asarray(affine, np.float32).astype(np.float64)  # as a NIfTI file keeps it, or rounding could differ
    digest.update(np.round(stored, 3).astype(np.float32).tobytes())
    digest.update(np.ascontiguousarray(image, np.float32).tobytes())
    digest.update(b"" if labels is None else np.ascontiguousarray(labels, np.uint8).tobytes())
    return digest.hexdigest()


class Cohort(Sequence[Scan]):
    """Scans on one grid, opened by :func:`labkit.data.sources.open_cohort`.

    ``cohort[3]`` is a scan, ``cohort[3:9]`` a cohort. Voxels are held in memory, 0.8 MB a labelled scan on the study's
    grid; parts of a cohort share them.

    Parameters
    ----------
    name : str
        Short name, used in folder names.
    folder : pathlib.Path
        Where its files are.
    scans : iterable of Scan
        On one grid.
    skipped : dict of str to str, optional
        Files left out by ``skip_bad=True``, and why.
    recipe : dict, optional
        What :func:`labkit.data.sources.open_cohort` was asked, JSON-able, so that a run can open its cohort again. None
        for a part of a cohort.

    Examples
    --------
    >>> len(rats), rats[0].subject, rats[2:5].subjects
    (8, '0001', ('0003', '0004', '0005'))
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        scans: Iterable[Scan],
        skipped: dict[str, str] | None = None,
        recipe: dict | None = None,
    ):
        self.name = name
        self.folder = Path(folder)
        self.skipped = dict(skipped or {})
        self.recipe = recipe
        self._scans = tuple(scans)

    def __len__(self) -> int:
        return len(self._scans)

    def __iter__(self) -> Iterator[Scan]:
        return iter(self._scans)

    @overload
    def __getitem__(self, index: int) -> Scan: ...
    @overload
    def __getitem__(self, index: slice) -> Cohort: ...
    def __getitem__(self, index: int | slice) -> Scan | Cohort:
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        return self._scans[self._position(index)]

    def _position(self, index: int) -> int:
        try:
            return range(len(self))[index]
        except IndexError:
            raise IndexError(f"there is no scan {index} in {self.name}: it has {len(self)}, counted from 0") from None

    def __repr__(self) -> str:
        animals = len(set(self.subjects))
        shape = " x ".join(map(str, self.shape))
        return f"<Cohort {self.name}: {len(self)} scans of {animals} animals, {shape}, {self.fingerprint[:12]}>"

    @property
    def subjects(self) -> tuple[str, ...]:
        """The animal of each scan."""
        return tuple(scan.subject for scan in self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of every scan along right, superior, anterior; (0, 0, 0) where there is none."""
        return tuple(self._scans[0].image.shape) if self._scans else (0, 0, 0)

    @cached_property
    def groups(self) -> dict[str, str]:
        """Group of animals by subject: column ``group`` of the folder's ``participants.tsv``; those without are out."""
        rows = bids.read_participants(self.folder)
        return {subject: group for subject in self.subjects if (group := rows.get(subject, {}).get("group"))}

    @property
    def about(self) -> dict[str, Any]:
        """What the folder's own files say of these animals: :func:`labkit.data.bids.read_about`."""
        return bids.read_about(self.folder, self.subjects)

    @cached_property
    def label_names(self) -> dict[int, str]:
        """What its labels are called, by number, 0 left out; see :func:`labkit.data.labels.label_names`."""
        maps = [np.bincount(scan.labels.ravel(), minlength=256) for scan in self if scan.labels is not None]
        return label_names(self.folder, np.flatnonzero(sum(maps)).tolist()) if maps else {}

    @property
    def labelled(self) -> bool:
        """Whether every scan has labels."""
        return all(scan.labels is not None for scan in self)

    @cached_property
    def fingerprint(self) -> str:
        """Content hash (sha256) of all scans in order: voxels, labels, place in space."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()

    @property
    def digests(self) -> tuple[str, ...]:
        """Content hash of each scan."""
        return tuple(scan.digest for scan in self)

    def subset(self, indices: Iterable[int]) -> Cohort:
        """The scans at `indices`, in that order; no voxel is copied."""
        indices = list(indices)
        if any(isinstance(index, bool | np.bool_) for index in indices):
            raise TypeError("subset takes the places of scans, not a mask: pass numpy.flatnonzero(mask)")
        return Cohort(self.name, self.folder, [self._scans[self._position(index)] for index in indices], self.skipped)

    def split(self, n_train: int, seed: int = 0) -> tuple[Cohort, Cohort]:
        """Split by animal, so that no animal is on both sides.

        Parameters
        ----------
        n_train : int
            Animals (not scans) on the first side.
        seed : int
            Which ones.

        Returns
        -------
        train, held_out : Cohort
            Scans in the cohort's order.

        Raises
        ------
        ValueError
            If either side would be empty.

        Examples
        --------
        >>> train, held_out = rats.split(6)
        >>> len(train), len(held_out), set(train.subjects) & set(held_out.subjects)
        (6, 2, set())
        """
        animals = sorted(set(self.subjects))
        if not 1 <= n_train < len(animals):
            raise ValueError(
                f"n_train={n_train} leaves one side empty: {self.name} has {len(animals)} animals, "
                f"choose 1 to {len(animals) - 1}"
            )
        order = np.random.default_rng(seed).permutation(len(animals))
        chosen = {animals[index] for index in order[:n_train]}
        inside = [index for index, subject in enumerate(self.subjects) if subject in chosen]
        outside = [index for index, subject in enumerate(self.subjects) if subject not in chosen]
        return self.subset(inside), self.subset(outside)

    def volumes(self, size: int = 64) -> torch.Tensor:
        """Network input: zero-padded to a cube, resampled to `size` without aliasing, per-scan min-max.

        Returns
        -------
        torch.Tensor
            float32 (N, 1, size, size, size) in [-1, 1].

        Examples
        --------
        >>> volumes = rats[:2].volumes(32)
        >>> tuple(volumes.shape), volumes.min().item(), volumes.max().item()
        ((2, 1, 32, 32, 32), -1.0, 1.0)
        """
        out = torch.empty(len(self), 1, size, size, size)
        for index, cube in enumerate(self._cubes(scan.image for scan in self)):
            out[index] = volumes.to_unit_range(volumes.resize(cube, size))[0][0]
        return out

    def label_maps(self, size: int = 64) -> torch.Tensor:
        """Label maps on the same cubes as :meth:`volumes`: uint8 (N, 1, size, size, size).

        Raises
        ------
        ValueError
            If scans have no labels; names them.

        Examples
        --------
        >>> rats[:2].label_maps(32).unique().tolist()
        [0, 1, 2, 3]
        """
        maps = [scan.labels for scan in self if scan.labels is not None]
        if len(maps) < len(self):
            without = [scan.subject for scan in self if scan.labels is None]
            raise ValueError(
                f"{len(without)} of {len(self)} scans of {self.name} have no labels ({', '.join(without[:5])}"
                f"{', ...' if len(without) > 5 else ''}): put *_dseg.nii.gz beside them or under derivatives/"
            )
        out = torch.empty(len(self), 1, size, size, size, dtype=torch.uint8)
        for index, cube in enumerate(self._cubes(maps)):
            out[index] = volumes.resize_labels(cube, size)[0]
        return out

    def _cubes(self, arrays: Iterable[np.ndarray]) -> Iterator[torch.Tensor]:
        side = volumes.cube_side(self.shape)
        return (volumes.pad_to_cube(torch.from_numpy(np.array(array))[None], side) for array in arrays)

    def write(self, folder: str | os.PathLike, name: str | None = None) -> Path:
        """Write the scans, on the cohort's grid, as a BIDS data set that ``open_cohort`` reads back the same.

        With what their folder says of them: licence, references, that they are simulated or synthetic, the animals'
        species, strain, sex and group, names of labels. A folder is read back in the order of subjects and sessions,
        whatever the order here.

        Parameters
        ----------
        folder : path
            New folder; it appears only when everything is written.
        name : str, optional
            Data set's name in its description.

        Raises
        ------
        FileExistsError
            If `folder` is there already.

        Examples
        --------
        >>> labkit.open_cohort(rats[:2].write(folder / "two rats")).fingerprint == rats[:2].fingerprint
        True
        """
        folder = located(folder)
        labels_of = self.bids_labels()
        with new_folder(folder) as fresh:
            for scan in self:
                path = bids.scan_path(labels_of[scan.subject], scan.session, scan.suffix)
                labels = None if scan.labels is None else nifti.image_on_grid(scan.labels, scan.affine)
                bids.save_scan(fresh, path, scan.nifti(), labels)
            if any(text != f"label {value}" for value, text in self.label_names.items()):
                bids.write_label_names(fresh, {0: "background", **self.label_names})
            self.write_about(fresh, name or self.name, Fingerprint=self.fingerprint)
        return folder

    def write_about(self, folder: Path, name: str, kind: str = "raw", **fields: object) -> None:
        """Write a data set's description and table of animals for these scans, with what :attr:`about` says of them."""
        said = self.about
        people, columns = bids.read_participants(self.folder), said.pop("participants")
        rows = [
            {"participant_id": f"sub-{text}", "name": subject}
            | {column: people.get(subject, {}).get(column, "") for column in columns}
            for subject, text in self.bids_labels().items()
        ]
        bids.write_table(folder / "participants.tsv", rows)
        said.pop("Name", None)
        bids.write_description(folder, name, kind, **said, **fields)

    def bids_labels(self) -> dict[str, str]:
        """A BIDS label for each subject: letters and digits only, no two alike, and sorted like the subjects."""
        subjects = sorted(set(self.subjects))
        labels = [bids.label(subject) for subject in subjects]
        if labels != sorted(set(labels)):
            width = len(str(len(labels)))
            labels = [f"{place:0{width}d}x{text}" for place, text in enumerate(labels)]
        return dict(zip(subjects, labels, strict=True))
