"""Put the results of a built book into README.md and book/reference/results: tables, times, pictures.

    python ci/results.py [BUILD]

BUILD is build/book/reference-phantom unless named, from `ci/book`. Nothing is computed: rows come from the runs'
metrics.md, times from their provenance.json.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from cache import ROOT
from chapters import BOOK, MODELS, pictured, shown
from PIL import Image

from labkit.data.splits import PAPER_TRAIN
from labkit.evidence.segmentation.arms import ARMS
from labkit.evidence.segmentation.gains import PAPER_GAINS

SHOWN = shown(MODELS)
OUT = BOOK / "reference" / "results"
README = ROOT / "README.md"
ROWS = {
    ("trace ratio", "regions"): "variety, real rats' is 1",
    ("precision", "regions"): "synthetic rats that lie among real ones, share",
    ("recall", "regions"): "real rats with a synthetic one near, share",
    ("classifier AUC", "regions"): "a classifier tells them apart: 1 always, 0.5 never",
    ("copies p", "synthetic"): "copies of training rats: 0.05 or less means copies",
}
"""What a reader of the first page is shown, and in which words: by one description of the scans, their regions."""

LEFT_OUT = "mean", "Gaussian", "warped", "best is"
"""Columns that the first page has no room for."""

FLOOR = "floor: real", "other real rats"
"""A column, and its name for who has not read of floors."""

INTERVAL = re.compile(r" \([^()]* to [^()]*\)")
"""In a cell; the first page has no room for them."""

CONTROL = "r100+t200"
"""New scans with true labels, as many as the paper's most synthetic ones."""

FEW = ("r5+s200", "r5+e200", "r5+a200", "r5+u95", "r5+t200")
"""What is added to a twentieth of the real scans, where there is something to gain."""

WIDTH = 400
"""Of pictures, pixels."""

PICTURES = {
    "01_explore": "figures.three_planes",
    f"02_train_{SHOWN}": "figures.samples_over_time",
    "03_inspect": "figures.contact_sheet(synthetic",
    "04_quality": "figures.embedding_map",
    "05_segmentation": "figures.dose_response",
    "06_latent": "figures.traversals",
    "07_judge": "figures.judged_scans",
    "08_sweep": "figures.by_arm",
}
"""What draws the picture of a chapter."""


def table(metrics: str) -> str:
    """The chosen rows of a run's ``metrics.md``, values without intervals; SystemExit if one is missing."""
    lines = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in metrics.splitlines() if "|" in line]
    kept = [place for place, name in enumerate(lines[0]) if place > 1 and name not in LEFT_OUT]
    known = {(cells[0], cells[1]): [cells[place] for place in kept] for cells in lines[2:]}
    if missing := [f"{metric} ({flavour})" for metric, flavour in ROWS if (metric, flavour) not in known]:
        sys.exit(f"metrics.md has no row for {', '.join(missing)}")
    head = ["", *(lines[0][place].replace(*FLOOR) for place in kept)]
    rows = [[words, *(INTERVAL.sub("", cell) for cell in known[key])] for key, words in ROWS.items()]
    source = (OUT / "metrics.md").relative_to(ROOT).as_posix()
    looked_at = f"{len(rows)} of {len(known)} rows that were looked at; [all, with intervals]({source})."
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)) + f"\n\n{looked_at}\n"


def models(build: Path) -> list[str]:
    """Those that the build has."""
    return [model for model in MODELS if (build / model / "provenance.json").exists()]


def sittings_of(runs: Path, model: str) -> list[dict[str, Any]]:
    """What a run's provenance says of each time it was trained."""
    return json.loads((runs / model / "provenance.json").read_text(encoding="utf-8"))["sittings"]


def times(runs: Path) -> str:
    """How long each model trained, its own atlas included, and on what, in a sentence for each machine."""
    by_machine: dict[str, list[str]] = {}
    for model in models(runs):
        sittings = sittings_of(runs, model)
        seconds, done = sum(s["seconds"] for s in sittings), sittings[-1]["to"] - sittings[0]["from"]
        machine = f"{sittings[-1]['device']}, {sittings[-1]['threads']} threads, {sittings[-1]['precision']}"
        nested = runs / model / "atlas"
        before = sum(s["seconds"] for s in sittings_of(runs / model, "atlas")) if nested.exists() else 0.0
        told = f"`{model}` {(before + seconds) / 60:.1f} minutes ({done / seconds:.1f} iterations a second)"
        by_machine.setdefault(machine, []).append(told)
    return "".join(f"On {machine}: {', '.join(told)}.\n" for machine, told in by_machine.items())


def picture(build: Path) -> str:
    """The picture, beside which text flows."""
    made = f"{', '.join(f'one by {model}' for model in pictured(models(build)))}, and the training rat nearest to that"
    alt = f"A simulated rat that was held out, {made}, in three planes each"
    source = (OUT / "tour.png").relative_to(ROOT).as_posix()
    return f'<img src="{source}" alt="{alt}" width="{WIDTH}" align="right">\n'


