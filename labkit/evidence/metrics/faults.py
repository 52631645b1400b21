"""Faults put into real scans on purpose, and which measure notices which: a test of the measures, not of a generator.

The scans B of a yardstick are as good as scans can be. Spoiled by a known fault of known strength they stand for a
generator with that fault; a measure that moves towards *better*, or not at all, cannot see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from labkit.data import volumes
from labkit.data.cohort import Cohort
from labkit.data.labels import without_tissues
from labkit.evidence import attributes
from labkit.evidence.brightness import head_threshold
from labkit.evidence.metrics.measures import Effort, Measurement
from labkit.evidence.metrics.yardstick import Yardstick, side_by_side
from labkit.evidence.sample import Sample

if TYPE_CHECKING:
    import pandas as pd

EFFORT = Effort(pairs=16, repeats=4, relabellings=0)
QUICK = Effort(pairs=16, repeats=4, halves=0, resamples=0, relabellings=0)
"""Of the floors of a control, with intervals, and of its many values, without."""

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
BLUR_MM = 0.75
NOISE = 0.1
BIAS = 0.5
EMPTY = 0.02
"""Part of the voxels that are exactly 0 from which on all around the head was cut out."""

SHARES = ("precision", "recall", "coverage")


@dataclass(frozen=True)
class Scene:
    """What a fault may need to know of the scans it spoils.

    Attributes
    ----------
    zooms : tuple of float
        Voxel size of the cubes, mm.
    slices : tuple of slice
        Where in the cube a scan is.
    ventricles : torch.Tensor or None
        (N, 1, S, S, S) of bool; None without tissue labels.
    seed : int
        Of the fault's own chance: the same at every strength.
    """

    zooms: tuple[float, ...]
    slices: tuple[slice, ...]
    ventricles: Tensor | None
    seed: int

    @classmethod
    def of(cls, scans: Cohort, sample: Sample, seed: int = 0) -> Scene:
        """Of a cohort and the same scans as cubes."""
        side, size = volumes.cube_side(sample.shape), sample.cubes.shape[-1]
        zooms = tuple(zoom * side / size for zoom in scans[0].zooms)
        ventricles = None
        if not without_tissues(scans):
            masks = torch.from_numpy(np.stack([attributes.ventricle_mask(scan) for scan in scans]).astype(np.float32))
            ventricles = volumes.resize(volumes.pad_to_cube(masks, side), size) > 0.5
        return cls(zooms, sample.slices, ventricles, seed)


@dataclass(frozen=True)
class Fault:
    """A way to spoil scans: `apply` takes (N, 1, S, S, S) in [0, 1], a strength in [0, 1] and the :class:`Scene`.

    `full` says what it is at strength 1.
    """

    name: str
    full: str
    apply: Callable[[Tensor, float, Scene], Tensor]


def _to_the_mean(cubes: Tensor, strength: float, scene: Scene) -> Tensor:
    mean = cubes.mean(0, keepdim=True)
    return mean + (1 - strength) * (cubes - mean)


def _one_scan(cubes: Tensor, strength: float, scene: Scene) -> Tensor:
    count = round(strength * (len(cubes) - 1))
    out = cubes.clone()
    out[1 : 1 + count] = cubes[:1]
    return out


def _blur(cubes: Tensor, strength: float, scene: Scene) -> Tensor:
    from scipy.ndimage import gaussian_filter

    sigma = [0, 0, *(BLUR_MM * strength / zoom for zoom in scene.zooms)]
    return torch.from_numpy(gaussian_filter(cubes.numpy(), sigma))


def _noise(cubes: Tensor, strength: float, scene: Scene) -> Tensor:
    generator = torch.Generator().manual_seed(scene.seed)
    out = cubes.clone()
    part = out[(..., *scene.slices)]
    first, second = (NOISE * strength * torch.randn(part.shape, generator=generator) for _ in range(2))
    noisy = ((part + first).square() + second.square()).sqrt()  # magnitude images: Rician
    # a brain was cut out of a noisy scan: there is no noise in what lies around it
    cut_out = (part == 0).float().mean() > EMPTY
    out[(..., *scene.slices)] = torch.where(part > head_threshold(part.numpy()), noisy, part) if cut_out else noisy
    return out


def _bias(cubes: Tensor, strength: float, scene: Scene) -> Tensor:
    across = torch.linspace(-1, 1, cubes.shape[2])[:, None, None]
    return cubes * torch.exp(BIAS * strength * across)


def _flip(cubes: Tensor, strength: float, scene: Scene) -> Tensor:
    out = cubes.clone()
    count = round(strength * len(cubes))
    out[:count] = cubes[:count].flip(2)
    return out


def _no_ventricles(cubes: Tensor, strength: float, scene: Scene) -> Tensor:
    from scipy.ndimage import gaussian_filter

    if scene.ventricles is None:
        raise ValueError("no ventricles to fill in scans without tissue labels: give a fault of possible(scene)")
    sigma = [0, 0, *(0.6 / zoom for zoom in scene.zooms)]
    keep = (~scene.ventricles).float()
    around = gaussian_filter((cubes * keep).numpy(), sigma) / np.maximum(gaussian_filter(keep.numpy(), sigma), 1e-3)
    return torch.where(scene.ventricles, cubes + strength * (torch.from_numpy(around) - cubes), cubes)


FAULTS = (
    Fault("collapse to the mean", "every scan is the mean scan", _to_the_mean),
    Fault("one scan over and over", "every scan is one and the same real scan", _one_scan),
    Fault("blur", f"Gaussian blur, standard deviation {BLUR_MM} mm", _blur),
    Fault("noise", f"Rician noise, standard deviation {NOISE:g} of the range", _noise),
    Fault("bias field", f"brightness from left to right by e^{-BIAS:g} to e^{BIAS:g}", _bias),
    Fault("left-right flip", "every scan is mirrored", _flip),
    Fault("no ventricles", "ventricles filled with what surrounds them", _no_ventricles),
)


def spoil(sample: Sample, fault: Fault, strength: float, scene: Scene) -> Sample:
    """The sample with a fault of a strength, 0 (the scans as they are) to 1, clipped to [0, 1]."""
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength!r}: from 0, the scans as they are, to 1")
    return Sample(fault.apply(sample.cubes, strength, scene).clamp(0, 1), sample.shape)


def possible(scene: Scene) -> list[Fault]:
    """The faults that these scans can be given: ventricles are only erased where labels tell them."""
    return [fault for fault in FAULTS if fault.apply is not _no_ventricles or scene.ventricles is not None]


def control(yardstick: Yardstick, strengths: Sequence[float] = STRENGTHS) -> pd.DataFrame:
    """Every measure of B against A, B spoiled by every fault at every strength.

    Parameters
    ----------
    yardstick : Yardstick
        Real scans.
    strengths : sequence of float
        In (0, 1]; 0 is added.

    Returns
    -------
    pandas.DataFrame
        One row a fault, strength and measure: ``fault``, ``strength``, ``metric``, ``flavour``, ``value``, ``floor``
        (of B as it is), ``spread`` (standard deviation of the floor) and ``worse``, how many of those the value moved
        in the direction that counts as worse: beyond about 2 the measure noticed, below -2 it took the fault for
        progress. Where only nearness to the floor counts, any move is worse.
    """
    import pandas as pd

    scene = Scene.of(yardstick.parts[1], yardstick.other, yardstick.seed)
    strengths = sorted({0.0, *(float(s) for s in strengths)})
    floors = {name: yardstick.floors(name, EFFORT) for name in yardstick.families}
    n = len(yardstick.other)

    def spoiled(case: tuple[Fault, float]) -> list[tuple[Any, ...]]:
        (fault, strength), rows = case, []
        sample = spoil(yardstick.other, fault, strength, scene)
        for name in yardstick.families:
            found = floors[name] if strength == 0 else yardstick.measure(name, sample, QUICK)
            for value, floor in zip(found, floors[name], strict=True):
                spread = _spread(floor, n)
                rows.append((fault.name, strength, value.metric, value.flavour, value.value, floor.value, spread,
                             _worse(value, floor.value) / spread))  # fmt: skip
        return rows

    cases = [(fault, strength) for fault in possible(scene) for strength in strengths]
    rows = [row for of_one in side_by_side(spoiled, cases, "spoiling scans") for row in of_one]
    columns = ["fault", "strength", "metric", "flavour", "value", "floor", "spread", "worse"]
    return pd.DataFrame(rows, columns=columns)


def _spread(floor: Measurement, n: int) -> float:
    least = 1 / n if floor.metric in SHARES else 1e-9  # a share moves in steps of one scan
    # NaN where a floor has no interval: nothing is noticed
    return float(np.maximum((floor.ci_high - floor.ci_low) / (2 * 1.96), least))


def _worse(value: Measurement, floor: float) -> float:
    change = value.value - floor
    return {"lower": change, "higher": -change, "floor": abs(change)}[value.direction]
