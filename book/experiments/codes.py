"""What encoded codes are like beside random ones, and what pictures come of both; random samples by two weights of G.

    python book/experiments/codes.py [--cohort sigma] [--scale laptop] [--seeds 0,1,2] [--runs runs/codes]

Trains what is missing in --runs, a folder for each model and seed (``sigmarat2-s0``), and goes on with what is half
done; with --finished it measures what is finished, and no more. --iterations is for others than the scale's. Writes
table.md, samples.md, measured.csv, samples.csv and provenance.json to book/reference/codes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

import labkit
from labkit.data.cohort import Cohort
from labkit.files import write_json, write_text
from labkit.generation import draw_codes, in_batches
from labkit.runs import Run
from labkit.updates import CALIBRATION, calibrated

MODELS = ("sigmarat2", "sigmarat1", "adni")
SAMPLES = 174
DECODERS = ("as it stands after the last iteration", "moving average of its weights")
"""Of G: both make random samples."""


def main() -> None:
    """Train what is missing, measure, write."""
    parser = argparse.ArgumentParser(prog="book/experiments/codes.py")
    parser.add_argument("--cohort", default="sigma")
    parser.add_argument("--scale", default="laptop", choices=list(labkit.SCALES))
    parser.add_argument("--seeds", default="0,1,2", help="several with commas")
    parser.add_argument("--runs", type=Path, default=Path("runs/codes"))
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--iterations", type=int, help="default the scale's")
    parser.add_argument("--finished", action="store_true", help="train nothing")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "reference" / "codes")
    options = parser.parse_args()
    cohort, wanted = labkit.open_cohort(options.cohort), labkit.SCALES[options.scale]
    iterations = options.iterations or wanted.iterations
    codes, samples, sittings = [], [], {}
    for seed in map(int, options.seeds.split(",")):
        for model in MODELS:
            run = finished(options.runs / f"{model}-s{seed}", options.scale, iterations)
            if run is None and options.finished:
                continue
            run = run or labkit.train(model, cohort, options.scale, options.runs / f"{model}-s{seed}", seed=seed,
                                      precision=options.precision, iterations=iterations)  # fmt: skip
            about = {"model": model, "seed": seed}
            codes += [about | row for row in code_rows(run, cohort)]
            samples += [about | row for row in sample_rows(run, cohort)]
            sittings[run.path.name] = run.provenance["sittings"]
    if not codes:
        parser.error(f"{options.runs} has no finished run")
    said = f"At `{options.scale}` scale ({wanted.size}³ voxels), {iterations} iterations, cohort `{cohort.name}`."
    for name, rows, by in (("table", codes, ["model", "codes of"]), ("samples", samples, ["model", "weights of G"])):
        table = pd.DataFrame(rows)
        csv = "measured.csv" if name == "table" else "samples.csv"
        write_text(options.out / csv, table.to_csv(index=False, float_format="%.5g"))
        write_text(options.out / f"{name}.md", f"{said}\n\n{markdown(table, by)}")
        print(said, markdown(table, by), sep="\n")
    kept = {"cohort": cohort.fingerprint, "scale": options.scale, "iterations": iterations, "sittings": sittings}
    write_json(options.out / "provenance.json", kept)


def finished(folder: Path, scale: str, iterations: int) -> Run | None:
    """The run, if it is of the scale and has done so many iterations."""
    if not (folder / "config.json").exists():
        return None
    run = labkit.load_run(folder)
    return run if run.scale.name == scale and run.iteration >= iterations else None


def code_rows(run: Run, cohort: Cohort) -> Iterator[dict[str, float | str]]:
    """Codes of held-out animals, of training animals and random ones, and the pictures that they are decoded to.

    ``SD`` is over all numbers of all codes, ``SD between`` over codes, number by number, and then their mean;
    ``offset`` is the length of the mean code, in lengths of a random code (the root of how many numbers it has).
    ``spread of pictures`` is the root of the voxels' mean variance over pictures, ``moved by length`` how far pictures
    move, in units of it, if each code is brought to the length of a random one.
    """
    encoder, size = run.encoder(), run.scale.size
    held_out = run.held_out(cohort).volumes(size)
    sets = {"held-out animals": held_out, "training animals": run.train_part(cohort).volumes(run.scale.size)}
    rows = {name: (_through(encoder, scans), run.generator(codes="encoded")) for name, scans in sets.items()}
    rows["random"] = draw_codes(run, SAMPLES), run.generator()
    for name, (codes, decoder) in rows.items():
        length = codes.shape[1] ** 0.5
        pictures = _through(decoder, codes)
        unit = nn.functional.normalize(codes, dim=1)
        even, spread = _through(decoder, length * unit), _spread(pictures)
        cosines = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
        yield {
            "codes of": name,
            "SD": codes.std().item(),
            "SD between": codes.std(0).mean().item(),
            "offset": codes.mean(0).norm().item() / length,
            "cosine of two": cosines.mean().item(),
            "spread of pictures": spread,
            "moved by length": (even - pictures).square().mean().sqrt().item() / spread,
        }
    yield {"model": "", "codes of": "(real scans)", "spread of pictures": _spread(torch.cat(list(sets.values())))}


def sample_rows(run: Run, cohort: Cohort) -> Iterator[dict[str, float | str]]:
    """Random samples by G's weights as they stand and by their average, as :func:`quality` describes them."""
    real, codes = run.train_part(cohort).volumes(run.scale.size), draw_codes(run, SAMPLES)
    batches = torch.randn(CALIBRATION, codes.shape[1], generator=torch.Generator().manual_seed(0))
    standing = calibrated(run.generator(codes="encoded").train(), batches.split(run.scale.batch_size))
    for name, generator in zip(DECODERS, (standing, run.generator()), strict=True):
        yield {"weights of G": name, **quality(_through(generator, codes), real)}


