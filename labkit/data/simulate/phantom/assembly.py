"""Put the phantom together: head first, then skull and cavity, then the brain from the outside in."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from labkit.data.grids import grid_affine
from labkit.data.simulate.anatomy import Anatomy
from labkit.data.simulate.one_thread import one_thread
from labkit.data.simulate.phantom import extracerebral, forebrain, hindbrain
from labkit.data.simulate.phantom.canvas import Canvas, smooth_union

CENTRE_MM = (0.0, -3.7, 1.8)  # middle of the brain, about 3.7 mm behind bregma; the field of view is centred here
EXTENT_MM = (27.2, 34.4, 27.2)  # right, anterior, superior: the 24 x 20 x 24 mm field of view and room for pose
PAINTED = tuple(  # keys of TISSUE_PROPERTIES
    "csf cortex hippocampus striatum thalamus brainstem cerebellum olfactory grey "
    "white core muscle skin bone eye".split()
)

# Sizes and positions were read off these by eye on a millimetre grid, and rounded to 0.1 mm; no voxel of them is used.
SOURCES = (
    "Barriere DA et al. 2019, The SIGMA rat brain templates and atlases for multimodal MRI data analysis and "
    "visualization, Nature Communications 10:5699 (in-vivo Wistar template: sizes and positions in the brain, skull, "
    "ears and eyes; tissue volumes)",
    "NiRodents test data, sub-15, in-vivo T2-weighted rat head, https://github.com/nipreps/nirodents (outline of the "
    "head, jaw, muscles and airway)",
    "Paxinos G, Watson C. The Rat Brain in Stereotaxic Coordinates, Academic Press (names and order of structures; "
    "levels counted from bregma)",
)


def phantom_anatomy(spacing_mm: float = 0.2) -> Anatomy:
    """Procedural rat head with labelled tissues, exactly left-right symmetric.

    `spacing_mm` is the isotropic voxel size, 0.1 to 0.6 mm; the default takes about 1 s of one core and 0.5 GB. The
    world's origin lies near bregma's level on the midline, as in the SIGMA space.
    """
    with one_thread():
        canvas = _painted(_checked(spacing_mm))
        maps = torch.stack([_whole(channel) for channel in canvas.maps])
        air, texture = _whole(canvas.air), _whole(canvas.texture)
        filled = maps.sum(0)
        maps /= filled.clamp(min=1)  # rounding only
        texture = torch.where(filled > 0.01, texture / texture[filled > 0.5].mean(), 1.0)
    return Anatomy("phantom", canvas.tissues, maps, air, _affine(canvas), CENTRE_MM, SOURCES, texture)


def phantom_structures(spacing_mm: float = 0.2) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """The phantom's named structures: which one each voxel of its grid belongs to.

    A uint8 array (X, Y, Z) of indices into the names, the names (index 0 is "none"), and the affine (4, 4).
    """
    with one_thread():
        canvas = _painted(_checked(spacing_mm))
    return _whole(canvas.ids).numpy(), tuple(canvas.names), _affine(canvas)


def _checked(spacing_mm: float) -> float:
    if not 0.1 <= spacing_mm <= 0.6:
        raise ValueError(
            f"spacing_mm is {spacing_mm}; the phantom can be drawn with voxels of 0.1 to 0.6 mm: use 0.2 "
            f"for images, 0.4 for a quick look"
        )
    return float(spacing_mm)


@lru_cache(maxsize=1)
def _painted(spacing_mm: float) -> Canvas:
    """The right half of the head, painted."""
    canvas = Canvas(spacing_mm, EXTENT_MM, CENTRE_MM, PAINTED)
    # The tables outline what a brain mask holds; the pia lies a little inside.
    hemisphere = canvas.loft(forebrain.HEMISPHERE, midline=True, margin=1.0).grow(-0.13)
    bulb = canvas.loft(forebrain.BULB, margin=1.0).grow(-0.05)
    stem = canvas.loft(hindbrain.BRAINSTEM, midline=True, margin=1.0)
    cerebellum = canvas.loft(hindbrain.CEREBELLUM, midline=True, margin=1.0)
    fourth = canvas.loft(hindbrain.FOURTH_VENTRICLE, midline=True, margin=1.0)
    fossa = canvas.ellipsoid((0, -5.6, -2.2), (2.0, 1.1, 0.45))
    colliculus = canvas.ellipsoid((1.55, -8.9, 3.5), (1.65, 0.85, 1.75))
    flocculus = canvas.ellipsoid((6.6, -11.3, -0.2), (1.05, 1.2, 1.1))
    fields = [canvas.field(s) for s in (hemisphere, bulb, stem, cerebellum, fourth, fossa, colliculus, flocculus)]
    brain = smooth_union(fields, radius=0.7)

    skin = extracerebral.skin_and_muscle(canvas)
    extracerebral.face_and_neck(canvas, skin)
    extracerebral.ears(canvas, skin)
    cavity = extracerebral.skull(canvas, brain, skin)
    extracerebral.labyrinths(canvas)
    canvas.paint(canvas.everywhere(cavity), "csf", "subarachnoid space")
    extracerebral.vessels_and_pituitary(canvas)

    y = canvas.grid()[1].expand(canvas.shape)
    canvas.paint(fourth, "csf", "cisterna magna")
    canvas.paint(fourth.cut(y + 13.5), "csf", "fourth ventricle")

    forebrain.olfactory_bulbs(canvas, bulb)
    forebrain.cortex(canvas, hemisphere)
    forebrain.deep_structures(canvas, fields[0])
    fissure = canvas.slab(forebrain.LONGITUDINAL_FISSURE, half_width=0.025)
    canvas.paint(fissure.cut(cavity), "csf", "longitudinal fissure")
    hindbrain.midbrain_and_brainstem(canvas, stem, fields[0])
    hindbrain.cerebellum(canvas, cerebellum, flocculus)
    hindbrain.inferior_colliculi(canvas, colliculus)
    hindbrain.aqueduct(canvas)
    return canvas


def _whole(half: Tensor) -> Tensor:
    """Right half (A, R, S) -> both halves (R, S, A)."""
    half = half.permute(1, 2, 0)
    return torch.cat([half.flip(0), half]).contiguous()


def _affine(canvas: Canvas) -> np.ndarray:
    return grid_affine(canvas.full_shape, (canvas.spacing,) * 3, CENTRE_MM)
