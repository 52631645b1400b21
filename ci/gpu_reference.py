"""Reference runs: train a variant for some minutes, go on in the next sitting, collect what is small; see ci/gpu.

gpu_reference.py --runs DIR --scale S --device D train VARIANT --cohort FOLDER --minutes M [--iterations N]
gpu_reference.py --runs DIR --scale S --device D collect VARIANT ... --out DIR [--commit NAME]
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import signal
import statistics
import sys
import threading
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from labkit import bids, checkpoints, runs
from labkit.cohort import Cohort
from labkit.runs import Run, load_run
from labkit.sources import open_cohort
from labkit.training import train

MOST_ROWS, MOST_BYTES = 2000, 45_000_000
SETTINGS = {"paper": {"checkpoint_every": 10_000}}  # a gigabyte each: at a GPU's speed the scale's 1000 cost a quarter


def main() -> int:
    """Do what the command line says; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--scale", default="paper")
    parser.add_argument("--device", default="cuda")
    tasks = parser.add_subparsers(dest="task", required=True)
    training = tasks.add_parser("train")
    training.add_argument("variant")
    training.add_argument("--cohort")
    training.add_argument("--minutes", type=float, required=True)
    training.add_argument("--iterations", type=int)
    collecting = tasks.add_parser("collect")
    collecting.add_argument("variants", nargs="+")
    collecting.add_argument("--out", type=Path, required=True)
    collecting.add_argument("--commit", default="")
    options = parser.parse_args()
    if options.task == "train":
        print(json.dumps(train_for_a_while(options)))
        return 0
    missing = [name for name in options.variants if not (options.runs / name / runs.MODELS).exists()]
    kept = {name: collect(options.runs / name, options.out / name, options.commit)
            for name in options.variants if name not in missing}  # fmt: skip
    for name in missing:
        print(f"{name}: nothing to collect in {options.runs / name}, it was not trained to a checkpoint")
    print(json.dumps(kept))
    return 1 if missing else 0


def train_for_a_while(options: argparse.Namespace) -> dict[str, object]:
    """Train until the minutes or the iterations are over; a checkpoint is left either way."""
    cohort = cohort_of(options)
    folder = options.runs / options.variant
    fired = threading.Event()

    def over() -> None:
        fired.set()
        os.kill(os.getpid(), signal.SIGTERM)  # a run answers it with a checkpoint

    # before a run listens, or after it, the signal ends this process with a message instead of at once
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    clock = threading.Timer(60 * options.minutes, over)
    clock.daemon = True
    clock.start()
    try:
        train(options.variant, cohort, options.scale, folder, options.iterations, device=options.device,
              **SETTINGS.get(options.scale, {}))  # fmt: skip
    except SystemExit:
        if not fired.is_set():
            raise
    finally:
        clock.cancel()
    return metrics(load_run(folder))


def cohort_of(options: argparse.Namespace) -> Cohort:
    """The cohort that was named; at smoke scale ellipsoids serve."""
    if options.cohort:
        return open_cohort(options.cohort)
    if options.scale != "smoke":
        raise SystemExit("give --cohort, a folder of scans to train on: a reference is not made of anything else")
    from labkit.tests.rats import ellipsoids

    folder = options.runs / "ellipsoids"
    return open_cohort(folder) if folder.exists() else ellipsoids(folder)


def collect(source: Path, target: Path, commit: str) -> dict[str, object]:
    """Copy what is small of a run, so that the copy opens as a run too.

    Parameters
    ----------
    source, target : pathlib.Path
        The run's folder; where to, replaced.
    commit : str
        What the source tree was, kept in ``provenance.json``.

    Returns
    -------
    dict
        As `metrics`, with bytes collected.
    """
    run = load_run(source)
    shutil.rmtree(target, ignore_errors=True)
    (target / "samples").mkdir(parents=True)
    shutil.copy(source / "config.json", target)
    runs.append_rows(target / runs.LOSSES, decimated(rows_of(run)))
    for picture in spread(sorted((source / "samples").glob("*.png"))):
        shutil.copy(picture, target / "samples")
    weights = checkpoints.load_state(source / runs.MODELS)["G"]
    # vectors are few, and norms' statistics may be too large for 16 bits
    weights = {name: value.half() if value.ndim > 1 else value for name, value in weights.items()}
    size = sum(value.nbytes for value in weights.values())
    note = f"averaged generator, matrices in float16, {size} bytes"
    if size <= MOST_BYTES:
        checkpoints.save_state(target / runs.MODELS, {"G": weights})
    else:
        note = f"left out: {note}, more than {MOST_BYTES}"
    found = metrics(run)
    bids.write_json(target / "metrics.json", found)
    tree = {"commit": commit} if commit else {}
    bids.write_json(target / "provenance.json", {**run.provenance, **tree, "weights": note})
    return {**found, "bytes": sum(path.stat().st_size for path in target.rglob("*") if path.is_file())}


def rows_of(run: Run) -> list[dict[str, float]]:
    """Rows of a run's losses, numbers, without pandas."""
    with (run.path / runs.LOSSES).open(encoding="utf-8") as handle:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(handle)]


def decimated(rows: list[dict[str, float]], most: int = MOST_ROWS) -> list[dict[str, float]]:
    """At most `most` rows: of each stretch the means, with its last iteration."""
    if not rows:
        return []
    step = -(-len(rows) // most)
    parts = [rows[start : start + step] for start in range(0, len(rows), step)]
    return [{name: mean([row[name] for row in part]) for name in rows[0]} | {"iteration": int(part[-1]["iteration"])}
            for part in parts]  # fmt: skip


def mean(values: list[float]) -> float:
    """Mean of what is finite, else not a number."""
    finite = [value for value in values if math.isfinite(value)]
    return statistics.fmean(finite) if finite else math.nan


def spread(pictures: list[Path], most: int = 5) -> list[Path]:
    """The last of a series, and earlier ones at about a half, a quarter, ... of it."""
    chosen = {len(pictures) - 1 >> halvings for halvings in range(most)} if pictures else set()
    return [pictures[index] for index in sorted(chosen)]


def metrics(run: Run) -> dict[str, object]:
    """Where a run stands: means of the last tenth of its rows, held-out figures as last measured."""
    rows = rows_of(run) if (run.path / runs.LOSSES).exists() else []
    if not rows:
        return {"model": run.config["variant"]["name"], "iterations": 0}
    recent, held = rows[-max(1, len(rows) // 10) :], [row for row in rows if math.isfinite(row["held_out_mse"])]
    averages, sittings = {name: mean([row[name] for row in recent]) for name in rows[0]}, run.provenance["sittings"]
    return {
        "model": run.variant.name,
        "iterations": int(rows[-1]["iteration"]),
        "of": run.scale.iterations,
        "train_scans": len(run.config["train"]["subjects"]),
        "minutes": round(sum(sitting["seconds"] for sitting in sittings) / 60, 2),
        "device": sittings[-1]["device"],
        "precision": sittings[-1]["precision"],
        "iterations_per_s": statistics.median(row["iterations_per_s"] for row in rows),
        "peak_memory_mib": max(row["peak_memory_mib"] for row in rows),
        "recent": {name: value for name, value in averages.items() if math.isfinite(value) and name != "iteration"},
        "held_out_mse": held[-1]["held_out_mse"] if held else None,
        "held_out_code_sd": held[-1]["held_out_code_sd"] if held else None,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
