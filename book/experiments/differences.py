"""What the released code's departures from the paper do, measured one by one on small cases.

    python book/experiments/differences.py [--cohort sigma] [--n 36]

Writes table.md, measured.json and provenance.json to book/reference/differences. A minute on a CPU, without a trained
model. Networks and loop are those of labkit.published.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import DataLoader as SeededLoader
from monai.data import ImageDataset
from monai.transforms import RandScaleIntensity
from torch import Tensor
from torch.utils.data import DataLoader

import labkit
from labkit import losses, published, recording
from labkit.data.cohort import Cohort
from labkit.evidence.metrics import measures, released, similarity
from labkit.evidence.sample import Sample

OUT = Path(__file__).resolve().parents[1] / "reference" / "differences"
ITERATIONS = 50
"""Of the small trainings."""

Row = tuple[dict[str, float], str]
"""Numbers, and the sentence that says them."""


def swapped_files(cohort: Cohort, scale: str = "paper") -> Row:
    """What tells the two models apart, and which weights of one fit the other."""
    kinds, held = [], []
    for model in ("sigmarat1", "sigmarat2"):
        parts = published.build(labkit.VARIANTS[model], labkit.SCALES[scale])
        layers = [layer for network in parts for layer in network.modules()]
        kinds.append((sum(hasattr(layer, "parametrizations") for layer in layers),
                      sum(isinstance(layer, torch.nn.InstanceNorm3d) for layer in layers)))  # fmt: skip
        # by kind and shape: the release names its layers, so that a norm without weights moves no name
        states = {name: network.state_dict() for name, network in parts._asdict().items()}
        held.append({name: sorted((key.split(".", 1)[1], tuple(value.shape)) for key, value in state.items())
                     for name, state in states.items()})  # fmt: skip
    (spectral, instance), (other_spectral, other_instance) = kinds
    fits = {name: held[0][name] == held[1][name] for name in held[0]}
    found = {"spectral norms, 1": spectral, "spectral norms, 2": other_spectral,
             "instance norms, 1": instance, "instance norms, 2": other_instance}  # fmt: skip
    return {**found, **{f"{name} fits": float(fit) for name, fit in fits.items()}}, (
        f"SigmaRat1 has {spectral} spectral and {instance} instance norms, SigmaRat2 {other_spectral} and "
        f"{other_instance}. Weights of {' and '.join(name for name, fit in fits.items() if fit) or 'no network'} fit "
        f"either model, those of {', '.join(name for name, fit in fits.items() if not fit)} do not."
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
        nets = published.build(variant, scale)
        opts = published.optimisers(nets, variant)
        for iteration in range(ITERATIONS):
            _iterate(nets, opts, variant, scale, scans, iteration)
        if not kept:
            opts = published.optimisers(nets, variant)
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
    animals, batch, rounds = 210, 4, 20
    found = {"unseen": (1 - batch / animals) ** -(-animals // batch)}
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{k}.nii") for k in range(rounds * batch)]
        for name in files:
            nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.float32), np.eye(4)), name)
        data = ImageDataset(files, transform=RandScaleIntensity(factors=0.1, prob=1.0))
        for name, kind in (("torch", DataLoader), ("MONAI", SeededLoader)):
            loader = kind(data, batch_size=batch, shuffle=True, num_workers=2)
            began = time.perf_counter()
            drawn = [round(float(scan.mean()), 6) for _ in range(rounds) for scan in next(iter(loader))]
            found[f"{name}, ms"] = 1000 * (time.perf_counter() - began) / rounds
            found[f"{name}, distinct"] = len(set(drawn))
        iterator, began = iter(DataLoader(data, batch_size=batch, num_workers=2)), time.perf_counter()
        for _ in range(rounds):
            next(iterator)
        found["one iterator, ms"] = 1000 * (time.perf_counter() - began) / rounds
    return found, (
        f"On two cores a batch of tiny files takes {found['torch, ms']:.0f} ms instead of "
        f"{found['one iterator, ms']:.0f} ms with one iterator. After as many batches as an epoch has, "
        f"{found['unseen']:.0%} of 210 scans were not seen. And MONAI's transforms begin in the same state every time: "
        f"{rounds * batch} scans got {found['torch, distinct']:.0f} different factors, with MONAI's own loader "
        f"{found['MONAI, distinct']:.0f}."
    )


def augmentation_before_scaling(cohort: Cohort) -> Row:
    """What is left of the intensity factor and of the noise once a scan is scaled by its own range."""

    def scaled(values: np.ndarray) -> np.ndarray:
        return 2 * (values - values.min()) / np.ptp(values) - 1

    rng = np.random.default_rng(0)
    factors, noises, ranges = [], [], []
    for scan in cohort.subset(range(4)):
        raw = np.asarray(scan.image, float)
        ranges.append(np.ptp(raw))
        factors.append(np.abs(scaled(1.1 * raw) - scaled(raw)).max())
        noises.append((scaled(raw + rng.normal(0, 0.01, raw.shape)) - scaled(raw)).std())
    found = {"factor 1.1, largest change": float(max(factors)), "noise": float(np.mean(noises)),
             "range": float(np.mean(ranges))}  # fmt: skip
    return found, (
        f"A factor of 1.1 changes no voxel by more than {found['factor 1.1, largest change']:.0e}. Noise of 0.01, "
        f"added to these scans' ranges of about {found['range']:.0f}, is {found['noise']:.0e} on a scale from −1 to 1."
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
    """Codes of 1000 numbers, read as codes of the 500 that a generator has."""
    variant, scale = labkit.resolve("sigmarat2", "smoke")
    layers = published.build(variant, scale).G[1:]  # without the first, which insists on the length
    with torch.no_grad():
        scans = len(layers(torch.randn(2, 1000).view(-1, variant.latent_dim, 1, 1, 1)))
    return {"scans of 2 codes": float(scans)}, (
        f"Nothing stops: each code is read as two, and of 2 codes {scans} scans come out. Halves of normally "
        "distributed codes are such codes themselves."
    )


def ms_ssim_product(cohort: Cohort) -> Row:
    """Pairs of real scans, five scales, with the last scale's term once, and once for every scale before it."""
    x, y = _pairs(cohort, "scanned")
    found = {"as defined": released.ms_ssim(x, y, 1).mean().item(), "as released": released.ms_ssim(x, y).mean().item()}
    return found, (
        f"Pairs of real scans have {found['as defined']:.3f} with the last scale's factor once, and "
        f"{found['as released']:.3f} as released."
    )


