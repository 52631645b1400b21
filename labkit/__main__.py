"""labkit from a command line: train, generate, compare, segment; what each takes, its ``--help`` says.

python -m labkit train --model sigmarat2 --cohort my_scans
torchrun --nproc_per_node 4 -m labkit train --model sigmarat2 --cohort my_scans
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from labkit import parallel
from labkit.data.sources import NAMED, open_cohort
from labkit.evidence.metrics.compare import compare
from labkit.evidence.segmentation.segment import segment
from labkit.files import DamagedFileError
from labkit.generation import generate
from labkit.parallel import TeamError
from labkit.recording import DivergedError
from labkit.runs import RunError
from labkit.training import train
from labkit.variants import MODELS, SCALES

COHORT = f"{', '.join(NAMED)}, or a folder of NIfTI scans"

OWN = ("model", "cohort", "scale", "run_dir", "iterations", "seed", "device", "n_train", "fold")
"""What training takes beside settings."""


def parser() -> argparse.ArgumentParser:
    """Commands and what they take."""
    whole = argparse.ArgumentParser(prog="python -m labkit", description=__doc__.splitlines()[0])
    commands = whole.add_subparsers(dest="command", required=True)

    one = commands.add_parser("train", help="train a model on a cohort, or go on where it stopped")
    one.add_argument("--model", required=True, choices=list(MODELS))
    one.add_argument("--cohort", required=True, help=COHORT)
    one.add_argument("--n", type=int, help="scans of the cohort; default all, 210 simulated ones")
    one.add_argument("--grid", help="study, native, fitted, or matrix and mm such as 56x40x64@0.3")
    one.add_argument("--opening", type=json.loads, default={}, help="what else open_cohort takes, as JSON")
    one.add_argument("--scale", default="auto", choices=["auto", *SCALES], help="default paper on a GPU, else laptop")
    one.add_argument("--run-dir", help="default runs/<model>-<cohort>-<scale>-s<seed>")
    one.add_argument("--iterations", type=int, help="default the scale's")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    one.add_argument("--n-train", type=int, help="animals to train on; default by how many there are")
    one.add_argument("--fold", type=int, default=0, help="which animals are held out")
    one.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any setting, e.g. --set lr=1e-4")

    one = commands.add_parser("generate", help="write synthetic scans")
    one.add_argument("run", help="folder of a run, or reference/<model>")
    one.add_argument("n", type=int, help="how many")
    one.add_argument("out_dir", nargs="?", help="new folder; default inside the run")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--truncation", type=float, default=1.0, help="standard deviation of the codes")
    one.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")

    one = commands.add_parser("compare", help="measure how real synthetic scans are")
    one.add_argument("real", help=COHORT)
    one.add_argument("synthetic", help=COHORT)
    one.add_argument("--train", help="the scans that the generator was trained on, to learn measures from")

    one = commands.add_parser("segment", help="label scans by an atlas or by a network of chapter 5")
    one.add_argument("run", help="folder of a run, or reference/<model>")
    one.add_argument("cohort", help=COHORT)
    one.add_argument("out_dir", nargs="?", help="new folder; default inside the run")
    return whole


def settings(pairs: list[str]) -> dict[str, Any]:
    """``NAME=VALUE`` as numbers, true, false or words."""
    found = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            raise ValueError(f"--set {pair}: write NAME=VALUE")
        if name in OWN:
            raise ValueError(f"--set {pair}: has an option of its own, --{name.replace('_', '-')}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def run(options: argparse.Namespace) -> str:
    """Do what was asked for; what there is to say of it."""
    if options.command == "train":
        scans = open_cohort(options.cohort, n=options.n, grid=options.grid, **options.opening)
        trained = train(
            options.model, scans, options.scale, options.run_dir, options.iterations, options.seed,
            options.device, n_train=options.n_train, fold=options.fold, **settings(options.set),
        )  # fmt: skip
        return f"{trained.path}: {trained.iteration} iterations"
    if options.command == "generate":
        made = generate(
            options.run, options.n, options.out_dir, seed=options.seed, truncation=options.truncation,
            device=options.device,
        )  # fmt: skip
        return f"{made.folder}: {len(made)} scans"
    if options.command == "compare":
        real, made = (open_cohort(name) for name in (options.real, options.synthetic))
        own = open_cohort(options.train) if options.train else None
        return compare(real, made, own).to_string()
    labelled = segment(options.run, open_cohort(options.cohort), out_dir=options.out_dir)
    return f"{labelled.folder}: {len(labelled)} scans with labels"


def main() -> None:
    """Run a command; what cannot be done is a sentence, and exit status 1."""
    options = parser().parse_args()
    if options.command != "train" and parallel.started() > 1:
        sys.exit(f"labkit {options.command}: several processes share a training and nothing else: start it alone")
    try:
        told = run(options)
    except (ValueError, OSError, RunError, TeamError, DivergedError, DamagedFileError) as error:
        sys.exit(f"labkit {options.command}: {error}")
    if os.environ.get("RANK", "0") == "0":  # torchrun starts many of these
        print(told)
    parallel.leave()


if __name__ == "__main__":
    main()
