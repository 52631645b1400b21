"""Forebrain of the phantom: hemispheres, olfactory bulbs, deep grey, white matter and ventricles.

Every table is a stack of coronal sections, ``y | x z  x z ...`` in mm (ribbons ``x z h``, h half the thickness), with
y about the distance in front of bregma, as in the plates of Paxinos and Watson; the numbers follow the in-vivo Wistar
template of Barriere et al. 2019 (see ``SOURCES`` in :mod:`.assembly`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.data.simulate.phantom.canvas import Canvas, Shape

HEMISPHERE = """
  6.8 | 0 4.5  .6 4.8  1.2 5  1.8 5  2.2 4.9  2.5 4.6  2.6 4.3  2.5 4  2.2 3.8  1.8 3.7  1.2 3.7  .6 3.8  0 3.9
  6.0 | 0 5  .9 5.6  1.9 5.8  2.8 5.5  3.5 5  3.9 4.3  3.9 3.5  3.6 2.5  3.1 1.5  2.5 .6  1.7 0  .8 -.2  0 .1
  5.0 | 0 5.5  .9 6  2.1 6.1  3.2 5.8  4.1 5.1  4.7 4.2  4.8 3.2  4.5 2  3.9 1  3.1 .1  2.1 -.7  1 -1.2  0 -.8
  4.0 | 0 5.7  .9 6.1  2.3 6.2  3.6 5.8  4.7 5  5.3 4  5.5 2.8  5.2 1.4  4.5 .3  3.6 -.6  2.5 -1.3  1.1 -1.7  0 -1.4
  3.0 | 0 5.8  1 6.2  2.5 6.2  3.9 5.8  5.1 4.9  5.9 3.7  6.1 2.2  5.7 .8  4.9 -.4  3.9 -1.3  2.6 -2.1  1.1 -2.1  0 -1.8
  2.0 | 0 5.9  1.1 6.3  2.6 6.3  4.2 5.9  5.5 4.9  6.3 3.6  6.5 2  6.2 .5  5.4 -.8  4.3 -1.8  2.8 -2.6  1.2 -2.3  0 -2.1
  1.0 | 0 6  1.1 6.5  2.7 6.5  4.4 6  5.8 4.9  6.6 3.5  6.9 1.8  6.6 .2  5.8 -1.2  4.7 -2.1  3 -2.9  1.3 -2.5  0 -2.4
  0.0 | 0 6.2  1.1 6.6  2.8 6.6  4.5 6.1  6 4.9  6.8 3.5  7.2 1.7  6.9 0  6.1 -1.5  5 -2.5  3.2 -3  1.4 -2.6  0 -2.6
 -2.0 | 0 6.4  1.2 6.8  2.9 6.8  4.8 6.3  6.3 5.1  7.2 3.5  7.6 1.6  7.3 -.2  6.7 -1.8  5.6 -3  3.8 -3.2  1.6 -2.9  0 -3
 -4.0 | 0 6.5  1.2 7  3 6.9  4.9 6.4  6.5 5.2  7.5 3.6  7.8 1.6  7.5 -.3  7.1 -1.9  6.2 -3.1  4.4 -2.8  2 -2.5  0 -3
 -5.0 | 0 6.5  1.2 7  3 6.9  4.9 6.4  6.5 5.2  7.5 3.6  7.9 1.5  7.6 -.4  7.3 -1.9  6.5 -2.8  4.6 -2.3  2 -2.3  0 -2.4
 -6.0 | 0 6.4  1.2 7  3 6.9  4.8 6.4  6.4 5.1  7.4 3.5  7.8 1.5  7.6 -.4  7.4 -1.8  6.7 -2.4  4.8 -1.9  3 -1.5  0 .0
 -7.0 | 0 6.1  1.2 6.8  2.9 6.7  4.6 6.2  6.1 5  7 3.5  7.6 1.5  7.5 -.2  7.1 -1.6  6.2 -1.5  4.4 -1.2  3.2 0  0 2
 -8.0 | 0 5.6  1.1 6.4  2.7 6.4  4.3 5.8  5.7 4.8  6.6 3.5  7.3 1.7  7.3 .2  6.8 -.9  5.8 -1.2  4.7 -.6  3.6 .8  0 3.6
 -9.0 | 0 5.4  1.3 5.9  2.8 6.1  4.2 5.6  5.4 4.7  6.3 3.6  6.9 2.4  7 1.6  6.7 1  6 1.1  5 1.9  3.4 3.4  0 5
 -9.6 | 0 5.4  1.4 5.6  2.8 5.7  4 5.4  5.1 4.7  5.9 3.9  6.4 3.2  6.5 2.8  6.3 2.6  5.6 3.2  4.6 4.1  3 5  0 5.2
