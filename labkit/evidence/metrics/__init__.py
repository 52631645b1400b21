"""How real synthetic scans are: values with intervals, always beside what two sets of real scans give.

:mod:`~labkit.evidence.metrics.paired` for reconstructions, :mod:`~labkit.evidence.metrics.similarity` for pairs within
a cohort, :mod:`~labkit.evidence.metrics.distributions` for cohorts against each other on the features of
:mod:`~labkit.evidence.metrics.embeddings`, :mod:`~labkit.evidence.metrics.memorisation` for copies. Scans are in [0, 1]
throughout.
"""
