"""Time a training iteration against the reference step, alternating, on the same scans; see ci/bench."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from labkit import published
from labkit.capture import WARM_UP, Captured
from labkit.data.augment import AUGMENTATIONS, augment
from labkit.recording import peak_memory_mib
from labkit.runs import choose_device
from labkit.updates import Draws, Learner, choose_precision
from labkit.variants import SCALES, VARIANTS, Scale, Variant, resolve

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Print a table, then one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="ci/bench training")
    papers = [name for name, variant in VARIANTS.items() if variant.generator_head == "voxels"]
    parser.add_argument("--model", default="sigmarat2", choices=papers)
    parser.add_argument("--scale", default="laptop", choices=list(SCALES))
    parser.add_argument("--iterations", type=int, default=0, help="timed rounds; default 3 at paper scale, 15 below")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--memory-of", choices=["reference", "fp32", "bf16"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = choose_device(options.device)
    if options.memory_of:
        print(peak_mib(options.model, options.scale, device, options.memory_of))
        return
    rounds = options.iterations or (3 if options.scale == "paper" and device.type == "cpu" else 15)
    kinds = ["reference", "fp32", "bf16"]
    if choose_precision("auto", device) != "bf16":  # emulated, one iteration at laptop scale takes minutes
        kinds.remove("bf16")
        print("bf16: not measured, this device has no instructions for it, and no run here computes in it")
    contenders = {kind: contender(*configured(options.model, options.scale, kind), device, kind) for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in contenders}
    warm_up = WARM_UP + 2 if device.type == "cuda" else 1
    for take in range(warm_up + rounds):
        for kind, work in contenders.items():
            spent = timed(work, device)
            if take >= warm_up:
                seconds[kind].append(spent)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    ratios = {
        kind: statistics.median(r / o for r, o in zip(seconds["reference"], seconds[kind], strict=True))
        for kind in kinds[1:]
    }
    memory = {kind: memory_in_a_process_of_its_own(options, kind) for kind in contenders}
    data = statistics.median(timed(data_work(options.model, options.scale, device), device) for _ in range(5))
    for kind in contenders:
        low, high = min(seconds[kind]), max(seconds[kind])
        ratio = f"{ratios[kind]:.2f}x" if kind in ratios else ""
        span = f"{medians[kind] * 1e3:9.1f} ms ({low * 1e3:.1f} to {high * 1e3:.1f})"
        print(f"{kind:10} {span}  {memory[kind]:7.0f} MiB  {ratio}")
    on_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_cuda else f"cpu, {torch.get_num_threads()} threads"
    best = min(medians[kind] for kind in kinds[1:])
    print(f"data and augmentation: {data * 1e3:.1f} ms, {100 * data / best:.1f} % of our faster step")
    result = {
        "ratio_fp32": round(ratios["fp32"], 3),
        "ratio_bf16": round(ratios["bf16"], 3) if "bf16" in ratios else None,
        "iterations_per_s": round(1 / best, 3),
        "device": name,
        "model": options.model,
        "scale": options.scale,
        "rounds": rounds,
        "seconds": {kind: round(value, 5) for kind, value in medians.items()},
        "peak_mib": memory,
        "data_share": round(data / best, 4),
        "matmul_tflops": {kind: ceiling(device, DTYPES[kind]) for kind in kinds[1:]},
    }
    print(json.dumps(result))


def configured(model: str, scale_name: str, kind: str) -> tuple[Variant, Scale]:
    """A model and a scale in the precision that is asked for; the reference has one."""
    return resolve(model, scale_name, precision="fp32" if kind == "reference" else kind)


def contender(variant: Variant, scale: Scale, device: torch.device, kind: str = "") -> Callable[[], object]:
    """One iteration of the reference, or of ours, ready to be called again and again."""
    x_real, x_critic = scans(scale, device), scans(scale, device)
    drawn = published.draw(variant, scale, seed=0)
    drawn = type(drawn)(*(value.to(device) for value in drawn))
    if kind == "reference":
        networks = published.build(variant, scale)
        networks = type(networks)(*(network.to(device) for network in networks))
        optimisers = published.optimisers(networks, variant)
        return lambda: published.step(networks, optimisers, variant, x_real, x_critic, drawn)
    learner = Learner(variant, scale, device)
    draws = Draws(x_real, drawn.z_rand, x_critic, drawn.z_critic, drawn.z_code,
                  drawn.mix_rec, drawn.mix_rand, drawn.mix_code)  # fmt: skip
    advance = Captured(learner)  # on a GPU recorded, as in a run; on a CPU the step
    return lambda: advance(draws)


def data_work(model: str, scale_name: str, device: torch.device) -> Callable[[], object]:
    """What an iteration spends on its two batches of scans: choice and augmentation."""
    variant, scale = resolve(model, scale_name)
    cohort = torch.cat([scans(scale, device) for _ in range(8)])
    generator = torch.Generator(device).manual_seed(0)

    def work() -> None:
        for _ in range(2):
            chosen = torch.randperm(len(cohort), generator=generator, device=device)[: scale.batch_size]
            augment(cohort[chosen], generator=generator, augmentation=AUGMENTATIONS[variant.augmentation])

    return work


def scans(scale: Scale, device: torch.device) -> torch.Tensor:
    """Noise in the place of scans: time does not depend on what is in them."""
    side = scale.size
    return (
        torch.rand(scale.batch_size, 1, side, side, side, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    )


def seconds_an_iteration(variant: Variant, scale: Scale, device: torch.device, rounds: int = 3) -> float:
    """Of ours, median of a few, without the augmentation of scans."""
    work = contender(variant, scale, device)
    for _ in range(WARM_UP + 2 if device.type == "cuda" else 1):
        work()
    return statistics.median(timed(work, device) for _ in range(rounds))


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds a call takes, the device's queue included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def memory_in_a_process_of_its_own(options: argparse.Namespace, kind: str) -> float:
    """Peak memory, MiB, of a few iterations in a fresh process: peaks cannot be told apart within one."""
    command = [sys.executable, __file__, "--model", options.model, "--scale", options.scale]
    command += ["--device", options.device, "--memory-of", kind]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(answer.stdout.split()[-1])


def peak_mib(model: str, scale_name: str, device: torch.device, kind: str) -> float:
    """Peak memory of two iterations, on a GPU of the recording too: allocated on a GPU, resident on a CPU."""
    work = contender(*configured(model, scale_name, kind), device, kind)
    for _ in range(WARM_UP + 2 if device.type == "cuda" else 2):
        work()
    return peak_memory_mib(device)


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of a large matrix product: what the device can do at best."""
    side = 4096 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    return round(2 * side**3 / min(timed(lambda: a @ a, device) for _ in range(4)) / 1e12, 3)


if __name__ == "__main__":
    main()
