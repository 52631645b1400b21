"""Generators that learned nothing, to be measured beside those that did.

What they reach a model has to beat: a mean with noise, a Gaussian over voxels, and the training animals themselves
under random warps, which is no generator of animals but an augmentation.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from labkit.data.augment import elastic
from labkit.data.cohort import Cohort, Scan, scan_digest
from labkit.evidence.sample import one_scan_an_animal
from labkit.registration import noise_level

CONTROLS = ("mean", "Gaussian", "warped")
"""Their names."""


def controls(train: Cohort, n: int, seed: int = 0) -> dict[str, Cohort]:
    """Cohorts in memory of `n` scans each, by name, made of the first scan of each training animal.

    ``mean`` is that of all training scans with the scanner's noise
    (:func:`labkit.registration.noise_level`: none where it cannot be told, as around brains that were cut out),
    ``Gaussian`` samples of the Gaussian with their mean and covariance, ``warped`` scans drawn with replacement under
    :func:`labkit.data.augment.elastic` warps. Each has the intensity range of one of the scans.

    Examples
    --------
    >>> made = controls(rats, 4)
    >>> [len(cohort) for cohort in made.values()]
    [4, 4, 4]
    """
    scans = list(one_scan_an_animal(train))
    unit = torch.stack([torch.from_numpy(np.array(_in_unit(scan)))[None] for scan in scans])
    rng = torch.Generator().manual_seed(seed)
    mean = unit.mean(0, keepdim=True)
    noise, _ = noise_level(unit)
    real, imaginary = (noise * torch.randn(n, *unit.shape[1:], generator=rng) for _ in range(2))
    clean = (mean.square() - torch.pi / 2 * noise**2).clamp_min(0).sqrt()
    weights = torch.randn(n, len(unit), generator=rng) / max(1, len(unit) - 1) ** 0.5
    chosen = torch.randint(len(unit), (n,), generator=rng)
    made = (
        torch.hypot(clean + real, imaginary),
        mean + torch.einsum("ni,i...->n...", weights, unit - mean),
        torch.cat([elastic(part, None, rng)[0] for part in unit[chosen].split(8)]),
    )
    like = [scans[place] for place in chosen.tolist()]
    return {name: in_memory(name, train, like, volumes) for name, volumes in zip(CONTROLS, made, strict=True)}


def _in_unit(scan: Scan) -> np.ndarray:
    return (scan.image - scan.origin.low) / (scan.origin.high - scan.origin.low)  # no scan is constant


def in_memory(name: str, train: Cohort, like: list[Scan], unit: Tensor) -> Cohort:
    """Scans (N, 1, X, Y, Z) in [0, 1] as a cohort in memory, each with the intensity range of one of `like`."""
    scans = []
    for place, (scan, volume) in enumerate(zip(like, unit.clamp(0, 1)[:, 0].numpy(), strict=True)):
        image = (scan.origin.low + volume * (scan.origin.high - scan.origin.low)).astype(np.float32)
        origin = replace(scan.origin, path="made, not read")  # of a generated file its IntensityRange would be taken
        digest = scan_digest(image, None, scan.affine)
        subject = f"control{place:04d}"
        scans.append(replace(scan, subject=subject, session="", image=image, labels=None, origin=origin, digest=digest))
    return Cohort(name, train.folder, scans)
