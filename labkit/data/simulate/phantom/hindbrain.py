"""Midbrain, brainstem, spinal cord and cerebellum of the phantom; tables as in :mod:`.forebrain`."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from labkit.data.simulate.phantom.canvas import Canvas, Shape
from labkit.data.simulate.phantom.forebrain import band

BRAINSTEM = """
 -4.9 | 0 3.3  .6 3.4  1.2 3.4  1.8 3.2  2.3 2.8  2.5 2.2  2.4 1.4  2.0 .4  1.4 -.6  .7 -1.2  0 -1.4
 -5.5 | 0 3.8  1.0 3.9  2.2 3.5  3.1 2.7  3.7 1.7  3.8 .6  3.4 -.5  2.8 -1.5  1.8 -1.9  .8 -1.6  0 -1.5
 -6.5 | 0 4.2  1.1 4.3  2.2 3.9  3.1 3.1  3.6 2.1  3.7 1.0  3.4 -.1  2.9 -1.2  2.2 -2.1  1.0 -2.1  0 -1.9
 -7.1 | 0 4.3  1.2 4.4  2.3 4.0  3.2 3.0  3.6 1.8  3.5 .7  3.1 -.4  2.8 -1.5  2.4 -2.4  1.3 -2.9  0 -2.9
 -8.0 | 0 3.9  1.2 4.2  2.4 3.9  3.2 2.9  3.5 1.7  3.4 .6  3.3 -.6  3.4 -1.7  2.8 -2.7  1.5 -3.4  0 -3.5
 -8.8 | 0 3.3  1.0 3.6  2.0 3.5  3.0 3.0  3.4 2.2  3.5 1.2  3.7 0  3.8 -1.2  3.3 -2.5  1.9 -3.5  0 -3.7
 -9.5 | 0 2.0  1.0 2.3  2.0 2.2  3.0 1.9  3.7 1.3  4.0 .6  4.0 -.4  4.0 -1.4  3.3 -2.7  1.9 -3.5  0 -3.7
-10.5 | 0 .1  .8 .5  1.8 .9  2.8 .9  3.6 .5  4.2 0  4.3 -.7  4.0 -1.7  3.3 -2.8  1.8 -3.5  0 -3.7
-11.5 | 0 -.5  .8 .1  1.7 .6  2.6 .7  3.3 .3  3.8 -.3  4.0 -1.2  3.8 -2.1  3.1 -2.9  1.7 -3.4  0 -3.7
-12.5 | 0 -.8  .8 -.1  1.7 .4  2.5 .4  3.2 0  3.7 -.6  3.9 -1.5  3.6 -2.3  2.9 -2.9  1.6 -3.4  0 -3.6
-14.0 | 0 -.6  .8 -.2  1.6 .1  2.3 0  2.9 -.5  3.3 -1.2  3.4 -1.8  3.1 -2.5  2.5 -3.0  1.4 -3.5  0 -3.6
-15.5 | 0 -.7  .7 -.5  1.4 -.5  2.0 -.7  2.5 -1.1  2.8 -1.7  2.8 -2.3  2.5 -2.9  1.9 -3.3  1.0 -3.6  0 -3.6
-17.5 | 0 -1.2  .6 -1.1  1.2 -1.2  1.7 -1.5  2.1 -1.9  2.3 -2.4  2.2 -2.9  1.9 -3.3  1.4 -3.6  .7 -3.9  0 -3.9
-22.0 | 0 -2.3  .5 -2.2  1.0 -2.3  1.5 -2.6  1.8 -2.9  2.0 -3.4  1.9 -3.8  1.7 -4.1  1.3 -4.4  .7 -4.7  0 -4.7
"""

CEREBELLUM = """
 -8.7 | 0 5.4  .3 5.3  .5 4.9  .6 4.4  .6 3.8  .5 3.2  .5 2.8  .3 2.5  0 2.4
 -9.2 | 0 6.0  1.2 5.8  2.4 5.2  3.7 4.2  4.6 3.1  4.8 2.2  4.2 1.4  2.4 1.6  0 1.8
 -9.8 | 0 6.2  1.5 6.0  3.0 5.3  4.5 4.4  5.5 3.2  5.7 1.8  5.0 .6  3.0 .8  0 1.2
