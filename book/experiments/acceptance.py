"""Do the measures accept a perfect generator, and do they notice bad ones? Rejections by measure, counted.

    python book/experiments/acceptance.py [--animals 12,18,36,108] [--sizes 32,64] [--seeds 20] [--spoiled 4]

The perfect generator is the simulator itself: rats that nobody measured or trained on. The bad ones are the same rats
spoiled on purpose (:mod:`labkit.evidence.metrics.faults`), or copies of training rats. Each seed draws other rats, with
training scans given and without. Finished cases are kept in a file, and an interrupted run goes on with the others.
Writes tables, measured.csv and provenance.json to book/reference/acceptance; an hour and a half on a core. How often
intervals cover the truth is another question, which needs a known truth and no rats: coverage.py.
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
from labkit.data.manifest import data_folder
from labkit.evidence import attributes
from labkit.evidence.metrics import distributions, embeddings, faults, memorisation, yardstick
from labkit.evidence.metrics.study import GROUPS, passes
from labkit.evidence.metrics.yardstick import Yardstick
from labkit.evidence.sample import Sample
from labkit.files import progress_bar, write_json, write_text
from labkit.recording import provenance

PERFECT, COPIES = "perfect", "copies"
OUT = Path(__file__).resolve().parents[1] / "reference" / "acceptance"
TRAINED, POOL = 100, 660
"""Training scans, and rats to draw from."""
SPOILED = {"collapse to the mean": 1.0, "shrunk to 0.3": 0.7, "blur": 1.0, "one scan over and over": 1.0}
"""Bad generators, and how strong their fault is; what is shrunk lies at 0.3 of its distance from the mean rat."""

RELEASED = ", released"
"""Ends the names of measures as the released code computes them."""

CASE = ["size", "animals", "train", "seed"]
COLUMNS = [*CASE, "generator", "metric", "flavour", "value", "rejected"]


def main() -> None:
    """Count, and write what was found."""
    parser = argparse.ArgumentParser(prog="book/experiments/acceptance.py")
    parser.add_argument("--cohort", default="phantom", choices=labkit.SIMULATED)
    parser.add_argument("--animals", default="12,18,36,108", help="animals a side, several with commas")
    parser.add_argument("--sizes", default="32,64", help="voxels along a side of the cubes")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--spoiled", type=int, default=4, help="seeds for which rats are spoiled, too")
    parser.add_argument("--kept", type=Path, default=data_folder() / "acceptance.csv", help="of finished cases")
    options = parser.parse_args()
    sides, sizes = ([int(part) for part in text.split(",")] for text in (options.animals, options.sizes))
    pool = labkit.open_cohort(options.cohort, n=POOL)
    known = attributes.measure(pool).join(attributes.tissues(pool)).set_index(pd.Index(pool.subjects))
    yardstick._attributes = lambda scans: known.loc[list(scans.subjects)].reset_index(drop=True)  # measured once
    cases = [(size, n, trained, seed) for seed in range(options.seeds) for size in sizes for n in sides
             for trained in (True, False)]  # fmt: skip
    kept = read(options.kept)
    done = set(kept[CASE].drop_duplicates().itertuples(index=False, name=None))
    for case in progress_bar([case for case in cases if case not in done], "measuring"):
        rows = [(*case, *row) for row in count(pool, *case, spoiled=case[-1] < options.spoiled)]
        pd.DataFrame(rows).to_csv(options.kept, mode="a", header=False, index=False)
    write_text(OUT / "size.md", size_of_p(pool, sides))
    report(read(options.kept), vars(options) | {"kept": options.kept.name})


def read(path: Path) -> pd.DataFrame:
    """Rows of finished cases."""
    return pd.read_csv(path, names=COLUMNS, keep_default_na=False) if path.exists() else pd.DataFrame(columns=COLUMNS)


def report(found: pd.DataFrame, options: dict) -> None:
    """Write shares of rejections, the tables, and what they were made with."""
    keys = ["generator", "metric", "size", "animals", "train"]
    released = found["flavour"] == "released"
    found = found.assign(metric=found["metric"].where(~released, found["metric"] + RELEASED))
    share = found.groupby(keys, sort=False).agg(seeds=("seed", "nunique"), rejected=("rejected", "mean"))
    share = share.reset_index().round(4)
    write_text(OUT / "measured.csv", share.to_csv(index=False))
    for name, text in tables(share).items():
        write_text(OUT / f"{name}.md", text)
    cases = len(found[CASE].drop_duplicates())
    write_json(OUT / "provenance.json", options | {"cases": cases, **provenance(torch.device("cpu"))})


def tables(share: pd.DataFrame) -> dict[str, str]:
    """The page's three tables, and how many choices of rats they are of."""
    perfect, bad = share[share["generator"] == PERFECT], share[share["generator"].isin(SPOILED)]
    return {
        "table": summary(share),
        "perfect": across(perfect, ["size", "animals"], lambda size, n: f"{size}³, {n}"),
        "spoiled": across(bad, ["generator", "animals"], lambda generator, n: f"{generator}, {n}"),
        "seeds": f"Choices of rats: {drawn(perfect)}; of these spoiled: {drawn(bad)}.\n",
    }


def drawn(share: pd.DataFrame) -> str:
    """How many seeds, by size and animals a side, in words."""
    parts = []
    for size, own in share.groupby("size"):
        seeds = own.groupby("animals")["seeds"].min()
        parts.append(f"{', '.join(map(str, seeds))} at {size}³ with {', '.join(map(str, seeds.index))} animals a side")
    return "; ".join(parts)


