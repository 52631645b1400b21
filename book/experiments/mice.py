"""Real animals: what this study says of simulated rats, asked of 25 mice with labels.

    python book/experiments/mice.py [--splits 6] [--labelled 1,3,5,17] [--steps 2400]
        [--iterations 5000] [--models sigmarat2,sigmarat3] [--parts segmentation,realism,groups] [--runs runs/mice]

Each split holds eight or nine animals out, three of them every animal once, groups on both sides. `segmentation`: of
those trained on some have labels, and networks learn the 20 structures from these, with an atlas's draws, random warps
or the other animals, labelled by registration, beside them; registration labels the test animals itself, too.
`realism`: an atlas and alpha-GANs of `--iterations` beside the held-out animals. `groups`: brain volumes of wild type
and transgenic mice as they come back from encoder and generator, as they are drawn, and whether a code tells the group.
What is finished is kept in --runs, and an interrupted run goes on with the rest; of models that are not named the rows
that are there stay. Writes tables and provenance.json to
book/reference/mice. An evening on two cores.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import t

import labkit
from labkit.atlas import AtlasEncoder
from labkit.data.cohort import Cohort
from labkit.data.splits import split
from labkit.evidence.metrics.compare import VARIANCE
from labkit.evidence.metrics.study import Study, short, with_interval
from labkit.evidence.segmentation import registered
from labkit.evidence.segmentation.arms import ARMS as ALL_ARMS
from labkit.evidence.segmentation.experiment import Experiment
from labkit.evidence.segmentation.network import PLANS
from labkit.files import write_json, write_text
from labkit.generation import decode, draw_codes, encode
from labkit.recording import provenance

ARMS = ("r100", "r100+a1000", "r100+e1000", "r100+u")
WORDS = {
    "registration": "registration alone", "r100": "network, these alone", "r100+e1000": "network, + random warps",
    "r100+a1000": "network, + atlas draws", "r100+u": "network, + the others, registered",
}  # fmt: skip
AGAINST = {"r100+a1000": ("r100", "r100+e1000", "r100+u", "registration"), "r100+e1000": ("r100",), "r100+u": ("r100",),
           "registration": ("r100",)}  # fmt: skip
"""Which arm minus which."""
CONCLUSIONS = (
    (
        "registration labels new animals better than a network that learned the same labels",
        "registration",
        "r100",
        3,
        1,
    ),
    ("so it does where all animals have labels", "registration", "r100", 17, 1),
    ("with one labelled animal a network gains from an atlas's draws", "r100+a1000", "r100", 1, 1),
    ("it gains more from them than from warping that animal at random", "r100+a1000", "r100+e1000", 1, 1),
    ("with three labelled animals it gains from the draws, too", "r100+a1000", "r100", 3, 1),
    ("it gains more from them than from warping the same animals at random", "r100+a1000", "r100+e1000", 3, 1),
    ("it gains more still from the other animals, labelled by registration", "r100+u", "r100+a1000", 3, 1),
    ("random warps alone help where labels are few", "r100+e1000", "r100", 3, 1),
    ("where all have labels, draws add nothing", "r100+a1000", "r100", 17, 0),
)
"""In words, which arm minus which, with how many labelled animals, and the sign on simulated rats."""
NOTHING = 0.01
"""A difference in Dice that nobody would miss."""
SHOWN = (
    ("power ratio", "8 to 4"), ("power ratio", "4 to 2.7"), ("power ratio", "under 2.7"), ("trace ratio", "PCA"),
    ("trace ratio", "regions"), ("RMSE", "reconstruction"), ("suspects", "synthetic"), ("copies p", "synthetic"),
    ("suspects", "30 % copies planted"), ("copies p", "30 % copies planted"), ("copies p", "aligned"),
)  # fmt: skip
DETAIL = ("8 to 4", "4 to 2.7", "under 2.7")
"""Bands of wavelengths, voxels."""
GANS = ("sigmarat2", "sigmarat3")
ORDER = (*GANS, "atlas")
OUT = Path(__file__).resolve().parents[1] / "reference" / "mice"


def main() -> None:
    """Train and measure what is missing, and write it."""
    parser = argparse.ArgumentParser(prog="book/experiments/mice.py")
    parser.add_argument("--splits", type=int, default=6, help="three hold every animal out once")
    parser.add_argument("--labelled", default="1,3,5,17", help="of the animals trained on; 17 for all")
    parser.add_argument("--steps", type=int, default=PLANS["laptop"].steps, help="of a segmentation network")
    parser.add_argument("--iterations", type=int, default=5000, help="of the alpha-GAN")
    parser.add_argument("--models", default=",".join(GANS), help="alpha-GANs; the atlas is always there")
    parser.add_argument("--parts", default="segmentation,realism,groups")
    parser.add_argument("--runs", type=Path, default=Path("runs/mice"))
    options = parser.parse_args()
    runs, parts, models = options.runs.resolve(), options.parts.split(","), options.models.split(",")
    if unknown := set(models) - set(GANS):
        parser.error(f"--models {min(unknown)}: allowed are {', '.join(GANS)}")
    each = [(model, fold) for model in models for fold in range(options.splits)]
    if "segmentation" in parts:
        shares = [int(part) for part in options.labelled.split(",")]
        scores = [segmentation(runs, fold, k, options.steps) for fold in range(options.splits) for k in shares]
        table = pd.concat(scores, ignore_index=True)
        write_text(OUT / "dice.csv", table.to_csv(index=False, float_format="%.4f"))
        write_text(OUT / "segmentation.md", levels(table))
        write_text(OUT / "differences.md", differences(table))
        write_text(OUT / "structures.md", structures(table))
        write_text(OUT / "holds.md", holds(table))
    if "realism" in parts:
        table = with_others("realism", [realism(runs, *one, options.iterations) for one in each])
        write_text(OUT / "realism.csv", table.to_csv(index=False, float_format="%.5g"))
        write_text(OUT / "realism.md", beside_floors(table))
        write_text(OUT / "realism_holds.md", realism_holds(table))
    if "groups" in parts:
        table = with_others("groups", [groups(runs, *one, options.iterations) for one in each])
        write_text(OUT / "groups.csv", table.to_csv(index=False, float_format="%.5g"))
        write_text(OUT / "groups.md", volumes(table))
    about = {"cohort": mice().fingerprint, "splits": options.splits, **provenance(torch.device("cpu"))}
    file = OUT / "provenance.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}  # of what other calls have measured
    for part in parts:
        if part == "segmentation":
            told[part] = about | {"steps": options.steps}
        else:
            told[f"{part}, {options.models}"] = about | {"iterations": options.iterations}
    write_json(file, told)


@cache
def mice() -> Cohort:
    """With the 20 structures as labels."""
    return labkit.open_cohort("mice", labels="structures")


def atlas(runs: Path, fold: int) -> labkit.Run:
    """Of a split's training animals, trained or opened."""
    return labkit.train("atlas", mice(), "laptop", runs / f"atlas-{fold}", fold=fold)


