"""The stages of ci/gpu, each in a process of its own, so that none takes the others with it.

tests    a recorded iteration against one by one and against the CPU, in both precisions; the tests named cuda
bench    an iteration beside the published loop written plainly, as ci/bench training
profile  speeds with and without recording, operations and bytes a second beside the device's, the costliest kernels
train    each variant on the cohort for some minutes, going on where the last sitting stopped
collect  of each run what is small enough to keep

Folders: --runs holds run folders with checkpoints (a gigabyte each), --out only what is worth taking away; with
--parts-mib that is report.json and one tar in parts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

CI = Path(__file__).resolve().parent
ROOT = CI.parent
STAGES = ("tests", "bench", "profile", "train", "collect")
VARIANTS = ("sigmarat2", "sigmarat1", "adni")


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; a wrong stage or variant stops here."""
    parser = argparse.ArgumentParser(
        prog="ci/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="small files to take away")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "gpu", help="run folders with checkpoints")
    parser.add_argument("--cohort", help="folder of scans (BIDS or plain) to train on; ellipsoids in a dry run")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of each variant in this sitting")
    parser.add_argument("--iterations", type=int, help="where training ends, over all sittings; default the scale's")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="of " + ", ".join(VARIANTS) + ", ...")
    parser.add_argument("--stages", default=",".join(STAGES), help="of " + ", ".join(STAGES))
    parser.add_argument("--wheels", type=Path, help="folder of pure-Python wheels (nibabel) to use")
    parser.add_argument("--commit", default="", help="what this tree is, where it is no git checkout")
    parser.add_argument("--parts-mib", type=int, help="put one tar in --out, in parts of at most so many MiB")
    parser.add_argument("--dry-run", action="store_true", help="on the processor, at smoke scale")
    options = parser.parse_args(arguments)
    options.stages, options.variants = options.stages.split(","), options.variants.split(",")
    if wrong := [stage for stage in options.stages if stage not in STAGES]:
        parser.error(f"no stage is called {', '.join(wrong)}: allowed are {', '.join(STAGES)}")
    options.out, options.runs = options.out.absolute(), options.runs.absolute()
    options.kept = options.runs / "kept" if options.parts_mib else options.out
    return options


def commands(options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """What each stage runs, by the stage's name; several of a stage if there are several variants."""
    dry = options.dry_run
    where = ["--scale", "smoke", "--device", "cpu"] if dry else ["--scale", "paper", "--device", "cuda"]
    found: list[tuple[str, list[str]]] = []
    if "tests" in options.stages:
        runner = importlib.util.find_spec("pytest")
        if runner:
            test = ["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "labkit/tests/test_capture.py", "-k", "cuda"]
            found.append(("tests", test))
        if dry or not runner:
            found.append(("check", [str(CI / "gpu_check.py"), "--device", "cpu" if dry else "cuda"]))
    if "bench" in options.stages:
        found.append(("bench", [str(CI / "bench_training.py"), *where, "--iterations", "2" if dry else "20"]))
    if "profile" in options.stages:
        found.append(("profile", [str(CI / "gpu_profile.py"), *where, "--iterations", "3" if dry else "50"]))
    reference = [str(CI / "gpu_reference.py"), "--runs", str(options.runs), *where]
    if "train" in options.stages:
        cohort = ["--cohort", options.cohort] if options.cohort else []
        length = ["--minutes", str(options.minutes)]
        if options.iterations or dry:
            length += ["--iterations", str(options.iterations or 12)]
        for variant in options.variants:
            found.append((f"train {variant}", [*reference, "train", variant, *cohort, *length]))
    if "collect" in options.stages:
        target = ["--out", str(options.kept / "reference"), "--commit", options.commit]
        found.append(("collect", [*reference, "collect", *options.variants, *target]))
    return found


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Variables of the stages' processes: this tree and the wheels can be imported; data are kept beside the runs."""
    paths = [str(ROOT)]
    if options.wheels:
        unpacked = options.runs / "wheels"
        for wheel in sorted(options.wheels.glob("*.whl")):
            zipfile.ZipFile(wheel).extractall(unpacked)
        paths.append(str(unpacked))
    given = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths + ([given] if given else [])),
        "LABKIT_DATA": os.environ.get("LABKIT_DATA") or str(options.runs / "data"),
        "PYTHONUNBUFFERED": "1",
    }


def run_stage(name: str, command: list[str], log: Path, variables: dict[str, str]) -> dict[str, object]:
    """Run one stage, its output both shown and kept; SIGINT and SIGTERM are passed on to it."""
    print(f"\n== {name}", flush=True)
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=variables, text=True, errors="replace",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    asked: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    last = ""
    try:
        with log.open("w", encoding="utf-8") as kept:
            for line in process.stdout:
                kept.write(line)
                print(line, end="", flush=True)
                last = line.strip() or last
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    seconds = round(time.perf_counter() - began, 1)
    outcome = {"stage": name, "seconds": seconds, "exit": code, "stopped": bool(asked), "last_line": last}
    with contextlib.suppress(json.JSONDecodeError):
        if last.startswith("{"):
            outcome["result"] = json.loads(last)
    return outcome


def pack(folder: Path, parts_mib: int, into: Path) -> list[Path]:
    """Everything in a folder as one tar, cut into parts; ``cat gpu.tar.* | tar x`` has it back."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        tar.add(folder, arcname="gpu")
    content, size, parts = whole.getbuffer(), parts_mib * 2**20, []
    for number, start in enumerate(range(0, len(content), size)):
        parts.append(into / f"gpu.tar.{number:02d}")
        parts[-1].write_bytes(content[start : start + size])
    return parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Go through the stages; 0 if all went well, 1 if any did not."""
    options = options_of(arguments)
    for folder in (options.out, options.runs, options.kept):
        folder.mkdir(parents=True, exist_ok=True)
    variables, done = environment(options), []
    report = options.out / "report.json"
    stopped = False
    for name, command in commands(options):
        if stopped and name != "collect":
            continue
        done.append(run_stage(name, command, options.kept / f"{name.replace(' ', '-')}.txt", variables))
        report.write_text(json.dumps(done, indent=2) + "\n", encoding="utf-8")  # a cut walk leaves what it did
        stopped |= bool(done[-1]["stopped"])
    if options.parts_mib:
        pack(options.kept, options.parts_mib, options.out)
    print()
    for stage in done:
        outcome = "ok" if stage["exit"] == 0 else f"FAILED ({stage['exit']}): {stage['last_line']}"
        print(f"{stage['stage']:18} {stage['seconds']:7.1f} s   {outcome}")
    failed = [stage["stage"] for stage in done if stage["exit"] != 0]
    print(f"{'in all':18} {sum(stage['seconds'] for stage in done):7.1f} s   files in {options.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
