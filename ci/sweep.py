"""Many trainings: compute the points of a grid here or on a cluster, and collect them. Called by ``ci/sweep``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import papermill
import point
import psutil
import submitit
from grid import GridError, Point, read, resolved
from point import BOOK, RUN, literal

import labkit
from labkit import fields, training
from labkit.cards import METRICS
from labkit.data import splits
from labkit.data.sources import PAPER_N, SIMULATED
from labkit.evidence.sweeps import MEASURES, PARTS, SAMPLES, SUMMARY, SWEEP, TRAINED, measured, said, summary
from labkit.files import new_folder, runs_folder, write_json, write_text
from labkit.recording import HELD_OUT_COLUMNS
from labkit.runs import RunError, locked
from labkit.samples import TILE

PAGE = "08_sweep"

TRIES = 3
"""How often a point is begun whose job was killed before its training had come any further."""

LOSSES = ("loss_EG", "loss_D", "loss_C", "loss", "rec_mse")
HELD_OUT = HELD_OUT_COLUMNS[:2]

SHOWN = 6
"""Samples of a point that its picture keeps."""

CLUSTER = (
    "partition",
    "gpus",
    "time",
    "cpus",
    "mem",
    "account",
    "qos",
    "constraint",
    "gres",
    "exclude",
    "signal_delay_s",
)
"""What can be said of a job on a cluster."""


class Here:
    """Jobs as processes of this machine: no more than some at a time, each with its share of threads or a GPU."""

    pause = 1.0

    def __init__(self, folder: Path, jobs: int | None, share: int) -> None:
        import torch

        shown = os.environ.get("CUDA_VISIBLE_DEVICES")  # those that this process may use, by the names it has for them
        self.gpus = (shown.split(",") if shown else [str(n) for n in range(torch.cuda.device_count())]) if (
            torch.cuda.is_available()) else []  # fmt: skip
        self.jobs, self.at_once = jobs or max(1, len(self.gpus)), (jobs or max(1, len(self.gpus))) * share
        end_jobs(folder / "jobs")
        self.executor = submitit.LocalExecutor(folder / "jobs")
        self.running: dict[str, tuple[submitit.LocalJob[None], int]] = {}
        if "OMP_NUM_THREADS" not in os.environ and self.at_once > 1:
            os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.at_once))
        os.environ["PYTHONPATH"] = module_path()

    def alive(self) -> set[str]:
        """Points whose jobs have not ended."""
        return {name for name, (job, _) in self.running.items() if not job.done()}

    def start(self, groups: list[list[Point]]) -> list[Point]:
        """Start jobs as far as there is room; their points."""
        started = []
        for group in groups:
            taken = {self.running[name][1] for name in self.alive()}
            free = [slot for slot in range(self.jobs) if slot not in taken]
            if not free:
                break
            gpu = self.gpus[free[0] % len(self.gpus)] if self.gpus else None
            self.executor.update_parameters(timeout_min=366 * 24 * 60)
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key is for this process, which ends the others
            try:
                job = self.executor.submit(point.Work([str(one.folder) for one in group], gpu))
            finally:
                signal.signal(signal.SIGINT, before)
            self.running |= {one.name: (job, free[0]) for one in group}
            started += group
        return started

    def leave(self) -> str:
        """End what is running, trainings with a checkpoint."""
        for name in self.alive():
            self.running[name][0]._process.terminate()
        while self.alive():
            time.sleep(0.2)
        return "stopped, trainings with a checkpoint: the same command goes on"


class Slurm:
    """Jobs of a SLURM cluster, as arrays; they go on if this process ends, and are found again by the next."""

    pause = 5.0

    def __init__(self, folder: Path, jobs: int | None, share: int, options: str) -> None:
        if shutil.which("sbatch") is None:
            raise GridError("--slurm: there is no sbatch here; without --slurm points are computed on this machine")
        self.jobs, self.at_once, self.file = jobs, (jobs or 0) * share, folder / "jobs" / "submitted.json"
        known = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        queue = queued()
        self.numbers: dict[str, str] = {
            name: number for name, number in known.items() if queue is None or number in queue
        }
        self.missing: set[str] = set()
        # a job that is pre-empted or out of time is queued again as often as it takes
        self.executor = submitit.SlurmExecutor(folder / "jobs", max_num_timeout=1000)
        self.executor.update_parameters(job_name=folder.name, **slurm_parameters(options, share))

    def alive(self) -> set[str]:
        """Points whose jobs are queued or running: not in the queue twice means ended. It needs no accounting."""
        queue = queued()
        if queue is None:
            return set(self.numbers)
        gone = {name for name, number in self.numbers.items() if number not in queue}
        ended, self.missing = gone & self.missing, gone
        return set(self.numbers) - ended

    def start(self, groups: list[list[Point]]) -> list[Point]:
        """Queue all as one array; their points."""
        if groups:
            self.executor.update_parameters(array_parallelism=self.jobs or len(groups))
            try:
                jobs = self.executor.submit_array([point.Work([str(one.folder) for one in group]) for group in groups])
            except submitit.core.utils.FailedJobError as error:
                raise GridError(
                    f"--slurm: the cluster refused the jobs: {str(error).strip().splitlines()[-1]}"
                ) from error
            for group, job in zip(groups, jobs, strict=True):
                self.numbers |= {one.name: job.job_id for one in group}
                self.missing -= {one.name for one in group}
            write_json(self.file, self.numbers)
        return [one for group in groups for one in group]

    def leave(self) -> str:
        """Jobs stay."""
        return "the jobs stay in the queue: the same command waits for them again, scancel ends them"


def end_jobs(folder: Path) -> None:
    """End jobs of an earlier sweep, which was killed and could not: two must not train one point."""
    late = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "submitit.core._submit" in words and str(folder) in words:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
                late.append(process)
    if late:
        print(f"{len(late)} jobs of a ci/sweep that was killed are ended, trainings with a checkpoint", flush=True)
        psutil.wait_procs(late)


def module_path() -> str:
    """Where jobs find the modules of this folder."""
    return os.pathsep.join(filter(None, [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH")]))


def queued() -> set[str] | None:
    """Numbers of the user's jobs that are queued or running; None where the cluster does not answer just now."""
    asked = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=False)
    return None if asked.returncode else set(asked.stdout.split())


