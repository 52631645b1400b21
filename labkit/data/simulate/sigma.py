"""A rat head from the SIGMA in-vivo maps (Barrière et al. 2019, Nature Communications 10:5699).

Brain, CSF and bone are the maps'. The T2-weighted template adds what fractions do not show: layers and nuclei in the
brain, fibres and fat between the muscles around it. Both end inside the head, 9.4 mm to either side and 6.8 mm down.
From there on the head is continued: bone and the muscles' texture by reflection at the edge, fading within a few mm,
and muscle up to a skin whose outline is fitted to the scalp the template shows.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from labkit.data.grids import grid_affine

from .anatomy import Anatomy

PREFIX = "SIGMA_InVivo_Anatomical_Brain_"
FILES = (*(f"{PREFIX}{part}.nii.gz" for part in ("gm", "wm", "csf", "mask", "skull")), "SIGMA_template_zoom.nii")
SOURCES = (
    "Barrière DA, Magalhães R, Novais A, et al. The SIGMA rat brain templates and atlases for multimodal MRI data "
    "analysis and visualization. Nature Communications 10:5699, 2019. doi:10.1038/s41467-019-13575-7",
)
_TISSUES = ("csf", "grey", "white", "core", "muscle", "skin", "bone")

SPACING = 0.2  # mm
SHAPE = (138, 118, 120)
# Right, anterior, superior. The 20 mm of the field of view hold nine tenths of the brain: from the middle of the
# cerebellum to the root of the olfactory bulbs.
CENTRE_MM = (0.0, -3.0, 1.8)
BOX_LIFT_MM = -2.0  # the box stands lower than the field of view: above the head there is only air

RIM_DEPTH_MM = 0.6
HALF_WIDTH_MM = 13.4  # of the head between eye and ear, temporal muscles included
SCALP_MM = 0.7


def sigma_anatomy(files: dict[str, Path]) -> Anatomy:
    """The rat head of the SIGMA maps, 138 x 118 x 120 voxels of 0.2 mm, of files by their name in :data:`FILES`."""
    missing = [name for name in FILES if name not in files]
    if missing:
        raise ValueError(f"the SIGMA anatomy needs {', '.join(FILES)}; not given: {', '.join(missing)}")
    grey, white, csf, mask, skull, template = (Volume.read(files[name]) for name in FILES)
    rim = white_matter_rim(white, mask)
    white, grey = white.with_data(white.data - rim), grey.with_data(grey.data + rim)

    centre = (CENTRE_MM[0], CENTRE_MM[1], CENTRE_MM[2] + BOX_LIFT_MM)
    affine = grid_affine(SHAPE, (SPACING,) * 3, centre)
    points = _points(affine)
    brain = torch.stack([volume.at(points) for volume in (csf, grey, white)]).clamp(0, 1)
    brain = _fill(brain, mask.at(points))
    inside = brain.sum(0).clamp(max=1)

    depth = _depth_below_scalp(template, points)
    head = (depth / 0.3 + 0.5).clamp(0, 1)
    bone = skull.at(points, reflect=True) * _fade(points, skull, 1.2)
    t2w, trust = _template(template, points)
    level = _local_level(t2w, trust * head * (1 - inside) * (bone < 0.2))
    relative = t2w / level
    cavity = _cavities(points) * head * (1 - inside)
    bone = torch.minimum(bone * head, 1 - inside - cavity)
    rest = (head - inside - bone - cavity).clamp(min=0)
    scalp = (1 - (depth - SCALP_MM) / 0.3).clamp(0, 1)
    brain = _part_core(brain)
    maps = torch.stack([*brain, rest * (1 - scalp), rest * scalp, bone])
    texture = _texture(t2w, relative, trust, brain)
    return Anatomy(
        name="sigma", tissues=_TISSUES, maps=maps, air=cavity, affine=affine, centre_mm=CENTRE_MM, sources=SOURCES,
        texture=texture,
    )  # fmt: skip


def white_matter_rim(white: Volume, mask: Volume) -> torch.Tensor:
    """The part of the white-matter map that is a thin sheet on the surface of the cerebrum, (X, Y, Z).

    A voxel there holds cortex and skull and so looks as dark as white matter. What a grey opening with a ball of two
    voxels removes is thinner than five voxels (0.75 mm); of that, what lies within 0.6 mm of the surface of the brain
    is the rim, which counts as grey matter instead: 80 mm3 within the study's field of view. The middle of the base and
    the hindbrain are left alone: tracts do run on their surface.
    """
    from scipy import ndimage

    offsets = np.mgrid[-2:3, -2:3, -2:3]
    ball = np.sqrt((offsets**2).sum(0)) <= 2.3
    thin = white.data.numpy() - ndimage.grey_opening(white.data.numpy(), footprint=ball)
    depth = ndimage.distance_transform_edt(mask.data.numpy() > 0.5) * white.spacing
    axes = (white.origin[n] + white.spacing * np.arange(white.data.shape[n]) for n in range(3))
    right, superior, anterior = np.meshgrid(*axes, indexing="ij", sparse=True)
    base = (superior < -2.5) & (abs(right) < 3.5)
    surface = (depth <= RIM_DEPTH_MM) & (anterior > -9.2) & ~base
    return torch.from_numpy(np.where(surface, thin.clip(0), 0).astype(np.float32))


class Volume:
    """A map with its place in the world; axes brought to right, superior, anterior."""

    def __init__(self, data: torch.Tensor, origin: np.ndarray, spacing: float):
        self.data, self.origin, self.spacing = data, origin, spacing

    @classmethod
    def read(cls, path: Path) -> Volume:
        """One NIfTI file, whose axes must be right, anterior, superior."""
        image = nib.load(path)
        if nib.aff2axcodes(image.affine) != ("R", "A", "S"):
            raise ValueError(f"{path}: axes {nib.aff2axcodes(image.affine)}; the SIGMA maps have R, A, S")
        data = np.asarray(image.dataobj, np.float32).transpose(0, 2, 1)
        return cls(torch.from_numpy(np.ascontiguousarray(data)), image.affine[[0, 2, 1], 3], float(image.affine[0, 0]))

    def with_data(self, data: torch.Tensor) -> Volume:
        """Other values in the same place."""
        return Volume(data, self.origin, self.spacing)

    def edges(self, axis: int) -> tuple[float, float]:
        """World positions of the first and last voxel centre."""
        return self.origin[axis], self.origin[axis] + self.spacing * (self.data.shape[axis] - 1)

    def at(self, points: torch.Tensor, reflect: bool = False) -> torch.Tensor:
        """Trilinear values at points, (3, X, Y, Z) mm; outside 0, or the reflection at the outermost voxels."""
        size = torch.tensor(self.data.shape)[:, None, None, None]
        origin = torch.tensor(self.origin, dtype=torch.float32)[:, None, None, None]
        normalised = (points - origin) / self.spacing * (2 / (size - 1)) - 1
        return F.grid_sample(
            self.data[None, None], normalised.permute(1, 2, 3, 0).flip(-1)[None], mode="bilinear",
            padding_mode="reflection" if reflect else "zeros", align_corners=True,
        )[0, 0]  # fmt: skip


def _points(affine: np.ndarray) -> torch.Tensor:
    """World position of every voxel of the anatomy, (3, X, Y, Z) mm right, superior, anterior."""
    axes = [affine[world, 3] + SPACING * np.arange(n) for world, n in zip((0, 2, 1), SHAPE, strict=True)]
    return torch.stack(torch.meshgrid(*(torch.tensor(a, dtype=torch.float32) for a in axes), indexing="ij"))


def _fill(brain: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Inside the mask the three tissues make up the whole; where none is known it is grey matter."""
    total = brain.sum(0)
    missing = (mask - total).clamp(min=0)
    filled = torch.where(total > 0.05, brain * (1 + missing / total.clamp(min=0.05)), brain)
    filled[1] += (mask - filled.sum(0)).clamp(min=0)
    return filled / filled.sum(0).clamp(min=1)


