"""Where a training iteration's time goes on a device, and how near that is to what the device can do; see ci/gpu."""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
import bench_training

from labkit.augment import AUGMENTATIONS, augment
from labkit.capture import WARM_UP, Captured
from labkit.training import choose_device
from labkit.updates import Draws, Learner, three_updates
from labkit.variants import SCALES, VARIANTS, resolve

TOP = 25
KINDS = {  # the first that fits a kernel's name, or on a CPU an operation's
    "optimisers, averages, gradient norms": "adam|multi_tensor|lerp|foreach",
    "copies, casts, layouts": "nchwtonhwc|nhwctonchw|memcpy|memset|copy|transpose|_to_copy|catarray|cat$",
    "convolutions and products": "conv|xmma|cutlass|gemm|gemv|fprop|dgrad|wgrad|cudnn|sm90|mm$|mv$|dot",
    "norms": "norm|welford|moments",
    "reductions": "reduce|sum|mean",
    "other element by element": "elementwise|vectorized|mul|add|sub|div|relu|fill",
}


def main() -> None:
    """Print ceilings, speeds and the costliest kernels, then one JSON object on the last line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="sigmarat2", choices=list(VARIANTS))
    parser.add_argument("--scale", default="paper", choices=list(SCALES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--iterations", type=int, default=50, help="timed at a stretch")
    options = parser.parse_args()
    device = choose_device(options.device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        print(torch.cuda.get_device_name(device), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version())
    product = {p: tflops(device, dtype) for p, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    copied = copy_rate(device)
    flop = operations(options.model, options.scale, device)
    moved = state_bytes(options.model, options.scale)
    print(f"a large product: {product['fp32']:.4g} TFLOP/s in float32, {product['bf16']:.4g} in bfloat16")
    print(f"a large copy: {copied:.4g} TB/s, read and written")
    print(f"an iteration: {flop / 1e12:.4g} TFLOP in convolutions and products, {flop / product['bf16'] / 1e9:.3g} ms "
          f"at the bfloat16 rate; {moved / 1e9:.3g} GB of weights, optimiser state and average, "
          f"{moved / copied / 1e9:.3g} ms at the copy's")  # fmt: skip
    speeds = {}
    for precision in ("bf16", "fp32"):
        for graph, benchmark in ((True, True), (True, False), (False, True)) if on_gpu else ((False, False),):
            name = f"{precision}{', recorded' if graph else ''}{', algorithms timed' if benchmark else ''}"
            speeds[name] = speed(options, device, precision, graph, benchmark, data=False)
            print(f"{name:36} {speeds[name]:8.2f} iterations/s")
    whole = speed(options, device, "bf16", on_gpu, on_gpu, data=True)
    print(f"{'the first, with data and augmentation':36} {whole:8.2f} iterations/s")
    rows, count, busy = kernels(options, device)
    print(table(rows, count, busy))
    reached = flop * whole / 1e12
    kinds = {kind: round(sum(ms for name, ms, _ in rows if kind_of(name) == kind) / busy, 4) for kind in [*KINDS, ""]}
    result = {
        "model": options.model, "scale": options.scale, "speeds": speeds, "iterations_per_s": whole,
        "tflop_per_iteration": flop / 1e12, "tflops": reached, "share_of_product": reached / product["bf16"],
        "product_tflops": product, "copy_tb_per_s": copied, "state_gb": moved / 1e9,
        "kernels_per_iteration": count, "kernel_ms_per_iteration": busy, "share_by_kind": kinds,
    }  # fmt: skip
    print(f"reached {reached:.4g} TFLOP/s, {100 * reached / product['bf16']:.1f} % of a large bfloat16 product's rate")
    print(json.dumps(result))


def tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Rate of a large matrix product, TFLOP/s."""
    n = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 * 10 / best(lambda: [a @ b for _ in range(10)], device) / 1e12


def copy_rate(device: torch.device) -> float:
    """Rate of a large copy, TB/s, counting bytes read and bytes written."""
    a = torch.randn(2**28 if device.type == "cuda" else 2**18, device=device)
    b = torch.empty_like(a)
    return 2 * a.nbytes * 10 / best(lambda: [b.copy_(a) for _ in range(10)], device) / 1e12


def best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of four calls after one that warms up."""
    return min([bench_training.timed(work, device) for _ in range(5)][1:])


def operations(model: str, scale_name: str, device: torch.device) -> float:
    """Floating-point operations of an iteration's convolutions and matrix products."""
    learner = learner_of(model, scale_name, device, "bf16")
    draws = drawing(learner)
    three_updates(learner, draws())
    with FlopCounterMode(display=False) as counter:
        three_updates(learner, draws())
    return float(counter.get_total_flops())