def gan(runs: Path, model: str, fold: int, iterations: int) -> labkit.Run:
    """An alpha-GAN of the same animals; precision is the same on every machine."""
    return labkit.train(model, mice(), "laptop", runs / f"{model}-{fold}", iterations, fold=fold, precision="fp32")


def with_others(name: str, tables: list[pd.DataFrame]) -> pd.DataFrame:
    """What was measured now, and what a table that is there says of models that were not."""
    kept, file = pd.concat(tables, ignore_index=True), OUT / f"{name}.csv"
    keys = [key for key in ("model", "split", "metric", "flavour", "kind", "subject") if key in kept]
    if file.exists():
        there = rows_of_file(file)
        kept = pd.concat([kept, there[~there["model"].isin(kept["model"])]], ignore_index=True)
    kept["rank"] = kept["model"].map({model: place for place, model in enumerate(ORDER)}).fillna(len(ORDER))
    return kept.drop_duplicates(keys).sort_values(["rank", "split"], kind="stable").drop(columns="rank")


def rows_of_file(file: Path) -> pd.DataFrame:
    """A table with words as they are: subjects' leading zeros, and no flavour."""
    return pd.read_csv(
        file,
        dtype={"subject": str},
        keep_default_na=False,
        na_values={
            "value": [""],
            "floor": [""],
            **{f"{name}_{side}": [""] for name in ("ci", "floor") for side in ("low", "high")},
            "real": [""],
            "n": [""],
        },
    )


def segmentation(runs: Path, fold: int, labelled: int, steps: int) -> pd.DataFrame:
    """Dice and volume bias of every arm, structure and held-out animal, where some training animals have labels."""
    train, test = split(mice(), fold=fold)
    if test is None:
        raise ValueError("no animals are held out")
    folder, run = runs / f"segmentation-{fold}-{labelled:02d}-{steps}", atlas(runs, fold)
    known = set(np.random.default_rng(fold).permutation(sorted(set(train.subjects)))[:labelled].tolist())
    some = Cohort(train.name, train.folder, [s if s.subject in known else replace(s, labels=None) for s in train])
    arms = ARMS if len(known) < len(train) else ARMS[:-1]
    experiment = Experiment(run, replace(PLANS["laptop"], steps=steps), arms, 1, some, test, folder, atlas=run)
    experiment.arms = [ALL_ARMS[name] for name in arms]  # without r100's own reference
    experiment.go_on()
    found = pd.concat([experiment.scores, registered.scores(experiment).assign(arm="registration")], ignore_index=True)
    return found.drop(columns=["session", "seed", "hd95_mm"]).assign(split=fold, labelled=labelled)


