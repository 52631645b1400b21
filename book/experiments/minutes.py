"""Equal minutes: the atlas beside the alpha-GAN that uses the same time on the same threads best.

    python book/experiments/minutes.py [--cohort sigma] [--minutes 10,20] [--seeds 0,1,2,3,4] [--runs runs/minutes]

How many iterations a minute holds is timed first, once, on a machine that should do nothing else, and kept in --runs;
what is trained after that may be interrupted, and the machine busy. sigmarat2 is tried in three sizes with the first
seed, and the one whose samples are nearest to 24 validation animals is trained with all seeds; the atlas needs fewer
minutes and gets no more. Nobody trained on the 36 animals of the table or on those of the choice. Writes table.md,
measured.csv and provenance.json to book/reference/minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import pandas as pd
import torch

import labkit
from labkit.data.cohort import Cohort
from labkit.evidence.metrics.study import Study, short
from labkit.files import new_folder, write_json, write_text
from labkit.recording import provenance

SIZES = {
    "32³, width 16": {"size": 32, "base_channels": 16},
    "64³, width 8": {"size": 64, "base_channels": 8},
    "64³, width 16": {"size": 64, "base_channels": 16},
}
TRAINED, VALIDATION = 150, 24
CHOICE = ("Fréchet distance", "PCA")
"""What sizes are chosen by, the smaller the better: it tells bad from worse where a classifier sees everything."""
SHOWN = (
    ("classifier AUC", "PCA"), ("classifier AUC", "regions"), ("precision", "regions"), ("recall", "regions"),
    ("trace ratio", "PCA"), ("Fréchet distance", "PCA"), ("RBF-MMD", "regions"),
)  # fmt: skip


def main() -> None:
    """Time, train what is missing, choose, measure, write."""
    parser = argparse.ArgumentParser(prog="book/experiments/minutes.py")
    parser.add_argument("--cohort", default="sigma")
    parser.add_argument("--minutes", default="10,20", help="rising, with commas")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="the first one chooses")
    parser.add_argument("--runs", type=Path, default=Path("runs/minutes"))
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "reference" / "minutes")
    options = parser.parse_args()
    cohort = labkit.open_cohort(options.cohort)
    minutes, seeds = ([int(part) for part in text.split(",")] for text in (options.minutes, options.seeds))
    runs = options.runs.resolve()
    pace = kept(runs / "pace.json", lambda: {name: seconds_an_iteration(cohort, runs, name) for name in SIZES})
    rows, chosen = [], {}
    for budget in minutes:
        fair = {name: int(60 * budget / seconds) for name, seconds in pace.items()}
        tried = kept(runs / f"choice-{budget}.json", lambda n=fair, b=budget: choose(cohort, runs, seeds[0], n, b))
        best = min(tried, key=tried.get)
        chosen[budget] = {"iterations": fair, " ".join(CHOICE): tried, "chosen": best}
        for seed in seeds:
            file = runs / f"measured-{budget}-s{seed}.csv"
            if not file.exists():
                write_text(file, measure(cohort, runs, best, seed, fair[best], budget).to_csv(index=False))
            rows.append(pd.read_csv(file, keep_default_na=False).assign(minutes=budget, seed=seed))
    table = pd.concat(rows, ignore_index=True)
    write_text(options.out / "measured.csv", table.to_csv(index=False, float_format="%.5g"))
    write_text(options.out / "table.md", markdown(table, chosen))
    about = {"cohort": cohort.fingerprint, "pace, seconds": pace, "choice": chosen, "seeds": seeds}
    write_json(options.out / "provenance.json", about | provenance(torch.device("cpu")))
    print(markdown(table, chosen))


def kept(path: Path, compute) -> dict:
    """What `compute` gave the first time."""
    if not path.exists():
        write_json(path, compute())
    return json.loads(path.read_text())


def seconds_an_iteration(cohort: Cohort, runs: Path, name: str, iterations: int = 12) -> float:
    """Of training alone: a long trial less a short one, which share everything else."""
    took = []
    for n in (iterations, 3 * iterations):
        began = time.perf_counter()
        train(cohort, runs / f"pace-{name.replace(' ', '')}-{n}", name, 0, n)
        took.append(time.perf_counter() - began)
    return (took[1] - took[0]) / (2 * iterations)


def train(cohort: Cohort, folder: Path, name: str, seed: int, iterations: int) -> labkit.Run:
    """The alpha-GAN of a size, or further; precision is the same on every machine."""
    return labkit.train("sigmarat2", cohort, "laptop", folder, seed=seed, n_train=TRAINED, iterations=iterations,
                        precision="fp32", **SIZES[name])  # fmt: skip


def trained(cohort: Cohort, runs: Path, name: str, seed: int, iterations: int, budget: int) -> labkit.Run:
    """A run of its own for each budget; where a smaller one has been trained, it goes on from there."""
    folder = runs / f"{name.replace(' ', '')}-s{seed}-{budget:03d}min"
    before = [path for path in sorted(runs.glob(f"{name.replace(' ', '')}-s{seed}-*min")) if path < folder]
    if before and not folder.exists():
        with new_folder(folder) as fresh:
            shutil.copytree(before[-1], fresh, dirs_exist_ok=True, ignore=shutil.ignore_patterns("synthetic", "rec*"))
    return train(cohort, folder, name, seed, iterations)


def parts(run: labkit.Run, cohort: Cohort) -> tuple[Cohort, Cohort]:
    """Animals to choose by and animals to report on."""
    held_out = run.held_out(cohort)
    return held_out[:VALIDATION], held_out[VALIDATION:]


def choose(cohort: Cohort, runs: Path, seed: int, iterations: dict[str, int], budget: int) -> dict[str, float]:
    """How far each size's samples lie from the validation animals."""
    found = {}
    for name, n in iterations.items():
        run = trained(cohort, runs, name, seed, n, budget)
        table = Study([run], real=parts(run, cohort)[0]).table
        row = table[(table["metric"] == CHOICE[0]) & (table["flavour"] == CHOICE[1]) & (table["model"] == "sigmarat2")]
        found[name] = float(row["value"].iloc[0])
    return found


