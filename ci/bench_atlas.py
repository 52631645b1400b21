"""Time an atlas: steps of its fit, draws, encoding, memory, by size and number of the scans; see ci/bench."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

from labkit.atlas import Atlas
from labkit.recording import peak_memory_mib
from labkit.registration import AtlasLearner
from labkit.runs import choose_device
from labkit.variants import ATLAS_SCALES, AtlasSettings

COLUMNS = (
    "coarse_steps_per_s",
    "steps_per_s",
    "minutes",
    "draws_per_s",
    "labelled_draws_per_s",
    "encode_s",
    "peak_mib",
)


def main() -> None:
    """Print a row a case, each measured in a process of its own, then one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="ci/bench atlas")
    parser.add_argument("--sides", default="32,64,96,128", help="voxels of the longest side, with commas")
    parser.add_argument("--animals", default="20,80,174", help="of 64 voxels a side, with commas; other sides have 20")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        side, animals = map(int, options.case.split(","))
        print(json.dumps(measured(side, animals, choose_device(options.device))))
        return
    cases = [(int(side), 20) for side in options.sides.split(",") if side != "64"]
    cases += [(64, int(animals)) for animals in options.animals.split(",") if animals]
    rows = []
    for side, animals in sorted(cases):
        command = [sys.executable, __file__, "--device", options.device, "--case", f"{side},{animals}"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(answer.stdout.splitlines()[-1]))
        print(f"{side:4} voxels, {animals:4} animals: ", *(f"{name} {rows[-1][name]:.3g}" for name in COLUMNS))
    print(json.dumps({"threads": torch.get_num_threads(), "cases": rows}))


def measured(
    side: int, animals: int, device: torch.device, settings: AtlasSettings = ATLAS_SCALES["laptop"]
) -> dict[str, float]:
    """One case: medians of a few calls; ``minutes`` is what its fit would take, without finish and labels."""
    shape = (side, side, side * 5 // 8)
    scans = torch.rand(animals, 1, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    learner, rng = AtlasLearner(scans, settings), torch.Generator(device).manual_seed(0)
    coarse = per_call(lambda: learner.step(learner.draw(rng)), device)
    learner.iteration = settings.iterations // 2  # from here on at full resolution
    full = per_call(lambda: learner.step(learner.draw(rng)), device)
    atlas = learner.finish(animals=4)
    labels = (scans[:2] > 0.5).to(torch.uint8)
    atlas = atlas.learn_labels(learner.numbers[:2], labels, steps=2)
    z = torch.randn(8, atlas.latent_dim, generator=torch.Generator().manual_seed(1)).to(device)
    share = settings.coarse_share
    labelled = per_call(lambda: atlas.decode_labelled(z, noise(atlas, len(z), device)), device)
    return {
        "side": side,
        "animals": animals,
        "coarse_steps_per_s": 1 / coarse,
        "steps_per_s": 1 / full,
        "minutes": settings.iterations * (share * coarse + (1 - share) * full) / 60,
        "draws_per_s": len(z) / per_call(lambda: atlas.decode(z, noise(atlas, len(z), device)), device),
        "labelled_draws_per_s": len(z) / labelled,
        "encode_s": per_call(lambda: atlas.encode(scans[:8]), device, calls=1) / min(8, animals),
        "peak_mib": peak_memory_mib(device),
    }


def noise(atlas: Atlas, n: int, device: torch.device) -> torch.Tensor:
    """What a draw needs besides a code, which takes time, too."""
    return torch.randn(atlas.noise_shape(n), device=device)


def per_call(work, device: torch.device, calls: int = 5) -> float:
    """Median seconds a call takes, after one that is not counted."""
    seconds = []
    for _ in range(calls + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
