"""The head around the phantom's brain: skin, muscle, bone, air and eyes; tables as in :mod:`.forebrain`.

Sizes are those of in-vivo scans (see ``SOURCES`` in :mod:`.assembly`): skull about 0.7 mm thick over the cortex,
zygomatic arches about 22 mm apart, tympanic bullae under the temporal lobes, eyes 6 mm across.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.data.simulate.phantom.canvas import Canvas, distance_outside

HEAD = """
 15.0 | 0 6.3  2.5 6.1  4.6 5.2  6.4 3.6  7.4 1.2  7.8 -1.5  7.6 -4.5  6.6 -7.5  4.8 -10.2  2.4 -11.8  0 -12
 11.0 | 0 6.9  3.0 6.8  6.0 6.4  8.9 5.4  10.6 3.0  10.6 -.6  10.3 -4.0  9.3 -7.5  7.0 -11.0  4.0 -13.0  0 -13.5
  8.0 | 0 7.1  3.0 7.0  6.0 6.5  8.8 5.3  10.8 2.8  11.5 -.5  11.4 -4.0  10.4 -7.8  8.2 -11.3  4.8 -13.6  0 -14.5
  4.0 | 0 7.5  3.0 7.3  6.2 6.6  9.0 5.2  11.3 2.8  12.8 -.6  13.0 -4.0  12.0 -8.0  9.6 -11.8  5.6 -14.2  0 -15
  0.0 | 0 8.1  3.0 7.9  6.2 7.1  9.2 5.6  11.6 3.2  13.2 0  13.5 -4.0  12.6 -8.2  10.2 -12.0  6.0 -14.5  0 -15.5
 -4.0 | 0 8.4  3.0 8.2  6.2 7.4  9.2 5.9  11.8 3.6  13.5 .2  13.8 -4.0  12.9 -8.4  10.4 -12.1  6.0 -14.6  0 -15.5
 -9.0 | 0 8.4  3.0 8.2  6.2 7.4  9.2 6.0  11.8 3.6  13.4 .2  13.6 -4.0  12.8 -8.4  10.4 -12.1  6.0 -14.6  0 -15.5
-14.0 | 0 8.7  3.0 8.5  6.0 7.7  8.8 6.3  11.2 3.8  12.6 .4  12.9 -4.0  12.4 -8.4  10.2 -12.1  6.0 -14.6  0 -15.5
-22.0 | 0 9.6  3.0 9.4  6.2 8.6  9.2 7.0  11.8 4.4  13.3 .6  13.8 -4.0  13.2 -8.6  10.8 -12.4  6.2 -15.0  0 -16
"""

MANDIBLE = """
 9.0 | 4.0 -6.5 .5  4.2 -7.5 .6  4.4 -8.5 .6  4.6 -9.5 .5
 5.0 | 6.6 -3.5 .2  6.4 -5.5 .3  6.2 -7.5 .5  6.0 -9.5 .5
 2.0 | 10.2 .4 .2  9.2 -2.4 .3  7.6 -5.5 .35  6.8 -9.0 .5
-1.0 | 10.4 .6 .2  9.6 -2.5 .3  8.4 -5.5 .3  7.6 -9.0 .4
-4.5 | 9.4 -1.6 .4  9.2 -4.0 .35  8.8 -6.0 .3  8.4 -9.0 .3
-7.0 | 9.0 -7.0 .2  9.0 -7.8 .25  8.9 -8.6 .25  8.8 -9.4 .2
"""

# Planes between muscles: fascia and fat, dark in fat-suppressed images.
FASCIA = """
 6.0 | 4.6 5.6 .12  6.6 4.2 .1  8.2 1.6 .1  8.8 -.6 .1
 2.0 | 5.3 6.2 .12  7.8 4.4 .1  9.6 1.8 .1  10.6 -.4 .1