"""

BULB = """
12.4 | .5 4.2  .9 4.4  1.3 4.2  1.5 3.9  1.3 3.5  .9 3.3  .6 3.5  .4 3.9
11.6 | .2 4.9  1.1 5.2  2.0 4.7  2.3 3.8  2.1 2.8  1.4 2.0  .5 2.0  .05 3.0
10.0 | .06 5.1  1.2 5.4  2.2 4.8  2.6 3.5  2.4 2.2  1.7 1.0  .7 .7  .05 1.5
 8.5 | .06 5.0  1.2 5.3  2.2 4.8  2.5 3.3  2.4 1.7  1.7 .6  .7 .2  .05 1.0
 7.0 | .2 4.4  1.1 4.8  2.0 4.4  2.5 3.3  2.3 1.8  1.8 .6  .8 .1  .15 .9
 6.0 | .4 3.0  1.0 3.3  1.7 3.0  2.2 2.3  2.1 1.4  1.6 .7  .9 .4  .4 1.0
 5.2 | .9 1.6  1.2 1.8  1.6 1.7  1.9 1.4  1.9 1.0  1.6 .7  1.2 .7  .9 1.0
"""

# Corpus callosum from the midline outwards, running on as external capsule to the level of the rhinal fissure; in
# front of the genu the ends are the forceps minor, behind the splenium the forceps major.
CALLOSUM = """
 3.4 | 2.0 2.7 .1  2.2 2.8 .2  2.4 2.9 .3  2.6 2.9 .3  2.8 2.8 .2  3.0 2.7 .15  3.1 2.6 .1  3.2 2.5 .1
 2.9 | 1.5 2.2 .2  1.6 2.6 .3  2.0 3.1 .4  2.5 3.2 .4  3.0 3.0 .3  3.4 2.6 .2  3.5 2.1 .1  3.5 1.7 .1
 2.0 | .9 2.0 .2  1.1 2.7 .25  1.8 3.4 .3  2.6 3.6 .25  3.5 3.2 .2  4.0 2.4 .16  4.1 1.6 .12  3.9 .8 .08
 1.5 | 0 2.4 .4  .7 2.6 .4  1.3 3.2 .3  2.1 3.7 .25  3.1 3.6 .2  4.0 3.0 .18  4.4 2.0 .14  4.5 .8 .08
 1.0 | 0 2.9 .4  .7 3.1 .35  1.4 3.5 .3  2.2 3.8 .25  3.3 3.7 .2  4.2 3.0 .18  4.7 2.0 .15  4.8 .7 .08
 0.0 | 0 3.5 .3  .7 3.6 .3  1.4 3.9 .28  2.3 4.1 .26  3.4 3.8 .2  4.5 2.9 .18  5.1 1.8 .15  5.3 .4 .09
