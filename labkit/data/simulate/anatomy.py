"""What a rat head is made of: tissues with their MR properties, and maps of where each one is.

Both anatomies of the study, the procedural phantom and the SIGMA maps, are an :class:`Anatomy`; everything
downstream (individual variation, scanner) knows only this class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from labkit.data.labels import BACKGROUND, CSF, GREY, WHITE


@dataclass(frozen=True)
class Tissue:
    """MR properties of one tissue at 11.7 T."""

    label: int  # segmentation label it counts as: 0 background (not brain), 1 CSF, 2 grey, 3 white matter
    density: float  # of protons, relative to free water, [0, 1]
    t1_ms: float  # longitudinal relaxation time
    t2star_ms: float  # effective transverse relaxation time


# T1 at 11.7 T after de Graaf et al. 2006 (Magn Reson Med 56:386, 4.0/9.4/11.7 T, rat brain in vivo) and Pohmann et
# al. 2011 (Magn Reson Med 66:1572, 16.4 T: T1 2272 ms cortex, 2073 ms white matter; T2 25 and 20 ms), which bracket
# the field from below and above. T2* lies under those T2; inside grey matter the order (cortex and hippocampus longer
# than thalamus and brainstem, white matter shortest) is theirs, the exact numbers are this study's choice. CSF and the
# eye are nearly free water, whose T1 does not depend on the field: 4.3 s for CSF in vivo (Rooney et al. 2007, Magn
# Reson Med 57:308, 0.2 to 7 T).
TISSUE_PROPERTIES: dict[str, Tissue] = {
    "csf": Tissue(CSF, 1.00, 4300.0, 60.0),
    "cortex": Tissue(GREY, 0.82, 1880.0, 24.0),
    "hippocampus": Tissue(GREY, 0.83, 1900.0, 25.0),
    "striatum": Tissue(GREY, 0.81, 1800.0, 22.0),
    "thalamus": Tissue(GREY, 0.79, 1720.0, 20.0),
    "brainstem": Tissue(GREY, 0.78, 1700.0, 19.5),
    "cerebellum": Tissue(GREY, 0.82, 1850.0, 22.0),
    "olfactory": Tissue(GREY, 0.83, 1950.0, 23.0),
    "grey": Tissue(GREY, 0.81, 1830.0, 22.5),
    "white": Tissue(WHITE, 0.70, 1650.0, 17.0),
    # Thalamus and brainstem where tissue maps count them as white matter: fibre-rich, but no bundle.
    "core": Tissue(WHITE, 0.78, 1700.0, 20.0),
    "muscle": Tissue(BACKGROUND, 0.75, 1900.0, 11.0),
    # EPI suppresses fat; what is left of subcutaneous fat, gland and skin is this faint, watery part.
    "skin": Tissue(BACKGROUND, 0.30, 1500.0, 10.0),
    "bone": Tissue(BACKGROUND, 0.10, 1000.0, 1.0),
    "eye": Tissue(BACKGROUND, 0.98, 4300.0, 45.0),
}


@dataclass(frozen=True)
class Anatomy:
    """One rat head as tissue fractions on a fine grid, whose axes run right, superior, anterior."""

    name: str  # "phantom" or "sigma"; part of the name of every cohort made from it
    tissues: tuple[str, ...]  # keys of TISSUE_PROPERTIES, one per channel of `maps`
    maps: torch.Tensor  # float32 (T, X, Y, Z), volume fractions in [0, 1]; what their sum lacks to 1 is air
    # float32 (X, Y, Z), fraction of air enclosed by the head (ear canals, bullae, nasal cavity), not around it: the
    # sources of susceptibility drop-out and distortion
    air: torch.Tensor
    affine: np.ndarray  # (4, 4), voxel index to mm (right, anterior, superior world axes, as in NIfTI)
    # world position on which the field of view is centred and about which an animal's pose turns
    centre_mm: tuple[float, float, float]
    sources: tuple[str, ...]  # citations; written to every data set made from it
    # float32 (X, Y, Z), mean 1: factor on the signal for detail that the fractions lack
    texture: torch.Tensor | None = None

    def label_maps(self) -> torch.Tensor:
        """Fractions of the three labels CSF, grey and white matter: float32 (3, X, Y, Z)."""
        labels = torch.tensor([TISSUE_PROPERTIES[name].label for name in self.tissues])
        return torch.stack([self.maps[labels == label].sum(0) for label in (CSF, GREY, WHITE)])
