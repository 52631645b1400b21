"""Which reduction of the gradient difference loss (GDL)? Trains sigmarat2 with each and writes what comes of it.

    python book/experiments/gdl.py [--cohort sigma] [--scale laptop] [--runs runs/gdl] [--precision auto]

The paper gives lambda3 = 0.01 and not whether the GDL is a sum or a mean. The release sums over voxels and batch,
but adds the result as a number without a gradient. Arms that are finished in --runs are not trained again. Writes
table.csv, table.md, samples.png and provenance.json to book/reference/gdl.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw

import labkit
from labkit.data.cohort import Cohort
from labkit.runs import Run
from labkit.samples import montage

ARMS = {
    "sum, λ3 = 0.01 (equation 6, literal)": ("sum", {"gdl_reduction": "sum", "lambda3": 0.01}),
    "mean, λ3 = 100 (weighs like the MSE)": ("mean", {"gdl_reduction": "mean", "lambda3": 100.0}),
    "none": ("none", {"gdl_reduction": "none"}),
    "sum without gradient, two steps of G (the release)": (
        "released",
        {"gdl_reduction": "sum", "gdl_gradient": False, "generator_steps": 2},
    ),
}
SAMPLES = 174


def main() -> None:
    """Train what is missing, measure, write."""
    parser = argparse.ArgumentParser(prog="book/experiments/gdl.py")
    parser.add_argument("--cohort", default="sigma")
    parser.add_argument("--scale", default="laptop", choices=list(labkit.SCALES))
    parser.add_argument("--runs", type=Path, default=Path("runs/gdl"))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "reference" / "gdl")
    options = parser.parse_args()
    cohort = labkit.open_cohort(options.cohort)
    rows, strips = {}, []
    if options.scale == "laptop":  # what the table in book/ was made with; the scale's own run is half as long
        ARMS.update({t: (name, {"iterations": 4000, "lr": 2e-4} | given) for t, (name, given) in ARMS.items()})
    for title, (name, settings) in ARMS.items():
        run = labkit.train(
            "sigmarat2", cohort, options.scale, options.runs / name, precision=options.precision, **settings
        )
        rows[title], strip = measure(run, cohort)
        strips.append((title, strip))
    rows["real scans, held out (the floor)"] = floor(cohort, run)
    rows["the mean training scan, whatever the rat"] = {"held-out MSE": mean_scan_error(cohort, run)}
    table = pd.DataFrame(rows).T
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "table.csv", float_format="%.5g")
    (options.out / "table.md").write_text(markdown(table), encoding="utf-8")
    picture(strips).save(options.out / "samples.png", optimize=True)
    sittings = {name: Run(options.runs / name).provenance["sittings"] for name, _ in ARMS.values()}
    keep = {"cohort": cohort.fingerprint, "scale": options.scale, "sittings": sittings}
    (options.out / "provenance.json").write_text(json.dumps(keep, indent=2) + "\n", encoding="utf-8")
    print(table.to_string(float_format="%.4g"))


@torch.no_grad()
def measure(run: Run, cohort: Cohort) -> tuple[dict[str, float], np.ndarray]:
    """One arm's row, and a picture of its first samples."""
    size = run.scale.size
    held_out = run.held_out(cohort)
    real, held = training_scans(run, cohort), held_out.volumes(size)
    generator, encoder = run.generator(), run.encoder()
    codes = torch.randn(SAMPLES, run.variant.latent_dim, generator=torch.Generator().manual_seed(1))
    made = torch.cat([generator(part) for part in codes.split(16)])
    z = torch.cat([encoder(part) for part in held.split(16)])
    decoder = run.generator(codes="encoded")
    back = torch.cat([decoder(part) for part in z.split(16)])
    losses = run.losses
    row = {
        "held-out MSE": (back - held).square().mean().item(),
        **quality(made, real),
        "code SD, in training": losses["z_enc_sd"].tail(max(1, len(losses) // 10)).mean(),
        "code SD, held out": z.std().item(),
    }
    return row, montage(list(made[:8, 0].numpy()))


def training_scans(run: Run, cohort: Cohort) -> torch.Tensor:
    """The scans the run was trained on."""
    animals = set(run.config["train"]["subjects"])
    chosen = [index for index, subject in enumerate(cohort.subjects) if subject in animals]
    return cohort.subset(chosen).volumes(run.scale.size)


def quality(made: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    """What random samples are like beside real training scans; 1 is the aim of the ratios.

    ``variance ratio`` is the total voxel variance across scans, 0 for a collapsed generator; ``sharpness ratio`` the
    mean size of steps between neighbouring voxels; ``mean-image RMSE`` compares the two means; ``nearest real, RMSE``
    is the distance to the nearest training scan.
    """

    def steps(volumes: torch.Tensor) -> float:
        return sum(volumes.diff(dim=axis).abs().mean().item() for axis in (2, 3, 4))

    distance = torch.cdist(made.flatten(1), real.flatten(1)) / made[0].numel() ** 0.5
    return {
        "variance ratio": (made.var(0).sum() / real.var(0).sum()).item(),
        "sharpness ratio": steps(made) / steps(real),
        "mean-image RMSE": (made.mean(0) - real.mean(0)).square().mean().sqrt().item(),
        "nearest real, RMSE": distance.amin(1).mean().item(),
    }


def floor(cohort: Cohort, run: Run) -> dict[str, float]:
    """The same measures for real animals that nobody trained on."""
    return quality(run.held_out(cohort).volumes(run.scale.size), training_scans(run, cohort))


def mean_scan_error(cohort: Cohort, run: Run) -> float:
    """Reconstruction error on held-out scans of somebody who answers the mean training scan to all of them."""
    held_out = run.held_out(cohort).volumes(run.scale.size)
    return (held_out - training_scans(run, cohort).mean(0)).square().mean().item()


def markdown(table: pd.DataFrame) -> str:
    """The table for the page that includes it."""
    lines = ["| GDL | " + " | ".join(table.columns) + " |", "|---|" + "---:|" * len(table.columns)]
    for title, row in table.iterrows():
        cells = ["" if pd.isna(value) else f"{value:.3g}" if value >= 0.1 else f"{value:.4f}" for value in row]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(strips: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Montages one under the other, each under its title."""
    parts = []
    for title, strip in strips:
        band = Image.new("L", (strip.shape[1], 20), 255)
        ImageDraw.Draw(band).text((4, 4), title.replace("λ", "lambda "), fill=0)
        parts += [np.asarray(band), strip]
    return Image.fromarray(np.vstack(parts))


if __name__ == "__main__":
    main()
