"""A card for a run, and for a folder of scans that it made: what they are, learned from, were measured to be, are for.

In the form of the model and data set hubs: ``README.md``, which begins with fields for machines. All of it is read from
the run's folder; what was not measured is said to be so.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.files import write_text
from labkit.markup import one_line, plain, table

if TYPE_CHECKING:  # runs and what stands on them may use this file
    from labkit.runs import Run

CARD = "README.md"
METRICS = "metrics.json"
LOSSES = "losses.csv"
SHOWN = ("trace ratio", "precision", "recall", "classifier AUC")
"""Measures whose values a card shows; the run's ``metrics.md`` has all."""

CONTROLS = {
    "mean": "the mean training scan under noise passes",
    "Gaussian": "a Gaussian over voxels",
    "warped": "training scans under random warps",
}
"""What a card calls chapter 4's generators that learned nothing."""

OURS = {
    "atlas": "a template that is warped, of this study",
    "sigmarat3": "a 3-D alpha-GAN whose generator warps a template, of this study",
}
"""Models that are not the paper's, and what they are."""

PAPER = (
    "A. Ferreira, R. Magalhães, S. Mériaux, V. Alves. Generation of Synthetic Rat Brain MRI Scans with a 3D Enhanced "
    "Alpha Generative Adversarial Network. Applied Sciences 12(10):4844, 2022. doi 10.3390/app12104844"
)
MEASURE = "papermill book/04_quality.ipynb out.ipynb -p run_dirs RUN"
SEGMENT = "papermill book/05_segmentation.ipynb out.ipynb -p run_dir RUN"


def write_card(run: Run, fingerprint: str, folder: Path | None = None, made: Mapping[str, Any] | None = None) -> str:
    """Write :func:`card_text` into the folder, or the run's own; gives it. For people: :func:`labkit.card`."""
    text = card_text(run, fingerprint, folder, made)
    write_text((folder or run.path) / CARD, text)
    return text


def card_text(run: Run, fingerprint: str, folder: Path | None = None, made: Mapping[str, Any] | None = None) -> str:
    """The card of a run, or of a `folder` that it generated, whose description is `made`.

    `fingerprint` is that of the run's weights, which may be known already.
    """
    parts = [_about_run(run, fingerprint), _training_data(run), _verdict(run, fingerprint, made)]
    parts += [_copies(run, fingerprint), _segmentation(run), USE, _citation(run)]
    labels = False
    if folder is not None and made is not None:
        labels = next(folder.rglob("*_dseg.nii.gz"), None) is not None
        parts.insert(0, _about_folder(run, made, labels))
    title = f"# Synthetic brain scans by {plain(run.path.name)}" if made else f"# {plain(run.path.name)}"
    warning = "**SYNTHETIC DATA.**" if made else "A generator of **synthetic** brain scans."
    warning += " No animal was scanned for what it makes: no measurements, no basis for a diagnosis."
    return "\n\n".join([_front_matter(run, made, labels), title, warning, *parts]) + "\n"


def _front_matter(run: Run, made: Mapping[str, Any] | None, labels: bool) -> str:
    """Fields for machines, as JSON, which is YAML: no text of a file can end a string."""
    licence = _data(run).get("License")
    learned = f"training scans: {licence}" if licence else "training scans: licence not known"
    kind = "unconditional-image-generation"
    tags = ["synthetic", "mri", "neuroimaging", "rodent", "brain", "3d", "nifti", run.variant.name]
    fields: dict[str, Any] = {"license": "other", "license_name": one_line(learned), "tags": tags}
    if made is None:
        fields |= {"library_name": "labkit", "pipeline_tag": kind, "model_name": one_line(run.path.name)}
    else:
        size = next((words for most, words in ((1e3, "n<1K"), (1e4, "1K<n<10K")) if made["n"] < most), "10K<n<100K")
        fields |= {"pretty_name": one_line(f"Synthetic brain scans by {run.path.name}"), "size_categories": [size]}
        fields |= {"task_categories": [kind, *(["image-segmentation"] if labels else [])]}
        fields["tags"] = [*tags, "bids"]
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _about_folder(run: Run, made: Mapping[str, Any], labels: bool) -> str:
    like = "the training scans" if made["like"] == "training scans" else f"scans {made['like'][:12]}"
    rows = {
        "scans": f"{made['n']}, numbers 0 to {made['n'] - 1} of seed {made['seed']}",
        "codes": f"standard deviation {made['truncation']:g}; each scan's JSON file holds the code it was made from",
        "files like": like,
        "label maps": "`*_dseg.nii.gz` beside each scan, made by the model" if labels else "none",
        "format": "BIDS derivative; `participants.tsv` has a row a scan",
    }
    return "## What this folder is\n\n" + table(rows)


