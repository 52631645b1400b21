"""Time generation against the published generator called code by code, alternating, on the same codes; see ci/bench."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from bench_training import timed

from labkit import networks, published
from labkit.data import bids
from labkit.data.file_template import FileTemplate
from labkit.data.grids import STUDY_SHAPE, STUDY_ZOOMS, grid_affine
from labkit.data.nifti import Origin, encode_header, image_on_grid
from labkit.generation import BATCH, in_batches
from labkit.runs import choose_device
from labkit.variants import SCALES, VARIANTS, resolve


def main() -> None:
    """Print a table, then one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="ci/bench generate")
    parser.add_argument("--model", default="sigmarat2", choices=list(VARIANTS))
    parser.add_argument("--scale", default="laptop", choices=list(SCALES))
    parser.add_argument("--iterations", type=int, default=0, help="timed rounds; default 3 at paper scale, 15 below")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    device = choose_device(options.device)
    rounds = options.iterations or (3 if options.scale == "paper" and device.type == "cpu" else 15)
    variant, scale = resolve(options.model, options.scale)
    ours = networks.build(variant, scale).G.to(device).eval()
    plain = published.build(variant, scale).G.to(device).eval()
    published.load_by_position(ours, plain.state_dict())
    codes = torch.randn(BATCH, variant.latent_dim, generator=torch.Generator().manual_seed(0)).to(device)

    def one_by_one() -> torch.Tensor:  # as the release generates
        with torch.no_grad():
            return torch.cat([plain(code[None]).cpu() for code in codes])

    def together() -> torch.Tensor:  # the same network, as kind to it as can be
        with torch.no_grad():
            return plain(codes).cpu()

    def labkit() -> torch.Tensor:
        return torch.cat(list(in_batches(ours, codes)))

    contenders = {"one by one": one_by_one, "reference": together, "labkit": labkit}
    apart = (labkit() - together()).abs().max().item()
    seconds: dict[str, list[float]] = {kind: [] for kind in contenders}
    for take in range(1 + rounds):
        for kind, work in contenders.items():
            spent = timed(work, device)
            if take:
                seconds[kind].append(spent)
    medians = {kind: statistics.median(values) / BATCH for kind, values in seconds.items()}
    ratios = {
        kind: statistics.median(a / b for a, b in zip(seconds[kind], seconds["labkit"], strict=True))
        for kind in ("one by one", "reference")
    }
    for kind, value in medians.items():
        print(f"{kind:10} {value * 1e3:9.1f} ms a scan  {ratios[kind]:.2f}x" if kind in ratios
              else f"{kind:10} {value * 1e3:9.1f} ms a scan")  # fmt: skip
    writing = writing_seconds(labkit())
    print(f"writing    {writing * 1e3:9.1f} ms a scan; largest difference of a voxel {apart:.1e} of [-1, 1]")
    result = {
        "ratio_fp32": round(ratios["reference"], 3),
        "ratio_one_by_one": round(ratios["one by one"], 3),
        "scans_per_s": round(1 / medians["labkit"], 3),
        "scans_written_per_s": round(1 / (medians["labkit"] + writing), 3),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "model": options.model,
        "scale": options.scale,
        "rounds": rounds,
        "largest_difference": apart,
    }  # fmt: skip
    print(json.dumps(result))


def writing_seconds(volumes: torch.Tensor) -> float:
    """Seconds a scan takes from a volume to a compressed file on the study's grid."""
    affine = grid_affine(STUDY_SHAPE, STUDY_ZOOMS)
    header = image_on_grid(np.zeros(STUDY_SHAPE, np.int16), affine).header
    matrix = tuple(map(tuple, affine.tolist()))
    origin = Origin("", STUDY_SHAPE, "RSA", matrix, encode_header(header), matrix, False, 0.0, 3000.0)
    template = FileTemplate(STUDY_SHAPE, "boldref", origin, ((0.0, 3000.0),))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for index, volume in enumerate(volumes):
            image = template.image(volume, np.random.default_rng(index))
            bids.save_scan(Path(folder), bids.scan_path(f"{index}"), image, None)
        return (time.perf_counter() - began) / len(volumes)


if __name__ == "__main__":
    main()
