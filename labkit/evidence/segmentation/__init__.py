"""Does synthetic data help? A segmentation network trained with and without it, so that the answer can be believed.

:mod:`~labkit.evidence.segmentation.network` is the U-Net and its training, :mod:`~labkit.evidence.segmentation.scores`
what is measured on an animal, :mod:`~labkit.evidence.segmentation.labels` where synthetic scans get labels from,
:mod:`~labkit.evidence.segmentation.arms` the training sets, :mod:`~labkit.evidence.segmentation.experiment` their
folders, :mod:`~labkit.evidence.segmentation.gains` the statistics, and :mod:`~labkit.evidence.segmentation.segment`
labels for one's own scans.
"""