def two_grids(cohort: Cohort) -> Row:
    """MAE and NCC of pairs of real scans, on the slices that were scanned and on the padded cube."""
    scanned, padded = _pairs(cohort, "scanned"), _pairs(cohort, "cubes")
    found = {
        f"{name}, {where}": measure(*pair).mean().item()
        for name, measure in (("MAE", similarity.mae), ("NCC", similarity.ncc))
        for where, pair in (("scanned", scanned), ("padded", padded))
    }
    return found, (
        f"For the same pairs of real scans MAE goes from {found['MAE, scanned']:.4f} to {found['MAE, padded']:.4f}, "
        f"NCC from {found['NCC, scanned']:.3f} to {found['NCC, padded']:.3f}."
    )


def batches_of_two(cohort: Cohort) -> Row:
    """The six by both ways, one half of the real scans against the other."""
    found = _six(*_halves(cohort))
    return found, "Real rats against as many others: " + _said(found, found)


def collapse(cohort: Cohort) -> Row:
    """The same where the others have all become their mean, scaled as a generator's scans are."""
    real, other = _halves(cohort)
    mean = Sample(other.cubes.mean(0, keepdim=True).expand_as(other.cubes), other.shape)
    before, after = _six(real, other), _six(real, mean)
    both = {f"{key}, {when}": six[key] for when, six in (("rats", before), ("mean", after)) for key in six}
    return both, "The others each replaced by their mean: " + _said(before, after)


def _halves(cohort: Cohort) -> tuple[Sample, Sample]:
    whole, half = Sample.of(cohort), len(cohort) // 2
    return whole.take(np.arange(half)), whole.take(np.arange(half, 2 * half))


def _six(real: Sample, other: Sample) -> dict[str, float]:
    """The paper's six, each as paper and as release have it; of MS-SSIM the release's."""
    effort = measures.Effort(halves=0, resamples=0)
    rows = [row for family in (measures.paper, released.released)
            for row in family(real, other, np.random.default_rng(0), effort)]  # fmt: skip
    return {f"{row.metric} {row.flavour}": row.value for row in rows}


def _said(before: dict[str, float], after: dict[str, float]) -> str:
    """Both ways side by side, and from where to where if that is not the same."""

    def value(key: str) -> str:
        first, last = (f"{six[key]:.{0 if 'MMD' in key else 1 if 'PSNR' in key else 3}f}" for six in (before, after))
        return first if before is after else f"{first} to {last}"

    names = [key.removesuffix(" paper") for key in before if key.endswith("paper")]
    return "; ".join(f"{name} {value(f'{name} paper')} (released {value(f'{name} released')})" for name in names) + "."


DIFFERENCES: dict[str, Callable[[Cohort], Row]] = {
    "network files swapped": swapped_files,
    "GDL without a gradient": gdl_weight,
    "two steps of G": two_steps,
    "resuming without optimisers": resuming,
    "a new iterator for every batch": new_iterators,
    "augmentation before scaling": augmentation_before_scaling,
    "rotation in voxels": rotation_in_voxels,
    "identity affine of its pictures": identity_affine,
    "codes of 1000 for 500": latent_length,
    "MS-SSIM's product": ms_ssim_product,
    "MAE and NCC on the padded cube": two_grids,
    "batches of two, rescaled": batches_of_two,
    "errors against a random rat": collapse,
}


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
    published.step(nets, opts, variant, scans[first], scans[second], published.draw(variant, scale, seed))


def _moved(steps: int, iterations: int, cohort: Cohort) -> list[float]:
    """Distance of G's weights from where they began, after each iteration."""
    variant, scale = labkit.resolve("sigmarat2", "smoke", generator_steps=steps)
    nets = published.build(variant, scale)
    opts = published.optimisers(nets, variant)
    scans, start, distances = cohort.volumes(scale.size), _weights(nets.G), []
    for iteration in range(iterations):
        _iterate(nets, opts, variant, scale, scans, iteration)
        distances.append((_weights(nets.G) - start).norm().item())
    return distances


def markdown(said: dict[str, str]) -> str:
    """The table for the page that includes it."""
    head = "| the release | what follows, in numbers |\n|---|---|\n"
    return head + "".join(f"| {name} | {text} |\n" for name, text in said.items())


def main() -> None:
    """Measure everything and write it."""
    parser = argparse.ArgumentParser(prog="book/experiments/differences.py")
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
                  **recording.provenance(torch.device("cpu"))}  # fmt: skip
    for name, text in {
        "table.md": markdown(said),
        "measured.json": json.dumps(kept, indent=2, ensure_ascii=False) + "\n",
        "provenance.json": json.dumps(provenance, indent=2) + "\n",
    }.items():
        (options.out / name).write_text(text, encoding="utf-8")
    print(markdown(said))


if __name__ == "__main__":
    main()