-11.0 | 0 6.2  1.6 6.0  3.2 5.4  4.8 4.5  5.8 3.2  5.9 1.9  5.2 .2  2.8 1.0  0 .7
-12.0 | 0 6.0  1.5 5.8  3.0 5.2  4.6 4.4  5.6 3.2  5.7 1.9  4.9 -.1  2.6 .8  0 .4
-13.0 | 0 5.7  1.4 5.5  2.8 5.0  4.1 4.3  5.0 3.1  5.0 1.8  4.2 -.1  2.3 .6  0 .1
-14.0 | 0 5.2  1.2 5.1  2.4 4.6  3.5 3.9  4.2 2.9  4.3 1.9  3.6 .2  2.1 .4  0 .1
-15.0 | 0 4.6  .6 4.3  1.0 3.7  1.4 3.0  1.7 2.4  1.9 1.7  1.9 1.0  1.2 .5  0 .3
-15.5 | 0 3.2  .3 3.0  .5 2.7  .7 2.3  .8 1.9  .8 1.5  .6 1.2  .3 1.1  0 1.0
"""

# Cerebrospinal fluid between medulla and cerebellum: fourth ventricle with its lateral recesses, then cisterna magna.
FOURTH_VENTRICLE = """
 -9.8 | 0 1.4  .8 1.4  1.6 1.3  2.2 1.2  2.4 .9  2.0 .4  1.0 .2  0 0
