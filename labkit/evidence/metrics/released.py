"""The paper's six measures as the release's evaluation notebook computes them, batch by batch.

``Test.ipynb`` of github.com/ShadowTwin41/alpha-WGAN-SigmaRat, its cells counted from 0: scans are loaded and scaled in
cell 7 and rescaled as in cell 14; MS-SSIM is cell 21, MMD 24, PSNR 27, RMSE 30, MAE 33, NCC 36. The module that MS-SSIM
is taken from (``pytorch_ssim``) is not among its files; here it is ``msssim_3d`` of github.com/cyclomon/3dbraingen, the
baseline's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from labkit.evidence.metrics import intervals, similarity
from labkit.evidence.metrics.measures import FULL, Effort, Measurement
from labkit.evidence.sample import Sample, of_pairs

BATCH = 2
"""Scans a batch."""

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales of MS-SSIM (Wang et al. 2003, Asilomar), not renormalised because none is left out."""

SIGMA = 1.5
"""Standard deviation of its window, voxels; the window reaches four of them and reflects at the borders."""

SMALLEST = 2 ** (len(WEIGHTS) - 1)
"""Voxels along a side that four halvings need."""


def rescaled(batches: Tensor) -> Tensor:
    """Each batch brought to [0, 1] by the smallest and largest voxel of all its scans, (B, k, X, Y, Z); 0 if constant.

    Examples
    --------
    >>> batch = torch.tensor([0.0, 0.2, 0.4, 0.8]).view(1, 2, 1, 1, 2)  # the second scan is twice as bright
    >>> rescaled(batch).flatten().tolist()
    [0.0, 0.25, 0.5, 1.0]
    """
    low, high = batches.flatten(1).aminmax(dim=1)
    low, span = (v.view(-1, 1, 1, 1, 1) for v in (low, high - low))
    return torch.where(span > 0, (batches - low) / span.clamp_min(1e-30), 0.0)


