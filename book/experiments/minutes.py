"""Equal minutes: what each model is after the same time on the same threads, for the same animals and measures.

    python book/experiments/minutes.py [--cohort sigma] [--minutes 10,20] [--peer-minutes 20,120]
        [--seeds 0,1,2,3,4] [--models adni,sigmarat1,sigmarat2,sigmarat3=3,MONAI] [--runs runs/minutes]

How many iterations a minute holds is timed first, of all models, on a machine that should do nothing else, and kept;
what is trained after that may be interrupted, the machine busy, or another one with a GPU: so many iterations are the
same training there. An alpha-GAN is tried in three sizes with the first seed, and the one whose samples are nearest to
24 validation animals is trained with all seeds, or with as many as stand behind its name; MONAI's latent diffusion
(peers.py) gives half of its minutes to either stage. What is trained and measured is kept in --runs, by cohort. The
paper's other two are trained once, for the smallest budget, in the size that was chosen for sigmarat2. The minutes of
sigmarat3's atlas count; the atlas by itself needs fewer and gets no more. Budgets of an hour and more are trained with
the first seed alone. Nobody trained on the 36 animals of the table or on those of the choice, nor did the network that
measures. Writes table.md, measured.csv and provenance.json to book/reference/minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import labkit
from labkit.data.cohort import Cohort
from labkit.evidence.metrics.compare import Comparison
from labkit.evidence.metrics.study import Study, short
from labkit.evidence.segmentation.experiment import Experiment
from labkit.evidence.segmentation.reader import Reader, find_reader
from labkit.files import new_folder, write_json, write_text
from labkit.recording import provenance

SIZES = {
    "32³, width 16": {"size": 32, "base_channels": 16},
    "64³, width 8": {"size": 64, "base_channels": 8},
    "64³, width 16": {"size": 64, "base_channels": 16},
}
EARLIER, GANS, PEER = ("adni", "sigmarat1"), ("sigmarat2", "sigmarat3"), "MONAI"
STAGES = "autoencoder", "diffusion"
TRAINED, VALIDATION = 150, 24
CHOICE = ("Fréchet distance", "PCA")
"""What sizes are chosen by, the smaller the better: it tells bad from worse where a classifier sees everything."""
SHOWN = (
    ("classifier AUC", "regions"), ("classifier AUC", "network"), ("precision", "regions"), ("recall", "regions"),
    ("trace ratio", "PCA"), ("RBF-MMD", "network"),
)  # fmt: skip
LONG = 60
"""Minutes of a budget that is trained once: three times two hours would show little more."""


def main() -> None:
    """Time, train what is missing, choose, measure, write."""
    parser = argparse.ArgumentParser(prog="book/experiments/minutes.py")
    parser.add_argument("--cohort", default="sigma")
    parser.add_argument("--minutes", default="10,20", help="rising, with commas")
    parser.add_argument("--peer-minutes", default="20,120", help="the same of MONAI's, which needs more")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="the first one chooses")
    parser.add_argument(
        "--models", default="adni,sigmarat1,sigmarat2,sigmarat3=3,MONAI", help="=3: the first three seeds"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/minutes"))
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "reference" / "minutes")
    options = parser.parse_args()
    cohort = labkit.open_cohort(options.cohort)
    asked = options.minutes, options.peer_minutes, options.seeds
    minutes, longer, seeds = ([int(part) for part in text.split(",")] for text in asked)
    models = {name: int(most or len(seeds)) for name, _, most in (m.partition("=") for m in options.models.split(","))}
    if unknown := set(models) - (known := {*EARLIER, *GANS, PEER}):
        parser.error(f"--models {min(unknown)}: allowed are {', '.join(sorted(known))}; the atlas is always there")
    runs = options.runs.resolve() / cohort.fingerprint[:8]
    for model in models:
        iterations(cohort, runs, model, minutes[0])
    rows, about = [measured_atlas(cohort, runs, seed) for seed in seeds], {}
    for model, most in models.items():
        for budget in longer if model == PEER else minutes[:1] if model in EARLIER else minutes:
            fair = iterations(cohort, runs, model, budget)
            size, tried = "", {}
            if model != PEER:
                by = GANS[0] if model in EARLIER else model
                tried = kept(runs / f"choice-{by}-{budget}.json", lambda m=by, b=budget: choose(
                    cohort, runs, m, seeds[0], iterations(cohort, runs, m, b), b))  # fmt: skip
                size = min(tried, key=tried.get)
            about[f"{model}, {budget} min"] = {"iterations": fair, " ".join(CHOICE): tried, "chosen": size}
            for seed in seeds[: 1 if budget >= LONG or model in EARLIER else most]:
                rows.append(measured(cohort, runs, model, size, seed, fair, budget))
    table = pd.concat(rows, ignore_index=True)
    found = table.drop(columns="how", errors="ignore")  # which is long, and told by chapter 4
    write_text(options.out / "measured.csv", found.to_csv(index=False, float_format="%.5g"))
    table = pd.read_csv(options.out / "measured.csv", keep_default_na=False, na_values=[""])
    write_text(options.out / "table.md", markdown(table))
    about["pace, seconds"] = {model: json.loads((runs / f"pace-{model}.json").read_text()) for model in models}
    about |= {"cohort": cohort.fingerprint, "seeds": seeds, **provenance(torch.device("cpu"))}
    write_json(options.out / "provenance.json", about)
    print(markdown(table))


def kept(path: Path, compute) -> dict:
    """What `compute` gave the first time."""
    if not path.exists():
        write_json(path, compute())
    return json.loads(path.read_text())


def iterations(cohort: Cohort, runs: Path, model: str, budget: int) -> dict[str, int]:
    """How many a budget holds, of each size of an alpha-GAN, or each stage of the peer."""
    pace = kept(runs / f"pace-{model}.json", lambda: paces(cohort, runs, model))
    if model == PEER:
        return {stage: int(30 * budget / pace[stage]) for stage in STAGES}
    left = {name: 60 * budget - pace.get(f"atlas, {name}", 0) for name in SIZES}
    # a size whose atlas alone takes all the time is none to choose
    return {name: int(seconds / pace[name]) for name, seconds in left.items() if seconds > pace[name]}


def paces(cohort: Cohort, runs: Path, model: str, few: int = 10) -> dict[str, float]:
    """Seconds an iteration of training, of rows after the first; and of the fit of an alpha-GAN's own atlas.

    Of the peer's few iterations the same share is without an adversary as of all.
    """
    found: dict[str, float] = {}
    for name in () if model == PEER else SIZES:
        folder = runs / f"pace-{model}-{name.replace(' ', '')}"
        run = train(cohort, folder, model, name, 0, 4 * few, log_every=few)
        found[name] = float(1 / run.losses["iterations_per_s"].iloc[1:].median())
        if run.own_atlas is not None:
            found[f"atlas, {name}"] = run.own_atlas.seconds
    for count in (2, few) if model == PEER else ():  # the first sets up what all use
        shutil.rmtree(runs / f"pace-{PEER}", ignore_errors=True)  # or one that was stopped would have less to do
        found = peer(cohort, runs / f"pace-{PEER}", 0).fit(dict.fromkeys(STAGES, count))
    return found | {"threads": torch.get_num_threads()}


def peer(cohort: Cohort, folder: Path, seed: int):
    """The peer, on the animals that a run trains on."""
    from peers import Peer

    from labkit.data.splits import split

    return Peer(split(cohort, TRAINED)[0], folder, seed)


def train(cohort: Cohort, folder: Path, model: str, size: str, seed: int, iterations: int, **more: int) -> labkit.Run:
    """The alpha-GAN of a size, or further; precision is the same on every machine."""
    return labkit.train(model, cohort, "laptop", folder, seed=seed, n_train=TRAINED, iterations=iterations,
                        precision="fp32", **SIZES[size], **more)  # fmt: skip


def trained(cohort: Cohort, runs: Path, model: str, size: str, seed: int, n: int, budget: int) -> labkit.Run:
    """A run of its own for each budget; where a smaller one has been trained, it goes on from there."""
    stem = f"{model}-{size.replace(' ', '')}-s{seed}"
    folder = runs / f"{stem}-{budget:03d}min"
    before = [path for path in sorted(runs.glob(f"{stem}-*min")) if path < folder]
    if before and not folder.exists():
        with new_folder(folder) as fresh:
            shutil.copytree(before[-1], fresh, dirs_exist_ok=True, ignore=shutil.ignore_patterns("synthetic", "rec*"))
    return train(cohort, folder, model, size, seed, n)


def parts(run: labkit.Run, cohort: Cohort) -> tuple[Cohort, Cohort]:
    """Animals to choose by and animals to report on."""
    held_out = run.held_out(cohort)
    first = list(dict.fromkeys(held_out.subjects))[:VALIDATION]
    chooses = [subject in first for subject in held_out.subjects]
    return held_out.subset(np.flatnonzero(chooses)), held_out.subset(np.flatnonzero(~np.array(chooses)))


def choose(cohort: Cohort, runs: Path, model: str, seed: int, fair: dict[str, int], budget: int) -> dict[str, float]:
    """How far each size's samples lie from the validation animals."""
    found = {}
    for name, n in fair.items():
        run = trained(cohort, runs, model, name, seed, n, budget)
        table = compared(study(cohort, runs, seed, chooses=True), run)
        row = table[(table["metric"] == CHOICE[0]) & (table["flavour"] == CHOICE[1])]
        found[name] = float(row["value"].iloc[0])
    return found


