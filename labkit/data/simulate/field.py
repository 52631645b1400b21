"""Where the magnetic field is off: air inside and around the head, as far as the shim cannot mend it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

GYROMAGNETIC_MHZ_PER_T = 42.577
# Volume susceptibility, SI: air +0.36, tissue near water -9.05 ppm (Schenck 1996, Med Phys 23:815).
AIR_LESS_TISSUE_PPM = 9.4


def field_map(solid: torch.Tensor, brain: torch.Tensor, spacing_mm: tuple[float, ...], b0_tesla: float) -> torch.Tensor:
    """Off-resonance, Hz, float32 (X, Y, Z), of a shimmed head whose long axis lies along the magnet's bore.

    Every voxel that holds air shifts the field around it like a dipole; the sum over all is one multiplication in
    k-space (Salomir et al. 2003, Concepts Magn Reson B 19:26; Marques & Bowtell 2005, ibid. 25:65). The shim is the
    second-order polynomial that fits the field in the brain best, and is taken away.

    `solid` (X, Y, Z) is the fraction that is tissue rather than air, axes right, superior, anterior; the head is taken
    to go on past the edges as it is there. `brain` (X, Y, Z) is each voxel's weight in the shim. The field of
    `b0_tesla` points along the third axis, as in a horizontal-bore animal magnet.
    """
    reach = 16
    padded = F.pad((1 - solid)[None, None], (reach,) * 6, mode="replicate")[0, 0]
    kx, ky, kz = torch.meshgrid(
        *(torch.fft.fftfreq(n, d, device=solid.device) for n, d in zip(padded.shape, spacing_mm, strict=True)),
        indexing="ij",
    )
    square = kx**2 + ky**2 + kz**2
    square[0, 0, 0] = 1
    dipole = 1 / 3 - kz**2 / square
    dipole[0, 0, 0] = 0
    ppm = AIR_LESS_TISSUE_PPM * torch.fft.ifftn(torch.fft.fftn(padded) * dipole).real
    hz = GYROMAGNETIC_MHZ_PER_T * b0_tesla * ppm[reach:-reach, reach:-reach, reach:-reach]
    return _into_air(hz - _shim(hz, brain), solid)


def _into_air(field: torch.Tensor, solid: torch.Tensor) -> torch.Tensor:
    """Continue the tissue's field into the air, whose own field no water feels but interpolation would pick up."""
    tissue = (solid > 0.8).to(field.dtype)
    both = torch.stack([field * tissue, tissue])
    for _ in range(3):
        both = F.avg_pool3d(F.pad(both, (1,) * 6, mode="replicate"), 3, 1)
    return torch.where(tissue > 0, field, both[0] / both[1].clamp(min=1e-3))


def _shim(field: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Second-order polynomial closest to a field, in the least squares of the weighted voxels."""
    axes = [torch.linspace(-1, 1, n, device=field.device) for n in field.shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    terms = torch.stack([torch.ones_like(x), x, y, z, x * x, y * y, z * z, x * y, y * z, x * z], -1)
    terms, target, weight = terms.flatten(0, 2).double(), field.flatten().double(), weight.flatten().double()
    normal, wanted = terms.T @ (terms * weight[:, None]), terms.T @ (target * weight)
    # Without any brain there is nothing to shim on. Rounding hides what the order of a sum changes, so that the same
    # head has the same field bit for bit, wherever its arrays lie in memory.
    unity = torch.eye(len(normal), dtype=normal.dtype, device=normal.device)
    solution = torch.linalg.solve(normal + 1e-6 * unity, wanted).round(decimals=4)
    return (terms @ solution).unflatten(0, field.shape).round(decimals=4).to(field.dtype)
