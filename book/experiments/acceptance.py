"""Do the measures accept a perfect generator, and do they notice bad ones? Rejections by measure, counted.

    python book/experiments/acceptance.py [--cohort phantom] [--animals 12,18] [--size 32] [--seeds 10]

The perfect generator is the simulator itself: rats that nobody measured or trained on. The bad ones are the same rats
spoiled on purpose (:mod:`labkit.evidence.metrics.faults`), or copies of training rats. Each seed draws other rats, with
training scans given and without. Writes table.md, measured.csv and provenance.json to book/reference/acceptance; at the
default size a quarter of an hour on a core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import labkit
from labkit.data.cohort import Cohort
from labkit.evidence.metrics import embeddings, faults, memorisation
from labkit.evidence.metrics.study import GROUPS, passes
from labkit.evidence.metrics.yardstick import Yardstick
from labkit.evidence.sample import Sample
from labkit.files import progress_bar, write_json, write_text
from labkit.recording import provenance

ALONE, COPIES = "perfect, no training scans", "copies"
OUT = Path(__file__).resolve().parents[1] / "reference" / "acceptance"
TRAINED = 100
SPOILED = {"collapse to the mean": 1.0, "shrunk to 0.3": 0.7, "blur": 1.0, "one rat over and over": 1.0}
"""Bad generators, and how strong their fault is; what is shrunk lies at 0.3 of its distance from the mean rat."""


def main() -> None:
    """Count, and write what was found."""
    parser = argparse.ArgumentParser(prog="book/experiments/acceptance.py")
    parser.add_argument("--cohort", default="phantom", choices=labkit.SIMULATED)
    parser.add_argument("--animals", default="12,18", help="animals a side, several with commas")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    sides = [int(part) for part in options.animals.split(",")]
    pool = labkit.open_cohort(options.cohort, n=3 * max(sides) + TRAINED + 200)
    cases = [(n, trained, seed) for n in sides for trained in (True, False) for seed in range(options.seeds)]
    rows = [row for case in progress_bar(cases, "measuring") for row in count(pool, options.size, *case)]
    found = pd.DataFrame(rows, columns=["animals", "train", "seed", "generator", "metric", "flavour", "rejected"])
    share = found.groupby(["generator", "metric", "animals", "train"], sort=False)["rejected"].mean().reset_index()
    write_text(OUT / "measured.csv", share.round(4).to_csv(index=False))
    write_text(OUT / "table.md", table(share))
    about = vars(options) | {"cases": len(cases), **provenance(torch.device("cpu"))}
    write_json(OUT / "provenance.json", about)


def count(pool: Cohort, size: int, n: int, trained: bool, seed: int) -> Iterator[tuple]:
    """Which rows reject which generator, for one choice of rats: `n` a side where training scans are given."""
    order = np.random.default_rng([seed, n]).permutation(len(pool))
    real, made, train = (
        pool.subset(np.sort(order[a:b]).tolist()) for a, b in ((0, 2 * n), (2 * n, 3 * n), (3 * n, 3 * n + TRAINED))
    )
    yardstick = Yardstick(real, n, train if trained else None, seed, size)
    fresh = yardstick.sample(made).take(np.arange(len(yardstick.reference)))
    for generator, sample in generators(fresh, yardstick):
        for family in yardstick.families:
            for row in yardstick.beside_floors(family, sample):
                rejected = not passes(pd.Series(row._asdict()))
                yield len(fresh), trained, seed, generator, row.metric, row.flavour, rejected
    if trained:
        taught, others, own = (
            embeddings.voxels(part.normalised, yardstick.box)
            for part in (yardstick.sample(train), yardstick.everyone, yardstick.sample(made))
        )
        copied = memorisation.plant_copies(own, taught, np.random.default_rng(seed))
        for generator, scans in (("perfect", own), (COPIES, copied)):
            rejected = memorisation.audit(scans, taught, others).p <= 0.05
            yield len(fresh), trained, seed, generator, "copies p", "", rejected


def generators(fresh: Sample, yardstick: Yardstick) -> Iterator[tuple[str, Sample]]:
    """Fresh rats, and the same spoiled."""
    yield "perfect", fresh
    scene = faults.Scene.of(yardstick.parts[0], yardstick.reference, yardstick.seed)
    by_name = {fault.name: fault for fault in faults.FAULTS}
    for name, strength in SPOILED.items():
        yield name, faults.spoil(fresh, by_name.get(name, by_name["collapse to the mean"]), strength, scene)


def table(share: pd.DataFrame) -> str:
    """Metrics down, generators across, how often a row rejects, per cent, as Markdown."""
    share = share.assign(generator=share["generator"].where(share["train"] | (share["generator"] != "perfect"), ALONE))
    means = share.groupby(["metric", "generator"])["rejected"].mean().mul(100).round().astype(int).unstack()
    heads = ["perfect", ALONE, *SPOILED, COPIES]
    lines = ["| per cent | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for metric in (name for names in GROUPS.values() for name in names if name in means.index):
        cells = ["" if np.isnan(means.loc[metric, head]) else f"{means.loc[metric, head]:.0f}" for head in heads]
        lines.append("| ".join([f"| {metric} ", *(f"{cell} " for cell in cells)]) + "|")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
