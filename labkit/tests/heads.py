"""A head simple enough to reason about: an ellipsoid of brain in a ball of muscle, at 0.5 mm."""

import torch

from labkit.data.grids import grid_affine
from labkit.data.simulate import Anatomy

CENTRE_MM = (0.5, -2.0, 1.0)


def simple_head() -> Anatomy:
    shape, spacing = (54, 54, 46), 0.5
    axes = [spacing * (torch.arange(n) - (n - 1) / 2) for n in shape]
    right, superior, anterior = torch.meshgrid(*axes, indexing="ij")

    def ellipsoid(*radii):
        distance = sum((x / r) ** 2 for x, r in zip((right, superior, anterior), radii, strict=True)).sqrt()
        return ((1 - distance) * min(radii) / spacing + 0.5).clamp(0, 1)

    head, brain, white, csf = ellipsoid(11, 8, 30), ellipsoid(7, 5, 8), ellipsoid(5, 3, 6), ellipsoid(2, 1.2, 3)
    ear = ((1.5 - ((right.abs() - 6) ** 2 + (superior + 6) ** 2 + anterior**2).sqrt()) / spacing + 0.5).clamp(0, 1)
    head = head - ear
    maps = torch.stack([csf, brain - white, white - csf, head - torch.minimum(brain, head)])
    return Anatomy(
        name="simple",
        tissues=("csf", "cortex", "white", "muscle"),
        maps=maps,
        air=ear,
        affine=grid_affine(shape, (spacing,) * 3, CENTRE_MM),
        centre_mm=CENTRE_MM,
        sources=(),
    )
