"""Does synthetic data help? A segmentation network trained with and without it, so that the answer can be believed.

:mod:`~labkit.evidence.segmentation.network` is the U-Net, its training, and the labels that it gives synthetic scans;
:mod:`~labkit.evidence.segmentation.scores` what is measured on an animal, :mod:`~labkit.evidence.segmentation.arms` the
training sets, :mod:`~labkit.evidence.segmentation.experiment` their folders,
:mod:`~labkit.evidence.segmentation.gains` the statistics, :mod:`~labkit.evidence.segmentation.reliability` what the
networks make of synthetic scans, :mod:`~labkit.evidence.segmentation.registered` labels without a network, and
:mod:`~labkit.evidence.segmentation.segment` labels for one's own scans.
"""