-2.0 | 6.0 6.5 .12  8.4 4.8 .1  10.2 2.4 .1  11.4 0 .1
-6.0 | 6.4 6.4 .12  8.6 4.8 .1  10.2 2.6 .1  11.2 .2 .1
-9.5 | 6.6 6.0 .12  8.4 4.6 .1  9.6 2.8 .1  10.4 1.2 .1
"""

NECK = """
-11.5 | 0 7.3 .1  3.0 7.0 .1  5.6 5.8 .1  7.4 3.6 .1  8.4 1.0 .1  8.8 -2.0 .1
-14.0 | 0 7.0 .1  3.0 6.7 .1  5.6 5.4 .1  7.2 3.2 .1  8.0 .6 .1  8.2 -2.4 .1
-17.0 | 0 6.6 .1  2.6 6.2 .1  5.0 4.9 .1  6.5 2.8 .1  7.2 .2 .1  7.4 -2.8 .1
-22.0 | 0 6.6 .1  2.6 6.2 .1  5.0 4.9 .1  6.5 2.8 .1  7.2 .2 .1  7.4 -2.8 .1
"""

AIRWAY = """
 9.5 | 0 -2.2  .5 -2.2  .8 -2.4  .9 -2.7  .8 -3.0  .5 -3.2  0 -3.2
 8.0 | 0 -2.6  .6 -2.6  1.0 -2.9  1.1 -3.2  1.0 -3.6  .6 -3.9  0 -3.9
 4.0 | 0 -3.6  .7 -3.6  1.1 -3.9  1.2 -4.1  1.1 -4.4  .7 -4.6  0 -4.6
 0.0 | 0 -4.6  .8 -4.6  1.2 -4.8  1.3 -5.0  1.2 -5.3  .8 -5.5  0 -5.5
-4.0 | 0 -5.6  .8 -5.6  1.2 -5.8  1.3 -6.0  1.2 -6.3  .8 -6.5  0 -6.5
-8.0 | 0 -7.6  .8 -7.6  1.2 -7.8  1.3 -8.1  1.2 -8.5  .8 -8.7  0 -8.7
-13.0 | 0 -9.2  .6 -9.3  1.0 -9.7  1.1 -10.2  1.0 -10.7  .6 -11.1  0 -11.2
-22.0 | 0 -9.6  .6 -9.7  1.0 -10.1  1.1 -10.6  1.0 -11.1  .6 -11.5  0 -11.6
"""

ETHMOID = """
14.5 | 0 5.0  1.4 5.2  2.8 4.8  3.4 3.4  3.4 1.0  3.2 -1.4  2.2 -2.6  0 -2.6
11.5 | 0 4.9  1.4 5.2  2.8 4.8  3.2 3.4  3.2 1.0  2.8 -1.4  1.9 -2.4  0 -2.4
 8.5 | 0 2.0  1.2 2.2  2.0 2.2  2.2 1.8  2.2 .6  1.9 -1.2  1.3 -2.3  0 -2.3
 6.0 | 0 -1.2  .6 -1.2  .9 -1.3  1.0 -1.6  1.0 -2.0  .9 -2.4  .6 -2.7  0 -2.7