def state_bytes(model: str, scale_name: str) -> float:
    """Bytes that must move each iteration whatever the kernels: Adam's seven float32 a weight, the average's three."""
    learner = learner_of(model, scale_name, torch.device("cpu"), "fp32")
    size = {name: sum(p.numel() for p in network.parameters()) for name, network in learner.networks.items()}
    steps = {name: learner.variant.generator_steps if name == "G" else 1 for name in size}
    return 4.0 * (7 * sum(size[name] * steps[name] for name in size) + 3 * size["G"])


def learner_of(model: str, scale_name: str, device: torch.device, precision: str) -> Learner:
    """A fresh learner."""
    return Learner(*resolve(model, scale_name, precision=precision), device)


def drawing(learner: Learner) -> Callable[[], Draws]:
    """What a run draws for an iteration, from noise in the place of scans."""
    scale, variant, device = learner.scale, learner.variant, learner.device
    n, rng = scale.batch_size, torch.Generator(device).manual_seed(0)
    cohort = torch.rand(32, 1, *(scale.size,) * 3, generator=rng, device=device) * 2 - 1

    def scans() -> torch.Tensor:
        chosen = torch.randperm(len(cohort), generator=rng, device=device)[:n]
        return augment(cohort[chosen], generator=rng, augmentation=AUGMENTATIONS[variant.augmentation])

    def codes() -> torch.Tensor:
        return torch.randn(n, variant.latent_dim, generator=rng, device=device)

    def draw() -> Draws:
        mixes = (torch.rand(n, *axes, generator=rng, device=device) for axes in ((1, 1, 1, 1), (1, 1, 1, 1), (1,)))
        return Draws(scans(), codes(), scans(), codes(), codes(), *mixes)

    return draw


def iterating(options: argparse.Namespace, device: torch.device, precision: str, graph: bool, benchmark: bool,
              data: bool) -> Callable[[], object]:  # fmt: skip
    """An iteration to be called again and again, warmed up and recorded."""
    learner = learner_of(options.model, options.scale, device, precision)
    advance, draws = Captured(learner, graph=graph, benchmark=benchmark), drawing(learner)
    same = draws()
    for _ in range(WARM_UP + 2):
        advance(draws())
    if graph and advance.replay is None:
        warnings.warn("nothing was recorded: the speed is that of iterations one by one", stacklevel=2)
    return lambda: advance(draws() if data else same)


def speed(options: argparse.Namespace, device: torch.device, precision: str, graph: bool, benchmark: bool,
          data: bool) -> float:  # fmt: skip
    """Iterations a second, many at a stretch as in a run, the better of two stretches."""
    one = iterating(options, device, precision, graph, benchmark, data)
    times = [bench_training.timed(lambda: [one() for _ in range(options.iterations)], device) for _ in range(2)]
    return options.iterations / min(times)


def kernels(options: argparse.Namespace, device: torch.device) -> tuple[list[tuple[str, float, float]], float, float]:
    """Name, ms and calls an iteration of every kernel, costliest first; calls and ms of all of them together."""
    on_gpu = device.type == "cuda"
    one, repeats = iterating(options, device, "bf16", on_gpu, on_gpu, data=True), min(10, options.iterations)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(repeats):
            one()
        if on_gpu:
            torch.cuda.synchronize(device)
    time_of = "self_device_time_total" if on_gpu else "self_cpu_time_total"  # microseconds
    events = [e for e in seen.key_averages() if (e.device_type == torch.autograd.DeviceType.CUDA) == on_gpu]
    rows = [(e.key, getattr(e, time_of) / 1e3 / repeats, e.count / repeats) for e in events]
    rows.sort(key=lambda row: -row[1])
    return rows, sum(row[2] for row in rows), sum(row[1] for row in rows)


def kind_of(name: str) -> str:
    """Which of `KINDS` a kernel is, or an empty string."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower())), "")


def table(rows: list[tuple[str, float, float]], count: float, busy: float) -> str:
    """Shares by kind, then the costliest kernels."""
    lines = [f"kernels: {count:.0f} an iteration, {busy:.3f} ms"]
    for kind in [*KINDS, ""]:
        ms, calls = (sum(row[i] for row in rows if kind_of(row[0]) == kind) for i in (1, 2))
        lines.append(f"  {kind or 'the rest':38} {ms:9.3f} ms {100 * ms / busy:5.1f} % {calls:7.0f} calls")
    lines += [f"{ms:9.3f} ms {100 * ms / busy:5.1f} % {calls:7.1f}  {name[:150]}" for name, ms, calls in rows[:TOP]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
