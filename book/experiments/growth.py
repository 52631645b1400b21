"""What an iteration costs as scans and networks grow: measured where it can be, fitted, and read off where it cannot.

    python book/experiments/growth.py [--device cpu] [--out book/reference/growth]

Each case is a process of its own on a machine that should do nothing else: seconds of an iteration of sigmarat2 in
float32, batch 4, and the most memory that its process has held. Both are fitted as sums of what they follow from,
voxels times channels and the number of weights, none of which can be negative. Writes measured.csv, table.md and
growth.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.optimize import nnls

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ci"))
import bench_training

from labkit.figures import style
from labkit.files import write_text
from labkit.networks import build
from labkit.recording import peak_memory_mib
from labkit.runs import choose_device
from labkit.variants import Scale, Variant, resolve

OUT = Path(__file__).resolve().parents[1] / "reference" / "growth"

CASES = [
    (32, 4), (32, 8), (32, 16), (32, 32), (32, 64), (64, 4), (64, 8), (64, 16), (64, 32), (64, 64), (96, 4), (96, 8),
    (96, 16), (128, 4), (128, 8),
]  # fmt: skip
"""Sides and widths that a machine without a GPU can compute."""

WAYS = {"plain": {}, "checkpointing": {"activation_checkpointing": True}, "box": {"box": "fitted"}}
AS_WELL = {"checkpointing": [(32, 64), (64, 16), (64, 64), (96, 16)], "box": [(64, 16), (96, 8), (128, 4)]}
"""Cases that are measured in these ways, too: wide ones, where layers' outputs are most of the memory; large ones."""

H100 = 0.0158
"""Seconds of an iteration at 64^3 and width 16 on an H100 in float32, as the page of experiments has it."""

BEYOND = [(64, 64), (128, 64), (192, 64), (256, 16), (256, 32), (256, 64)]
CARDS = (24, 40, 80)
"""GB."""


def main() -> None:
    """Measure, fit, write."""
    parser = argparse.ArgumentParser(prog="book/experiments/growth.py")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--again", action="store_true", help="fit what measured.csv has, and measure nothing")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = choose_device(options.device)
    if options.case:
        print(json.dumps(measured(*json.loads(options.case), device)))
        return
    file = options.out / "measured.csv"
    if not options.again:
        rows = []
        for way in WAYS:
            for size, width in AS_WELL.get(way, CASES):
                rows.append(in_a_process(size, width, way, options.device))
                print(rows[-1], flush=True)
                write_text(file, pd.DataFrame(rows).to_csv(index=False, float_format="%.5g"))
    table = pd.read_csv(file)
    fits = {what: fit(table[table["way"] == "plain"], what) for what in ("seconds", "mib")}
    write_text(options.out / "table.md", markdown(table, fits))
    picture(table, fits).savefig(options.out / "growth.png", dpi=150, bbox_inches="tight")
    print(markdown(table, fits))