-1.0 | 0 3.8 .25  .8 4.0 .25  1.5 4.3 .25  2.5 4.4 .25  3.7 3.9 .22  4.7 3.0 .2  5.3 1.8 .16  5.5 .3 .09
-2.0 | 0 4.2 .25  .8 4.5 .25  1.5 4.8 .25  2.5 4.8 .25  3.8 4.3 .22  4.9 3.2 .2  5.6 1.8 .16  5.8 .2 .09
-3.0 | 0 4.4 .28  .9 4.7 .28  1.6 5.1 .28  2.6 5.1 .25  4.0 4.5 .22  5.1 3.3 .2  5.7 1.8 .16  5.9 0 .09
-4.0 | 0 4.6 .3  .9 4.9 .3  1.6 5.2 .3  2.7 5.2 .25  4.2 4.6 .22  5.4 3.3 .2  5.9 1.8 .16  6.0 -.2 .09
-5.0 | 0 4.8 .2  .9 5.0 .3  1.7 5.2 .3  2.8 5.2 .28  4.3 4.6 .24  5.6 3.2 .2  6.2 1.6 .16  6.3 -.4 .09
-6.0 | 1.2 4.9 .15  1.8 4.9 .25  2.6 4.9 .3  3.5 4.7 .3  4.6 4.1 .26  5.6 3.0 .22  6.2 1.6 .18  6.3 -.2 .1
-7.0 | 2.8 4.8 .1  3.3 4.7 .25  3.8 4.5 .3  4.4 4.1 .32  5.0 3.5 .3  5.5 2.8 .25  6.0 1.8 .2  6.2 .8 .1
-7.9 | 3.7 4.2 .08  4.0 4.0 .12  4.2 3.7 .15  4.5 3.4 .15  4.8 3.0 .15  5.0 2.7 .12  5.2 2.3 .1  5.3 2.0 .08
"""

STRIATUM = """
 2.6 | 1.9 2.4  2.2 2.8  2.6 2.9  3.0 2.6  3.2 2.2  3.0 1.8  2.6 1.5  2.2 1.6  1.9 2.0
 2.0 | 1.2 2.4  1.8 3.1  2.6 3.3  3.4 2.9  3.8 2.1  3.7 1.3  3.0 .6  2.0 .6  1.3 1.4
 1.0 | 1.1 2.6  1.7 3.3  2.6 3.5  3.6 3.2  4.4 2.2  4.6 1.0  3.9 -.4  2.6 -.9  1.3 .2
 0.0 | 1.5 3.0  2.0 3.6  2.8 3.7  3.9 3.2  4.8 2.2  5.0 .8  4.4 -.5  3.2 -.6  2.0 .6
