"""The reference runs: trained over hours, measured on the way, and packed for the repository.

    python book/experiments/reference.py [--models sigmarat2,sigmarat1] [--runs runs/reference-training] [--train]

With --train it trains what is missing at the scale `reference` first (hours for an alpha-GAN; start it again whenever
it was stopped), and keeps the weights at milestones. Then each run is packed into book/reference/runs/<model>
(:mod:`labkit.sharing`), refused if scans of the packed weights differ by more than a hundredth of their range, and the
weights of its milestones are measured on new rats, which nobody trained on or is tested with: curve.csv and table.md,
where other models stay as they are.
With --seeds 0,1,2 three trainings of sigmarat3 are held against three atlases on the 36 rats that nobody trained on,
which is what the rule on the page of experiments asks for: seeds.csv and seeds.md. Seed 0 is the packed runs'; others
are trained, each with an atlas of its own, and networks learn from the labelled scans of the first of these as others
did that were packed (three seeds of arms r5+o200 and r100+o200): labels.csv and labels.md.
With --experiments runs/reference, what chapter 5 found with packed runs (-p run_dir reference/sigmarat2) is packed
beside them: all scores, and the networks that chapters use.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
from scipy.stats import t

import labkit
from labkit import sharing
from labkit.data.cohort import Cohort
from labkit.evidence.metrics.study import Study, short, with_interval
from labkit.evidence.segmentation import gains
from labkit.evidence.segmentation.arms import ARMS
from labkit.evidence.segmentation.experiment import Experiment, read_scores
from labkit.evidence.segmentation.network import ABOUT_FILE, LEFT_OUT, MODEL_FILE, PLANS, SCORES_FILE
from labkit.evidence.segmentation.reader import find_reader
from labkit.evidence.segmentation.reliability import ARM
from labkit.evidence.segmentation.scores import SCORED_TISSUES
from labkit.files import load_state, new_folder, save_state, write_json, write_text
from labkit.generation import ENCODINGS, decode, draw_codes, encode
from labkit.runs import FILE_TEMPLATE, MODELS, OWN_ATLAS, Run

MILESTONES = 1000, 2000, 5000, 10_000
VALIDATION = 36
"""New rats, of another seed than the cohort."""

ROWS, PICTURES = 100, 5
"""Rows of losses and montages that are kept."""

TEXT = {"subject": str, "session": str}
"""Columns that are no numbers, though they may look so."""

MOST = 0.01
"""Largest root mean square by which scans of packed weights may differ, as a share of the range."""

NETWORK_STEP = 0.05
"""Of a segmentation network's weights, in standard deviations of a channel."""

SHOWN = {
    ("Fréchet distance", "PCA"): "Fréchet distance, PCA",
    ("trace ratio", "PCA"): "variance, PCA",
    ("precision", "regions"): "precision, regions",
    ("recall", "regions"): "recall, regions",
    ("RMSE", "reconstruction"): "reconstruction, RMSE",
}
RULE = {
    ("recall", "regions"): "recall, regions",
    ("recall", "network"): "recall, network",
    ("classifier AUC", "network"): "classifier's AUC, network",
    ("RBF-MMD", "network"): "RBF-MMD, network",
    ("copies p", "synthetic"): "copies, p",
    ("classifier AUC", "regions"): "classifier's AUC, regions",
    ("precision", "regions"): "precision, regions",
    ("precision", "network"): "precision, network",
    ("trace ratio", "regions"): "trace ratio, regions",
    ("RMSE", "reconstruction"): "reconstruction, RMSE",
}
"""What sigmarat3 and the atlas are compared by, the rule's measures first."""
PAIR = "sigmarat3", "atlas"
OWN = {"r5+o200": ("r5", "r5+a200"), "r100+o200": ("r100", "r100+a200")}
"""Arms with sigmarat3's labels, and with what they are compared: the same real scans alone, or with an atlas's."""