def configured(size: int, width: int, way: str = "plain") -> tuple[Variant, Scale]:
    """sigmarat2 of a size; a box is that of scans with 5 slices where the cube has 8, as the study's."""
    variant, scale = resolve("sigmarat2", "paper", size=size, base_channels=width, precision="fp32", **WAYS[way])
    return variant, scale.fitted((size, size, size * 5 // 8))


def in_a_process(size: int, width: int, way: str, device: str) -> dict[str, object]:
    """A case; peaks cannot be told apart within a process."""
    command = [sys.executable, __file__, "--device", device, "--case", json.dumps([size, width, way])]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def measured(size: int, width: int, way: str, device: torch.device) -> dict[str, object]:
    """Seconds of an iteration and peak memory."""
    variant, scale = configured(size, width, way)
    seconds = bench_training.seconds_an_iteration(variant, scale, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    found = {"size": size, "width": width, "way": way, "box": scale.box, "batch": scale.batch_size}
    return found | {"seconds": seconds, "mib": peak_memory_mib(device), "device": name}


def weights(size: int, width: int) -> float:
    """Weights of all four networks, in millions."""
    with torch.device("meta"):
        variant, scale = configured(size, width)
        spectral = {f"{part}_spectral": False for part in ("generator", "discriminator", "encoder", "code")}
        return sum(p.numel() for one in build(replace(variant, **spectral), scale) for p in one.parameters()) / 1e6


def causes(size: int, width: int, what: str) -> np.ndarray:
    """What seconds or memory follow from: voxels, what layers put out, weights, a start; products if it is seconds."""
    voxels = 4 * size**3 / 1e6  # of a batch, in millions; each level has a quarter of the outputs of the one before
    products = [voxels * width**2] if what == "seconds" else []
    return np.array([voxels, voxels * width, weights(size, width), 1.0, *products])


def fit(table: pd.DataFrame, what: str) -> np.ndarray:
    """Parts of each cause, fitted so that relative errors are small."""
    rows = np.array([causes(size, width, what) for size, width in zip(table["size"], table["width"], strict=True)])
    return nnls(rows / table[what].to_numpy()[:, None], np.ones(len(table)))[0]


def errors(table: pd.DataFrame, what: str) -> tuple[float, float]:
    """Median relative error on a case that was left out, and the largest one of 128 by a fit of smaller cases."""

    def off(known: pd.DataFrame, asked: pd.DataFrame) -> list[float]:
        parts = fit(known, what)
        return [abs(causes(row["size"], row["width"], what) @ parts / row[what] - 1) for _, row in asked.iterrows()]

    left_out = [off(table.drop(place), table.loc[[place]])[0] for place in table.index]
    return float(np.median(left_out)), max(off(table[table["size"] < 128], table[table["size"] == 128]))


def markdown(table: pd.DataFrame, fits: dict[str, np.ndarray]) -> str:
    """What was fitted and how well, what checkpointing and a box change, and the larger cases on cards."""
    plain = table[table["way"] == "plain"].reset_index(drop=True)
    keyed = table.set_index(["way", "size", "width"])[["seconds", "mib"]]
    share = {way: keyed.loc[way] / keyed.loc["plain"].loc[keyed.loc[way].index] for way in AS_WELL}
    lines = []
    for what, name in (("seconds", "an iteration's time"), ("mib", "memory")):
        left, beyond = errors(plain, what)
        lines.append(f"The fit of {name} misses a case that it did not have by {left:.0%} (median), and cases of 128³ "
                     f"by at most {beyond:.0%} where it knew smaller ones alone.")  # fmt: skip
    for way, words in (("checkpointing", "Activation checkpointing"), ("box", "A fitted box")):
        low, high = share[way].min(), share[way].max()
        lines.append(f"{words} takes {low['seconds']:.2f} to {high['seconds']:.2f} of the time and {low['mib']:.2f} to "
                     f"{high['mib']:.2f} of the memory of the cases measured.")  # fmt: skip
    cards = [f"batch on {card} GB" for card in CARDS]
    heads = ["size", "width", "seconds, CPU", "days, H100", "GB", "GB, checkpointing", *cards]
    lines += ["", "| " + " | ".join(heads) + " |", "|" + "---:|" * len(heads)]
    faster = keyed.loc[("plain", 64, 16), "seconds"] / H100
    for size, width in BEYOND:
        seconds = fits["seconds"] @ causes(size, width, "seconds")
        parts = fits["mib"] * causes(size, width, "mib") * 2**20 / 1e9
        volumes, outputs, stays = parts[:3]  # the process itself is not counted
        lean = volumes + outputs * lean_share(keyed, fits)
        fitting = [f"{count(card, volumes + outputs, stays)} ({count(card, lean, stays)})" for card in CARDS]
        cells = [f"{size}³", str(width), f"{seconds:.3g}", f"{seconds / faster * 200_000 / 86_400:.2g}"]
        cells += [f"{volumes + outputs + stays:.1f}", f"{lean + stays:.1f}", *fitting]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def lean_share(keyed: pd.DataFrame, fits: dict[str, np.ndarray]) -> float:
    """Of the memory that layers' outputs take, what checkpointing leaves."""
    shares = []
    for _, size, width in keyed.loc[["checkpointing"]].index:
        outputs = (fits["mib"] * causes(size, width, "mib"))[1]
        saved = keyed.loc[("plain", size, width), "mib"] - keyed.loc[("checkpointing", size, width), "mib"]
        shares.append(1 - saved / outputs)
    return float(np.clip(np.mean(shares), 0, 1))


def count(card: int, grows: float, stays: float) -> str:
    """Scans a batch that a card has memory for, a tenth of it left free."""
    scans = int(4 * (0.9 * card - stays) / grows)
    return str(scans) if scans >= 1 else "none"


def picture(table: pd.DataFrame, fits: dict[str, np.ndarray]) -> plt.Figure:
    """Measured cases as dots, the fit as lines, a colour a width."""
    with plt.rc_context(style.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        sides = [32, 64, 96, 128, 192, 256]
        widths = [4, 8, 16, 32, 64]
        for ax, what, name in zip(axes, fits, ("seconds an iteration", "memory, GiB"), strict=True):
            unit = 1 if what == "seconds" else 2**10
            for width, colour in zip(widths, plt.cm.viridis(np.linspace(0, 0.9, len(widths))), strict=True):
                line = [causes(side, width, what) @ fits[what] / unit for side in sides]
                ax.plot(sides, line, color=colour, label=f"width {width}")
                own = table[(table["width"] == width) & (table["way"] == "plain")]
                ax.plot(own["size"], own[what] / unit, "o", color=colour, markersize=5)
            ax.set(xscale="log", yscale="log", xlabel="side of the cube, voxels", title=name)
            ax.set_xticks([32, 64, 96, 128, 192, 256], ["32", "64", "96", "128", "192", "256"])
            ax.minorticks_off()
        style.legend_outside(axes[0], "lower", len(widths))
    plt.close(figure)
    return figure


if __name__ == "__main__":
    main()