-1.0 | 2.6 3.2  2.9 3.7  3.5 3.6  4.4 2.9  5.0 1.8  5.2 .6  4.8 -.6  3.9 -.8  3.0 1.0
-2.0 | 4.1 2.9  4.3 3.3  4.7 3.0  5.1 2.4  5.4 1.5  5.5 .4  5.1 -.6  4.5 -.7  4.3 1.0
-3.2 | 5.0 2.1  5.1 2.3  5.3 2.1  5.5 1.6  5.6 1.0  5.6 .3  5.3 -.4  5.0 -.3  5.0 .9
"""

THALAMUS = """
-0.7 | 0 1.8  .6 1.8  1.1 1.6  1.5 1.1  1.6 .5  1.4 -.1  1.0 -.4  .5 -.5  0 -.5
-1.5 | 0 2.3  1.0 2.6  2.0 2.5  3.0 2.0  3.1 1.2  2.6 .3  1.9 -.4  1.0 -.7  0 -.8
-2.2 | 0 2.6  1.0 3.0  2.2 3.1  3.4 2.5  3.8 1.5  3.3 .5  2.4 -.5  1.2 -1.0  0 -1.0
-3.0 | 0 2.7  1.2 3.0  2.6 3.1  4.0 2.6  4.5 1.6  4.0 .5  2.8 -.7  1.3 -1.2  0 -1.2
-4.0 | 0 2.7  1.2 3.1  2.8 3.2  4.0 2.6  4.6 1.6  4.3 .4  3.2 -.9  1.5 -1.4  0 -1.4
-4.7 | 0 2.9  1.2 3.3  2.6 3.3  3.8 2.5  4.4 1.5  4.1 .4  3.2 -.8  1.5 -1.6  0 -1.6
-5.3 | 0 3.0  1.0 3.3  2.3 3.1  3.5 2.4  4.1 1.4  3.8 .4  3.0 -.7  1.5 -1.5  0 -1.5
-5.9 | 0 3.0  1.0 3.2  2.0 2.8  3.0 2.2  3.4 1.4  3.3 .4  2.6 -.5  1.3 -1.1  0 -1.1
"""

HIPPOCAMPUS = """
-1.7 | .3 4.0  .9 4.2  1.6 4.4  2.4 4.3  3.0 4.0  3.0 3.8  2.5 3.7  1.8 3.7  1.0 3.6  .4 3.7
-2.2 | .2 3.9  .9 4.3  1.7 4.6  2.7 4.5  3.6 3.9  3.9 3.4  3.3 3.3  2.3 3.3  1.2 3.2  .3 3.2
-3.0 | .2 4.0  .9 4.5  1.7 4.9  2.8 4.9  4.0 4.2  4.8 3.2  4.4 2.8  3.2 3.2  1.6 3.2  .3 3.0
-4.0 | .2 4.2  1.0 4.7  1.8 5.0  3.0 5.0  4.5 4.1  5.5 2.6  5.0 2.2  3.8 3.1  2.0 3.3  .5 3.2
-4.7 | .4 4.4  1.1 4.8  1.9 5.0  3.2 4.9  4.8 3.9  5.9 2.0  5.4 .6  4.4 2.6  2.8 3.5  1.0 3.8
-5.3 | 1.0 4.6  1.8 4.9  3.0 4.9  4.6 4.1  5.9 2.3  6.1 .2  5.1 -1.2  4.3 .2  4.2 2.1  2.6 3.6
-6.0 | 2.0 4.6  2.6 4.7  3.4 4.5  4.8 3.7  5.9 2.0  6.1 .2  5.0 -.9  4.0 .2  3.9 2.0  3.2 3.3
-6.7 | 3.0 4.3  3.4 4.4  4.0 4.1  4.9 3.4  5.7 2.1  5.9 .7  5.0 -.2  4.2 .4  4.0 1.8  3.6 3.2
-7.3 | 4.0 3.3  4.2 3.4  4.5 3.2  4.9 2.7  5.3 2.0  5.3 1.2  4.9 .9  4.5 1.2  4.3 1.9  4.1 2.6
"""

# Hippocampal fissure with the stratum lacunosum-moleculare (bright), then the granule cell layer of the dentate
# gyrus (dark), both from medial to lateral and down into the ventral horn.
FISSURE = """
-2.2 | .5 4.0 .06  1.0 4.0 .07  1.7 4.0 .08  2.4 3.9 .08  2.9 3.7 .06
-3.0 | .5 4.2 .08  1.1 4.3 .1  1.9 4.3 .12  2.8 4.2 .12  3.5 3.8 .08
-4.0 | .5 4.3 .08  1.2 4.4 .1  2.0 4.4 .12  3.0 4.3 .12  4.2 3.5 .08
-4.7 | .9 4.4 .08  1.6 4.5 .1  2.6 4.4 .12  3.8 3.8 .12  5.0 2.4 .1
-5.3 | 1.6 4.5 .08  2.8 4.3 .1  4.2 3.5 .12  5.1 2.2 .12  5.3 .3 .1
-6.0 | 2.7 4.2 .08  3.6 3.8 .1  4.5 3.0 .12  5.1 1.8 .12  5.2 .2 .1
-6.7 | 3.5 3.8 .06  4.0 3.4 .08  4.5 2.8 .1  4.9 1.9 .1  5.0 .7 .08
"""

DENTATE = """
-2.6 | .6 3.8 .06  1.2 3.8 .08  2.1 3.7 .08  2.5 3.5 .07  1.8 3.4 .05
-3.0 | .6 3.9 .07  1.3 4.0 .1  2.4 3.9 .1  3.0 3.6 .08  2.0 3.4 .06
-4.0 | .7 4.0 .07  1.4 4.1 .1  2.6 4.0 .1  3.6 3.5 .08  2.4 3.6 .06
-4.7 | 1.4 4.2 .06  2.2 4.2 .1  3.4 3.7 .1  4.6 2.3 .08  3.4 3.4 .06
-5.3 | 2.4 4.1 .06  3.6 3.5 .1  4.7 2.0 .1  4.9 .2 .08  4.5 1.5 .06
-6.0 | 3.4 3.6 .06  4.1 2.9 .1  4.7 1.7 .1  4.9 .3 .08  4.4 1.3 .06
"""

LATERAL_VENTRICLE = """
 2.2 | 1.2 2.5 .04  1.1 2.2 .05  1.1 1.9 .05  1.1 1.6 .04  1.1 1.3 .03
 1.5 | 1.2 2.6 .14  1.1 2.3 .15  1.05 1.9 .14  1.05 1.6 .12  1.05 1.2 .07
 1.0 | 1.5 2.9 .16  1.2 2.6 .2  1.1 2.1 .16  1.05 1.6 .12  1.1 1.0 .07
 0.0 | 1.9 3.6 .14  1.5 3.3 .26  1.3 2.8 .2  1.25 2.2 .15  1.3 1.5 .1