def atlas(cohort: Cohort, runs: Path, seed: int) -> labkit.Run:
    """The atlas of a seed."""
    return labkit.train("atlas", cohort, "laptop", runs / f"atlas-s{seed}", seed=seed, n_train=TRAINED)


def measured_atlas(cohort: Cohort, runs: Path, seed: int) -> pd.DataFrame:
    """The chapter's table of an atlas and of the controls, on animals that chose nothing."""
    return rows_of(runs / f"measured-atlas-s{seed}.csv", lambda: study(cohort, runs, seed).table, 0, seed)


@lru_cache(maxsize=2)
def study(cohort: Cohort, runs: Path, seed: int, chooses: bool = False) -> Study:
    """The atlas of a seed, and the yardstick, at the scans' own resolution, that all others are measured by."""
    run = atlas(cohort, runs, seed)
    if chooses:
        return Study([run], real=parts(run, cohort)[0])
    return Study([run], real=parts(run, cohort)[1], reader=reader(cohort, runs))


@lru_cache(maxsize=1)
def reader(cohort: Cohort, runs: Path) -> Reader | None:
    """A segmentation network of the training animals' scans, whose features are measured, too."""
    run, scan = atlas(cohort, runs, 0), cohort[0]
    Experiment(run, "laptop", "r100", 1, cohort=cohort).go_on()
    return find_reader(run.path, scan.image.shape, scan.zooms)