def quality(made: Tensor, real: Tensor) -> dict[str, float]:
    """What random samples are like beside real training scans; 1 is the aim of the ratios.

    ``variance ratio`` is the total voxel variance across scans, 0 for a collapsed generator; ``sharpness ratio`` the
    mean size of steps between neighbouring voxels; ``mean-image RMSE`` compares the two means; ``nearest real, RMSE``
    is the distance to the nearest training scan.
    """

    def steps(volumes: Tensor) -> float:
        return sum(volumes.diff(dim=axis).abs().mean().item() for axis in (2, 3, 4))

    distance = torch.cdist(made.flatten(1), real.flatten(1)) / made[0].numel() ** 0.5
    return {
        "variance ratio": (made.var(0).sum() / real.var(0).sum()).item(),
        "sharpness ratio": steps(made) / steps(real),
        "mean-image RMSE": (made.mean(0) - real.mean(0)).square().mean().sqrt().item(),
        "nearest real, RMSE": distance.amin(1).mean().item(),
    }


def _through(network: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat(list(in_batches(network, inputs)))


def _spread(pictures: Tensor) -> float:
    return pictures.var(0).mean().sqrt().item()


def markdown(table: pd.DataFrame, by: list[str]) -> str:
    """Means over seeds as Markdown, with the smallest and the largest where there are several."""
    numbers = [column for column in table.columns if column not in (*by, "seed")]
    lines = ["| " + " | ".join([*by, "runs", *numbers]) + " |", "|---" * len(by) + "|---:" * (1 + len(numbers)) + "|"]
    for key, part in sorted(table.groupby(by, sort=False), key=lambda group: group[0][0] == ""):
        cells = [_cell(part[column].dropna()) for column in numbers]
        lines.append("| " + " | ".join([*key, str(part["seed"].nunique()), *cells]) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: pd.Series) -> str:
    if values.empty:
        return ""
    mean, *ends = (f"{value:.3g}".replace("-", "−") for value in (values.mean(), values.min(), values.max()))
    return mean if ends[0] == ends[1] else f"{mean} ({ends[0]} to {ends[1]})"


if __name__ == "__main__":
    main()