-11.3 | 0 1.0  .8 1.0  1.6 1.1  2.4 1.2  2.8 .9  2.2 .5  1.0 -.2  0 -.8
-12.3 | 0 .6  1.2 .9  2.6 .9  3.8 .4  4.6 -.4  3.4 -.2  1.2 -.4  0 -.9
-13.0 | 0 .4  1.2 .8  2.4 .7  3.6 .4  4.2 -.3  3.4 -.6  1.2 -.6  0 -1.0
-14.5 | 0 .6  1.0 .8  2.0 .7  2.7 .4  3.3 -.5  2.8 -1.1  1.0 -.7  0 -1.0
-15.7 | 0 1.5  .8 1.1  1.6 .4  2.3 -.1  2.7 -.8  2.2 -1.3  1.0 -.9  0 -1.0
-17.0 | 0 -.4  .5 -.5  1.0 -.7  1.6 -1.1  2.0 -1.5  1.6 -1.7  .8 -1.4  0 -1.4
"""

FASTIGIUM = (-11.6, 2.0)  # y, z (mm) from which the medullary branches of the cerebellum fan out
LOBULES = 10  # in a full turn round it; the roof of the fourth ventricle takes the place of about two


def midbrain_and_brainstem(canvas: Canvas, stem: Shape, hemisphere: Tensor) -> None:
    """Paint midbrain, pons, medulla and cord, with their nuclei, tracts and the cisterns round them.

    `hemisphere` is the signed distance (mm) of the hemispheres on the whole canvas, from which the ambient cistern
    parts `stem`.
    """
    bx, by, bz = canvas.grid(stem.box)
    behind = torch.minimum(hemisphere + 0.5, -5.4 - canvas.grid()[1])
    canvas.paint(stem.grow(0.4 * ((-5.2 - by) / 1.6).clamp(0, 1)).cut(behind), "csf", "ambient cistern")
    groove = canvas.tube("0.4 -5.6 4.1 0.2  0.5 -6.5 4.6 0.3  0.9 -8.2 4.9 0.35  1.0 -8.8 5.4 0.2")
    for cistern in (canvas.ellipsoid((0, -7.4, 4.75), (1.5, 1.7, 0.4)), groove):
        canvas.paint(cistern, "csf", "quadrigeminal cistern")
    # Reticular core: grey and white interwoven; whiter towards the outer and ventral surface.
    white = 0.2 * band(stem.d, -1, 0.4).expand(stem.d.shape)
    core = (0.6 - 0.2 * ((bz - 1.5) / 2).clamp(0, 1)).expand(stem.d.shape)
    # Thalamus passes into midbrain without a border.
    stem = stem.fade(((-4.85 - by) / 0.4).clamp(0, 1))
    canvas.paint(stem, {"brainstem": 1 - white - core, "white": white, "core": core}, "brainstem")
    inside = canvas.field(stem)
    colliculi = canvas.ellipsoid((1.2, -6.7, 3.4), (2.0, 1.6, 1.1)).cut(inside)
    # Superior colliculus: pale superficial grey over the fibres of the optic layer.
    layer = 0.55 * band(canvas.everywhere(inside).d[colliculi.box], 0.45, 0.75)
    canvas.paint(colliculi, {"brainstem": 0.85 - layer, "white": 0.15 + layer}, "superior colliculus")
    grey = canvas.tube("0 -5.2 2.0 0.7  0 -6.5 2.0 0.95  0 -8.2 2.1 1.1  0 -9.2 1.6 0.9")
    canvas.paint(grey.cut(inside).feather(0.4), {"grey": 0.9, "core": 0.1}, "periaqueductal grey")
    for at, radii in (
        ((1.0, -6.0, -0.1), (0.5, 0.7, 0.5)),
        ((2.1, -5.9, -1.0), (0.8, 0.8, 0.3)),
        ((1.0, -8.1, -2.9), (0.9, 0.8, 0.45)),
        ((1.1, -13.2, -3.0), (0.6, 1.0, 0.3)),
        ((1.6, -9.6, -0.6), (0.6, 0.6, 0.6)),
        ((2.5, -10.6, -0.1), (0.8, 1.1, 0.5)),
        ((2.4, -12.8, -1.3), (0.6, 1.8, 0.8)),
        ((0.8, -12.8, -1.0), (0.5, 1.5, 0.5)),
        ((1.9, -11.0, -2.6), (0.5, 0.6, 0.45)),
    ):  # red nucleus, nigra, pons, olive, motor, vestibular ...
        nucleus = canvas.ellipsoid(at, radii).cut(inside).feather(0.3)
        canvas.paint(nucleus, {"brainstem": 0.9, "core": 0.1}, texture=1.03)
    white = {"core": 0.3, "white": 0.7}
    for points in (
        "1.7 -6.6 -1.9 0.4  1.0 -8.2 -2.3 0.4  0.7 -10.0 -3.2 0.35  0.5 -15.0 -3.3 0.3",
        "2.6 -8.6 -2.2 0.4  3.4 -9.4 -1.4 0.5  3.9 -10.2 0.2 0.6  3.7 -11.0 1.4 0.5",
        "3.2 -10.3 -1.2 0.4  3.2 -12.0 -1.4 0.4  2.9 -14.0 -1.3 0.35  2.3 -16 -1.6 0.3",
        "0.3 -6.0 0.7 0.15  0.25 -9.0 0.5 0.2  0.25 -12.0 -1.2 0.2  0.2 -16 -1.9 0.15",
        "2.8 -6.5 0.8 0.25  2.9 -8.2 1.2 0.3  2.2 -9.0 2.6 0.2",
        "0.4 -7.2 -0.4 0.25  1.4 -8.6 0.6 0.3  2.0 -10.4 1.7 0.4",
    ):
        # pyramids, middle peduncle, spinal trigeminal tract, medial longitudinal bundle, lateral lemniscus,
        # superior cerebellar peduncle
        canvas.paint(canvas.tube(points).cut(inside).feather(0.25), white, "brainstem tracts")
    horns = canvas.tube("0.0 -15.5 -1.7 0.35  0.0 -22.0 -3.3 0.3")
    canvas.paint(horns, {"brainstem": 0.9, "white": 0.1})
    canvas.paint(canvas.tube("0.9 -16.5 -2.2 0.5  0.8 -22.0 -3.5 0.45"), {"brainstem": 0.9, "white": 0.1})


def inferior_colliculi(canvas: Canvas, shape: Shape) -> None:
    """Paint the inferior colliculi: grey under a thin shell of fibres."""
    y, z = canvas.grid()[1:]
    canvas.paint(shape.grow(0.2).cut(torch.minimum(z - 3.6, -8.3 - y).expand(canvas.shape)), "csf", "ambient cistern")
    canvas.paint(shape, {"grey": 0.4, "core": 0.45, "white": 0.15}, "inferior colliculus")


def aqueduct(canvas: Canvas) -> None:
    """Paint the aqueduct from the third ventricle to the fourth, down to the central canal."""
    canvas.paint(
        canvas.tube(
            "0 -4.8 2.9 0.22  0 -5.4 2.2 0.22  0 -6.5 2.0 0.26  0 -7.3 2.1 0.36  0 -8.1 2.3 0.5  "
            "0 -8.8 2.2 0.38  0 -9.5 1.3 0.3  0 -10.2 0.7 0.35"
        ),
        "csf",
        "aqueduct",
    )
    canvas.paint(canvas.tube("0 -12.5 -0.4 0.06  0 -22.0 -3.2 0.05"), "csf")  # central canal


def cerebellum(canvas: Canvas, shape: Shape, flocculus: Shape) -> None:
    """Paint the cerebellum: folia whose white branches fan out from the fastigium, and the deep nuclei.

    The branches are sheets. Round the fastigium they are numbered by a phase that also grows with the distance from
    the midline, so that they run transversely through the vermis and fall away sideways in the hemispheres, as
    coronal and sagittal sections through a cerebellum show.
    """
    canvas.paint(shape.grow(0.08), "csf")
    bx, by, bz = canvas.grid(shape.box)
    side = (bx - 0.8).clamp(min=0)
    dy, dz = by - FASTIGIUM[0], bz - (FASTIGIUM[1] - 0.12 * bx)
    radius = (dy**2 + dz**2).sqrt().clamp(min=0.05)
    angle = torch.atan2(dy.expand_as(radius), dz.expand_as(radius))  # 0 straight up, positive rostrally
    phase = angle * LOBULES / (2 * pi) + 0.12 * torch.sin(2.1 * radius + 1.3 * torch.sign(angle))
    phase = phase.abs() - 0.7 * side**2 / (1.6 + side) + 0.3 * torch.sin(1.1 * bx + 0.9 * by) * side / (1.5 + side)
    offset = phase - phase.floor() - 0.5  # 0 on a branch, +-0.5 on a fissure
    per_mm = 2 * pi * radius / LOBULES
    depth = shape.d

    fork = 0.23 * ((radius - 1.9) / 0.9).clamp(0, 1)  # each branch divides in two on its way to the surface
    branch = (offset.abs() - fork).abs() * per_mm
    thick = 0.1 + 0.18 * ((2.6 - radius) / 1.6).clamp(0, 1)
    core = torch.maximum(1.0 - radius, 0.9 - (((bx - 3.4) / 1.8) ** 2 + (dy / 1.1) ** 2 + (dz / 0.9) ** 2).sqrt())
    white = soft(torch.maximum(thick - branch, core), 0.2) * soft(depth - 0.42, 0.3)
    canvas.paint(
        shape,
        {"cerebellum": 1 - white, "white": white},
        "cerebellum",
        1 + 0.03 * soft(0.35 - depth, 0.2) - 0.02 * soft(0.3 + thick - branch, 0.2),
    )

    between = (0.5 - offset.abs()) * per_mm
    notch = torch.minimum(offset.abs() * per_mm + (depth - 0.6).clamp(min=0), torch.full_like(between, 9.0))
    cleft = torch.maximum(
        soft(0.1 - between, 0.2) * soft(radius - 1.7, 0.4) * soft(1.6 - depth, 0.4),
        0.6 * soft(0.08 - notch, 0.2) * soft(radius - 2.4, 0.3),
    )
    canvas.paint(shape.fade(0.55 * cleft), "csf")
    for at, radii in (
        ((0.7, -11.5, 1.9), (0.4, 0.5, 0.35)),
        ((2.0, -11.4, 1.9), (0.6, 0.6, 0.45)),
        ((3.3, -11.3, 1.8), (0.5, 0.6, 0.5)),
    ):  # fastigial, interposed, dentate nucleus
        canvas.paint(canvas.ellipsoid(at, radii), {"cerebellum": 0.75, "white": 0.25}, "cerebellum")
    stalk = canvas.tube("4.4 -10.6 0.4 0.5  5.6 -10.9 0.0 0.4  6.4 -11.3 -0.2 0.3")
    canvas.paint(flocculus, "cerebellum", "paraflocculus", 1 + 0.04 * soft(0.3 - flocculus.d, 0.2))
    canvas.paint(stalk, {"cerebellum": 0.4, "white": 0.6})
    # The middle and inferior peduncles close the ventricle at the side.
    peduncle = canvas.tube("3.2 -9.9 -0.6 0.6  3.5 -10.4 0.3 0.7  3.4 -11.0 1.3 0.7")
    canvas.paint(peduncle.feather(0.3), {"core": 0.5, "white": 0.5}, "cerebellar peduncle")


def soft(d: Tensor, width: float) -> Tensor:
    """Coverage of a signed distance `d` (mm) with an edge `width` (mm) wide, [0, 1]."""
    return (0.5 + d / width).clamp(0, 1)