def _about_run(run: Run, fingerprint: str) -> str:
    """Model, size, time and machine, and how well held-out scans come back."""
    variant, scale, template = run.variant, run.scale, run.file_template
    kind = OURS.get(variant.name, "a 3-D alpha-GAN")
    voxels, zooms = (" × ".join(f"{n:g}" for n in numbers) for numbers in (template.shape, template.zooms))
    try:
        sittings = run.provenance["sittings"]
    except (OSError, ValueError, KeyError):
        sittings = []
    rows = {
        "model": f"`{variant.name}`, {kind}",
        "scale": f"{plain(scale.name)}: cubes of {scale.size}³ voxels",
        "scans": f"{voxels} voxels of {zooms} mm (right, superior, anterior), kind {plain(template.suffix or 'T2w')}",
        "iterations": f"{sittings[-1]['to']} of {scale.iterations}" if sittings else "not kept",
        "trained": _time(sittings, run),
        "weights": f"sha256 `{fingerprint}`",
    }
    if (error := _held_out_error(run)) is not None:
        rows["held-out scans come back with"] = f"a mean squared error of {error[0]:.3g}, the mean scan {error[1]:.3g}"
    return "## The model\n\n" + table(rows)


def _time(sittings: list[dict[str, Any]], run: Run) -> str:
    if not sittings:
        return "when and on what was not kept"
    last, minutes = sittings[-1], run.seconds / 60
    machine = f"{last['device']}, threads: {last['threads']}, {last['precision']}"
    versions = f"labkit {last['labkit']} ({last['commit']}), torch {last['torch']}"
    return plain(f"{minutes:.1f} minutes; sittings: {len(sittings)}, the last on {machine}, {versions}")


def _held_out_error(run: Run) -> tuple[float, float] | None:
    """Last measured errors of held-out scans, and of the mean training scan, without a library of tables."""
    try:
        with (run.path / LOSSES).open(encoding="utf-8") as lines:
            rows = [(float(row["held_out_mse"]), float(row["mean_scan_mse"])) for row in csv.DictReader(lines)]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((row for row in reversed(rows) if row[0] == row[0]), None)


def read_json(path: Path) -> dict[str, Any]:
    """A file that may be absent or damaged, which a card can say nothing of."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _data(run: Run) -> dict[str, Any]:
    """What the training cohort's own files say of it: :func:`labkit.data.bids.read_about`, and which are labelled."""
    return run.config["cohort"].get("about", {})


def _training_data(run: Run) -> str:
    """Animals on either side, and what their data set says of itself."""
    config, about = run.config, _data(run)
    said = f", *{plain(about['Name'])}*" if about.get("Name") else ""
    rows = {"cohort": f"{plain(config['cohort']['name'])}{said}, fingerprint {config['cohort']['fingerprint'][:12]}"}
    for side, words in (("train", "trained on"), ("held_out", "held out, never trained on")):
        subjects = config[side]["subjects"]
        labelled = about.get("labelled", {}).get(side)
        labels = "" if labelled is None else f", {labelled} of them with label maps"
        rows[words] = f"{len(set(subjects))} animals, {len(subjects)} scans{labels}"
    kind = "simulated" if about.get("Simulated") else "synthetic" if about.get("Synthetic") else ""
    rows["kind"] = f"**{kind}: no real animals**" if kind else "scans that do not say they are simulated or synthetic"
    if about.get("Note"):
        rows["note"] = plain(about["Note"])
    for column, values in about.get("participants", {}).items():
        rows[plain(column)] = ", ".join(f"{plain(value)} ({count})" for value, count in values.items())
    if "group" in about.get("participants", {}):
        rows["group"] += "; the model knows nothing of groups and draws from all as one"
    rows.setdefault("species", "not said by the data set")
    rows["licence"] = plain(about["License"]) if about.get("License") else "**not said by the data set: ask its owner**"
    rows["reference"] = "; ".join(map(plain, _references(about))) or "not said by the data set"
    return "## Training data\n\n" + table(rows)


def _references(about: Mapping[str, Any]) -> list[str]:
    """What a BIDS data set asks to be cited by."""
    found: list[str] = []
    for key in ("HowToAcknowledge", "ReferencesAndLinks", "DatasetDOI"):
        value = about.get(key) or []
        found += [str(one) for one in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(found))


def _measured(run: Run, fingerprint: str) -> tuple[dict[str, Any], str]:
    """Chapter 4's results of these very weights, or why there are none."""
    metrics = read_json(run.path / METRICS)
    how = f"execute chapter 4 (`{MEASURE}`, RUN the run's folder)."
    if not metrics:
        return {}, f"**Not measured yet**: {how}"
    if metrics.get("run_fingerprint") != fingerprint:
        return {}, f"**Not measured**: the results that are there are of weights before it was trained further; {how}"
    if "verdicts" not in metrics:
        return {}, f"**No verdict**: an earlier labkit measured it and kept none; {how}"
    return metrics, ""