def measure(cohort: Cohort, runs: Path, name: str, seed: int, iterations: int, budget: int) -> pd.DataFrame:
    """The chapter's table of one seed: the alpha-GAN, the atlas and the controls, on animals that chose nothing."""
    gan = trained(cohort, runs, name, seed, iterations, budget)
    atlas = labkit.train("atlas", cohort, "laptop", runs / f"atlas-s{seed}", seed=seed, n_train=TRAINED)
    return Study([gan, atlas], real=parts(gan, cohort)[1]).table


def markdown(table: pd.DataFrame, chosen: dict[int, dict]) -> str:
    """Means and standard deviations over seeds: measures down, budgets and models across."""
    picks = {minutes: about["chosen"] for minutes, about in chosen.items()}
    heads = [f"sigmarat2, {minutes} min ({size})" for minutes, size in picks.items()]
    lines = ["| measure | " + " | ".join([*heads, "atlas", "real"]) + " |", "|---|" + "---:|" * (len(heads) + 2)]
    for metric, flavour in SHOWN:
        own = table[(table["metric"] == metric) & (table["flavour"] == flavour)]
        groups = [own[(own["model"] == "sigmarat2") & (own["minutes"] == minutes)] for minutes in picks]
        groups.append(own[(own["model"] == "atlas") & (own["minutes"] == min(picks))])
        cells = [f"{short(part['value'].mean())} ± {short(part['value'].std())}" for part in groups]
        cells.append(short(groups[-1]["floor"].mean()))
        lines.append(f"| {metric}, {flavour} | " + " | ".join(cells) + " |")
    n = table["seed"].nunique()
    lines += ["", f"Mean ± standard deviation over {n} trainings each; real: other animals in their place."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
