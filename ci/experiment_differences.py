"""What the released code's departures from the paper do, measured one by one on small cases.

    python ci/experiment_differences.py [--cohort sigma] [--n 36]

Writes table.md, measured.json and provenance.json to book/reference/differences. Minutes on a CPU; no trained model is
needed. Networks are those of ci/reference_step.py, the published loop written plainly.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import reference_step
import torch
from monai.data import DataLoader as SeededLoader
from monai.transforms import RandScaleIntensity
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import labkit
from labkit import losses, networks
from labkit.cohort import Cohort
from labkit.metrics import paired, similarity
from labkit.metrics.sample import Sample

OUT = Path(__file__).resolve().parents[1] / "book" / "reference" / "differences"
ITERATIONS = 50
"""Of the small trainings."""

Row = tuple[dict[str, float], str]
"""Numbers, and the sentence that says them."""


def swapped_files(cohort: Cohort, scale: str = "paper") -> Row:
    """Shapes of the networks for scans do not tell the two models apart; their norms do."""
    found: dict[str, float] = {}
    shapes = []
    for model in ("sigmarat1", "sigmarat2"):
        parts = reference_step.build(labkit.VARIANTS[model], labkit.SCALES[scale])
        layers = [layer for network in parts for layer in network.modules()]
        found[f"{model}, spectral norms"] = sum(hasattr(layer, "parametrizations") for layer in layers)
        found[f"{model}, instance norms"] = sum(isinstance(layer, torch.nn.InstanceNorm3d) for layer in layers)
        # a spectral norm changes the order in which a layer lists its weight and bias
        shapes.append([sorted(p.shape for p in network.parameters()) for network in (parts.E, parts.G, parts.D)])
    found["same shapes"] = float(shapes[0] == shapes[1])
    spectral, instance = ([found[f"{model}, {kind} norms"] for model in ("sigmarat1", "sigmarat2")]
                          for kind in ("spectral", "instance"))  # fmt: skip
    return found, (
        f"The weights of G, D and E have {'the same' if found['same shapes'] else 'other'} shapes in both models. "
        f"SigmaRat1 has {spectral[0]:.0f} spectral and {instance[0]:.0f} instance norms, "
        f"SigmaRat2 {spectral[1]:.0f} and {instance[1]:.0f}."
    )


def gdl_weight(cohort: Cohort) -> Row:
    """How hard the two terms of equation 6 pull at a reconstruction, voxel by voxel."""
    found: dict[str, float] = {}
    variant = labkit.VARIANTS["sigmarat2"]
    for size in (32, 64):
        x = cohort.subset(range(4)).volumes(size)
        blurred = torch.nn.functional.avg_pool3d(x, 3, stride=1, padding=1)
        for gradient in (True, False):
            norms = {}
            for name, weight in variant.reconstruction_weights.items():
                y = blurred.clone().requires_grad_()
                terms = losses.reconstruction_terms(x, y, {name: weight}, "sum", gradient)
                norms[name] = 0.0
                if terms[name].requires_grad:
                    norms[name] = torch.autograd.grad(terms[name], y)[0].norm().item()
            found[f"{size}, {'with' if gradient else 'without'} gradient"] = norms["gdl"] / norms["mse"]
    return found, (
        f"The gradient of the literal sum is {found['32, with gradient']:.0f} times that of the MSE at 32³ and "
        f"{found['64, with gradient']:.0f} times at 64³ (a blurred reconstruction of four scans); as released it is "
        f"{found['64, without gradient']:.0f}."
    )


def two_steps(cohort: Cohort) -> Row:
    """How far G's weights come with one and with two optimiser steps on the same gradients."""
    moved = {steps: _moved(steps, ITERATIONS, cohort) for steps in (1, 2)}
    found = {"first iteration": moved[2][0] / moved[1][0], f"after {ITERATIONS}": moved[2][-1] / moved[1][-1]}
    return found, (
        f"G's weights move {found['first iteration']:.2f} times as far in the first iteration, and are "
        f"{found[f'after {ITERATIONS}']:.2f} times as far away after {ITERATIONS} (`smoke` scale)."
    )


def resuming(cohort: Cohort) -> Row:
    """The first update after a restart, with the optimisers' state and without."""
    variant, scale = labkit.resolve("sigmarat2", "smoke")
    scans = cohort.volumes(scale.size)
    jumps = {}
    for kept in (True, False):
        nets = reference_step.build(variant, scale)
        opts = reference_step.optimisers(nets, variant)
        for iteration in range(ITERATIONS):
            _iterate(nets, opts, variant, scale, scans, iteration)
        if not kept:
            opts = reference_step.optimisers(nets, variant)
        before = _weights(nets.G)
        _iterate(nets, opts, variant, scale, scans, ITERATIONS)
        jumps[kept] = (_weights(nets.G) - before).norm().item()
    found = {"first update": jumps[False] / jumps[True]}
    return found, (
        f"After {ITERATIONS} iterations (`smoke` scale) a restart without the optimisers' state moves G "
        f"{found['first update']:.1f} times as far in its first update as going on does."
    )


