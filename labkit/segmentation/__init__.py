"""Does synthetic data help? A segmentation network trained with and without it, so that the answer can be believed.

:mod:`~labkit.segmentation.network` is the U-Net and its training, :mod:`~labkit.segmentation.scores` what is measured
on an animal, :mod:`~labkit.segmentation.labels` where synthetic scans get labels from,
:mod:`~labkit.segmentation.arms` the training sets, :mod:`~labkit.segmentation.experiment` their folders,
:mod:`~labkit.segmentation.evidence` the statistics, and :mod:`~labkit.segmentation.native` labels for one's own scans.
"""
