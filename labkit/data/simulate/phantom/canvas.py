"""Shapes and the canvas they are painted on: the geometry of the phantom, with no anatomy in it.

A structure is drawn as an atlas draws it: as the outline of its coronal sections at a few rostro-caudal levels. The
outlines are lofted smoothly between the levels, turned into a signed distance (mm, positive inside), and painted with
an edge one voxel wide. Only the right half is drawn; the left is its mirror image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor

from labkit.data.simulate.phantom.curves import (
    monotone_cubic,
    outline_distance,
    ribbon_distance,
    sections,
    smooth_curve,
)

Box = tuple[slice, ...]  # slices along (A, R, S): the canvas keeps coronal sections contiguous
FAR = -9.0  # signed distance (mm) given to everything outside a shape's box


@dataclass(frozen=True)
class Shape:
    """Signed distance in a box of the canvas."""

    box: Box
    d: Tensor  # (A, R, S), mm to the surface, positive inside
    limit: Tensor | float = 1.0  # largest coverage a voxel can have; below 1 where the shape is thinner than a voxel

    def grow(self, mm: float) -> Shape:
        """The shape with its surface moved outwards by `mm` (inwards if negative)."""
        return Shape(self.box, self.d + mm)

    def fade(self, limit: Tensor | float) -> Shape:
        """The shape painted with at most the coverage `limit`, [0, 1]."""
        return Shape(self.box, self.d, torch.minimum(torch.as_tensor(self.limit), torch.as_tensor(limit)))

    def feather(self, mm: float) -> Shape:
        """The shape blending into what it is painted over: its coverage rises over the outer `mm`."""
        return self.fade((self.d / mm).clamp(0, 1))

    def cut(self, field: Tensor) -> Shape:
        """The part inside `field`, a signed distance (mm) on the whole canvas."""
        return Shape(self.box, torch.minimum(self.d, field[self.box]), self.limit)


class Canvas:
    """The right half of a head on a fine isotropic grid, painted structure by structure.

    The full grid has at least `extent_mm` along right, anterior, superior, about `centre_mm`, whose first is 0;
    `tissues` are the names of its channels.
    """

    def __init__(
        self,
        spacing_mm: float,
        extent_mm: tuple[float, float, float],
        centre_mm: tuple[float, float, float],
        tissues: tuple[str, ...],
    ):
        self.spacing, self.tissues = spacing_mm, tissues
        n = [2 * ceil(e / spacing_mm / 2) for e in extent_mm]
        axes = [c + spacing_mm * (torch.arange(k) - (k - 1) / 2) for c, k in zip(centre_mm, n, strict=True)]
        self.full_shape, self.origin = (n[0], n[2], n[1]), tuple(float(a[0]) for a in axes)
        self.x, self.y, self.z = axes[0][n[0] // 2 :], axes[1], axes[2]
        self.shape = (len(self.y), len(self.x), len(self.z))
        self.maps = torch.zeros(len(tissues), *self.shape)
        self.air = torch.zeros(self.shape)
        self.texture = torch.ones(self.shape)
        self.names: list[str] = ["none"]
        self.ids = torch.zeros(self.shape, dtype=torch.uint8)

    def grid(self, box: Box | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """World x, y, z (mm) of a box, each broadcastable to (A, R, S)."""
        a, r, s = box or (slice(None),) * 3
        return self.x[r][None, :, None], self.y[a][:, None, None], self.z[s][None, None, :]

    def box(self, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]) -> Box:
        """Slices covering the given world limits (mm)."""
        return tuple(
            slice(int((axis < lo).sum()), int((axis <= hi).sum()))
            for axis, (lo, hi) in ((self.y, y), (self.x, x), (self.z, z))
        )

    def loft(self, text: str, midline: bool = False, ribbon: bool = False, margin: float = 0.5) -> Shape:
        """Shape from an outline table (see :func:`sections`); its distance holds up to `margin` mm outside.

        A `midline` outline runs from midline to midline. With `ribbon` the table gives open centre lines with half
        thicknesses, ``x z h``, instead of outlines.
        """
        levels, points = sections(text, 3 if ribbon else 2)
        box = self.box(
            (points[..., 0].min() - margin - 0.3, points[..., 0].max() + margin + 0.3),
            (levels[0] - margin, levels[-1] + margin),
            (points[..., 1].min() - margin - 0.3, points[..., 1].max() + margin + 0.3),
        )
        at = self.y[box[0]].double().numpy()
        curves = smooth_curve(monotone_cubic(levels, points, at), not ribbon, midline).astype(np.float32)
        x, z = self.x[box[1]].numpy(), self.z[box[2]].numpy()
        limit: Tensor | float = 1.0
        if ribbon:
            bands = np.stack([np.stack(ribbon_distance(curve, x, z)) for curve in curves])
            flat, limit = torch.from_numpy(bands[:, 0]), (2 * torch.from_numpy(bands[:, 1]) / self.edge).clamp(max=1)
        else:
            flat = torch.from_numpy(np.stack([outline_distance(curve, x, z) for curve in curves]))
        if len(at) > 2:  # a section's distance overstates the true one where the surface slants along y
            flat = flat / (1 + (torch.gradient(flat, spacing=self.spacing, dim=0)[0].clamp(-3, 3)) ** 2).sqrt()
        y = self.y[box[0]][:, None, None]
        beyond = torch.maximum(levels[0] - y, y - levels[-1]).float()
        outside = -torch.hypot(flat.clamp(max=0), beyond.clamp(min=0).expand_as(flat))
        d = torch.where((flat > 0) & (beyond < 0), torch.minimum(flat, -beyond), outside)
        return Shape(box, d, limit)

    @property
    def edge(self) -> float:
        """Width of the soft edge, mm: one voxel, at least 0.2."""
        return max(self.spacing, 0.2)

    def ellipsoid(
        self, centre: tuple[float, float, float], radii: tuple[float, float, float], margin: float = 0.8
    ) -> Shape:
        """Ellipsoid at `centre` (x, y, z) with `radii`, mm."""
        box = self.box(*((c - r - margin, c + r + margin) for c, r in zip(centre, radii, strict=True)))
        q = [(g - c) / r for g, c, r in zip(self.grid(box), centre, radii, strict=True)]
        k = (q[0] ** 2 + q[1] ** 2 + q[2] ** 2).sqrt()
        g = ((q[0] / radii[0]) ** 2 + (q[1] / radii[1]) ** 2 + (q[2] / radii[2]) ** 2).sqrt()
        return Shape(box, k * (1 - k) / g.clamp(min=1e-3))

    def tube(self, points: str, margin: float = 0.5) -> Shape:
        """Rounded tube through points ``x y z radius  x y z radius ...``, mm."""
        p = np.array(points.split(), float).reshape(-1, 4)
        lo, hi = (p[:, :3] - p[:, 3:]).min(0) - margin, (p[:, :3] + p[:, 3:]).max(0) + margin
        box = self.box((lo[0], hi[0]), (lo[1], hi[1]), (lo[2], hi[2]))
        g = self.grid(box)
        d = None
        for a, b in zip(p[:-1], p[1:], strict=True):
            e = (b - a)[:3]
            t = (sum((gi - ai) * ei for gi, ai, ei in zip(g, a, e, strict=False)) / (e @ e)).clamp(0, 1)
            off = sum((gi - ai - t * ei) ** 2 for gi, ai, ei in zip(g, a, e, strict=False)).sqrt()
            piece = a[3] + t * (b[3] - a[3]) - off
            d = piece if d is None else torch.maximum(d, piece)
        return Shape(box, d)

    def slab(self, outline: str, half_width: float) -> Shape:
        """Sheet on the midline, `half_width` (mm) to either side, with an outline ``y z  y z ...`` (mm)."""
        points = np.array(outline.split(), float).reshape(-1, 2)
        closed = smooth_curve(points[None], closed=True, midline=False)[0].astype(np.float32)
        box = self.box(
            (0, half_width + 0.5),
            (points[:, 0].min() - 0.5, points[:, 0].max() + 0.5),
            (points[:, 1].min() - 0.5, points[:, 1].max() + 0.5),
        )
        d = torch.from_numpy(outline_distance(closed, self.y[box[0]].numpy(), self.z[box[2]].numpy()))
        return Shape(box, torch.minimum(d[:, None], half_width - self.x[box[1]][None, :, None]))

    def field(self, shape: Shape) -> Tensor:
        """Signed distance of a shape on the whole canvas, :data:`FAR` outside its box."""
        out = torch.full(self.shape, FAR)
        out[shape.box] = shape.d
        return out

    def everywhere(self, field: Tensor) -> Shape:
        """A signed distance on the whole canvas as a shape."""
        return Shape((slice(None),) * 3, field)

    def cover(self, shape: Shape) -> Tensor:
        """Fraction of each voxel of its box that a shape covers, [0, 1]."""
        return torch.minimum((0.5 + shape.d / self.edge).clamp(0, 1), torch.as_tensor(shape.limit))

    def paint(
        self,
        shape: Shape,
        mix: str | Mapping[str, float | Tensor],
        name: str | None = None,
        texture: float | Tensor | None = None,
    ) -> None:
        """Replace what a shape covers.

        `mix` is a tissue, ``"air"``, or the share of each tissue (numbers or tensors that broadcast to the box);
        `texture` a signal factor inside the shape, 1 if not given. Voxels covered by half or more are found again under
        `name` in :attr:`ids`.
        """
        cover = self.cover(shape)
        rest = 1 - cover
        self.maps[(slice(None), *shape.box)] *= rest
        self.air[shape.box] *= rest
        for tissue, share in ({mix: 1.0} if isinstance(mix, str) else mix).items():
            target = self.air if tissue == "air" else self.maps[self.tissues.index(tissue)]
            target[shape.box] += cover * share
        self.texture[shape.box] = rest * self.texture[shape.box] + cover * (1.0 if texture is None else texture)
        if name:
            if name not in self.names:
                self.names.append(name)
            self.ids[shape.box][cover >= 0.5] = self.names.index(name)

    def shade(self, shape: Shape, factor: float | Tensor) -> None:
        """Multiply the texture inside a shape, leaving its tissue as it is."""
        self.texture[shape.box] *= 1 + self.cover(shape) * (factor - 1)


def smooth_union(fields: list[Tensor], radius: float) -> Tensor:
    """Union of signed distances (mm) whose clefts narrower than about `radius` (mm) are rounded over."""
    out = fields[0]
    for field in fields[1:]:
        overlap = (radius - (out - field).abs()).clamp(min=0) / radius
        out = torch.maximum(out, field) + overlap**2 * radius / 4
    return out


def distance_outside(field: Tensor, reach: float, spacing: float) -> Tensor:
    """Distance of (A, R, S) from a shape, mm, about 0 inside, true in three dimensions, up to about `reach`.

    Lofted distances are measured mostly within coronal sections; where a surface is seen edge-on there, as at the
    poles of the brain, shells of even thickness need the true one. Of `field` only the sign is used.
    """
    nearest = torch.where(field > 0, 0.0, reach**2)
    for axis in range(3):  # squared Euclidean distances separate by axis; left of the midline lies the same again
        source, n = nearest, nearest.shape[axis]
        nearest = source.clone()
        for step in range(1, ceil(reach / spacing) + 1):
            penalty = (step * spacing) ** 2
            for to, start in ((0, step), (step, 0)):
                here = nearest.narrow(axis, to, n - step)
                torch.minimum(here, source.narrow(axis, start, n - step) + penalty, out=here)
    # The sign alone places the surface half a voxel out on average; averaging removes the steps between voxels.
    padded = torch.nn.functional.pad(nearest.sqrt()[None, None], (1,) * 6, mode="replicate")
    return torch.nn.functional.avg_pool3d(padded, 3, 1)[0, 0] - 0.5 * spacing
