"""Simulated rat brain MRI: anatomy x individual x scanner."""

from .anatomy import TISSUE_PROPERTIES, Anatomy, Tissue
from .individual import Individual
from .library import ANATOMIES, load_anatomy, parameters
from .scanner import Scanner
from .sigma import sigma_anatomy
from .simulation import SimulatedRat, simulate

__all__ = [
    "ANATOMIES", "TISSUE_PROPERTIES", "Anatomy", "Individual", "Scanner", "SimulatedRat", "Tissue",
    "load_anatomy", "parameters", "sigma_anatomy", "simulate",
]  # fmt: skip
