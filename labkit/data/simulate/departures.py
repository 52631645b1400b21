"""What no smooth warp of one template makes: a lesion, missing bulbs, a cut field of view, warps of another length.

The simulator's rats are one anatomy deformed, which a model that deforms one template cannot fail to like. With
departures each rat has each of those asked for with probability one half, and is otherwise the animal that it is
without. All but the cut change the anatomy that is looked up, so that coil, distortion and noise treat a lesion as they
treat any tissue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS
from labkit.data.labels import BACKGROUND, GREY, WHITE
from labkit.fields import known
from labkit.warps import sample

from .anatomy import TISSUE_PROPERTIES
from .individual import Variation, random_stream, smooth_noise
from .preparation import WARP_MM, Head, spacing_of
from .scanner import SLICE

DEPARTURES = {
    "lesions": "one oedematous lesion of 0.8 to 2 mm radius in the brain, where its centre is grey matter",
    "bulbs": "muscle instead of brain ahead of a plane, as where the olfactory bulbs were removed",
    "cut": "2 to 6 slices at one end of the slab are zero",
    "warps": "a second velocity field of 1 mm length on top of the rat's own",
}
"""The departures by name, in the order in which they are always named."""

# Density, T1 and T2* of oedematous brain over those of healthy brain. In a rat's ischaemic lesion T1 and T2 rise, and
# go on rising for hours (Magn Reson Med 47:97, 2002), as water comes in (Kettunen et al. 2000, Magn Reson Med 44:833:
# not in the first hour). By how much depends on the hour; the numbers are this study's choice, those of about a day.
OEDEMA = (1.06, 1.2, 1.6)
RADIUS_MM = 0.8, 2.0
EDGE_MM, ROUGHNESS = 0.3, 0.25  # the edge's softness; spread of the radius along it, relative
EDGE_POINTS, EDGE_SPACING_MM, EDGE_LENGTH_MM = 15, 0.5, 0.75
# Ahead of the middle of the field of view, which ends 10 mm ahead of it, at the root of the bulbs: with them goes the
# foremost part of the brain, 1.5 to 3.5 mm of what is scanned.
PLANE_MM = 6.5, 8.5
CUT_SLICES = 2, 6
# A velocity field of 2.5 mm length and 0.35 mm strains tissue by 0.10 (SD along an axis); this one does so by 0.14.
EXTRA_MM, EXTRA_LENGTH_MM = 0.2, 1.0


def chosen(departures: str | Sequence[str]) -> tuple[str, ...]:
    """Departures by name, which one text may hold with commas, each once and in the order of :data:`DEPARTURES`.

    ValueError with the nearest name for one that is not known.
    """
    names = (
        [part.strip() for part in departures.split(",") if part.strip()] if isinstance(departures, str) else departures
    )
    asked = {known("departure", name, DEPARTURES) for name in names}
    return tuple(name for name in DEPARTURES if name in asked)


@dataclass(frozen=True)
class Departure:
    """What one rat has of the departures that were asked for, and the random numbers of all of them."""

    has: dict[str, bool]  # of those asked for, by name
    place: float  # which voxel of grey matter the lesion is centred on, [0, 1)
    radius_mm: float
    edge: torch.Tensor  # (15, 15, 15), smooth, of variance 1: by how much the lesion's radius differs
    plane_mm: float  # from where on forwards there is no brain
    lost: slice  # slices
    velocity_mm: torch.Tensor  # (3, X, Y, Z), second velocity field on the warp's grid

    @property
    def properties(self) -> dict[str, float]:
        """1 for what the rat has, 0 for what it has not, of all that was asked for."""
        return {name: float(has) for name, has in self.has.items()}

    def warped(self, rat: Variation) -> Variation:
        """The individual with the second velocity field, if it has one."""
        return replace(rat, velocity_mm=rat.velocity_mm + self.velocity_mm) if self.has.get("warps") else rat

    def alter(self, values: torch.Tensor, head: Head, signal: torch.Tensor, oedema: torch.Tensor) -> None:
        """Put the lesion in and take the bulbs out, in place.

        `values` (V, 4) are the signal and the fractions of CSF, grey and white matter of the anatomy's voxels, `signal`
        and `oedema` (T,) those of its tissues in health and in the lesion.
        """
        labels = torch.tensor([TISSUE_PROPERTIES[name].label for name in head.anatomy.tissues], device=values.device)
        ahead = values.new_zeros(head.shape[SLICE])
        if self.has.get("bulbs"):
            ahead = ((_positions(head, SLICE) - self.plane_mm) / EDGE_MM + 0.5).clamp(0, 1).to(values)
            first = int((ahead > 0).int().argmax()) if ahead.any() else len(ahead)
            seen, spins, fractions = (
                v.unflatten(0, head.shape)[:, :, first:] for v in (values, head.spins, head.fractions)
            )
            muscle = fractions.sum(-1) * signal[head.anatomy.tissues.index("muscle")]
            seen[..., 0] += ahead[first:] * (muscle - spins @ (signal * (labels != BACKGROUND)))
            seen[..., 1:] *= (1 - ahead[first:])[:, None]
        if self.has.get("lesions"):
            rows, share = self._lesion(head)
            share = share * (1 - ahead[rows % len(ahead)])
            solid = (labels == GREY) | (labels == WHITE)
            values[rows, 0] += share * (head.spins[rows] @ ((oedema - signal) * solid))

    def _lesion(self, head: Head) -> tuple[torch.Tensor, torch.Tensor]:
        """The anatomy's voxels in the lesion's reach, and the share of each that is lesion: (K,), (K,) in [0, 1]."""
        axes = [_positions(head, axis).to(head.fractions) for axis in range(3)]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
        scanned = torch.tensor(STUDY_SHAPE) * torch.tensor(STUDY_ZOOMS) / 2 - 1
        inside = (points.abs() < scanned.to(points)[:, None, None, None]).all(0) & (points[SLICE] < PLANE_MM[0])
        grey = (inside.flatten() & (head.fractions[:, 1] > 0.5)).nonzero()[:, 0]
        away = points.flatten(1) - points.flatten(1)[:, grey[int(self.place * len(grey))], None]
        distance = away.square().sum(0).sqrt()
        rows = (distance < self.radius_mm * (1 + 3 * ROUGHNESS) + EDGE_MM).nonzero()[:, 0]
        at = away[:, rows] / EDGE_SPACING_MM + EDGE_POINTS // 2
        edge = sample(self.edge.to(at)[None, None], at[None, :, :, None, None])[0, 0, :, 0, 0].clamp(-3, 3)
        radius = self.radius_mm * (1 + ROUGHNESS * edge)
        return rows, ((radius - distance[rows]) / EDGE_MM + 0.5).clamp(0, 1)

    def cut(self, volume: torch.Tensor | np.ndarray) -> None:
        """Set the slices that were lost to zero, in place; slices are the last axis."""
        if self.has.get("cut"):
            volume[..., self.lost] = 0


def draw_departure(departures: Sequence[str], seed: int, index: int, shape: tuple[int, ...]) -> Departure:
    """Draw which of `departures` a rat has, and how; `shape` is of the warp's grid.

    All numbers are drawn, in one order, so that a rat's lesion is the same whatever else was asked for.
    """
    stream = random_stream(seed, index, "departures")
    coins, (place, radius, plane, slices, end) = (
        torch.rand(n, generator=stream).tolist() for n in (len(DEPARTURES), 5)
    )
    fewest, most = CUT_SLICES
    lost = fewest + int(slices * (most - fewest + 1))
    return Departure(
        has={name: coin < 0.5 for name, coin in zip(DEPARTURES, coins, strict=True) if name in departures},
        place=place,
        radius_mm=RADIUS_MM[0] + radius * (RADIUS_MM[1] - RADIUS_MM[0]),
        edge=smooth_noise((EDGE_POINTS,) * 3, EDGE_LENGTH_MM / EDGE_SPACING_MM, stream)[0],
        plane_mm=PLANE_MM[0] + plane * (PLANE_MM[1] - PLANE_MM[0]),
        lost=slice(0, lost) if end < 0.5 else slice(STUDY_SHAPE[SLICE] - lost, None),
        velocity_mm=EXTRA_MM * smooth_noise(shape, EXTRA_LENGTH_MM / WARP_MM, stream),
    )


def _positions(head: Head, axis: int) -> torch.Tensor:
    """Of the anatomy's voxels along an axis, mm from the middle of the field of view."""
    centre = np.linalg.inv(head.anatomy.affine) @ [*head.anatomy.centre_mm, 1]
    return spacing_of(head.anatomy)[axis] * (torch.arange(head.shape[axis]) - centre[axis])