def _part_core(brain: torch.Tensor) -> torch.Tensor:
    """Part white matter, (3, ...) -> (4, ...): bundles and sheets, and the thick core of thalamus and brainstem."""
    core = brain[2] * ((_blur(brain[2], 0.8) - 0.55) / 0.3).clamp(0, 1)
    return torch.stack([brain[0], brain[1], brain[2] - core, core])


def _blur(volume: torch.Tensor, sigma_mm: float) -> torch.Tensor:
    from scipy import ndimage

    return torch.from_numpy(ndimage.gaussian_filter(volume.numpy(), sigma_mm / SPACING, truncate=2.5, mode="nearest"))


def _depth_below_scalp(template: Volume, points: torch.Tensor) -> torch.Tensor:
    """Distance into the head, mm, negative outside it.

    In each coronal section the upper outline is half an ellipse whose top and middle height vary as parabolas along
    the head; the six numbers are fitted to where the template's signal ends. Below its middle the head is as wide and
    14 mm deep.
    """
    data = template.data
    right = torch.tensor(template.edges(0)[0]) + template.spacing * torch.arange(data.shape[0])
    anterior = torch.tensor(template.edges(2)[0]) + template.spacing * torch.arange(data.shape[2])
    heights = template.edges(1)[0] + template.spacing * torch.arange(data.shape[1])
    above = data > 3000  # half of what muscle shows
    top = torch.where(above, heights[None, :, None], -torch.inf).amax(1)  # (X, A)
    arch = (1 - (right / HALF_WIDTH_MM) ** 2).clamp(min=0).sqrt()
    use = (top > 4) & (anterior > -13.5) & (anterior < 6)
    basis = torch.stack([torch.ones_like(anterior), anterior / 10, (anterior / 10) ** 2], -1)  # (A, 3)
    # top = middle(anterior) + height(anterior) * arch(right)
    rows = torch.cat([basis.expand(len(right), -1, -1), arch[:, None, None] * basis], -1)
    solution = torch.linalg.lstsq(rows[use].double(), top[use].double()[:, None]).solution[:, 0]
    solution = solution.round(decimals=4).float()  # the same head, bit for bit, whatever the order of the sums
    y = points[2, :1, :1].clamp(-14, 7) / 10
    terms = torch.stack([torch.ones_like(y), y, y**2], -1)
    middle, height = terms @ solution[:3], terms @ solution[3:]
    x, z = points[0], points[1] - middle
    scale = torch.where(z > 0, height.expand_as(z), torch.full_like(z, 14.0))
    radius = ((x / HALF_WIDTH_MM) ** 2 + (z / scale) ** 2).sqrt().clamp(min=1e-3)
    slope = ((x / HALF_WIDTH_MM**2) ** 2 + (z / scale**2) ** 2).sqrt() / radius
    return (1 - radius) / slope.clamp(min=0.04)


