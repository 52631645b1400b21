"""Attributes of a head that have a name: sizes, brightness, pose. Measured on scans, read off volumes without labels.

Generated volumes come without labels. A :class:`Gauge` learns on labelled real scans to read an attribute off the
voxels (ridge regression), and says how well it does on animals it never saw; only then is it turned on synthetic ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from nibabel.affines import apply_affine
from torch import Tensor

from labkit.data import volumes
from labkit.data.cohort import Scan
from labkit.data.labels import TISSUE_NAMES, without_tissues
from labkit.evidence import describe
from labkit.evidence.brightness import white

if TYPE_CHECKING:
    import pandas as pd

GAUGE_SIDE = 32
"""Voxels along a side of the volumes a gauge reads; larger ones are averaged down to it."""

DEEP_MM = 1.0
"""Depth below the brain's surface from which CSF counts as ventricle."""

PENALTIES = tuple(float(p) for p in np.logspace(0, 6, 13))
"""Ridge penalties to choose from, by leaving one scan out at a time."""


def measure(scans: Iterable[Scan]) -> pd.DataFrame:
    """Attributes of scans, from the brains' labels or, if any scan has none, from the heads.

    Returns
    -------
    pandas.DataFrame
        One row a scan, columns with their units: ``brain volume, mm³`` (``head volume`` without labels),
        ``ventricles, mm³`` (only with tissue labels; CSF deeper than :data:`DEEP_MM`), ``dorsal / ventral``
        (:func:`labkit.evidence.describe.dorsal_ventral_ratio`), ``to the right, mm`` and ``dorsal, mm`` (centre of the
        region from the middle of the grid: where an animal lay in the scanner no voxel shows), ``pitch, °`` (tilt of
        its long axis, positive with the nose up).
    """
    import pandas as pd

    rows, scans = [], list(scans)
    if any(scan.labels is None or not (scan.labels > 0).any() for scan in scans):
        scans = [replace(scan, labels=None) for scan in scans]  # brains and heads would differ by having labels
    for scan in scans:
        mask, name = describe.region(scan)
        points = np.argwhere(mask) @ scan.affine[:3, :3].T + scan.affine[:3, 3]  # (n, 3) mm: right, anterior, superior
        middle = apply_affine(scan.affine, (np.array(mask.shape) - 1) / 2)
        voxel_mm3 = describe.voxel_mm3(scan)
        row = {f"{name} volume, mm³": len(points) * voxel_mm3}
        if scan.labels is not None and set(np.unique(scan.labels)) >= {1, 2}:
            ventricles = float(ventricle_mask(scan).sum()) * voxel_mm3
            row["ventricles, mm³"] = ventricles if scan.labels.max() <= 3 else np.nan  # another atlas has another 1
        row["dorsal / ventral"] = describe.dorsal_ventral_ratio(scan)
        row["to the right, mm"], row["dorsal, mm"] = points[:, 0].mean() - middle[0], points[:, 2].mean() - middle[2]
        row["pitch, °"] = _pitch(points)
        rows.append(row)
    return pd.DataFrame(rows).dropna(axis=1)


def tissues(scans: Iterable[Scan]) -> pd.DataFrame:
    """Volume and mean intensity of each tissue of each scan with the study's labels (1 CSF, 2 grey, 3 white matter).

    Returns
    -------
    pandas.DataFrame
        One row a scan: ``CSF volume, mm³``, ``CSF intensity, %`` and so on; 100 % is the scan's
        :func:`~labkit.evidence.brightness.white`.
        No columns if any scan lacks a tissue or has other labels.
    """
    import pandas as pd

    scans, rows = list(scans), []
    if without_tissues(scans):
        return pd.DataFrame()
    for scan in scans:
        voxel_mm3 = describe.voxel_mm3(scan)
        level = float(white(torch.from_numpy(np.array(scan.image))[None, None]))
        row = {}
        for label, name in TISSUE_NAMES.items():
            mask = np.asarray(scan.labels) == label
            row[f"{name} volume, mm³"] = int(mask.sum()) * voxel_mm3
            row[f"{name} intensity, %"] = 100 * float(scan.image[mask].mean(dtype=np.float64) / level)
        rows.append(row)
    return pd.DataFrame(rows)


