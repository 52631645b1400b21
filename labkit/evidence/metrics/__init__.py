"""How real synthetic scans are: values with intervals, always beside what two sets of real scans give.

:mod:`~labkit.evidence.metrics.similarity` is of pairs of scans, :mod:`~labkit.evidence.metrics.distributions` of
cohorts, on the features of :mod:`~labkit.evidence.metrics.embeddings`, and
:mod:`~labkit.evidence.metrics.memorisation` looks for copies. Scans are in [0, 1] throughout.
"""