def _fade(points: torch.Tensor, volume: Volume, reach_mm: float) -> torch.Tensor:
    """1 inside a volume's box, falling to 0 within `reach_mm` of it."""
    beyond = torch.zeros_like(points[0])
    for axis in range(3):
        low, high = volume.edges(axis)
        beyond = torch.maximum(beyond, torch.maximum(low - points[axis], points[axis] - high))
    return (1 - beyond / reach_mm).clamp(0, 1)


def _template(template: Volume, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The template continued by reflection, and how far to trust its muscles: 1 where it shows them, 0 well outside.

    Its signal dies away below -3 mm, which says nothing about what is there.
    """
    trust = _fade(points, template, 3.0) * ((points[1] + 4.8) / 1.8).clamp(0, 1)
    return template.at(points, reflect=True).clamp(min=0), trust


def _local_level(t2w: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Brightness of the muscle around a point: coil fall-off and averaging are taken out by dividing by it."""
    return _blur(t2w * weight, 2.0) / _blur(weight, 2.0).clamp(min=1e-3) + 500


def _cavities(points: torch.Tensor) -> torch.Tensor:
    """Air in the middle ears, the ear canals and the pharynx.

    They lie half outside the template, so they are drawn: ellipsoids where the template's dark bullae begin, tubes from
    there through the skin and along the base of the skull.
    """
    x, z, y = points[0].abs(), points[1], points[2]
    bulla = _ellipsoid((x, y, z), (5.6, -6.6, -5.2), (2.1, 2.6, 2.1))
    ear_canal = _tube((x, y, z), (6.5, -8.0, -4.0), (14.0, -9.4, -0.5), 0.8)
    pharynx = _tube((x, y, z), (0.0, -6.0, -8.0), (0.0, 9.0, -5.6), 0.9)
    return torch.stack([bulla, ear_canal, pharynx]).amax(0)


def _ellipsoid(points: tuple, centre: tuple, radii: tuple) -> torch.Tensor:
    distance = sum(((p - c) / r) ** 2 for p, c, r in zip(points, centre, radii, strict=True)).sqrt()
    return ((1 - distance) * min(radii) / 0.3 + 0.5).clamp(0, 1)


def _tube(points: tuple, start: tuple, end: tuple, radius: float) -> torch.Tensor:
    along = [e - s for s, e in zip(start, end, strict=True)]
    length2 = sum(a * a for a in along)
    t = (sum((p - s) * a for p, s, a in zip(points, start, along, strict=True)) / length2).clamp(0, 1)
    distance = sum((p - s - t * a) ** 2 for p, s, a in zip(points, start, along, strict=True)).sqrt()
    return ((radius - distance) / 0.3 + 0.5).clamp(0, 1)


def _texture(t2w: torch.Tensor, relative: torch.Tensor, trust: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """Detail the fractions lack: the template over what the fractions alone would show, faded out beyond it."""
    inside = brain.sum(0)
    sure = inside > 0.95
    levels = torch.linalg.lstsq(brain[:, sure].T.double(), t2w[sure].double()[:, None]).solution[:, 0].round().float()
    expected = torch.einsum("t,txyz->xyz", levels, brain)
    detail = (t2w / expected.clamp(min=1)).clamp(0.3, 1.4)
    near = (4 * _blur(inside, 0.3)).clamp(0, 1)  # the brain's own brightness would spill into its surroundings
    around = 1 + trust * (1 - near) * (relative.clamp(0.3, 1.6) - 1)
    return inside * detail + (1 - inside) * around