def pictures(build: Path) -> None:
    """A picture of each chapter."""
    for stem, drawn in PICTURES.items():
        file = build / "executed" / f"{stem}.ipynb"
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"] if file.exists() else []
        shown = [output["data"]["image/png"] for cell in cells if drawn in "".join(cell["source"])
                 for output in cell["outputs"] if "image/png" in output.get("data", {})]  # fmt: skip
        if not shown:
            sys.exit(f"{build} has no picture by {drawn} in {stem}: run ci/book first")
        with Image.open(io.BytesIO(base64.b64decode(shown[0]))) as image:
            smaller(image.convert("RGB")).quantize(64).save(OUT / f"{stem[:2]}.png", optimize=True)


def smaller(image: Image.Image) -> Image.Image:
    """As wide as the first page shows it."""
    return image.resize((WIDTH, round(WIDTH * image.height / image.width)), Image.Resampling.LANCZOS)


def caption(runs: Path) -> str:
    """What is in the picture, and what made the synthetic rat."""
    told = []
    for model in pictured(models(runs)):
        size = json.loads((runs / model / "config.json").read_text(encoding="utf-8"))["scale"]["size"]
        iterations = sittings_of(runs, model)[-1]["to"]
        told.append(f"one by `{model}` after {iterations} iterations ({size}³ voxels)")
    return f"*In the picture: a held-out rat, {', '.join(told)}, and the training rat nearest to that.*\n"


def gains(folder: Path, scale: str) -> str:
    """What the newest segmentation experiment found of the published gains in Dice, and what its control gained."""
    found = sorted(folder.glob(f"{scale}-*/differences.csv"), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"{folder} holds no experiment with differences: execute chapter 5 first")
    with found[-1].open(encoding="utf-8", newline="") as file:
        known = {(row["tissue"], row["arm"]): row for row in csv.DictReader(file) if row["score"] == "dice"}

    def said(key: tuple[str, str]) -> str:
        if key not in known:
            return "not trained"
        value, low, high = (f"{float(known[key][name]):+.4f}" for name in ("difference", "ci_low", "ci_high"))
        return f"{value} ({low} to {high})".replace("-", "−")

    many = round(PAPER_TRAIN * ARMS[CONTROL].added)
    lines = [f"| tissue | synthetic scans added | published gain in Dice | here | with true labels, {many} |",
             "|---|---|---|---|---|"]  # fmt: skip
    for (tissue, arm), published in PAPER_GAINS.items():
        added = round(PAPER_TRAIN * ARMS[arm].added)
        lines.append(f"| {tissue} | {added} | {published:+.4f} | {said((tissue, arm))} | {said((tissue, CONTROL))} |")
    tissues = list(dict.fromkeys(tissue for tissue, _ in PAPER_GAINS))
    few = round(PAPER_TRAIN * ARMS[FEW[0]].real)
    lines += ["", f"| trained on, beside {few} real | {' | '.join(tissues)} |", "|---" * (1 + len(tissues)) + "|"]
    for arm in FEW:
        cells = [said((tissue, arm)) for tissue in tissues]
        lines.append(f"| {ARMS[arm].words(PAPER_TRAIN)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mice() -> str:
    """What the experiment on real animals found of labels: Dice of structures, an approach a row."""
    text = (BOOK / "reference" / "mice" / "segmentation.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    head = ["mean Dice of 20 structures, held-out mice", *lines[0][3:]]
    rows = [[words, *cells] for part, what, words, *cells in lines[2:] if (part, what) == ("structures", "Dice")]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)) + "\n"


def replaced(text: str, name: str, content: str) -> str:
    """The text with what stands between the two marks called `name` replaced."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        sys.exit(f"{README.name} has no marks <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda found: f"{found[1]}\n{content}\n{found[2]}", text)


def main() -> None:
    """Read a build and write what is shown of it."""
    parser = argparse.ArgumentParser(prog="ci/results.py", description=__doc__.splitlines()[0])
    parser.add_argument("build", nargs="?", type=Path, default=ROOT / "build" / "book" / "reference-phantom")
    build = parser.parse_args().build.resolve()
    tour = build / "source" / "assets" / "tour.png"
    if absent := [path for path in (build / SHOWN / "metrics.md", tour) if not path.exists()]:
        sys.exit(f"{absent[0]} is not there: run ci/book first")
    parts = {
        "picture": picture(build),
        "caption": caption(build),
        "results": table((build / SHOWN / "metrics.md").read_text(encoding="utf-8")),
        "segmentation": gains(build / SHOWN / "segmentation", build.name.split("-")[0]),
        "times": times(build),
        "mice": mice(),
    }
    readme = README.read_text(encoding="utf-8")
    OUT.mkdir(parents=True, exist_ok=True)
    for name, content in parts.items():
        readme = replaced(readme, name, content)
        (OUT / f"{name}.md").write_text(content, encoding="utf-8")
    shutil.copy(build / SHOWN / "metrics.md", OUT / "metrics.md")
    with Image.open(tour) as image:
        smaller(image.convert("L")).save(OUT / "tour.png", optimize=True)
    pictures(build)
    kept = {model: {"sittings": sittings_of(build, model)} for model in models(build)}
    (OUT / "provenance.json").write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    README.write_text(readme, encoding="utf-8")
    print(*(f"{name}:\n{content}" for name, content in parts.items()), sep="\n")


if __name__ == "__main__":
    main()