def new_iterators(cohort: Cohort) -> Row:
    """What a fresh iterator for every batch costs, and how often its workers draw the same."""
    animals, batch, workers = 210, 4, 2
    rng = np.random.default_rng(0)
    rounds = [{i for _ in range(-(-animals // batch)) for i in rng.permutation(animals)[:batch]} for _ in range(200)]
    found = {"unseen": 1 - float(np.mean([len(seen) for seen in rounds])) / animals}
    data = Scaled(64)
    for name, kind in (("torch", DataLoader), ("MONAI", SeededLoader)):
        loader = kind(data, batch_size=batch, shuffle=True, num_workers=workers)
        began = time.perf_counter()
        drawn = [round(float(value), 6) for _ in range(20) for value in next(iter(loader))]
        found[f"{name}, ms"] = 1000 * (time.perf_counter() - began) / 20
        found[f"{name}, distinct"] = len(set(drawn)) / len(drawn)
    iterator, began = iter(DataLoader(Scaled(400), batch_size=batch, num_workers=workers)), time.perf_counter()
    for _ in range(80):
        next(iterator)
    found["one iterator, ms"] = 1000 * (time.perf_counter() - began) / 80
    return found, (
        f"A batch takes {found['torch, ms']:.0f} ms to begin instead of {found['one iterator, ms']:.1f} ms, twice an "
        f"iteration; after as many batches as an epoch has, {found['unseen']:.0%} of the scans were not seen. "
        f"And with torch's own loader MONAI's random transforms begin anew every time: {found['torch, distinct']:.0%} "
        f"of the draws of 20 batches differ, with MONAI's loader {found['MONAI, distinct']:.0%}."
    )


def augmentation_before_scaling(cohort: Cohort) -> Row:
    """What is left of the intensity factor and of the noise once a scan is scaled by its own range."""

    def scaled(values: np.ndarray) -> np.ndarray:
        return 2 * (values - values.min()) / np.ptp(values) - 1

    rng = np.random.default_rng(0)
    factors, noises = [], []
    for scan in cohort.subset(range(4)):
        raw = np.asarray(scan.image, float)
        factors.append(np.abs(scaled(1.1 * raw) - scaled(raw)).max())
        noises.append((scaled(raw + rng.normal(0, 0.01, raw.shape)) - scaled(raw)).std() / 0.02)
    found = {"factor 1.1, largest change": float(max(factors)), "noise kept": float(np.mean(noises))}
    return found, (
        f"A factor of 1.1 changes no voxel by more than {found['factor 1.1, largest change']:.0e}; of the noise "
        f"{found['noise kept']:.1e} of what the paper's text asks for is left."
    )


def rotation_in_voxels(cohort: Cohort) -> Row:
    """How much a rotation in voxel units stretches a rat on a grid that is not isotropic."""
    zooms = np.diag(cohort[0].zooms)
    angle = 0.052
    rotation = np.eye(3)
    rotation[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    stretch = np.linalg.svd(zooms @ rotation @ np.linalg.inv(zooms), compute_uv=False)
    found = {"largest": float(stretch.max() - 1), "smallest": float(stretch.min() - 1)}
    return found, (
        f"Three degrees about the first axis, turned in voxels, stretch a rat by {found['largest']:.1%} in one "
        f"direction and shrink it by {-found['smallest']:.1%} in another."
    )


def identity_affine(cohort: Cohort) -> Row:
    """What a viewer measures where every voxel is 1 mm."""
    header = nib.Nifti1Image(np.zeros(cohort.shape, np.float32), cohort[0].affine).header
    zooms = np.array(header.get_zooms())
    found = {"volume": float(1 / zooms.prod()), "slices": float(zooms.max() / zooms.min())}
    return found, (
        f"A brain's volume comes out {found['volume']:.1f} times too large, and beside its width the rat "
        f"{found['slices']:.2f} times too short from nose to tail."
    )


def latent_length(cohort: Cohort) -> Row:
    """A code of 1000 numbers for a generator that takes 500."""
    variant, scale = labkit.resolve("sigmarat2", "smoke")
    _, generator, _, _ = networks.build(variant, scale, 0)
    try:
        generator(torch.zeros(1, 1000))
    except RuntimeError as error:
        return {"stops": 1.0}, f"The evaluation stops: *{str(error).splitlines()[0]}*."
    return {"stops": 0.0}, "A generator of 500 took codes of 1000."


def ms_ssim_product(cohort: Cohort) -> Row:
    """Pairs of real scans, with the last scale's term once, and once for every scale."""
    x, y = _pairs(cohort, "scanned")
    right, released = (measure(x, y).mean().item() for measure in (similarity.ms_ssim, similarity.released_ms_ssim))
    found = {"as defined": right, "as released": released}
    return found, f"Pairs of real scans have {right:.3f} as defined, and {released:.3f} as released."


def two_grids(cohort: Cohort) -> Row:
    """MAE and NCC of pairs of real scans, on the slices that were scanned and on the padded cube."""
    scanned, padded = _pairs(cohort, "scanned"), _pairs(cohort, "cubes")
    found = {
        f"{name}, {where}": measure(*pair).mean().item()
        for name, measure in (("MAE", paired.mae), ("NCC", paired.ncc))
        for where, pair in (("scanned", scanned), ("padded", padded))
    }
    return found, (
        f"For the same pairs of real scans MAE goes from {found['MAE, scanned']:.4f} to {found['MAE, padded']:.4f}, "
        f"NCC from {found['NCC, scanned']:.3f} to {found['NCC, padded']:.3f}."
    )


def last_batch(cohort: Cohort) -> Row:
    """How many scans the released metrics leave out."""
    found = {str(n): float(n % 4) for n in (210, 36, 18)}
    return found, (
        f"In batches of 4, {found['210']:.0f} of 210 scans are never compared, {found['36']:.0f} of 36, "
        f"{found['18']:.0f} of 18."
    )


DIFFERENCES: dict[str, Callable[[Cohort], Row]] = {
    "network files swapped": swapped_files,
    "GDL without a gradient": gdl_weight,
    "two steps of G": two_steps,
    "resuming without optimisers": resuming,
    "a new iterator for every batch": new_iterators,
    "augmentation before scaling": augmentation_before_scaling,
    "rotation in voxels": rotation_in_voxels,
    "identity affine": identity_affine,
    "codes of 1000 for 500": latent_length,
    "MS-SSIM's product": ms_ssim_product,
    "MAE and NCC on the padded cube": two_grids,
    "the last batch left out": last_batch,
}


class Scaled(Dataset):
    """Ones, each multiplied by a factor that MONAI draws."""

    def __init__(self, n: int) -> None:
        self.n, self.transform = n, RandScaleIntensity(factors=0.1, prob=1.0)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(torch.ones(1)).as_tensor().squeeze()


def _pairs(cohort: Cohort, view: str) -> tuple[Tensor, Tensor]:
    """Neighbours in the cohort, two by two."""
    volumes = getattr(Sample.of(cohort), view)
    half = len(volumes) // 2
    return volumes[:half], volumes[half : 2 * half]


def _weights(network: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def _iterate(nets: Any, opts: Any, variant: Any, scale: Any, scans: Tensor, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    first, second = torch.randint(len(scans), (2, scale.batch_size), generator=g)
    reference_step.step(nets, opts, variant, scans[first], scans[second], reference_step.draw(variant, scale, seed))


def _moved(steps: int, iterations: int, cohort: Cohort) -> list[float]:
    """Distance of G's weights from where they began, after each iteration."""
    variant, scale = labkit.resolve("sigmarat2", "smoke", generator_steps=steps)
    nets = reference_step.build(variant, scale)
    opts = reference_step.optimisers(nets, variant)
    scans, start, distances = cohort.volumes(scale.size), _weights(nets.G), []
    for iteration in range(iterations):
        _iterate(nets, opts, variant, scale, scans, iteration)
        distances.append((_weights(nets.G) - start).norm().item())
    return distances


def markdown(said: dict[str, str]) -> str:
    """The table for the page that includes it."""
    return "| the release | measured |\n|---|---|\n" + "".join(f"| {name} | {text} |\n" for name, text in said.items())


def main() -> None:
    """Measure everything and write it."""
    parser = argparse.ArgumentParser(prog="ci/experiment_differences.py")
    parser.add_argument("--cohort", default="sigma")
    parser.add_argument("--n", type=int, default=36)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    cohort = labkit.open_cohort(options.cohort, n=options.n)
    rows = {name: measure(cohort) for name, measure in DIFFERENCES.items()}
    said = {name: text for name, (_, text) in rows.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    kept = {name: {"numbers": numbers, "said": said[name]} for name, (numbers, _) in rows.items()}
    provenance = {"cohort": options.cohort, "scans": len(cohort), "fingerprint": cohort.fingerprint,
                  "torch": torch.__version__, "threads": torch.get_num_threads()}  # fmt: skip
    for name, text in {
        "table.md": markdown(said),
        "measured.json": json.dumps(kept, indent=2, ensure_ascii=False) + "\n",
        "provenance.json": json.dumps(provenance, indent=2) + "\n",
    }.items():
        (options.out / name).write_text(text, encoding="utf-8")
    print(markdown(said))


if __name__ == "__main__":
    main()