-0.5 | 2.4 3.8 .14  1.8 3.5 .3  1.5 3.0 .25  1.5 2.3 .2  1.4 1.4 .15
-1.0 | 2.8 3.8 .14  2.3 3.6 .28  1.7 3.5 .28  1.4 3.3 .2  1.1 3.2 .12
-1.5 | 3.5 3.6 .12  3.0 3.7 .26  2.5 3.8 .22  2.0 3.9 .14  1.7 3.9 .08
-2.0 | 4.0 3.2 .12  3.7 3.5 .2  3.4 3.8 .2  3.1 4.0 .12  2.9 4.1 .08
-2.5 | 4.5 2.7 .12  4.4 3.0 .18  4.2 3.3 .2  4.0 3.6 .12  3.7 3.8 .06
-3.0 | 4.9 2.2 .14  4.9 2.6 .15  4.8 2.9 .18  4.6 3.2 .12  4.4 3.5 .06
-3.5 | 4.4 -.9 .22  4.9 0 .18  5.2 1.0 .14  5.2 2.0 .14  5.1 2.7 .1
-4.0 | 4.3 -1.2 .26  5.1 -.5 .2  5.5 .5 .18  5.6 1.4 .15  5.6 2.1 .1
-4.6 | 4.6 -1.5 .16  5.3 -.9 .12  5.8 0 .1  6.0 .9 .08  6.0 1.6 .06
-5.2 | 5.3 -1.4 .06  5.7 -.9 .06  6.0 -.3 .06  6.2 .5 .05  6.2 1.2 .04
"""

FIMBRIA = """
-0.4 | 0 2.4 .25  .4 2.4 .3  .8 2.3 .25  1.0 2.1 .15
-1.0 | 0 2.9 .18  .9 2.9 .22  1.7 2.8 .28  2.2 2.5 .25
-1.5 | .2 3.2 .1  1.4 3.4 .2  2.5 3.3 .28  3.2 2.7 .25
-2.0 | 2.4 3.7 .08  3.0 3.5 .2  3.5 3.1 .28  3.8 2.6 .22
-3.0 | 4.2 3.1 .08  4.5 2.8 .2  4.7 2.3 .22  4.8 1.8 .16
-3.8 | 5.0 2.2 .06  5.1 1.8 .14  5.2 1.2 .14  5.1 .6 .1
-4.3 | 5.3 1.8 .04  5.3 1.4 .05  5.3 .9 .05  5.2 .5 .04
"""

INTERNAL_CAPSULE = """
 0.0 | 2.4 2.2 .04  2.4 1.8 .06  2.4 1.3 .06  2.3 .9 .04
