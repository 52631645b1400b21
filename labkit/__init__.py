"""labkit: cohorts, 3-D alpha-GANs and evidence for the study of synthetic rat brain MRI.

Everything is a cohort, and a cohort is a folder of NIfTI files. Names load on first use, so that importing labkit is
quick, downloads nothing and needs no GPU.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_WHERE = {
    "open_cohort": "labkit.data.sources",
    "CohortError": "labkit.data.folders",
    "NAMED": "labkit.data.sources",
    "SIMULATED": "labkit.data.sources",
    "Cohort": "labkit.data.cohort",
    "Scan": "labkit.data.cohort",
    "Augmentation": "labkit.data.augment",
    "train": "labkit.training",
    "generate": "labkit.generation",
    "encode": "labkit.generation",
    "decode": "labkit.generation",
    "reconstruct": "labkit.generation",
    "interpolate": "labkit.generation",
    "export_page": "labkit.widgets.rat",
    "card": "labkit.recording",
    "compare": "labkit.evidence.metrics.compare",
    "segment": "labkit.evidence.segmentation.segment",
    "load_run": "labkit.runs",
    "Run": "labkit.runs",
    "RunError": "labkit.runs",
    "resolve": "labkit.variants",
    "VARIANTS": "labkit.variants",
    "SCALES": "labkit.variants",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"labkit has no {name!r}; it has {', '.join(sorted(__all__))}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