def ventricle_mask(scan: Scan) -> np.ndarray:
    """Where a labelled scan's CSF lies deeper than :data:`DEEP_MM` in the brain: (X, Y, Z) of bool."""
    from scipy import ndimage

    whole = ndimage.binary_fill_holes(describe.region(scan).mask)
    return (ndimage.distance_transform_edt(whole, sampling=scan.zooms) > DEEP_MM) & (np.asarray(scan.labels) == 1)


def _pitch(points: np.ndarray) -> float:
    """Slope of superior over anterior along the midline, degrees."""
    anterior, superior = points[:, 1] - points[:, 1].mean(), points[:, 2] - points[:, 2].mean()
    return float(np.degrees(np.arctan2((anterior * superior).mean(), (anterior**2).mean())))


@dataclass(frozen=True)
class Gauge:
    """Reads attributes off volumes: linear in the voxels, so that it has a gradient everywhere.

    `names` are those of K attributes, with units; `weights` (K, V) and `offset` (K,) make the reading, and `spread`
    (K,) is the standard deviation of each over the scans it was fitted to.
    """

    names: tuple[str, ...]
    weights: Tensor
    offset: Tensor
    spread: Tensor

    @classmethod
    def fit(cls, cubes: Tensor, table: pd.DataFrame) -> Gauge:
        """Fit by ridge regression, its penalty chosen for each attribute by leaving one scan out.

        Parameters
        ----------
        cubes : torch.Tensor
            (N, 1, S, S, S) in [-1, 1].
        table : pandas.DataFrame
            (N, K), from :func:`measure`; attributes that do not differ between the scans are left out.

        Raises
        ------
        ValueError
            Fewer than three scans.
        """
        from sklearn.linear_model import RidgeCV

        if len(table) < 3:
            raise ValueError(f"a gauge needs three scans or more, got {len(table)}")
        table = table.loc[:, table.std() > 1e-6 * table.abs().mean()]  # what does not differ cannot be learned
        voxels, values = cls._voxels(cubes).numpy(), table.to_numpy(np.float64)
        spread = values.std(0, ddof=1)
        scaled = (values - values.mean(0)) / spread
        fitted = [RidgeCV(PENALTIES).fit(voxels, column) for column in scaled.T]
        weights = np.stack([model.coef_ for model in fitted]) * spread[:, None]
        offset = np.array([model.intercept_ for model in fitted]) * spread + values.mean(0)
        tensors = (torch.as_tensor(part, dtype=torch.float32) for part in (weights, offset, spread))
        return cls(tuple(table.columns), *tensors)

    def __call__(self, cubes: Tensor) -> Tensor:
        """(N, 1, S, S, S) in [-1, 1] -> (N, K), each attribute in its unit."""
        return self._voxels(cubes) @ self.weights.to(cubes.device).T + self.offset.to(cubes.device)

    def r2(self, cubes: Tensor, table: pd.DataFrame) -> pd.Series:
        """Share of the attributes' variance that is read off scans rightly: 1 is all, 0 no better than their mean.

        `cubes` and `table` as for :meth:`fit`, of animals that the gauge was not fitted to.
        """
        import pandas as pd

        truth = table.reindex(columns=list(self.names)).to_numpy(np.float64)
        error, spread = ((self(cubes).numpy() - truth) ** 2).sum(0), ((truth - truth.mean(0)) ** 2).sum(0)
        share = 1 - error / np.where(spread > 0, spread, np.nan)  # NaN where nothing differs, or nothing was measured
        return pd.Series(share, index=list(self.names))

    @staticmethod
    def _voxels(cubes: Tensor) -> Tensor:
        side = min(GAUGE_SIDE, cubes.shape[-1])
        return volumes.resize(cubes.float(), side).flatten(1)