def slurm_parameters(options: str, share: int) -> dict[str, Any]:
    """What is asked for behind ``--slurm`` as submitit takes it; GridError for what is not allowed."""
    pairs = [pair.partition("=") for pair in options.split(",") if pair]
    if odd := [name for name, sign, value in pairs if not (sign and value)]:
        raise GridError(f"--slurm {options}: write NAME=VALUE with commas between, not {', '.join(odd)}")
    given: dict[str, Any] = {name: value for name, _, value in pairs}
    if odd := sorted(set(given) - set(CLUSTER)):
        raise GridError(f"--slurm {', '.join(odd)}: allowed are {', '.join(CLUSTER)}")
    for name in {"gpus", "cpus", "signal_delay_s"} & set(given):
        if not given[name].isdecimal():
            raise GridError(f"--slurm {name}={given[name]}: a whole number is wanted")
        given[name] = int(given[name])
    kept = {name: value for name in ("LABKIT_DATA", "LABKIT_MIRROR") if (value := os.environ.get(name))}
    cpus = given.pop("cpus", share)
    exported = kept | {"PYTHONPATH": module_path(), "OMP_NUM_THREADS": str(max(1, cpus // share))}
    found = {"setup": [f"export {name}={shlex.quote(value)}" for name, value in exported.items()]}
    # srun no longer takes this from the job around it
    found |= {"srun_args": ["--cpus-per-task", str(cpus)], "cpus_per_task": cpus}
    found |= {"gpus_per_node": gpus} if (gpus := given.pop("gpus", 1)) else {}
    return found | given | {"time": minutes(given.get("time", "24:00:00"))}


def minutes(text: str) -> int:
    """A time limit as SLURM writes it: ``90``, ``12:00:00``, ``1-00:00:00``; GridError for anything else."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)|(\d+)", text)
    if not found:
        raise GridError(f"--slurm time={text}: write minutes, HH:MM:SS or D-HH:MM:SS")
    days, hours, mins, seconds, alone = (int(part or 0) for part in found.groups())
    return max(1, alone + 1440 * days + 60 * hours + mins + (seconds > 0))


def prepare(points: list[Point], place: Here | Slurm) -> None:
    """Lay points out, but for those that an earlier sweep's jobs compute yet."""
    waiting = place.alive()
    for one in points:
        if one.name not in waiting:
            one.lay_out()


def compute(points: list[Point], place: Here | Slurm, share: int) -> list[str]:
    """All points, each begun again where its job was killed; what is wrong with those that could not be computed."""
    begun, told, reached = Counter[str](), set(), dict.fromkeys((one.name for one in points), 0)
    while True:
        alive = place.alive()
        for one in points:
            if one.name not in told and (one.finished or one.failed):
                told.add(one.name)
                print(f"  {one.failed or 'done'} ({len(told)} of {len(points)}): {said(one.varied)}", flush=True)
        left = [one for one in points if one.name not in told and one.name not in alive]
        for one in left:
            if begun[one.name] and one.iteration > reached[one.name]:  # it gets on, if in pieces
                begun[one.name], reached[one.name] = 1, one.iteration
        waiting = [one for one in left if begun[one.name] < TRIES]
        if not waiting and not alive & {one.name for one in points}:
            killed = [f"{said(one.varied)}: its job ended {TRIES} times before the training had come any further, see "
                      "its log in jobs" for one in left]  # fmt: skip
            return killed + [f"{said(one.varied)}: {one.failed}" for one in points if one.failed]
        for one in place.start([waiting[first : first + share] for first in range(0, len(waiting), share)]):
            begun[one.name] += 1
            if begun[one.name] > 1:
                print(f"  its job had ended early, begun again: {said(one.varied)}", flush=True)
        time.sleep(place.pause)


def row(one: Point) -> dict[str, Any]:
    """What the table has of a point."""
    run = labkit.load_run(one.folder / RUN)
    last, sittings = run.losses.iloc[-1], run.provenance["sittings"]
    found = {"point": one.name, **one.varied, TRAINED: run.iteration}
    found |= {name: last[name] for name in LOSSES if name in last}
    errors = run.losses.dropna(subset="held_out_mse")
    found |= {name: errors[name].iloc[-1] for name in HELD_OUT if len(errors)}
    file = run.path / METRICS
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    by_key = {f"{entry['metric']}, {entry['flavour']}": entry for entry in rows}
    for name in (name for name in MEASURES if name in by_key):
        found |= {f"{name}{ending}": by_key[name][key] for ending, key in PARTS.items()}
    found["seconds"] = round(run.seconds)
    return found | {"computed on": ", ".join(dict.fromkeys(sitting["device"] for sitting in sittings))}


def collect(points: list[Point], folder: Path) -> None:
    """The table of what is finished, a picture of each, and the page."""
    import pandas as pd
    from PIL import Image

    done = [one for one in points if one.finished]
    if not done:
        return
    rows = [row(one) for one in done]
    with new_folder(folder / f"{SAMPLES}-new") as fresh:
        for one in done:
            size = labkit.load_run(one.folder / RUN).scale.size
            side = size * -(-TILE // size)
            with Image.open(sorted((one.folder / RUN / "samples").glob("*.png"))[-1]) as picture:
                part = picture.crop((0, 0, min(picture.width, SHOWN * side), 3 * side))
                part.save(fresh / f"{one.name}.png", optimize=True)
    shutil.rmtree(folder / SAMPLES, ignore_errors=True)
    (folder / f"{SAMPLES}-new").rename(folder / SAMPLES)
    table = pd.DataFrame(rows)
    ends = ["seconds", "computed on"]  # a point of another model has other losses: columns keep their places
    order = [*(key for one in points for key in one.varied), TRAINED, *LOSSES, *HELD_OUT]
    order = [name for name in dict.fromkeys(["point", *order]) if name in table]
    table = table[[*order, *(name for name in table if name not in [*order, *ends]), *(n for n in ends if n in table)]]
    write_text(folder / SWEEP, table.to_csv(index=False, float_format="%.5g"))
    if measured(table):
        write_text(folder / SUMMARY, summary(table) + "\n")
        show(folder)
    else:
        print("no animals were held out, and chapter 4 is not in the grid: there is nothing to show, and no page")


def show(folder: Path) -> None:
    """The page of a table, as a notebook and as a file that any browser opens and that asks nobody for anything."""
    import nbformat
    from nbconvert import HTMLExporter
    from plotly.offline import get_plotlyjs

    done = folder / "sweep.ipynb"
    papermill.execute_notebook(literal(BOOK / f"{PAGE}.ipynb"), literal(done), {"sweep": str(folder)},
                               kernel_name="python3", progress_bar=False, log_output=False,
                               extra_arguments=["--IPKernelApp.log_level=ERROR"])  # fmt: skip
    html, _ = HTMLExporter(exclude_input=True).from_notebook_node(nbformat.read(done, 4))
    html = re.sub(r"<script[^>]*\bsrc=\"https?:[^>]*>\s*</script>", "", html)
    html = html.replace("</head>", f"<script>{get_plotlyjs()}</script></head>", 1)
    write_text(folder / "sweep.html", html)


def trained_on(given: dict[str, Any]) -> int:
    """How many scans a point trains on; of simulated rats, which have one each, told without simulating them."""
    n, n_train = given.get("n"), given.get("n_train")
    if given["cohort"] in SIMULATED:
        return int(n_train or splits.default_n_train(n or PAPER_N))
    cohort = labkit.open_cohort(given["cohort"], n=n, grid=given.get("grid"),
                                **fields.mapping("opening", given.get("opening", {})))  # fmt: skip
    return len(splits.split(cohort, n_train, given.get("fold", 0))[0])


def expected(points: list[Point], place: Here | Slurm) -> str:
    """Points, and the hours of their trainings by iterations that are timed where they would run."""
    asked: dict[str, tuple[str, str, dict[str, Any], str]] = {}
    costs: list[tuple[Point, list[tuple[str, int]]]] = []
    for one in points:
        given, (variant, scale) = one.training, resolved(one.training)
        dear = {name: value for name, value in given["overrides"].items() if name != "lr"}
        where = given["scale"], given.get("device", "auto")
        steps = scale.iterations
        if given.get("model") == "atlas" and not given.get("iterations"):
            steps = training.atlas_iterations(steps, trained_on(given))
        parts = [(given.get("model", "sigmarat2"), dear, 0 if one.finished else max(0, steps - one.iteration))]
        if getattr(variant, "generator_head", "") == "atlas" and not one.iteration:  # it fits one first
            usual = labkit.resolve("atlas", where[0])[1].iterations
            parts.append(("atlas", {"size": scale.size}, training.atlas_iterations(usual, trained_on(given))))
        keyed = [((model, where[0], settings, where[1]), steps) for model, settings, steps in parts]
        costs.append((one, [(json.dumps(key, sort_keys=True), steps) for key, steps in keyed]))
        asked |= {json.dumps(key, sort_keys=True): key for key, _ in keyed}
    keys = list(asked.values())
    if isinstance(place, Slurm):
        seconds = place.executor.submit(point.paces, keys).result()
    else:
        seconds = point.paces(keys, max(1, (os.cpu_count() or 1) // place.at_once))
    pace, lines, left = dict(zip(asked, seconds, strict=True)), [], 0.0
    for one, trainings in costs:
        hours = sum(steps * pace[mark] for mark, steps in trainings) / 3600
        left += hours
        state = "finished" if one.finished else f"{hours:.2g} h"
        told = ", after ".join(f"{steps} iterations of {pace[mark]:.3g} s" for mark, steps in trainings)
        lines.append(f"  {state:>9}  {told}: {said(one.varied)}")
    together = f", {left / place.at_once:.2g} h with {place.at_once} at a time" if place.at_once > 1 else ""
    return "\n".join(
        [*lines, f"{len(points)} points; trainings that are left: {left:.2g} h{together}; chapters come on top"]
    )


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="ci/sweep", description=__doc__)
    parser.add_argument("grid", type=Path, help="a TOML file with [every], [[points]] and [chapters.NAME]")
    parser.add_argument("--jobs", type=int, help="jobs at a time; default one, on a machine with GPUs one each")
    parser.add_argument("--share", type=int, default=1, help="points that one job computes at a time on its GPU")
    parser.add_argument(
        "--slurm", metavar="NAME=VALUE,...", help="on a cluster: partition, gpus, time, cpus, account, ..."
    )
    parser.add_argument("--to", type=Path, help="folder of the sweep; default runs/sweeps/ and the grid's name")
    parser.add_argument("--dry-run", action="store_true", help="list points and hours, and compute nothing")
    options = parser.parse_args()
    if min(options.share, options.jobs or 1) < 1:
        parser.error("--jobs and --share are 1 or more")
    return options


def main() -> None:
    """Read, compute what is missing, collect; exit status 1 if a point could not be computed."""
    options = arguments()
    folder = (options.to or runs_folder() / "sweeps" / options.grid.stem).resolve()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        points = read(options.grid, folder, options.slurm is not None)
        if options.dry_run:
            with tempfile.TemporaryDirectory(dir=None if options.slurm is None else ".") as scratch:
                print(expected(points, computer(options, Path(scratch))))
            return
        with only_one(folder):
            place = computer(options, folder)
            left = [one for one in points if not one.finished]
            print(f"{len(points)} points, {len(points) - len(left)} of them finished; {folder}", flush=True)
            open_cohorts(left)
            prepare(left, place)
            try:
                wrong = compute(points, place, options.share)
            except BaseException:
                print(f"ci/sweep: {place.leave()}", file=sys.stderr)
                raise
            collect(points, folder)
    except (GridError, RunError, labkit.CohortError) as error:
        sys.exit(f"ci/sweep: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    print(*(path for name in (SWEEP, SUMMARY, "sweep.html") if (path := folder / name).exists()), sep="\n")
    if wrong:
        sys.exit("these points could not be computed; start the same command again when that is mended:\n  "
                 + "\n  ".join(wrong))  # fmt: skip


def computer(options: argparse.Namespace, folder: Path) -> Here | Slurm:
    """Where jobs are computed."""
    if options.slurm is None:
        return Here(folder, options.jobs, options.share)
    return Slurm(folder, options.jobs, options.share, options.slurm)


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder of a sweep."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder))
        except RunError as error:
            raise GridError(f"another ci/sweep computes in {folder}: wait for it, or choose another --to") from error
        yield


def open_cohorts(points: list[Point]) -> None:
    """Every cohort once, so that what is wrong with one is said before any job, and rats are simulated once."""
    names = ("cohort", "n", "grid", "opening")
    asked = {json.dumps({name: one.training.get(name) for name in names}): one.training for one in points}
    for given in asked.values():
        try:
            labkit.open_cohort(given["cohort"], n=given.get("n"), grid=given.get("grid"),
                               **fields.mapping("opening", given.get("opening", {})))  # fmt: skip
        except (TypeError, ValueError) as error:
            raise GridError(f"cohort {given['cohort']}: {error}") from error


if __name__ == "__main__":
    main()
