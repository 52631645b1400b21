"""Kill each kind of work at random moments, go on with it, and compare with what was left alone.

    ci/kill [--rounds 20] [--seed 0] [--work train,atlas,generate,segment,simulate]

A round starts one kind of work in a process of its own, kills it (SIGKILL) after a random part of the time that it
takes, one to three times in a row, and then lets it end. What is left has to be, file by file, what an undisturbed
process leaves, but for what says when and how often it was begun. Hidden scratch folders of those that were killed may
stay: the next writer removes them when they are a day old. The exit status is 1 if any round ends otherwise.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from labkit.files import digest

PREPARE = """
import labkit
from pathlib import Path
here = Path({here!r})
rats = labkit.open_cohort("phantom", n=8)
rats.write(here / "rats")
for model in ("sigmarat2", "atlas"):
    labkit.train(model, labkit.open_cohort(here / "rats"), "smoke", here / model, iterations=6, device="cpu")
"""
BEGIN = "import labkit\nfrom pathlib import Path\nhere, out = Path({here!r}), Path({out!r})\n"
WORK = {
    "train": 'labkit.train("sigmarat2", labkit.open_cohort(here / "rats"), "smoke", out, iterations=60, '
    'checkpoint_every=7, sample_every=30, log_every=9, device="cpu")',
    "atlas": 'labkit.train("atlas", labkit.open_cohort(here / "rats"), "smoke", out, iterations=40, '
    'checkpoint_every=7, sample_every=20, log_every=9, device="cpu")',
    "generate": 'labkit.generate(here / "sigmarat2", 24, out)',
    "segment": 'labkit.segment(here / "atlas", labkit.open_cohort(here / "rats"), out)',
    "simulate": 'import os\nos.environ["LABKIT_DATA"] = str(out)\nlabkit.open_cohort("phantom", n=6, seed=3)',
}
"""Each kind of work; `here` has a cohort and trained runs, and it leaves everything in `out`."""
TIMES = ("events", ".lock", "provenance.json", "losses.csv", "README.md", "cache", ".writing-")
"""Parts of names of files that hold times, speeds, or how often something was begun, and of scratch folders."""


def start(work: str, here: Path, out: Path) -> subprocess.Popen[bytes]:
    """A process that does the work, alone on the scratch data folder."""
    code = BEGIN.format(here=str(here), out=str(out)) + WORK[work]
    environment = os.environ | {"LABKIT_DATA": str(here / "data"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], env=environment, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE)  # fmt: skip


def finish(process: subprocess.Popen[bytes], work: str) -> None:
    """Wait for it; RuntimeError with what it said where it failed."""
    said = process.communicate()[1].decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"{work} ended with {process.returncode}: {said.strip().splitlines()[-1:]}")


def content(folder: Path) -> dict[str, str]:
    """Every file that does not tell a time, by its digest; losses without their speeds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part in name for part in TIMES):
            found[name] = digest(path)
        if path.name == "losses.csv":
            rows = [line.split(",") for line in path.read_text().splitlines()]
            kept = [i for i, column in enumerate(rows[0]) if not column.endswith(("_s", "_mib"))]
            found[name] = repr([[row[i] for i in kept] for row in rows])
    return found


def one(work: str, here: Path, rng: np.random.Generator, alone: dict[str, str], seconds: float) -> str:
    """Empty, or what is wrong after kills and an end."""
    with tempfile.TemporaryDirectory(dir=here, prefix="round-") as scratch:
        out, kills = Path(scratch) / "out", int(rng.integers(1, 4))
        for _ in range(kills):
            process = start(work, here, out)
            time.sleep(float(rng.uniform(0.3, 1)) * seconds)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        try:
            finish(start(work, here, out), work)
        except RuntimeError as error:
            return f"after {kills} kills {error}"
        left = content(out)
        apart = sorted({name for name in left.keys() | alone.keys() if left.get(name) != alone.get(name)})
        return f"after {kills} kills other than left alone: {', '.join(apart[:5])}" if apart else ""


def main(arguments: list[str] | None = None) -> int:
    """All rounds, kinds of work in turn."""
    parser = argparse.ArgumentParser(prog="ci/kill", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default=",".join(WORK), help="with commas between")
    options = parser.parse_args(arguments)
    kinds, failed = options.work.split(","), 0
    if unknown := sorted(set(kinds) - WORK.keys()):
        parser.error(f"--work {','.join(unknown)}: allowed are {', '.join(WORK)}")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        environment = os.environ | {"LABKIT_DATA": str(here / "data"), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-W", "ignore", "-c", PREPARE.format(here=folder)], env=environment, check=True)
        alone, seconds = {}, {}
        for kind in kinds:
            began, out = time.perf_counter(), here / f"alone-{kind}"
            finish(start(kind, here, out), kind)
            alone[kind], seconds[kind] = content(out), time.perf_counter() - began
        for number in range(options.rounds):
            kind = kinds[number % len(kinds)]
            rng = np.random.default_rng((options.seed, number))
            if wrong := one(kind, here, rng, alone[kind], seconds[kind]):
                failed += 1
                print(f"round {number}, {kind}: {wrong}", flush=True)
    print(f"{options.rounds} rounds of {', '.join(kinds)}: {failed} ended otherwise than left alone")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