def compared(beside: Study, run: labkit.Run) -> pd.DataFrame:
    """A run measured by a yardstick: what it writes, which is on the cohort's grid whatever its networks' size."""
    made, back = labkit.generate(run, beside.n, seed=beside.seed), labkit.reconstruct(run, beside.real)
    return Comparison(beside.yardstick, made, beside.real, back, run).table()


def measured(
    cohort: Cohort, runs: Path, model: str, size: str, seed: int, fair: dict[str, int], budget: int
) -> pd.DataFrame:
    """The same of another model."""

    def compute() -> pd.DataFrame:
        if model == PEER:
            one = peer(cohort, runs / f"{PEER}-s{seed}-{budget:03d}min", seed)
            one.fit(fair)
            beside = study(cohort, runs, seed)
            return Comparison(beside.yardstick, one.draw(beside.n, seed), beside.real).table().assign(model=PEER)
        run = trained(cohort, runs, model, size, seed, fair[size], budget)
        return compared(study(cohort, runs, seed), run).assign(model=model)

    return rows_of(runs / f"measured-{model}-{budget}-s{seed}.csv", compute, budget, seed)


def rows_of(file: Path, compute, budget: int, seed: int) -> pd.DataFrame:
    """What was measured before, or is now."""
    if not file.exists():
        write_text(file, compute().to_csv(index=False))
    return pd.read_csv(file, keep_default_na=False, na_values=[""]).assign(minutes=budget, seed=seed)


def markdown(table: pd.DataFrame) -> str:
    """Means and standard deviations over seeds: models and budgets down, measures across, as few as a page can hold."""
    found = [(model, budget) for model, budget in table[["model", "minutes"]].drop_duplicates().itertuples(index=False)]
    heads = [f"{metric}, {flavour}" for metric, flavour in SHOWN]
    lines = ["| model (trainings) | minutes | " + " | ".join(heads) + " |", "|---|---:|" + "---:|" * len(heads)]
    floors = []
    for model, budget in found:
        own = table[(table["model"] == model) & (table["minutes"] == budget)]
        cells = []
        for metric, flavour in SHOWN:
            part = own[(own["metric"] == metric) & (own["flavour"] == flavour)]
            values = part["value"].astype(float)
            mean, same = short(values.mean()), values.max() - values.min() < 1e-4 * max(1.0, abs(values.mean()))
            cells.append(mean if same else f"{mean} ± {values.std():.{len(mean.partition('.')[2])}f}")
        times = budget or ("what it needs" if model == "atlas" else "none")
        count = f" ({own['seed'].nunique()})" if budget or model == "atlas" else ""
        lines.append(f"| {model}{count} | {times} | " + " | ".join(cells) + " |")
    for metric, flavour in SHOWN:
        part = table[(table["metric"] == metric) & (table["flavour"] == flavour)]
        floors.append(short(part["floor"].astype(float).mean()))
    lines.append("| other real rats | | " + " | ".join(floors) + " |")
    lines += ["", "Mean ± standard deviation over trainings; the last row: other animals in their place."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