"""


def skin_and_muscle(canvas: Canvas) -> Tensor:
    """Paint the whole head as muscle under fat and skin; return its signed distance (mm) on the whole canvas."""
    head = canvas.loft(HEAD, midline=True, margin=1.0)
    x, y, z = canvas.grid(head.box)
    # Muscle bellies: bundles a millimetre or two across, fanning from the skull.
    swirl = 1.6 * torch.sin(0.47 * x + 0.31 * z) + 1.3 * torch.sin(0.39 * z - 0.53 * y + 1.0)
    bundle = torch.sin(1.3 * x + 0.9 * z + 0.4 * y + swirl) + torch.sin(0.7 * z - 1.1 * x + 0.8 * y - 1.4 * swirl)
    fibre = 1 + 0.1 * bundle + 0.03 * torch.sin(3.9 * x - 1.7 * z + 2.0 * swirl)
    canvas.paint(head, "skin", "skin", 0.7)
    canvas.paint(head.grow(-0.15), "skin", "skin", 1.25)
    canvas.paint(head.grow(-0.5), "skin", "skin", 0.85)  # subcutaneous fat
    canvas.paint(head.grow(-0.95), "muscle", "muscle", fibre)
    return canvas.field(head)


def face_and_neck(canvas: Canvas, head: Tensor) -> None:
    """Paint fascia, jaw, zygomatic arch, eyes, glands, nasal cavity, airway and tongue."""
    deep = head - 0.9
    for table in (FASCIA, NECK):
        canvas.paint(canvas.loft(table, ribbon=True).cut(deep), "skin", texture=0.8)
    canvas.paint(canvas.loft(MANDIBLE, ribbon=True).cut(deep), "bone", "mandible")
    arch = canvas.tube(
        "6.8 9.0 -1.0 0.5  9.6 5.0 -0.8 0.4  11.2 0.0 -0.4 0.4  10.9 -3.5 0.0 0.45  9.2 -5.6 0.4 0.5  7.9 -6.4 0.6 0.5"
    )
    canvas.paint(arch.cut(deep), "bone", "zygomatic arch")
    gland = {"eye": 0.3, "muscle": 0.6, "skin": 0.1}
    canvas.paint(canvas.ellipsoid((6.2, 7.2, 0.4), (1.9, 2.5, 2.2)).cut(deep).feather(0.8), gland, "Harderian gland")
    parotid = canvas.ellipsoid((10.2, -4.5, -5.0), (1.5, 2.5, 2.3))
    canvas.paint(parotid.cut(deep).feather(0.8), gland, "parotid gland", 0.7)
    eye = canvas.ellipsoid((8.6, 9.8, 3.2), (3.0, 3.0, 3.0))
    canvas.paint(eye.grow(0.2), "muscle", "eye", 0.7)  # sclera
    canvas.paint(eye, "eye", "eye")
    canvas.paint(canvas.ellipsoid((9.4, 10.2, 3.4), (1.8, 1.8, 1.8)), {"eye": 0.08, "bone": 0.6, "muscle": 0.3}, "eye")

    nose = canvas.loft(ETHMOID, midline=True)
    x, y, z = canvas.grid(nose.box)
    # Turbinates: scrolls of mucosa with air between them.
    scroll = torch.sin(5.0 * x + 2.0 * torch.sin(1.3 * z + 0.5 * y)) * torch.sin(2.6 * z + 1.5 * torch.sin(2.2 * x))
    mucosa = 0.7 + 0.3 * scroll
    canvas.paint(nose.grow(0.3).cut(deep), "bone", "nasal bones")
    canvas.paint(nose.cut(deep), {"muscle": 0.4 * mucosa, "eye": 0.4 * mucosa, "air": 1 - 0.8 * mucosa}, "nasal cavity")
    canvas.paint(canvas.slab("15 5  15 -2.4  7 -2.2  10 1.5", 0.12).cut(deep), "bone")  # septum

    airway = canvas.loft(AIRWAY, midline=True, margin=1.0)
    canvas.paint(airway.grow(0.35), {"eye": 0.25, "muscle": 0.7}, "airway wall")
    canvas.paint(airway, "air", "airway")
    canvas.paint(canvas.tube("0 9 -5.2 0.5  0 2 -6.4 0.5  0 -2 -7.2 0.4").cut(deep), "muscle", texture=0.8)
    mouth = canvas.tube("0 13 -5.6 0.2  1.8 6 -6.6 0.2  2.2 1 -7.6 0.15").cut(deep)
    canvas.paint(mouth, "air", "mouth")


def skull(canvas: Canvas, brain: Tensor, head: Tensor) -> Tensor:
    """Paint braincase and vertebrae round `brain` (signed distance, mm); return the cranial cavity's distance."""
    x, y, z = canvas.grid()
    outside = distance_outside(brain, 2.2, canvas.spacing)
    base = ((-0.5 - z) / 2).clamp(0, 1)
    behind = ((-9.0 - y) / 2).clamp(0, 1)
    cord = ((-15.6 - y) / 1.0).clamp(0, 1)
    # Cerebrospinal fluid is a film over the convexity and pools at the base and round the medulla.
    cavity = 0.13 + 0.17 * base + 0.1 * behind * base + 0.12 * cord - outside
    thickness = 0.65 + 0.3 * base * (1 - cord) + 0.3 * cord
    joint = 0.9 * torch.exp(-(((y + 16.6) / 0.45) ** 2))  # between occiput and atlas
    vault = torch.minimum(cavity + thickness - joint, head - 0.9)
    canvas.paint(canvas.everywhere(vault), "bone", "skull")
    # Diploe: the dorsal vault holds marrow between two tables.
    middle = (cavity + 0.5 * thickness).abs()
    canvas.paint(canvas.everywhere(torch.minimum(0.1 - middle, z - 2.0)), {"bone": 0.75, "muscle": 0.25})
    return cavity