class Tables:
    """What the measures of any batches follow from: a batch's range scales and shifts its scans, and does no more.

    Real scans are scaled one by one before they are padded (cell 7), so that no batch rescales them further. Synthetic
    ones are what the generator made, cube and all.

    Parameters
    ----------
    real, other : labkit.evidence.sample.Sample
        N and M scans.
    """

    def __init__(self, real: Sample, other: Sample) -> None:
        y = torch.zeros_like(real.cubes)
        y[(..., *real.slices)] = rescaled(real.scanned)
        self._ranges = {crop: _range(scans) for crop, scans in ((True, other.scanned), (False, other.cubes))}
        own = rescaled(other.cubes).flatten(1)
        self._mae = (torch.cdist(y.flatten(1), own, p=1) / own.shape[1]).double().numpy()
        a, b = (_centred(v.flatten(1)) for v in (y, other.cubes))
        self._ncc = (a @ b.T).double().numpy()
        parts = [side.flatten(1).double().numpy() for side in (y[(..., *real.slices)], other.scanned)]
        self._sums = [part.sum(1) for part in parts]
        self._products = [p @ q.T for p, q in ((parts[0], parts[0]), (parts[0], parts[1]), (parts[1], parts[1]))]
        self._voxels = parts[0].shape[1]

    @classmethod
    def of(cls, real: Sample, other: Sample) -> Tables:
        """The same, computed once for the samples that both are parts of."""
        (all_real, i), (all_others, j) = real.origin, other.origin
        found = copy.copy(all_others.once(("released", all_real), lambda: cls(all_real, all_others)))
        found._ranges = {crop: [edge[j] for edge in edges] for crop, edges in found._ranges.items()}
        found._mae, found._ncc = found._mae[np.ix_(i, j)], found._ncc[np.ix_(i, j)]
        found._sums = [sums[at] for sums, at in zip(found._sums, (i, j), strict=True)]
        sides = (i, i), (i, j), (j, j)
        found._products = [table[np.ix_(*at)] for table, at in zip(found._products, sides, strict=True)]
        return found

    def psnr(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Of real scans `i` and synthetic ones `j`, (B, 2): from the mean square over both pairs. dB, (B,)."""
        return -10 * np.log10(_diagonal(self._differences(i, j, True)) / self._voxels)

    def rmse(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Of two real scans against one synthetic scan, which has no other in its batch. (B,)."""
        return np.sqrt(_diagonal(self._differences(i, j[:, [0, 0]], True)) / self._voxels)

    def mae(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Of two real scans against one synthetic scan, on whole cubes. (B,)."""
        return self._mae[i, j[:, :1]].mean(1)

    def ncc(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Mean over both pairs, on whole cubes; blind to any rescaling. (B,)."""
        return self._ncc[i, j].mean(1)

    def mmd(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Squared distance of the means of two and two scans, rescaled before they are cropped. (B,)."""
        return self._differences(i, j, False).mean((1, 2))

    def _differences(self, i: np.ndarray, j: np.ndarray, crop: bool) -> np.ndarray:
        """Inner products of the two differences of a batch, real scan less rescaled synthetic one, (B, 2, 2)."""
        low, high = (edge[j] for edge in self._ranges[crop])
        low, span = low.min(1), high.max(1) - low.min(1)
        scale = np.divide(1, span, out=np.zeros_like(span), where=span > 0)[:, None, None]
        shift = -low[:, None, None] * scale
        real, across, made = (
            table[p[:, :, None], q[:, None, :]]
            for table, p, q in zip(self._products, (i, i, j), (i, j, j), strict=True)
        )
        level = shift * self._sums[0][i][:, :, None] - scale * shift * self._sums[1][j][:, :, None]
        both = scale * across + level
        return real - both - both.transpose(0, 2, 1) + scale**2 * made + shift**2 * self._voxels


def _range(scans: Tensor) -> list[np.ndarray]:
    return [edge.double().numpy() for edge in scans.flatten(1).aminmax(dim=1)]


def _centred(scans: Tensor) -> Tensor:
    """Scans, (N, F), with mean 0 and length 1; 0 where constant."""
    return torch.nn.functional.normalize(scans - scans.mean(1, keepdim=True), dim=1)


def _diagonal(products: np.ndarray) -> np.ndarray:
    return np.diagonal(products, axis1=1, axis2=2).mean(1)


def ms_ssim(x: Tensor, y: Tensor, times: int = len(WEIGHTS) - 1) -> Tensor:
    """MS-SSIM of pairs: five scales, and the last scale's similarity multiplied in once for every scale before it.

    Parameters
    ----------
    x, y : torch.Tensor
        (B, 1, X, Y, Z) in [0, 1], each side 16 voxels or more.
    times : int
        How often the last scale counts: 4 as released, 1 as MS-SSIM is defined.

    Returns
    -------
    torch.Tensor
        (B,), 1 for equal scans.
    """
    found = []
    for a, b in zip(x.split(similarity.BATCH), y.split(similarity.BATCH), strict=True):
        product = torch.ones(len(a))
        for scale, weight in enumerate(WEIGHTS):
            if scale:
                a, b = (torch.nn.functional.avg_pool3d(v, 2) for v in (a, b))
            similar, contrast = (v.clamp_min(0) for v in _similarity(a, b))  # the release's root of less is no number
            product = product * (contrast**weight if scale < len(WEIGHTS) - 1 else similar ** (weight * times))
        found.append(product)
    return torch.cat(found)


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM at one scale and its contrast term, each (B,)."""
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * (_blurred(x * y) - mean_x * mean_y) + c2) / (var_x + var_y + c2)
    similar = contrast * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return similar.flatten(1).mean(1), contrast.flatten(1).mean(1)


def _blurred(v: Tensor) -> Tensor:
    for axis in (-3, -2, -1):
        v = (v.movedim(axis, -1) @ _window(v.shape[axis]).T).movedim(-1, axis)
    return v


@lru_cache
def _window(side: int) -> Tensor:
    """The Gaussian window along an axis as a matrix, (side, side), borders reflected as scipy does."""
    from scipy.ndimage import gaussian_filter1d

    return torch.from_numpy(gaussian_filter1d(np.eye(side), SIGMA, axis=0).astype(np.float32))


ONE = "one synthetic scan against the two real ones"
CROPPED, WHOLE = "the scanned slices", "the padded cube, zeros included"
MEASURES = (
    ("PSNR", Tables.psnr, "higher", f"both pairs of a batch pooled; {CROPPED}"),
    ("RMSE", Tables.rmse, "lower", f"{ONE}, pooled; {CROPPED}"),
    ("MAE", Tables.mae, "lower", f"{ONE}; {WHOLE}"),
    ("NCC", Tables.ncc, "higher", f"mean of both pairs; {WHOLE}"),
    ("MMD", Tables.mmd, "lower", f"linear kernel within a batch, where both sides' spread counts; {CROPPED}"),
)


def released(real: Sample, other: Sample, rng: np.random.Generator, effort: Effort = FULL) -> Iterator[Measurement]:
    """The six, each a mean over batches and rounds; MS-SSIM only where four halvings leave a voxel."""
    tables = Tables.of(real, other)
    u, v = np.arange(len(real)), np.arange(len(other))
    how = (
        f"mean of {effort.repeats} rounds of random batches of {BATCH}, each rescaled by its own range, cubes of "
        f"{real.cubes.shape[-1]}"
    )
    for name, measure, direction, choices in MEASURES:

        def one(a: np.ndarray, b: np.ndarray, measure: Callable = measure) -> float:
            return float(measure(tables, *batches(a, b, rng)).mean())

        value = float(np.mean([one(u, v) for _ in range(effort.repeats)]))
        least = -np.inf if direction == "higher" else 0.0
        # one round a half: rounds are of the same scans, and are no more animals
        interval = intervals.of_halves(one, u, v, value, rng, effort.halves, least)
        yield Measurement(name, "released", value, *interval, direction=direction, how=f"{how}; {choices}")
    if min(other.scanned.shape[2:]) >= SMALLEST:
        yield _within(other, rng, effort)


def batches(real: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """All real scans in random batches, and beside them as many random others, (B, 2) each.

    A scan that fills no batch is left out, and with fewer others than real scans these come again.
    """
    whole = len(real) // BATCH * BATCH
    first, second = rng.permutation(real)[:whole], np.resize(rng.permutation(other), whole)
    return first.reshape(-1, BATCH), second.reshape(-1, BATCH)


def _similar(x: Sample, y: Sample, i: np.ndarray, j: np.ndarray) -> Tensor:
    """MS-SSIM of scans that are rescaled each by its own range and then cropped (cell 21)."""
    return ms_ssim(*(rescaled(s.cubes[torch.from_numpy(at)])[(..., *s.slices)] for s, at in ((x, i), (y, j))))


def _within(other: Sample, rng: np.random.Generator, effort: Effort) -> Measurement:
    """MS-SSIM over random pairs of one source."""
    first, second = similarity.pairs_within(len(other), effort.pairs, rng).T
    values = of_pairs("MS-SSIM, released", other, other, first, second, _similar)
    interval = intervals.of_pairs(values, first, second, True, rng, effort.resamples)
    how = (
        f"{len(values)} unordered pairs of one source, each scan rescaled by its own range, cubes of "
        f"{other.cubes.shape[-1]}; 5 scales, Gaussian window of standard deviation {SIGMA} reflected at the borders, "
        f"the last scale's factor four times; {CROPPED}"
    )
    return Measurement("MS-SSIM", "released", values.mean(), *interval, direction="floor", how=how)