def main() -> None:
    """Train what is asked for, measure, pack."""
    parser = argparse.ArgumentParser(prog="book/experiments/reference.py")
    parser.add_argument("--models", default="sigmarat2,sigmarat1,adni,atlas")
    parser.add_argument("--runs", type=Path, default=Path("runs/reference-training"))
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--seeds", help="with commas: hold so many trainings of sigmarat3 against their atlases, alone")
    parser.add_argument("--out", type=Path, default=sharing.REPOSITORY)
    parser.add_argument(
        "--experiments", type=Path, help="pack the experiments of chapter 5 in this folder's runs alone"
    )
    options = parser.parse_args()
    if options.experiments:
        for model in options.models.split(","):
            for run in sorted(options.experiments.glob(f"{model}-*")):
                pack_experiments(run, options.out / model)
        return
    cohort = labkit.open_cohort("phantom")
    if options.seeds:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        found = pd.concat([trainings(cohort, options.runs, seed) for seed in seeds])
        write_text(options.out / "seeds.csv", found.to_csv(index=False, float_format="%.5g"))
        write_text(options.out / "seeds.md", by_seed(pd.read_csv(options.out / "seeds.csv")))
        found = own_labels(cohort, training(cohort, options.runs, next(seed for seed in seeds if seed)))
        write_text(options.out / "labels.csv", found.to_csv(index=False, float_format="%.5g"))
        write_text(options.out / "labels.md", own_gains(pd.read_csv(options.out / "labels.csv", dtype=TEXT)))
        return
    curves = []
    for model in options.models.split(","):
        folder = options.runs / model
        if options.train:
            train(model, cohort, folder)
        run = labkit.load_run(folder)
        print(model, pack(run, cohort, options.out / model), flush=True)
        curves.append(curve(run))
    table = joined(options.out / "curve.csv", pd.concat(curves, ignore_index=True))
    write_text(options.out / "curve.csv", table.to_csv(index=False, float_format="%.5g"))
    write_text(options.out / "table.md", markdown(table))


def train(model: str, cohort: Cohort, folder: Path) -> None:
    """To the end, with the weights of milestones set aside."""
    _, scale = labkit.resolve(model, "reference")
    # of an atlas the step size falls towards the end, so that one that is stopped before would be another run
    stops = (scale.iterations,) if model == "atlas" else MILESTONES
    for stop in stops:
        kept = folder / "milestones" / f"{stop:06d}.safetensors"
        if not kept.exists():
            labkit.train(model, cohort, "reference", folder, iterations=stop)
            kept.parent.mkdir(exist_ok=True)
            shutil.copy(folder / MODELS, kept)