-0.6 | 2.4 2.6 .1  2.2 1.9 .2  2.1 1.2 .2  2.0 .4 .1
-1.0 | 2.8 2.6 .2  2.5 1.8 .3  2.4 1.2 .28  2.2 .4 .15
-1.5 | 3.5 2.7 .2  3.6 1.7 .32  3.2 .6 .3  2.4 -.4 .2
-2.0 | 4.0 2.7 .2  4.0 1.6 .34  3.5 .4 .3  2.5 -.8 .22
-2.5 | 4.5 2.3 .2  4.4 1.4 .34  3.7 .2 .3  2.6 -1.3 .22
-3.0 | 4.7 2.2 .2  4.6 1.3 .34  3.8 -.1 .28  2.6 -1.5 .24
-3.5 | 4.8 2.4 .18  4.8 1.3 .3  4.1 -.2 .26  2.6 -1.7 .25
-4.0 | 4.8 2.0 .18  4.8 .9 .26  4.1 -.4 .26  2.7 -1.7 .26
-4.6 | 4.5 1.0 .12  4.2 -.1 .2  3.5 -.9 .26  2.6 -1.7 .28
-5.2 | 3.9 .3 .08  3.6 -.5 .2  3.2 -1.0 .28  2.4 -1.7 .28
-6.0 | 3.2 -.6 .15  2.9 -1.0 .28  2.5 -1.4 .3  1.9 -1.8 .25
-7.0 | 2.4 -2.0 .2  2.0 -2.2 .3  1.6 -2.4 .3  1.2 -2.5 .2
"""

# The third ventricle is a slit around the massa intermedia: its outline in the midsagittal plane, as y z points.
THIRD_VENTRICLE = (
    "-0.75 1.6  -1.3 2.4  -2.2 2.75  -3.2 2.85  -4.1 3.1  -4.8 3.1  -5.0 2.5  -4.7 1.5  "
    "-4.7 0.3  -4.5 -0.9  -4.0 -1.8  -3.3 -2.5  -2.2 -2.4  -1.2 -2.3  -0.7 -1.6  -0.55 -0.4  "
    "-0.5 0.7"
)


# Between the hemispheres, down to the callosum: y z points in the midsagittal plane.
LONGITUDINAL_FISSURE = (
    "6.9 7.5  6.9 -1.6  3.2 -1.2  2.6 1.5  1.6 3.0  0.0 3.9  -2.0 4.7  -5.0 5.2  -6.0 4.0  -9.5 4.0  -9.5 7.5"
)


def olfactory_bulbs(canvas: Canvas, bulb: Shape) -> None:
    """Paint the bulbs: nerve and glomerular layer, plexiform layer, and a granular core with its white centre."""
    depth = bulb.d
    rings = 1 - 0.03 * band(depth, 0.0, 0.3) + 0.04 * band(depth, 0.35, 0.65) - 0.03 * band(depth, 0.65, 0.8)
    white = 0.08 + 0.17 * band(depth, 0.95, 9.0) + 0.2 * band(depth, -1, 0.15)
    canvas.paint(bulb, {"olfactory": 1 - white, "white": white}, "olfactory bulb", rings)


def cortex(canvas: Canvas, hemisphere: Shape) -> None:
    """Paint the hemispheres as cortex, with the faint laminar contrast of T2*-weighted images."""
    depth = hemisphere.d
    # Layer I holds little iron and myelin and is bright; layer IV and the deep layers are darker.
    laminae = 1 + 0.04 * band(depth, -1, 0.2) - 0.02 * band(depth, 0.65, 0.95)
    myelin = 0.04 + 0.16 * ((depth - 0.3) / 1.2).clamp(0, 1)
    canvas.paint(hemisphere, {"cortex": 1 - myelin, "white": myelin}, "cortex", laminae)


def deep_structures(canvas: Canvas, hemisphere: Tensor) -> None:
    """Paint everything inside the hemispheres, from basal grey to white matter and ventricles."""
    x, y, z = canvas.grid()
    inside = hemisphere - 0.1

    # Basal forebrain, septum, hypothalamus and amygdala: grey that is not cortex.
    grey = {"grey": 0.82, "white": 0.18}
    canvas.paint(canvas.ellipsoid((0, 0.6, 1.4), (1.15, 1.5, 1.7)).cut(inside).feather(0.5), grey, "septum")
    canvas.paint(canvas.ellipsoid((0, -2.2, -2.0), (2.4, 3.0, 1.6)).cut(inside).feather(0.5), grey, "hypothalamus")
    canvas.paint(canvas.ellipsoid((4.8, -2.6, -1.7), (1.4, 1.9, 1.2)).cut(inside).feather(0.5), grey, "amygdala")

    striatum = canvas.loft(STRIATUM).cut(inside)
    bx, by, bz = canvas.grid(striatum.box)
    # Fascicles of the internal capsule pierce the caudate-putamen as dark points, denser towards the pallidum.
    warp = 1.2 * torch.sin(1.9 * bx - 1.3 * bz + 0.8 * by)
    points = (torch.sin(8.3 * bx + 2 * by + warp) * torch.sin(7.1 * bz - 3 * by - warp)).clamp(min=0) ** 2
    share = 0.1 + 0.3 * points * (0.4 + 0.6 * ((1.5 - by) / 3).clamp(0, 1))
    canvas.paint(striatum, {"striatum": 1 - share, "white": share}, "striatum")
    pallidum = canvas.tube("2.6 -0.4 0.4 0.3  3.2 -1.2 0.5 0.75  4.0 -2.2 0.4 0.4")
    canvas.paint(pallidum.cut(inside).feather(0.5), {"striatum": 0.5, "white": 0.5}, "globus pallidus")

    thalamus = canvas.loft(THALAMUS, midline=True).cut(inside)
    bx, by, bz = canvas.grid(thalamus.box)
    # Myelin rises from the midline nuclei to the ventral posterior and reticular nuclei.
    side = ((bx - 0.4 - 0.25 * (bz - 1)) / 3.2).clamp(0, 1).expand(thalamus.d.shape)
    core, white = 0.25 + 0.35 * side, 0.25 * side
    canvas.paint(thalamus, {"thalamus": 1 - core - white, "core": core, "white": white}, "thalamus")
    for at in ((1.2, -3.4, 2.2), (2.9, -3.2, 1.3), (2.9, -4.7, 2.2)):  # anterior-dorsal, ventrobasal, geniculate
        canvas.shade(canvas.ellipsoid(at, (0.8, 1.1, 0.8)).feather(0.4), 1.05)

    canvas.paint(canvas.loft(INTERNAL_CAPSULE, ribbon=True).cut(inside), "white", "internal capsule")
    hippocampus(canvas, inside)
    canvas.paint(canvas.loft(CALLOSUM, ribbon=True).grow(0.03).cut(inside), "white", "corpus callosum")
    cingulum = canvas.tube("1.1 1.5 3.7 0.15  1.1 -1.0 4.4 0.2  1.1 -5.0 5.1 0.2")
    canvas.paint(cingulum, {"white": 0.7, "cortex": 0.3})
    canvas.paint(canvas.loft(FIMBRIA, ribbon=True).cut(inside), "white", "fimbria")
    tracts(canvas, inside)
    ventricles(canvas, inside)


def hippocampus(canvas: Canvas, inside: Tensor) -> None:
    """Paint the hippocampal formation with its layers."""
    shape = canvas.loft(HIPPOCAMPUS).cut(inside)
    # Alveus, stratum oriens, pyramidal cell layer, stratum radiatum: shells under the outer surface.
    alveus = 0.5 * band(shape.d, -1, 0.12)
    layers = 1 + 0.02 * band(shape.d, 0.12, 0.28) - 0.04 * band(shape.d, 0.3, 0.42) + 0.01 * band(shape.d, 0.45, 9)
    canvas.paint(shape, {"hippocampus": 1 - alveus, "white": alveus}, "hippocampus", layers)
    field = canvas.field(shape)
    canvas.shade(canvas.loft(FISSURE, ribbon=True).cut(field), 1.08)
    canvas.shade(canvas.loft(DENTATE, ribbon=True).cut(field), 0.93)


def tracts(canvas: Canvas, inside: Tensor) -> None:
    """Paint the compact fibre tracts: commissures, fornix, optic and olfactory tracts, mammillothalamic tract."""
    bundles = {
        "anterior commissure": (
            "2.1 5.2 0.6 0.3  1.9 3.0 -0.1 0.28  1.9 1.2 -0.4 0.26  1.4 0.3 -0.1 0.24  "
            "0.6 0.0 0.1 0.24  -0.6 0.0 0.1 0.24"
        ),
        "anterior commissure, temporal limb": "1.0 0.0 0.0 0.2  2.6 -0.4 -0.5 0.14  4.2 -0.9 -0.9 0.08",
        "fornix": "0.5 -0.5 2.1 0.3  0.5 -0.6 0.8 0.25  0.6 -1.6 -0.8 0.2  0.6 -4.0 -2.0 0.15",
        "mammillothalamic tract": "0.9 -2.2 1.2 0.14  0.9 -3.4 -0.6 0.16  0.6 -4.3 -2.0 0.18",
        "stria medullaris": "0.6 -1.0 2.0 0.12  0.6 -2.0 2.8 0.18  0.5 -3.6 2.9 0.18",
        "fasciculus retroflexus": "0.5 -3.8 2.6 0.15  0.6 -4.6 0.5 0.15  0.4 -5.6 -1.2 0.12",
        "optic tract": (
            "-0.5 0.4 -2.7 0.3  0.5 -0.2 -2.75 0.3  1.6 -1.2 -2.7 0.25  2.6 -2.2 -2.1 0.22  "
            "3.6 -3.2 -0.9 0.2  4.5 -4.0 0.6 0.2  4.4 -4.6 1.8 0.15"
        ),
        "lateral olfactory tract": (
            "2.1 6.2 1.0 0.18  3.3 4.6 0.1 0.16  3.7 2.5 -1.1 0.16  4.3 0.8 -2.1 0.14  4.6 -0.8 -2.7 0.08"
        ),
    }
    for name, points in bundles.items():
        canvas.paint(canvas.tube(points).cut(inside + 0.1), "white", name)


def ventricles(canvas: Canvas, inside: Tensor) -> None:
    """Paint lateral and third ventricles and the foramina between them."""
    canvas.paint(canvas.loft(LATERAL_VENTRICLE, ribbon=True).cut(inside), "csf", "lateral ventricle")
    canvas.paint(canvas.tube("1.35 -0.6 1.7 0.16  0.7 -0.8 1.8 0.16  -0.3 -0.9 1.9 0.16"), "csf", "third ventricle")
    slit = canvas.slab(THIRD_VENTRICLE, half_width=0.13)
    by, bz = canvas.grid(slit.box)[1:]
    massa = 1.0 - (((by + 2.75) / 1.85) ** 2 + ((bz - 0.7) / 1.8) ** 2).sqrt()
    canvas.paint(Shape(slit.box, torch.minimum(slit.d, -1.7 * massa), slit.limit), "csf", "third ventricle")
    roof = canvas.tube("0 -1.6 2.75 0.12  0 -3.0 2.9 0.22  0 -4.2 3.1 0.32  0 -4.9 3.0 0.22")
    canvas.paint(roof, "csf", "third ventricle")


def band(depth: Tensor, near: float, far: float) -> Tensor:
    """1 between two depths (mm), falling to 0 over 0.1 mm on either side, [0, 1]."""
    return ((depth - near) / 0.1 + 0.5).clamp(0, 1) * ((far - depth) / 0.1 + 0.5).clamp(0, 1)