def ears(canvas: Canvas, head: Tensor) -> None:
    """Paint tympanic bullae, ear canals and labyrinths."""
    petrous = canvas.ellipsoid((5.6, -10.0, -2.1), (1.6, 2.0, 2.0))
    bulla = canvas.ellipsoid((5.9, -7.2, -4.7), (2.1, 2.6, 1.9))
    canvas.paint(petrous, "bone", "skull")
    canvas.paint(bulla.grow(0.3), "bone", "bulla wall")
    canal = canvas.tube("7.4 -8.6 -4.0 0.8  9.0 -9.2 -2.6 0.75  11.0 -9.8 -1.0 0.8  14.5 -10.5 1.2 1.1")
    canvas.paint(canal.grow(0.35).cut(head - 0.1), "skin", "ear canal wall", 0.9)
    canvas.paint(bulla, "air", "tympanic bulla")
    canvas.paint(canal.cut(head - 0.05), "air", "ear canal")


def labyrinths(canvas: Canvas) -> None:
    """Paint cochlea, vestibule and semicircular canals in the petrous bone."""
    # Endolymph and perilymph: as bright as eyes, and not brain.
    for points in (
        ("4.3 -9.3 -3.0 0.25  4.8 -9.3 -2.5 0.25  5.3 -9.3 -2.9 0.25  5.2 -9.4 -3.5 0.25  4.7 -9.4 -3.6 0.2"),
        "5.4 -9.9 -3.0 0.35  5.5 -10.4 -1.9 0.4",
        ("5.6 -10.3 -2.0 0.25  6.3 -10.0 -1.2 0.22  6.1 -11.0 -1.1 0.2  5.4 -11.2 -1.8 0.22  5.5 -10.4 -2.2 0.25"),
    ):
        canvas.paint(canvas.tube(points), "eye", "labyrinth")


def vessels_and_pituitary(canvas: Canvas) -> None:
    """Paint the superior sagittal and transverse sinuses (dark: fast, deoxygenated blood) and the pituitary."""
    blood = {"muscle": 0.35, "bone": 0.65}
    sinus = canvas.tube(
        "0 6.4 5.3 0.3  0 3.0 6.1 0.32  0 0.0 6.5 0.34  0 -4.0 6.8 0.38  0 -7.5 6.5 0.45  0 -8.8 6.2 0.4"
    )
    canvas.paint(sinus, blood, "sinus")
    canvas.paint(
        canvas.tube("0 -8.8 6.2 0.35  2.5 -9.2 6.2 0.25  5.0 -9.6 4.6 0.25  6.6 -9.6 2.6 0.3"),
        blood,
        "sinus",
    )
    canvas.paint(canvas.tube("7.55 -2.5 -0.1 0.15  7.9 -5.5 0.0 0.2  7.9 -7.2 0.5 0.2"), blood)
    gland = {"eye": 0.35, "muscle": 0.6}
    canvas.paint(canvas.ellipsoid((0, -5.6, -3.5), (1.9, 1.6, 0.5)), gland, "pituitary")