def over_animals_and_splits(table: pd.DataFrame, column: str) -> tuple[float, float, float]:
    """Mean of a column with its 95 % interval, whose error has a part by animals and a part by splits."""
    animals, splits = (table.groupby(key)[column].mean() for key in ("subject", "split"))
    mean = float(animals.mean())
    if len(splits) < 2:
        return mean, float("nan"), float("nan")
    error = np.sqrt(splits.var(ddof=1) / len(splits) + animals.var(ddof=1) / len(animals))
    reach = float(t.ppf(0.975, len(splits) - 1) * error)
    return mean, mean - reach, mean + reach


def by_part(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the whole brain, and of an animal's mean over its structures."""
    keys = ["arm", "labelled", "split", "subject"]
    whole = table[table["tissue"] == "whole brain"].assign(part="whole brain")
    parts = table[table["tissue"] != "whole brain"].assign(bias=lambda rows: rows["volume_bias"].abs())
    means = parts.groupby(keys, sort=False)[["dice", "bias"]].mean().reset_index().assign(part="structures")
    return pd.concat([whole.assign(bias=whole["volume_bias"].abs()), means], ignore_index=True)[
        [*keys, "part", "dice", "bias"]
    ]


def levels(table: pd.DataFrame) -> str:
    """Mean Dice of every arm by labelled animals, and mean volume bias of structures, either way."""
    rows, found = [], by_part(table)
    shares = sorted(found["labelled"].unique())
    for part, column, what in (
        ("structures", "dice", "Dice"), ("whole brain", "dice", "Dice"), ("structures", "bias", "volume bias"),
    ):  # fmt: skip
        for arm, words in WORDS.items():
            own = found[(found["arm"] == arm) & (found["part"] == part)]
            cells = [digits(own[own["labelled"] == k][column].mean()) for k in shares]
            rows.append([part, what, words, *cells])
    return markdown(["", "", "", *(f"{k} labelled" for k in shares)], rows)


def differences(table: pd.DataFrame) -> str:
    """Differences in Dice of arms, animal by animal, with intervals over animals and splits."""
    rows, found = (
        [],
        by_part(table).pivot_table(index=["part", "labelled", "split", "subject"], columns="arm", values="dice"),
    )
    shares = sorted(table["labelled"].unique())
    for part in ("structures", "whole brain"):
        for arm, others in AGAINST.items():
            for other in others:
                cells = []
                for k in shares:
                    own = found.loc[(part, k)]
                    pair = {"difference": own[arm] - own[other]} if {arm, other} <= set(own) else {}
                    own = pd.DataFrame(pair).dropna().reset_index()
                    cells.append(signed(*over_animals_and_splits(own, "difference")) if len(own) else "")
                rows.append([part, f"{WORDS[arm]} − {WORDS[other]}", *cells])
    return markdown(["Dice", "", *(f"{k} labelled" for k in shares)], rows)


def holds(table: pd.DataFrame) -> str:
    """What this study says of labels on simulated rats, and whether it is so of mice: by Dice of the structures."""
    found = by_part(table)
    wide = found[found["part"] == "structures"].pivot_table(
        index=["labelled", "split", "subject"], columns="arm", values="dice"
    )
    rows = []
    for words, arm, other, share, sign in CONCLUSIONS:
        if share not in wide.index.get_level_values(0) or not {arm, other} <= set(wide):
            continue
        own = (wide.loc[share, arm] - wide.loc[share, other]).dropna().rename("difference").reset_index()
        if own.empty:
            continue
        mean, low, high = over_animals_and_splits(own, "difference")
        seen = int(low > 0) - int(high < 0)
        # that there is nothing can be said where an interval leaves no room for more
        known = seen or not sign and max(-low, high) < NOTHING
        verdict = ("yes" if seen == sign else "no") if known else "cannot be seen"
        rows.append([words, f"{share} labelled: {signed(mean, low, high)}", verdict])
    return markdown(["on simulated rats", "on mice, Dice of structures", "holds?"], rows)


def structures(table: pd.DataFrame) -> str:
    """Mean Dice and volume bias of each structure, by arm, where the fewest but one and where all have labels."""
    shares = sorted(table["labelled"].unique())
    some = [shares[min(1, len(shares) - 1)], shares[-1]]
    rows, arms = [], list(WORDS)
    for tissue in table["tissue"].unique():
        cells = []
        for k in dict.fromkeys(some):
            for arm in arms:
                own = table[(table["tissue"] == tissue) & (table["labelled"] == k) & (table["arm"] == arm)]
                cells.append(
                    f"{digits(own['dice'].mean())} ({100 * own['volume_bias'].mean():+.0f} %)" if len(own) else ""
                )
        rows.append([tissue, *cells])
    return markdown(["Dice (volume bias)", *(f"{WORDS[arm]}, {k}" for k in dict.fromkeys(some) for arm in arms)], rows)


def realism(runs: Path, model: str, fold: int, iterations: int) -> pd.DataFrame:
    """Chapter 4's table of an alpha-GAN, the atlas and the controls, of one split."""
    file = runs / f"realism-{model}-{fold}-{iterations}.csv"
    if not file.exists():
        study = Study([gan(runs, model, fold, iterations), atlas(runs, fold)])
        write_text(file, study.table.to_csv(index=False))
    return rows_of_file(file).assign(split=fold)


def beside_floors(table: pd.DataFrame) -> str:
    """Measures down, models across: mean over splits, and the smallest and largest."""
    rows, models = [], list(dict.fromkeys(table["model"]))
    for metric, flavour in SHOWN:
        own = table[(table["metric"] == metric) & (table["flavour"] == flavour)]
        if own.empty:
            continue
        values = own.groupby("model")["value"]
        cells = [with_interval(values.mean()[m], values.min()[m], values.max()[m]) if m in values.groups else ""
                 for m in models]  # fmt: skip
        rows.append([f"{metric}, {flavour}", *cells, short(own["floor"].mean())])
    return markdown(["", *models, "floor: real"], rows)


def realism_holds(table: pd.DataFrame) -> str:
    """What this study says of realism on simulated rats, and in how many splits it is so of mice."""

    def rows_of(model: str, metric: str, flavours: tuple[str, ...]) -> pd.DataFrame:
        own = table[(table["model"] == model) & (table["metric"] == metric) & table["flavour"].isin(flavours)]
        return own.sort_values("split")

    def each(rows: pd.DataFrame, good: pd.Series) -> tuple[pd.DataFrame, list[bool]]:
        return rows, good.groupby(rows["split"]).all().tolist()

    def uncopied(model: str) -> tuple[pd.DataFrame, list[bool]]:
        """Only where the audit finds the copies that were planted, 3 scans in 10."""
        audited, planted = (rows_of(model, "copies p", (kind,)) for kind in ("synthetic", "30 % copies planted"))
        sees = (planted["value"] <= 0.05).to_numpy()
        return audited, (audited["value"] > 0.05)[sees].tolist()

    lines: list[list[str]] = []
    gan, atlas = (rows_of(model, "power ratio", DETAIL) for model in ("sigmarat2", "atlas"))
    back = {model: rows_of(model, "RMSE", ("reconstruction",)) for model in ("sigmarat2", "atlas")}
    varied = {model: rows_of(model, "trace ratio", ("PCA",)) for model in ("sigmarat2", "atlas")}
    for words, (rows, good) in {
        "an alpha-GAN of such a training lacks detail: less than half of real scans' power below 8 voxels": each(
            gan, gan["value"] < 0.5
        ),
        "an atlas has it: 0.8 to 1.25 of their power in each band": each(atlas, atlas["value"].between(0.8, 1.25)),
        "an atlas returns an unseen animal closer than other animals come": each(
            back["atlas"], back["atlas"]["ci_high"] < back["atlas"]["floor"]
        ),
        "an alpha-GAN does not": each(back["sigmarat2"], back["sigmarat2"]["ci_high"] >= back["sigmarat2"]["floor"]),
        "an atlas's variety on principal components reaches the floor's interval": each(
            varied["atlas"], varied["atlas"]["ci_high"] >= varied["atlas"]["floor_low"]
        ),
        "no copies are found of an alpha-GAN": uncopied("sigmarat2"),
        "none are found of an atlas": uncopied("atlas"),
    }.items():
        values = with_interval(rows["value"].mean(), rows["value"].min(), rows["value"].max())
        splits = rows["split"].nunique()
        verdict = {len(good): "yes", 0: "no"}.get(sum(good), f"in {sum(good)} of {len(good)} splits")
        if len(good) < splits:
            verdict = f"cannot be seen in {splits - len(good)} of {splits} splits" + (
                f", else {verdict}" if good else ""
            )
        lines.append([words, values, verdict])
    return markdown(["on simulated rats", "on mice: mean (least to most)", "holds?"], lines)


def groups(runs: Path, model: str, fold: int, iterations: int) -> pd.DataFrame:
    """Brain volumes, mm³, of held-out animals, of what comes back of them, and of new ones; groups told by codes."""
    file = runs / f"groups-{model}-{fold}-{iterations}.csv"
    if file.exists():
        return rows_of_file(file)
    train, held_out = split(mice(), fold=fold)
    rows = []
    for name, run in ((model, gan(runs, model, fold, iterations)), ("atlas", atlas(runs, fold))):
        codes = {side: encode(run, scans) for side, scans in (("train", train), ("held out", held_out))}
        told = [nearest_group(codes["train"][:, :k], train, codes["held out"][:, :k]) for k in (leading(run), None)]
        back = brain_volumes(decode(run, codes["held out"], "encoded"), run)
        real = brain_volumes(held_out.volumes(run.scale.size), run)
        for place, scan in enumerate(held_out):
            group = held_out.groups[scan.subject]
            rows.append((name, "held out", scan.subject, group, real[place], back[place], told[0][place],
                         told[1][place]))  # fmt: skip
        drawn = brain_volumes(decode(run, draw_codes(run, 100, fold)), run)
        rows += [(name, "drawn", str(place), "", np.nan, volume, "", "") for place, volume in enumerate(drawn)]
    columns = ["model", "kind", "subject", "group", "real", "made", "told", "told_by_all"]
    found = pd.DataFrame(rows, columns=columns).assign(split=fold)
    write_text(file, found.to_csv(index=False))
    return found


def brain_volumes(cubes: torch.Tensor, run: labkit.Run) -> np.ndarray:
    """Of scans without a skull (N, 1, S, S, S) in [-1, 1]: voxels brighter than half of their brain's median."""
    unit = (cubes.flatten(1) + 1) / 2
    inside = torch.where(unit > unit.quantile(0.99, dim=1, keepdim=True) / 5, unit, torch.nan)
    brighter = unit > inside.nanmedian(1, keepdim=True).values / 2
    return (brighter.sum(1) * float(np.prod(run.file_template.cube_zooms(cubes.shape[-1])))).numpy()


def leading(run: labkit.Run) -> int | None:
    """How many numbers of a code hold 90 % of the variance that an atlas draws, which all count alike in it."""
    encoder = run.encoder()
    if not isinstance(encoder, AtlasEncoder):
        return None
    return max(1, int((encoder.atlas.modes["share"].cumsum(0) <= VARIANCE).sum()))


def nearest_group(known: torch.Tensor, train: Cohort, codes: torch.Tensor) -> list[str]:
    """The group of each code by linear discriminant analysis with shrunken covariance, of training animals."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    model.fit(known.double().numpy(), [train.groups[subject] for subject in train.subjects])
    return [str(group) for group in model.predict(codes.double().numpy())]


def volumes(table: pd.DataFrame) -> str:
    """Mean and spread of brain volumes by group, and how many held-out animals' groups their codes tell."""

    def right(some: pd.DataFrame, column: str) -> str:
        return f"{(some[column] == some['group']).sum()} of {len(some)}"

    rows = []
    for model, own in table.groupby("model", sort=False):
        held_out = own[own["kind"] == "held out"]
        for group, some in held_out.groupby("group"):
            told = (right(some, column) for column in ("told", "told_by_all"))
            rows.append([model, group, spread(some["real"]), spread(some["made"]), *told])
        told = (right(held_out, column) for column in ("told", "told_by_all"))
        drawn = own[own["kind"] == "drawn"]
        rows.append([model, "all; drawn", spread(held_out["real"]), spread(drawn["made"]), *told])
    return markdown(["model", "group", "real, mm³", "made, mm³", "told by code", "by all of its numbers"], rows)


def spread(values: pd.Series) -> str:
    """Mean, and standard deviation."""
    return f"{values.mean():.0f} ± {values.std():.0f}"


def digits(value: float) -> str:
    """Three decimals, or nothing for what was not measured."""
    return "" if np.isnan(value) else f"{value:.3f}"


def signed(mean: float, low: float, high: float) -> str:
    """A difference with its interval."""
    text = f"{mean:+.3f}" + ("" if np.isnan(low) else f" ({low:+.3f} to {high:+.3f})")
    return text.replace("-", "−")


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
