"""How real synthetic scans are: values with intervals, always beside what two sets of real scans give.

:mod:`~labkit.metrics.paired` for reconstructions, :mod:`~labkit.metrics.similarity` for pairs within a cohort,
:mod:`~labkit.metrics.distributions` for cohorts against each other on the features of
:mod:`~labkit.metrics.embeddings`, :mod:`~labkit.metrics.memorisation` for copies. Scans are in [0, 1] throughout.
"""