def count(pool: Cohort, size: int, n: int, trained: bool, seed: int, spoiled: bool) -> Iterator[tuple]:
    """Which rows reject which generator, for one choice of rats, `n` a side."""
    order = np.random.default_rng([seed, n]).permutation(len(pool))
    ends = np.cumsum([0, 2 * n if trained else 3 * n, n, TRAINED])  # without training scans a third teaches
    real, made, train = (pool.subset(np.sort(order[a:b]).tolist()) for a, b in zip(ends[:-1], ends[1:], strict=True))
    held = Yardstick(real, n, train if trained else None, seed, size)
    fresh = held.sample(made)
    for generator, sample in generators(fresh, held, spoiled):
        for family in held.families:
            for row in held.beside_floors(family, sample):
                rejected = not passes(pd.Series(row._asdict()))
                yield generator, row.metric, row.flavour, row.value, rejected
    if trained:
        taught, others, own = (
            embeddings.voxels(part.normalised, held.box) for part in (held.sample(train), held.everyone, fresh)
        )
        copied = memorisation.plant_copies(own, taught, np.random.default_rng(seed))
        for generator, scans in ((PERFECT, own), (COPIES, copied)):
            p = memorisation.audit(scans, taught, others).p
            yield generator, "copies p", "", p, p <= 0.05


def generators(fresh: Sample, held: Yardstick, spoiled: bool) -> Iterator[tuple[str, Sample]]:
    """Fresh rats, and the same spoiled."""
    yield PERFECT, fresh
    scene = faults.Scene.of(held.parts[0][:1], held.reference, held.seed)
    by_name = {fault.name: fault for fault in faults.FAULTS}
    for name, strength in SPOILED.items() if spoiled else ():
        yield name, faults.spoil(fresh, by_name.get(name, by_name["collapse to the mean"]), strength, scene)


def size_of_p(pool: Cohort, sides: list[int], times: int = 300) -> str:
    """How often RBF-MMD p, whose level is 5 %, rejects other rats of the pool: of many choices, as only it is taken."""
    order = np.random.default_rng(0).permutation(len(pool))
    taught, rest = np.sort(order[:TRAINED]), order[TRAINED:]
    sample, box = Sample.of(pool, 32), embeddings.brain_box(pool.subset(taught.tolist()), 32)
    components = embeddings.pca(sample.take(taught).normalised, box)
    said = []
    for name, embed in (("PCA", components), ("regions", embeddings.regions(box))):
        shares = []
        for n in sides:
            p = []
            for seed in range(times):
                rng = np.random.default_rng([seed, n])
                x, y = np.split(sample.features(name, embed)[rng.permutation(rest)[: 2 * n]], 2)
                p.append(distributions.rbf_mmd_p(x, y, distributions.median_distance(x), rng, 99))
            shares.append(f"{100 * np.mean(np.array(p) <= 0.05):.1f}")
        said.append(f"{', '.join(shares)} % ({name})")
    return f"Of {times} choices of {', '.join(map(str, sides))} rats a side it rejects {' and '.join(said)}.\n"


def summary(share: pd.DataFrame) -> str:
    """Metrics down, generators across: rejections of the perfect one, and of bad ones from fewest to most animals."""
    mean = share.groupby(["metric", "generator", "train"])["rejected"].mean().mul(100)
    by_n = share.groupby(["metric", "generator", "animals"])["rejected"].mean().mul(100)
    least, most = share["animals"].min(), share["animals"].max()
    rows = {}
    for metric in in_order(share):
        row = {f"perfect, {what}": short(mean.get((metric, PERFECT, known)))
               for what, known in (("training scans", True), ("none", False))}  # fmt: skip
        for name in (*SPOILED, COPIES):
            ends = [short(by_n.get((metric, name, n))) for n in (least, most)]
            row[name] = " → ".join(dict.fromkeys(ends)) if all(ends) else ""
        rows[metric] = row
    return markdown(pd.DataFrame.from_dict(rows, orient="index"), f"per cent, {least} → {most} animals a side")


def across(share: pd.DataFrame, keys: list[str], head) -> str:
    """Metrics down, `keys` across, how often a row rejects, with training scans / without."""
    means = share.groupby(["metric", *keys, "train"], sort=False)["rejected"].mean().mul(100)
    columns = list(share[keys].drop_duplicates().sort_values(keys[1:], kind="stable")
                   .sort_values(keys[0], kind="stable").itertuples(index=False, name=None))  # fmt: skip
    rows = {}
    for metric in in_order(share):
        cells = [[short(means.get((metric, *column, known))) for known in (True, False)] for column in columns]
        rows[metric] = {
            head(*column): " / ".join(filter(None, cell)) for column, cell in zip(columns, cells, strict=True)
        }
    return markdown(pd.DataFrame.from_dict(rows, orient="index"), "with / without training scans")


def in_order(share: pd.DataFrame) -> list[str]:
    """Metrics in the chapter's order."""
    there = set(share["metric"])
    return [
        name + kind for names in GROUPS.values() for kind in ("", RELEASED) for name in names if name + kind in there
    ]


def short(percent: float | None) -> str:
    """A percentage without decimals."""
    return "" if percent is None or np.isnan(percent) else f"{percent:.0f}"


def markdown(rows: pd.DataFrame, corner: str) -> str:
    """A table as Markdown."""
    lines = [[corner, *rows.columns], ["---"] * (1 + rows.shape[1]), *([name, *row] for name, row in rows.T.items())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
