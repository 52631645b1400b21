"""Figures of cohorts and runs. Scans come in mm with their sides named.

Figures are static: they look the same in a live notebook, in an executed copy and in the built book, and need no script
from anywhere. The one exception, :func:`loss_curves`, carries a still picture of itself.
"""

from labkit.figures.learning import code_statistics, loss_curves, reconstructions, samples_over_time
from labkit.figures.slices import mean_and_sd, one_slice, slice_series, three_planes
from labkit.figures.statistics import dorsal_ventral_profile, intensity_histograms, split_diagram, tissue_volumes
from labkit.figures.style import PLANES, intensity_window
from labkit.figures.transforms import augmentations

__all__ = [
    "PLANES",
    "augmentations",
    "code_statistics",
    "dorsal_ventral_profile",
    "intensity_histograms",
    "intensity_window",
    "loss_curves",
    "mean_and_sd",
    "one_slice",
    "reconstructions",
    "samples_over_time",
    "slice_series",
    "split_diagram",
    "three_planes",
    "tissue_volumes",
]