def pack(run: Run, cohort: Cohort, out: Path) -> dict[str, float]:
    """Write what the repository keeps of a run; its size, and how far its scans are from the run's own."""
    content = sharing.pack(load_state(run.path / MODELS))
    with tempfile.TemporaryDirectory() as scratch:
        packed = with_weights(run, sharing.unpack(content), Path(scratch))
        held, random = run.held_out(cohort)[:16], draw_codes(run, 16)
        pairs = {
            "random": (decode(one, random, "random") for one in (run, packed)),
            "reconstructed": (decode(one, encode(one, held), "encoded") for one in (run, packed)),
        }
        apart = {kind: (a - b).square().mean().sqrt().item() / 2 for kind, (a, b) in pairs.items()}
        codes = with_codes(packed, cohort)
    if max(apart.values()) > MOST:
        raise SystemExit(f"{run.path.name}: scans of the packed weights differ by {apart}, more than {MOST}")
    config = run.config
    variant, scale = labkit.resolve(run.variant.name, "reference", iterations=run.scale.iterations)
    if run.variant == variant and replace(run.scale, name="reference") == scale:
        config |= {"scale": asdict(scale)}
    losses = run.losses
    thin = losses.iloc[::-1].iloc[:: max(1, len(losses) // ROWS)].iloc[::-1]
    kept = pd.concat([thin, losses.dropna(subset="held_out_mse")]).sort_index()
    shutil.rmtree(out, ignore_errors=True)
    with new_folder(out) as fresh:
        (fresh / sharing.PACKED).write_bytes(content)
        write_json(fresh / "config.json", config)
        write_text(fresh / "losses.csv", kept[~kept.index.duplicated()].to_csv(float_format="%.6g"))
        (fresh / "samples").mkdir()
        for path in (run.path / "provenance.json", run.path / FILE_TEMPLATE):
            shutil.copy(path, fresh)
        if (fitted := run.path / OWN_ATLAS / "provenance.json").exists():  # its seconds count
            (fresh / OWN_ATLAS).mkdir()
            shutil.copy(fitted, fresh / OWN_ATLAS)
        if codes is not None:
            (fresh / f"{ENCODINGS}{sharing.SUFFIX}").write_bytes(codes)
        for path in evenly(sorted((run.path / "samples").glob("*.png"))):
            shutil.copy(path, fresh / "samples")
        found = {"bytes": sum(path.stat().st_size for path in fresh.rglob("*") if path.is_file()), **apart}
        write_json(fresh / "packed.json", found)
    return found


def pack_experiments(run: Path, out: Path) -> None:
    """Scores of all segmentation networks of a run that was opened from `out`, and the networks that chapters use."""
    for folder in sorted(path.parent for path in run.glob(f"segmentation/*/*/{SCORES_FILE}")):
        arm = out / folder.relative_to(run)
        arm.mkdir(parents=True, exist_ok=True)
        about, used = json.loads((folder / ABOUT_FILE).read_text()), re.fullmatch(rf"{ARM}-seed\d+", arm.name)
        write_json(arm / ABOUT_FILE, about if used else about | {"network": LEFT_OUT})
        for path in folder.glob("*.csv"):
            table = pd.read_csv(path, dtype={"subject": str, "session": str})
            write_text(arm / path.name, table.to_csv(index=False, float_format="%.5g"))
        if used:
            content = sharing.pack(load_state(folder / MODEL_FILE), {"": NETWORK_STEP})
            (arm / f"{MODEL_FILE}{sharing.SUFFIX}").write_bytes(content)


def with_codes(packed: Run, cohort: Cohort) -> bytes | None:
    """What an atlas takes minutes to find, so that nobody waits for it: codes of the cohort, full and coarse."""
    if packed.variant.name != "atlas":
        return None
    encode(packed, packed.held_out(cohort))
    encode(packed, cohort, coarse=True)
    found = load_state(packed.path / ENCODINGS)
    half = {kind: {digest: code.half() for digest, code in found[kind].items()} for kind in ("full", "coarse")}
    return sharing.pack(found | half)


def evenly(paths: list[Path]) -> list[Path]:
    """Some of them, first and last included."""
    count = min(PICTURES, len(paths))
    return [paths[round(place * (len(paths) - 1) / max(1, count - 1))] for place in range(count)]


def with_weights(run: Run, state: dict, folder: Path) -> Run:
    """The run with other weights, in a folder of its own."""
    for name in ("config.json", "provenance.json", FILE_TEMPLATE):
        shutil.copy(run.path / name, folder / name)
    save_state(folder / MODELS, state)
    return Run(folder)


def curve(run: Run) -> pd.DataFrame:
    """Measures of random samples and reconstructions after each milestone, on new rats."""
    rats, tables = labkit.open_cohort("phantom", n=VALIDATION, seed=1), []
    for path in sorted((run.path / "milestones").glob("*.safetensors")):
        with tempfile.TemporaryDirectory() as scratch:
            then = with_weights(run, load_state(path), Path(scratch))
            table = Study([then], real=rats, n=VALIDATION // 2).table
        own = table[table["model"].isin([run.variant.name, then.path.name])]
        tables.append(own.assign(model=run.variant.name, iterations=int(path.stem)))
    columns = ["model", "iterations", "metric", "flavour", "value", "ci_low", "ci_high", "floor"]
    return pd.concat(tables, ignore_index=True)[columns]


def trainings(cohort: Cohort, runs: Path, seed: int) -> pd.DataFrame:
    """Chapter 4's measures of a training of sigmarat3 and of an atlas of the same animals."""
    if seed:
        gan = training(cohort, runs, seed)
        pair = [gan, gan.own_atlas]
    else:  # a packed run is without its atlas; that of the same seed is packed, too
        pair = [labkit.load_run(f"{sharing.REFERENCE}/{name}") for name in PAIR]
    reader = find_reader(labkit.load_run(f"{sharing.REFERENCE}/sigmarat2").path, cohort.shape, cohort[0].zooms)
    table = Study(pair, names=PAIR, reader=reader).table
    own = table[table["model"].isin(PAIR)]
    return own[["model", "metric", "flavour", "value", "ci_low", "ci_high", "floor"]].assign(seed=seed)


def training(cohort: Cohort, runs: Path, seed: int) -> Run:
    """Another training of sigmarat3."""
    return labkit.train(PAIR[0], cohort, "reference", runs / f"{PAIR[0]}-s{seed}", seed=seed)


def own_labels(cohort: Cohort, run: Run) -> pd.DataFrame:
    """Scores of networks that learned from scans with labels of their own."""
    own = Experiment(run, "reference", list(OWN), 3, cohort=cohort)
    own.arms = [ARMS[name] for name in OWN]  # what they are compared with is there
    own.go_on()
    return own.scores[["arm", "seed", "subject", "session", "tissue", "dice"]]


def packed_scores() -> Iterator[pd.DataFrame]:
    """The same of the packed networks that they are compared with."""
    names, steps = {name for pair in OWN.values() for name in pair}, PLANS["reference"].steps
    for file in sharing.REPOSITORY.glob(f"sigmarat2/segmentation/*/*/{ABOUT_FILE}"):
        about = json.loads(file.read_text(encoding="utf-8"))
        if about["arm"] in names and about["seed"] < 3 and about["plan"]["steps"] == steps:
            scores = read_scores(file.with_name(SCORES_FILE), SCORED_TISSUES)
            yield scores.assign(arm=about["arm"], seed=about["seed"])


def own_gains(table: pd.DataFrame) -> str:
    """Differences in Dice, animal by animal."""
    table = pd.concat([table, *packed_scores()], ignore_index=True)
    tissues = list(table["tissue"].unique())
    lines = ["| Dice | " + " | ".join(tissues) + " |", "|---|" + "---:|" * len(tissues)]
    for place in (0, 1):
        found = gains.differences(table.fillna({"session": ""}), {arm: others[place] for arm, others in OWN.items()})
        for arm, others in OWN.items():
            rows = found[found["arm"] == arm].set_index("tissue").loc[tissues]
            cells = [gains.stated(row) for _, row in rows.iterrows()]
            lines.append(f"| `{arm}` − `{others[place]}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def by_seed(table: pd.DataFrame) -> str:
    """Every training's value, and the mean difference of the pair with its 95 % interval over seeds."""
    lines = [f"|  | {' | '.join(f'`{name}`' for name in PAIR)} | difference | real |", "|---|---:|---:|---:|---:|"]
    for (metric, flavour), words in RULE.items():
        own = table[(table["metric"] == metric) & (table["flavour"] == flavour)]
        values = own.pivot_table(index="seed", columns="model", values="value")[list(PAIR)]
        apart = values[PAIR[0]] - values[PAIR[1]]
        reach = t.ppf(0.975, len(apart) - 1) * apart.std() / len(apart) ** 0.5
        cells = [", ".join(map(short, values[name])) for name in PAIR]
        cells.append(with_interval(apart.mean(), apart.mean() - reach, apart.mean() + reach))
        cells.append("" if metric == "copies p" else short(own["floor"].mean()))
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def joined(file: Path, fresh: pd.DataFrame) -> pd.DataFrame:
    """Rows of models measured now and of those measured before, in the order of the study's models."""
    kept = pd.read_csv(file, keep_default_na=False, na_values=[""]) if file.exists() else fresh[:0]
    parts = {model: rows for table in (kept, fresh) for model, rows in table.groupby("model", sort=False)}
    return pd.concat([parts[model] for model in labkit.variants.MODELS if model in parts], ignore_index=True)


def markdown(table: pd.DataFrame) -> str:
    """Measures across, models and iterations down."""
    lines = ["| model | iterations | " + " | ".join(SHOWN.values()) + " |", "|---|---:|" + "---:|" * len(SHOWN)]
    keyed = table.set_index(["model", "iterations", "metric", "flavour"]).sort_index()
    for model, iterations in dict.fromkeys(zip(table["model"], table["iterations"], strict=True)):
        own = keyed.loc[model, iterations]
        cells = [short(own["value"][key]) for key in SHOWN]
        lines.append(f"| {model} | {iterations} | " + " | ".join(cells) + " |")
    floors = table.groupby(["metric", "flavour"])["floor"].mean()
    lines.append("| other rats instead | | " + " | ".join(short(floors[key]) for key in SHOWN) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
