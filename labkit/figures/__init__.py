"""Figures of cohorts: every function takes scans and gives back a matplotlib figure, in mm, sides named.

All figures are static: they look the same in a live notebook, in an executed copy and in the built book, and need no
script from anywhere.
"""

from labkit.figures.slices import mean_and_sd, one_slice, slice_series, three_planes
from labkit.figures.statistics import dorsal_ventral_profile, intensity_histograms, split_diagram, tissue_volumes
from labkit.figures.style import PLANES, intensity_window
from labkit.figures.transforms import augmentations

__all__ = [
    "PLANES",
    "augmentations",
    "dorsal_ventral_profile",
    "intensity_histograms",
    "intensity_window",
    "mean_and_sd",
    "one_slice",
    "slice_series",
    "split_diagram",
    "three_planes",
    "tissue_volumes",
]
