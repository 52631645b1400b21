"""The paper's conventional augmentation: one batched resampling plus intensity, on the device the scans are on.

Ferreira et al. 2022 apply six transforms, each with probability 0.1 and independently of the others: rotation, flip,
intensity scaling, zoom, Gaussian noise and translation. Here a batch is flipped, resampled once with the product of
its rotations, zooms and translations, then scaled in intensity and given noise. Every scan takes the same path, and one
for which nothing was drawn is selected unchanged, so nothing is read back from the device. Matrices are made without
matrix products, which autocast would round to bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from labkit import warps
from labkit.data.grids import STUDY_ZOOMS

REFERENCE_SIZE = 64  # the cube in whose voxels the paper gives translations
_OFF: dict[str, tuple[str, Any]] = {  # each transform's field, and the value of it that does nothing
    "rotation": ("rotation_rad", 0.0),
    "flip": ("flip_axis", None),
    "intensity": ("intensity", 0.0),
    "zoom": ("zoom", (1.0, 1.0)),
    "noise": ("noise_sd", 0.0),
    "translation": ("translation_voxels", (0.0, 0.0, 0.0)),
}
TRANSFORMS = tuple(_OFF)


@dataclass(frozen=True)
class Augmentation:
    """Which transforms may happen to a scan, how often, and how far they go. The defaults are the paper's.

    Attributes
    ----------
    probability : float
        Chance of each transform for each scan, [0, 1]; one independent decision a transform.
    rotation_rad : float
        Largest rotation about each of the three array axes, radian; the angles are uniform in +- this value.
    flip_axis : int or None
        Array axis that is reversed: 0 (right-left on the study's grid), 1 or 2; None for no flip.
    intensity : float
        Intensity is multiplied by a factor uniform in 1 +- this value, [0, 1); the background's intensity is 0.
    zoom : tuple of float
        Smallest and largest enlargement about the middle of the cube; the cube keeps its size.
    noise_sd : float
        Standard deviation of Gaussian noise in units of the intensity range [0, 1]: 0.01 is 1 % of the brightest
        voxel, and 0.02 on the [-1, 1] scale of the volumes.
    translation_voxels : tuple of float
        Largest shift along each array axis, voxels of the 64^3 cube; other cubes shift by the same part of their side.
    voxel_mm : tuple of float
        Voxel size along each array axis, of which only the ratio matters: rotations are rigid in mm.

    Raises
    ------
    ValueError
        Names every value outside its range.

    Examples
    --------
    >>> still = labkit.Augmentation(probability=0)
    >>> still.probability
    0
    """

    probability: float = 0.1
    rotation_rad: float = 0.052
    flip_axis: int | None = 0
    intensity: float = 0.1
    zoom: tuple[float, float] = (1.0, 1.1)
    noise_sd: float = 0.01
    translation_voxels: tuple[float, float, float] = (4.0, 4.0, 0.0)
    # paper: rotation up to 3 degrees; the release's is in voxels, which at 0.375 x 0.375 x 0.5 mm also stretches the
    # brain by 2 %. ours: in mm, so that no shape changes; (1, 1, 1) is the release's way.
    voxel_mm: tuple[float, ...] = STUDY_ZOOMS

    def __post_init__(self) -> None:
        for name in ("zoom", "translation_voxels", "voxel_mm"):  # JSON gives lists; equality and hashing need tuples
            object.__setattr__(self, name, tuple(float(v) for v in getattr(self, name)))
        zoom, shift, voxel = self.zoom, self.translation_voxels, self.voxel_mm
        allowed = {
            "probability": (0 <= self.probability <= 1, "a number from 0 to 1"),
            "rotation_rad": (0 <= self.rotation_rad < 3.2, "an angle in radian from 0 to pi (3 degrees are 0.052)"),
            "flip_axis": (self.flip_axis in (None, 0, 1, 2), "0, 1 or 2, or None for no flip"),
            "intensity": (0 <= self.intensity < 1, "a number from 0 to below 1"),
            "zoom": (len(zoom) == 2 and 0 < zoom[0] <= zoom[1], "(smallest, largest), both above 0"),
            "noise_sd": (self.noise_sd >= 0, "0 or more"),
            "translation_voxels": (len(shift) == 3 and min(shift) >= 0, "a number of 0 or more for each of three axes"),
            "voxel_mm": (len(voxel) == 3 and min(voxel) > 0, "a size above 0 for each of three axes"),
        }
        if wrong := [f"{name}={getattr(self, name)!r}: give {what}" for name, (ok, what) in allowed.items() if not ok]:
            raise ValueError("Augmentation got " + "; ".join(wrong))

    @property
    def transforms(self) -> tuple[str, ...]:
        """Names of the transforms that are switched on, in the order of ``TRANSFORMS``."""
        return tuple(name for name, (field, off) in _OFF.items() if getattr(self, field) != off)

    def only(self, *names: str) -> Augmentation:
        """Return a copy with every transform switched off but the named ones of ``TRANSFORMS`` (ValueError if not)."""
        if unknown := [name for name in names if name not in TRANSFORMS]:
            raise ValueError(f"no transform is called {', '.join(unknown)}; give any of {', '.join(TRANSFORMS)}")
        return replace(self, **dict(_OFF[name] for name in TRANSFORMS if name not in names))


FULL = Augmentation()  # SigmaRat1 and SigmaRat2
FLIP_ONLY = FULL.only("flip")  # the baseline, alpha-WGAN_ADNI
AUGMENTATIONS = {"full": FULL, "flip": FLIP_ONLY, "none": FULL.only()}


class Draws(NamedTuple):
    """What happens to each of N scans; where a transform was not drawn, the value that does nothing."""

    angles_rad: Tensor  # (N, 3), about array axes 0, 1, 2
    flip: Tensor  # (N,) bool
    factor: Tensor  # (N,), of intensity on the [0, 1] scale
    zoom: Tensor  # (N,)
    noise_sd: Tensor  # (N,), on the [0, 1] scale
    translation: Tensor  # (N, 3), voxels of this cube, towards higher indices


def draw(n: int, size: int, generator: Generator, augmentation: Augmentation = FULL) -> Draws:
    """Decide what happens to each of `n` scans of `size` voxels a side, on the generator's device.

    A transform draws the same, whichever others are switched on.
    """
    u = torch.rand(n, 14, generator=generator, device=generator.device)
    return _to_draws(u[:, :6] < augmentation.probability, u[:, 6:], size, augmentation)


def _to_draws(on: Tensor, u: Tensor, size: int, augmentation: Augmentation) -> Draws:
    """Parameters from decisions `on` (N, 6), ordered as ``TRANSFORMS``, and positions `u` (N, 8) in each range."""
    rotated, flipped, scaled, zoomed, noisy, shifted = on.unbind(1)
    signed, (low, high) = 2 * u - 1, augmentation.zoom
    # Python numbers, not a tensor of ranges: making one would copy from the host in every call.
    furthest = [voxels * size / REFERENCE_SIZE for voxels in augmentation.translation_voxels]
    return Draws(
        angles_rad=signed[:, 0:3] * augmentation.rotation_rad * rotated[:, None],
        flip=flipped & (augmentation.flip_axis is not None),
        factor=1 + signed[:, 3] * augmentation.intensity * scaled,
        zoom=1 + (low - 1 + (high - low) * u[:, 4]) * zoomed,
        noise_sd=augmentation.noise_sd * noisy,
        translation=torch.stack([signed[:, 5 + axis] * f for axis, f in enumerate(furthest)], 1) * shifted[:, None],
    )


def affine_matrices(draws: Draws, voxel_mm: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Tensor:
    """Where each output voxel comes from: input position = M[:, :3] @ output position + M[:, 3], M (N, 3, 4).

    Positions are voxels from the middle of the cube, in the order of the array axes. The content is turned about axis
    0, then 1, then 2 (fixed axes through the middle of the cube; a positive angle about axis 0 carries axis 1 towards
    axis 2, and so on round), enlarged about the middle, then shifted. The matrix is the inverse of that, as resampling
    needs it. MONAI's ``Affine`` describes this inverse: its ``rotate_params`` are minus these angles, its
    ``scale_params`` 1 / zoom, its ``translate_params`` minus the translation / zoom. Of `voxel_mm` only the ratio
    matters.
    """
    (ca, cb, cc), (sa, sb, sc) = draws.angles_rad.cos().unbind(1), draws.angles_rad.sin().unbind(1)
    inverse_rotation = (
        (cc * cb, sc * cb, -sb),
        (cc * sb * sa - sc * ca, sc * sb * sa + cc * ca, cb * sa),
        (cc * sb * ca + sc * sa, sc * sb * ca - cc * sa, cb * ca),
    )
    in_voxels = [r * (voxel_mm[j] / voxel_mm[i]) for i, row in enumerate(inverse_rotation) for j, r in enumerate(row)]
    linear = torch.stack(in_voxels, 1).view(-1, 3, 3) / draws.zoom[:, None, None]
    offset = -(linear * draws.translation[:, None, :]).sum(2, keepdim=True)
    return torch.cat([linear, offset], 2)


def apply_affine(volumes: Tensor, matrices: Tensor, mode: str = "bilinear") -> Tensor:
    """Resample cubes through affine matrices; what comes from outside the cube is background.

    `volumes` (N, 1, S, S, S) are intensities in [-1, 1], background -1, or labels of an integer dtype, background 0,
    which need the mode ``"nearest"``; ``"bilinear"`` is torch's name for trilinear. `matrices` (N, 3, 4) are as from
    :func:`affine_matrices`.
    """
    size, background = volumes.shape[-1], -1 if volumes.is_floating_point() else 0
    positions = torch.arange(size, device=matrices.device, dtype=matrices.dtype) - (size - 1) / 2
    m = matrices.flip(1)[:, None, None, None] * (2 / size)  # (N, 1, 1, 1, 3, 4); grid_sample wants the last axis first
    # An affine map is a sum of one term an axis: of these additions only the last is as large as the grid.
    first, second, third = (positions.view(-1, *[1] * (3 - axis)) * m[..., axis] for axis in range(3))
    grid = (first + m[..., 3]) + second + third  # (N, S, S, S, 3), the cube's outer faces at -1 and 1
    above = volumes.to(grid.dtype) - background  # grid_sample can fill with 0 only
    sampled = F.grid_sample(above, grid, mode=mode, padding_mode="zeros", align_corners=False)
    return (sampled + background).to(volumes.dtype)


def augment(
    volumes: Tensor, labels: Tensor | None = None, *, generator: Generator, augmentation: Augmentation = FULL
) -> Tensor | tuple[Tensor, Tensor]:
    """Augment a batch, each scan on its own.

    Parameters
    ----------
    volumes : torch.Tensor
        (N, 1, S, S, S), [-1, 1], background -1, any floating dtype, any device.
    labels : torch.Tensor, optional
        (N, S, S, S) or (N, 1, S, S, S), integer; moved exactly as the scans are, by nearest neighbour, 0 outside.
    generator : torch.Generator
        On the device of `volumes`; the only source of randomness.
    augmentation : Augmentation
        What may happen.

    Returns
    -------
    torch.Tensor, or two of them if labels were given
        Shapes and dtypes as given, intensities in [-1, 1]. A scan for which nothing was drawn is bit-identical.

    Raises
    ------
    ValueError
        If shapes or dtypes do not fit, or the generator is on another kind of device.
    """
    shape = tuple(volumes.shape)
    if len(shape) != 5 or shape[1] != 1 or len(set(shape[2:])) != 1 or not volumes.is_floating_point():
        raise ValueError(f"volumes are {shape} of {volumes.dtype}; give (N, 1, S, S, S) of a floating dtype in [-1, 1]")
    fitting = (shape, shape[:1] + shape[2:])
    if labels is not None and (tuple(labels.shape) not in fitting or labels.is_floating_point()):
        raise ValueError(f"labels are {tuple(labels.shape)} of {labels.dtype}; give integers, {shape} or without the 1")
    if generator.device.type != volumes.device.type:
        raise ValueError(f"the generator is on {generator.device}; make it with torch.Generator('{volumes.device}')")
    return _transform(volumes, labels, draw(shape[0], shape[-1], generator, augmentation), generator, augmentation)


def elastic(
    images: Tensor, labels: Tensor | None, generator: Generator, spacing: int = 16, sd: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """Other shapes of the same animals: each scan seen through a random smooth warp that folds nowhere.

    Not one of the paper's transforms; what a generator of new shapes is to be compared with.

    Parameters
    ----------
    images : torch.Tensor
        (B, 1, X, Y, Z), any unit.
    labels : torch.Tensor or None
        Integer, of the same shape: warped alike, the nearest voxel's label.
    generator : torch.Generator
        All draws.
    spacing, sd : int, float
        Voxels between the knots of the velocity, and about the standard deviation of displacements, voxels.
    """
    shape = images.shape[2:]
    knots, points = (warps.coarse_shape(shape, step) for step in (spacing, 3))
    # knots' values are weights of B-splines, whose sum varies less than they do
    velocity = 2.8 * sd * torch.randn(len(images), 3, *knots, generator=generator, device=generator.device)
    to_points, to_voxels = (
        [make(n, m).to(velocity) for n, m in zip(out, given, strict=True)]
        for make, out, given in (
            (warps.spline_matrix, points, knots), (warps.spline_resampling, shape, points),
        )
    )  # fmt: skip
    cell = velocity.new_tensor([n / m for n, m in zip(shape, points, strict=True)])[:, None, None, None]
    moved, _ = warps.diffeomorphism(warps.separable(velocity, to_points) / cell)
    places = warps.index_grid(images) + warps.separable(moved * cell, to_voxels)
    if labels is None:
        return warps.sample(images, places), None
    nearest = warps.sample(labels.float(), places.round())
    return warps.sample(images, places), nearest.round().to(labels.dtype)


def _reading_is_free(device: torch.device) -> bool:
    """Whether looking at a value does not hold up a queue of work."""
    return device.type == "cpu"


def _transform(volumes: Tensor, labels: Tensor | None, draws: Draws, generator: Generator, augmentation: Augmentation):
    """Carry out `draws`; branches on data only where that makes nobody wait."""
    active, each = augmentation.transforms, (-1, 1, 1, 1, 1)
    stacks = [volumes] if labels is None else [volumes, labels.reshape(volumes.shape)]
    if augmentation.flip_axis is not None:
        stacks = [torch.where(draws.flip.view(each), s.flip(2 + augmentation.flip_axis), s) for s in stacks]
    if {"rotation", "zoom", "translation"} & set(active):
        matrices = affine_matrices(draws, augmentation.voxel_mm)
        moved = (draws.angles_rad != 0).any(1) | (draws.translation != 0).any(1) | (draws.zoom != 1)
        modes = ("bilinear", "nearest")
        if _reading_is_free(volumes.device):  # about one scan in four moves, the others need no resampling
            chosen = moved.nonzero()[:, 0]
            stacks = [
                s.index_copy(0, chosen, apply_affine(s[chosen], matrices[chosen], mode)) if len(chosen) else s
                for s, mode in zip(stacks, modes, strict=False)
            ]
        else:
            resampled = map(apply_affine, stacks, [matrices] * 2, modes)
            stacks = [torch.where(moved.view(each), r, s) for r, s in zip(resampled, stacks, strict=True)]
    x = stacks[0]
    if "intensity" in active:
        # paper: scaling by 1 +- 0.1, which the release undoes by scaling each scan to [-1, 1] afterwards.
        # ours: multiply what is above the background. Multiplying values of [-1, 1] would leave mid-grey as it is and
        # make the background glow at -0.9, or fall to -1.1, which G's tanh cannot make.
        x = x + (draws.factor - 1).view(each).to(x.dtype) * (x + 1)
    if "noise" in active:
        # ours: what is exactly -1 (padding, slices that were never measured) stays so.
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = x + (2 * draws.noise_sd).view(each).to(x.dtype) * noise * (x > -1)
    x = x.clamp(-1, 1)
    return x if labels is None else (x, stacks[1].reshape(labels.shape))


def preview(volume: Tensor, seed: int = 0, augmentation: Augmentation = FULL, at: float = 1.0) -> dict[str, Tensor]:
    """Each transform that is switched on, by name: a scan (1, S, S, S) in [-1, 1] with it alone.

    `at`, [0, 1], is the position in every range: 1 the upper end (all three angles, all shifts, brighter), 0 the lower;
    `seed` is of the noise.
    """
    on, generator = torch.eye(6, device=volume.device).bool(), torch.Generator(volume.device).manual_seed(seed)
    draws = _to_draws(on, torch.full((6, 8), at, device=volume.device), volume.shape[-1], augmentation)
    done = _transform(volume.expand(6, *volume.shape), None, draws, generator, augmentation)
    return {name: scan for name, scan in zip(TRANSFORMS, done, strict=True) if name in augmentation.transforms}
