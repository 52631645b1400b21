"""The end of a generator that moves an atlas of the training scans instead of making every voxel.

Apart from `labkit.networks`, which holds the paper's four networks and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit import warps
from labkit.layers import DenseLayer, UpsamplingConv3d, full_precision
from labkit.rendering import Geometry, scanned
from labkit.variants import AtlasSettings, Scale

SPACING = 4
"""Voxels between knots, which are the voxels of G two layers before its end."""

VELOCITY = 1 / 8
"""What a velocity of 1 means, in sides of the cube."""

KEPT = ("spread", "filter_x", "filter_y", "filter_z", "label_logits", "label_values")
SCANNER = (*KEPT, "levels", "shape", "place")
"""What a head takes of an atlas and leaves as it is: noise, labels, and where scans lie in their cube."""


class AtlasHead(nn.Module):
    """The end of a G that moves a template instead of making every voxel.

    ::

        x = | exp(B g) (T + sum_j a_j A_j) o exp(v) + r + noise |

    Velocity v and log-brightness g come from G's features a quarter as fine as the scan, weights a of appearances from
    these as well, the residual r, which stays within a bound, from G's own last layer. Template T and appearances A are
    trained on; they begin as the atlas's, and all that G says of an animal begins at nothing: every code gives T.

    Parameters
    ----------
    features, channels : int
        Channels a quarter as fine as the scan, and before the last layer.
    scale : Scale
        Size.
    residual : float
        Bound of r, grey values of [0, 1].
    atlas : mapping of str to torch.Tensor, optional
        :meth:`labkit.atlas.Atlas.state_dict` of the training scans in a cube of this size. None is one without a
        template, for whoever asks what layers there are.
    """

    def __init__(
        self, features: int, channels: int, scale: Scale, residual: float, atlas: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        atlas = _no_atlas(scale) if atlas is None else atlas
        self.template, self.appearances = (nn.Parameter(atlas[name].clone()) for name in ("template", "appearances"))
        for name in KEPT:
            self.register_buffer(name, atlas[name].clone() if name in atlas else None, persistent=False)
        self.shape, self.size, self.residual_bound = tuple(atlas["shape"].tolist()), scale.size, residual
        self.noise, self.black, _ = atlas["levels"].tolist()
        self.place = tuple(slice(a, a + n) for a, n in zip(atlas["place"].tolist(), self.shape, strict=True))
        before = [(scale.size - side) // 2 for side in scale.sides]  # the box that networks see is in the cube's middle
        self.box = tuple(slice(p.start - b, p.stop - b) for p, b in zip(self.place, before, strict=True))
        count, factor = len(self.appearances), self.template.shape[2] // self.shape[0]
        self.settings = AtlasSettings(iterations=1, knot_spacing=SPACING, brightness_spacing=SPACING,
                                      appearances=count, template_factor=factor)  # fmt: skip
        self.grid = tuple(side // SPACING for side in scale.sides)
        self.field = nn.Conv3d(features, 4, kernel_size=3, padding=1)
        self.weights = DenseLayer(features * math.prod(self.pooled), count) if count else None
        self.residual = UpsamplingConv3d(channels, 1)
        for layer in (self.field, self.weights, self.residual):
            for parameter in () if layer is None else layer.parameters():
                nn.init.zeros_(parameter)
        self._geometries: dict[torch.device, tuple[Geometry, list[Tensor]]] = {}

    @property
    def pooled(self) -> tuple[int, ...]:
        """Sides of the features that weights of appearances are made of."""
        return tuple(min(4, side) for side in self.grid)

    def geometry(self) -> tuple[Geometry, list[Tensor]]:
        """How knots become a warp, on the device that the template is on, and matrices from features to these knots."""
        device = self.template.device
        if device not in self._geometries:
            geometry = Geometry(self.shape, self.settings, device)
            parts = zip(self.box, geometry.knots, self.grid, strict=True)
            self._geometries[device] = geometry, [_resampling(*part).to(device) for part in parts]
        return self._geometries[device]

    def forward(
        self, features: Tensor, last: Tensor, noise: Tensor | None = None, labelled: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Cubes (B, 1, S, S, S) in [-1, 1], and their labels, uint8, where these are asked for.

        In evaluation warps fold nowhere: a velocity that would is weakened, as in an atlas. `noise` is N(0, 1),
        (B, 3, X, Y, Z), of the scans' voxels without padding; None gives the mean over all noise.
        """
        with full_precision(features):
            return self._move(features.float(), last, noise, labelled)

    def _move(
        self, features: Tensor, last: Tensor, noise: Tensor | None, labelled: bool
    ) -> tuple[Tensor, Tensor | None]:
        geometry, to_knots = self.geometry()
        # Adam moves all weights of a layer by the same step: divided by the root of their number, as all three layers
        # here are, what comes of them moves by small steps, velocities by a thousandth of the side
        field = warps.separable(self.field(features / math.sqrt(27 * features.shape[1])), to_knots)
        velocity, g = field[:, :3] * (VELOCITY * self.size), field[:, 3:]
        points = geometry.found(geometry.moved(velocity, guarded=not self.training))
        bright = geometry.brightened(g)
        plain = self.spread.expand(len(features), -1, -1, -1, -1)
        if self.weights is not None:
            some = F.adaptive_avg_pool3d(features, self.pooled).flatten(1)
            a = self.weights(some / math.sqrt(some.shape[1]))
            look = (a @ self.appearances.flatten(1)).view(-1, 1, *self.shape)
            plain = torch.cat([look, plain], 1)
        fine = torch.cat([self.template, self.label_logits], 1) if labelled else self.template
        seen, more = geometry.see(fine, points), geometry.see(plain, points)
        clean = (seen[:, :1] + (more[:, :1] if self.weights is not None else 0)) * bright
        r = self.residual_bound * torch.tanh(self.residual(last.float() / math.sqrt(27 * last.shape[1])))
        clean = clean + r[(..., *self.box)]
        spread, filters = more[:, -1:] * bright, dict(self.named_buffers())
        scans = scanned(clean, spread, noise, filters, self.noise, self.black)
        labels = self._in_cube(self.label_values[seen[:, 1:].max(1, keepdim=True).indices], 0) if labelled else None
        return self._in_cube(2 * scans - 1, -1.0), labels

    def _in_cube(self, scans: Tensor, padding: float) -> Tensor:
        """Scans among padding: (B, 1, X, Y, Z) -> (B, 1, S, S, S)."""
        around = [extent for part in reversed(self.place) for extent in (part.start, self.size - part.stop)]
        return F.pad(scans, around, value=padding)


def _no_atlas(scale: Scale) -> dict[str, Tensor]:
    """What an :class:`AtlasHead` needs, all of it zero, for scans as large as the networks' box, and many of them."""
    place = torch.tensor([(scale.size - side) // 2 for side in scale.sides])
    appearances = AtlasSettings(iterations=1).appearances
    return {
        "template": torch.zeros(1, 1, *(2 * side for side in scale.sides)),
        "appearances": torch.zeros(appearances, *scale.sides), "spread": torch.zeros(1, 1, *scale.sides),
        "levels": torch.zeros(3), "shape": torch.tensor(scale.sides), "place": place,
        **{f"filter_{axis}": torch.eye(side) for axis, side in zip("xyz", scale.sides, strict=True)},
    }  # fmt: skip


def _resampling(part: slice, knots: int, cells: int) -> Tensor:
    """Linear interpolation from cells of :data:`SPACING` voxels to knots over a part of them, (knots, cells)."""
    voxels = part.start + (torch.arange(knots) + 0.5) * ((part.stop - part.start) / knots)
    places = (voxels / SPACING - 0.5).clamp(0, cells - 1)
    return (1 - (places[:, None] - torch.arange(cells)).abs()).clamp_min(0)
