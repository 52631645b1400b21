"""Figures of cohorts and runs. Scans come in mm with their sides named.

Figures are static: they look the same in a live notebook, in an executed copy and in the built book, and need no script
from anywhere. The exceptions bring their own: :func:`loss_curves` carries a still picture of itself, and
:func:`viewer`, :func:`direction_cards` and :func:`fault_cards` are pictures under a slider of the page's own.
"""

from labkit.evidence.brightness import intensity_window
from labkit.figures.histograms import dorsal_ventral_profile, intensity_histograms, split_diagram, tissue_volumes
from labkit.figures.judging import (
    confidence_and_learning,
    judged_scans,
    preference_strengths,
    rater_scores,
    rating_marks,
    result_figures,
)
from labkit.figures.learning import code_statistics, loss_curves, reconstructions, samples_over_time
from labkit.figures.pairs import (
    cohort_sheet,
    contact_sheet,
    mean_and_variance,
    reconstruction_errors,
    slice_pairs,
    viewer,
)
from labkit.figures.quality import (
    attribute_distributions,
    copy_distances,
    embedding_map,
    fault_cards,
    fault_map,
    similarity_distributions,
    triplets,
)
from labkit.figures.segmentation import (
    dose_response,
    experiment_design,
    gains,
    learning_curve,
    low_data,
    predictions,
    teacher_labels,
)
from labkit.figures.slices import lies_otherwise, mean_and_sd, one_slice, slice_series, three_planes
from labkit.figures.style import PLANES, plane_called
from labkit.figures.sweeps import by_arm, parallel_coordinates, point_samples
from labkit.figures.transforms import augmentations
from labkit.figures.traversals import direction_cards, effects, film_strip, traversals

__all__ = [
    "PLANES",
    "attribute_distributions",
    "augmentations",
    "by_arm",
    "code_statistics",
    "cohort_sheet",
    "confidence_and_learning",
    "contact_sheet",
    "copy_distances",
    "direction_cards",
    "dorsal_ventral_profile",
    "dose_response",
    "effects",
    "embedding_map",
    "experiment_design",
    "fault_cards",
    "fault_map",
    "gains",
    "learning_curve",
    "film_strip",
    "intensity_histograms",
    "intensity_window",
    "judged_scans",
    "lies_otherwise",
    "loss_curves",
    "low_data",
    "mean_and_sd",
    "mean_and_variance",
    "one_slice",
    "parallel_coordinates",
    "plane_called",
    "point_samples",
    "predictions",
    "preference_strengths",
    "rater_scores",
    "rating_marks",
    "reconstruction_errors",
    "reconstructions",
    "result_figures",
    "samples_over_time",
    "similarity_distributions",
    "slice_pairs",
    "slice_series",
    "split_diagram",
    "three_planes",
    "teacher_labels",
    "tissue_volumes",
    "traversals",
    "triplets",
    "viewer",
]
