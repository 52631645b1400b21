"""What is the atlas's assumption worth? The atlas on rats that are one template deformed, and on rats that are not.

    python book/experiments/departures.py [--cohort sigma] [--scale laptop] [--runs runs/departures]

Each condition is a cohort of the simulator with other departures from that assumption
(:mod:`labkit.data.simulate.departures`): none, each alone, all. An atlas is trained on 174 of its 210 rats, and its new
rats, its reconstructions and its labels are measured on the other 36. Floors are of rats with the same departures.
Finished conditions are kept in --runs, and an interrupted experiment goes on with the others. Writes table.md,
measured.csv and provenance.json to book/reference/departures; an hour and a half on a core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import labkit
from labkit.data.cohort import Cohort
from labkit.data.simulate.departures import DEPARTURES
from labkit.evidence.metrics import intervals
from labkit.evidence.metrics.compare import compare
from labkit.evidence.metrics.measures import Measurement
from labkit.evidence.metrics.study import passes, short
from labkit.evidence.segmentation.scores import score
from labkit.files import write_json, write_text
from labkit.runs import Run

OUT = Path(__file__).resolve().parents[1] / "reference" / "departures"
CONDITIONS = {"none": (), **{name: (name,) for name in DEPARTURES}, "all": tuple(DEPARTURES)}
VOLUMES = ("brain", "CSF", "grey matter", "white matter")
SHOWN = [
    *(("classifier AUC", flavour) for flavour in ("PCA", "regions")),
    *(("precision", flavour) for flavour in ("PCA", "regions")),
    *(("recall", flavour) for flavour in ("PCA", "regions")),
    ("trace ratio", "PCA"),
    *(("power ratio", band) for band in ("over 8 voxels", "under 2.7")),
    *(("RBF-MMD", flavour) for flavour in ("PCA", "regions")),
    *(("RMSE", "reconstruction"), ("SSIM", "reconstruction")),
    *(("Wasserstein", f"{part} volume, mm³") for part in VOLUMES),
    *(("Dice", part) for part in ("whole brain", *VOLUMES[1:])),
]
"""Rows of the page's table; measured.csv has all of them."""
COLUMNS = ["condition", *(name for name in Measurement._fields if name != "how")]


def main() -> None:
    """Simulate, train and measure what is missing, and write."""
    parser = argparse.ArgumentParser(prog="book/experiments/departures.py")
    parser.add_argument("--cohort", default="sigma", choices=labkit.SIMULATED)
    parser.add_argument("--scale", default="laptop", choices=list(labkit.SCALES))
    parser.add_argument("--n", type=int, default=210, help="rats of each condition")
    parser.add_argument("--seed", type=int, default=0, help="of rats, fit and measures")
    parser.add_argument("--runs", type=Path, default=Path("runs/departures"))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    tables, made_with = [], {}
    for name, departures in CONDITIONS.items():
        cohort = labkit.open_cohort(options.cohort, n=options.n, seed=options.seed, departures=departures)
        run = labkit.train("atlas", cohort, options.scale, options.runs / name, seed=options.seed)
        kept = options.runs / f"{name}-{run.fingerprint[:8]}.csv"
        if not kept.exists():
            rows = pd.DataFrame(measured(run, cohort, options.seed)).assign(condition=name)
            write_text(kept, rows[COLUMNS].to_csv(index=False, float_format="%.5g"))
        tables.append(pd.read_csv(kept))
        made_with[name] = {"cohort": cohort.fingerprint, "sittings": run.provenance["sittings"]}
    found = pd.concat(tables, ignore_index=True)
    held_out = len(run.held_out(cohort))
    about = {"cohort": options.cohort, "scale": options.scale, "seed": options.seed, "held_out": held_out}
    write_text(options.out / "measured.csv", found.to_csv(index=False))
    write_text(options.out / "table.md", table(found))
    write_json(options.out / "provenance.json", {**about, "rats": options.n, "conditions": made_with})
    print(table(found))


def measured(run: Run, cohort: Cohort, seed: int) -> Iterator[Measurement]:
    """New rats, reconstructions and labels of one run, beside their floors, on the animals that it held out."""
    train, held_out = run.train_part(cohort), run.held_out(cohort)
    made, back = labkit.generate(run, len(held_out), seed=seed), labkit.reconstruct(run, held_out)
    rows = compare(held_out, made, train, back, seed, run.scale.size)
    yield from (Measurement(*row) for row in rows.itertuples(index=False, name=None))
    yield from labelling(label_maps(labkit.segment(run, held_out)), label_maps(train), held_out)


def labelling(predicted: Tensor, taught: Tensor, held_out: Cohort) -> Iterator[Measurement]:
    """Dice of label maps, (N, X, Y, Z), by tissue; the floor: at each place the label that most training rats have."""
    shares = torch.stack([(taught == label).sum(0) for label in range(int(taught.max()) + 1)])
    usual = shares.argmax(0).byte().expand_as(predicted)
    found, floor = (score(maps, held_out) for maps in (predicted, usual))
    for tissue, own in found.groupby("tissue", sort=False):
        sets = own["dice"].to_numpy(), floor.loc[own.index, "dice"].to_numpy()
        value, least = (Measurement("Dice", str(tissue), dice.mean(), *intervals.of_mean(dice), direction="higher")
                        for dice in sets)  # fmt: skip
        yield value.beside(least, len(own))


def label_maps(cohort: Cohort) -> Tensor:
    """The labels of all scans, uint8 (N, X, Y, Z)."""
    return torch.from_numpy(np.stack([np.asarray(scan.labels) for scan in cohort]))


def table(found: pd.DataFrame) -> str:
    """The page's table as Markdown: measures down, conditions across, a value and its floor, bold if short of it."""
    by_key = found.set_index(["metric", "flavour", "condition"]).sort_index()
    names = list(dict.fromkeys(found["condition"]))
    lines = [f"| | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for metric, flavour in (key for key in SHOWN if key in set(zip(found["metric"], found["flavour"], strict=True))):
        cells = []
        for name in names:
            row = by_key.loc[(metric, flavour, name)]
            value = short(row["value"])
            row = pd.Series({**row, "metric": metric})
            cells.append(f"{value if passes(row) else f'**{value}**'} / {short(row['floor'])}")
        lines.append(f"| {metric}, {flavour} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