def _verdict(run: Run, fingerprint: str, made: Mapping[str, Any] | None) -> str:
    """How many measures reach their floor, and the values of some."""
    head = "## How real are they?\n\n"
    metrics, why = _measured(run, fingerprint)
    if why:
        return head + why
    verdicts = {group: cell for group, cell in metrics["verdicts"].items() if cell and group != "copies"}
    passed, of = as_good(verdicts)
    real, simulated = metrics["real"], " (here simulated)" if _data(run).get("Simulated") else ""
    text = (
        f"**{passed} of {of} measures** say *as good as real*: their interval reaches the floor, which is what real "
        f"animals{simulated} give beside other real animals. Compared are {metrics['n']} scans of seed "
        f"{metrics['seed']} with as many at a time of {real['animals']} animals of {plain(real['name'])} that were not "
        "trained on. Few "
        "animals have wide intervals, which are easily reached"
    )
    learned_nothing = [f"{plain(CONTROLS.get(name, name))} {as_good(cells)[0]}" for name, cells in
                       metrics.get("controls", {}).items()]  # fmt: skip
    text += f": of what learned nothing, {', '.join(learned_nothing)}.\n\n" if learned_nothing else ".\n\n"
    if made and (made["truncation"] != 1 or made["like"] != "training scans"):
        text += "This folder's scans were made with other codes or like other files, and were not measured.\n\n"
    text += table(((plain(group), plain(cell)) for group, cell in verdicts.items()), "measures", "as good as real")
    rows = [row for row in metrics["rows"] if row["metric"] in SHOWN and row["flavour"] in ("PCA", "regions")]
    if rows:
        cells = ((row["metric"], row["flavour"], _number(row["value"]), _number(row["floor"])) for row in rows)
        text += "\n\n" + table(cells, "measure", "by", "value", "floor: real")
    if left := list(dict.fromkeys(one["metric"] or one["flavour"] for one in metrics.get("left_out", []))):
        text += f"\n\nNot measured, for want of held-out animals: {plain(', '.join(left))}."
    return head + text + "\n\nAll rows, with intervals, are in `metrics.md` in the run's folder."


def as_good(verdicts: Mapping[str, str]) -> tuple[int, int]:
    """How many measures pass, and of how many, by cells such as ``"3 of 6"``; copies are told apart from them."""
    counts = [re.findall(r"\d+", cell) for group, cell in verdicts.items() if group != "copies"]
    passed, of = (sum(int(pair[place]) for pair in counts if len(pair) == 2) for place in (0, 1))
    return passed, of


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _copies(run: Run, fingerprint: str) -> str:
    """The audit: what was searched, and whether it would have found planted copies."""
    head = "## Were training animals copied?\n\n"
    metrics, why = _measured(run, fingerprint)
    rows = [row for row in metrics.get("rows", []) if row["metric"] == "copies p"]
    if not rows:
        return head + (why or "**Not tested.**") + " A scan may be a training animal's: do not call it anonymous."
    searched = [row["value"] for row in rows if "planted" not in row["flavour"] and row["value"] is not None]
    p = min(searched, default=1.0)
    if metrics["verdicts"].get("copies") == "not testable":
        said = "**Not testable**: the audit did not find the copies that were planted to try it."
    elif p <= 0.05:
        said = f"**It seems so**: smallest p of {len(searched)} searches {p:.2g}. They can give training animals away."
    else:
        said = f"No sign of it, smallest p of {len(searched)} searches {p:.2g}; that proves no anonymity."
    cells = ((plain(row["flavour"]), _number(row["value"])) for row in rows)
    return head + said + " Rows that say *planted* try the audit: small values are right there.\n\n" + table(
        cells, "searched", "p"
    )  # fmt: skip


def _segmentation(run: Run) -> str:
    """What chapter 5 concluded, in its own sentences."""
    head = "## Do they help a segmentation network?\n\n"
    found = sorted(run.path.glob("segmentation/*/conclusions.txt"), key=lambda path: path.stat().st_mtime)
    if not found:
        return f"{head}**Not measured**: with labelled scans, execute chapter 5 (`{SEGMENT}`, RUN the run's folder)."
    lines = found[-1].read_text(encoding="utf-8", errors="replace").splitlines()
    said = "\n".join(f"- {plain(line)}" for line in lines if line.strip())
    return f"{head}Chapter 5, of Dice on held-out animals; the weights may have been earlier ones:\n\n{said}"


USE = """## Use

For work on methods, for teaching, and for training networks beside real scans, once your own held-out animals have
shown that it helps.

- Not for diagnosis, and no measurement of animals: no effect of a drug, a strain or a lesion can be found in them.
- Not in place of animals in a comparison of groups, unless it was checked that groups come out as they went in.
- Not anonymous: say that they are synthetic, and pass on the audit with them.
- The licence of the training scans may extend to the model and to what it makes: ask whom they belong to."""


def _citation(run: Run) -> str:
    name = run.variant.name
    ours = f" Its model `{name}` is this study's own, not the paper's." if name in OURS else ""
    lines = [f"- The paper: {PAPER}.{ours}", *(f"- The data: {plain(one)}" for one in _references(_data(run)))]
    return "\n".join(["## Citation", "", *lines, "- The software: labkit, an open study of synthetic rat brain MRI."])
