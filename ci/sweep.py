"""Many trainings: read a grid, compute its points here or on a cluster, collect them. Called by ``ci/sweep``."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import papermill
import point
import submitit
from point import BOOK, FAILED, POINT, RUN, literal

import labkit
from labkit import fields, training
from labkit.cards import METRICS
from labkit.data.sources import NAMED
from labkit.evidence.sweeps import MEASURES, NAME, PARTS, SAMPLES, SWEEP, TRAINED, said
from labkit.files import runs_folder, write_json, write_text
from labkit.recording import HELD_OUT_COLUMNS
from labkit.runs import RunError, choose_device, locked
from labkit.samples import TILE

FIRST, PAGE = "02_train", "08_sweep"
FOLLOW = ("03_inspect", "04_quality", "05_segmentation", "06_latent")
"""Chapters about runs, which may follow a training."""

TRIES = 3
"""How often a point is begun whose job was killed."""

LOSSES = ("loss_EG", "loss_D", "loss_C", "loss", "rec_mse")
HELD_OUT = HELD_OUT_COLUMNS[:2]

SHOWN = 6
"""Samples of a point that its picture keeps."""


class GridError(ValueError):
    """A grid that cannot be computed: says what was given, what is allowed."""


@dataclass(frozen=True)
class Point:
    """A point: what differs in it by name, and the chapters to execute with their parameters."""

    name: str
    varied: dict[str, Any]
    chapters: dict[str, dict[str, Any]]
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether all its chapters are executed."""
        return all((self.folder / f"{stem}.ipynb").exists() for stem in self.chapters)

    @property
    def failed(self) -> str:
        """Why it cannot be computed, if that is known."""
        path = self.folder / FAILED
        return path.read_text(encoding="utf-8").strip() if path.exists() else ""

    @property
    def training(self) -> dict[str, Any]:
        """Parameters of chapter 2."""
        return self.chapters[FIRST]


def read(path: Path, folder: Path) -> list[Point]:
    """The points of a grid, checked before any work.

    Raises
    ------
    GridError
        All faults at once.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise GridError(f"{path} cannot be read: {error}") from error
    if odd := sorted(set(content) - {"every", "points", "chapters"}):
        raise GridError(f"{path}: unknown part {', '.join(odd)}; a grid has [every], [[points]] and [chapters.NAME]")
    every, tables, chapters = content.get("every", {}), content.get("points", []), content.get("chapters", {})
    if not isinstance(tables, list) or not all(isinstance(part, dict) for part in (every, chapters, *tables)):
        raise GridError(f"{path}: [every] is one table, [[points]] stands in two brackets, once or more often")
    try:
        json.dumps(content)
    except TypeError as error:
        raise GridError(f"{path}: a value is text, a number, true or false, or a list of these ({error})") from error
    faults = [f"[chapters.{stem}]: allowed are {', '.join(FOLLOW)}" for stem in chapters if stem not in FOLLOW]
    allowed = {stem: papermill.inspect_notebook(str(BOOK / f"{stem}.ipynb")) for stem in (FIRST, *FOLLOW)}
    for stem in set(chapters) & set(FOLLOW):
        names = [name for name in allowed[stem] if name not in ("run_dir", "run_dirs")]
        faults += [f"[chapters.{stem}] {name}: {', '.join(names)}" for name in chapters[stem] if name not in names]
    points, seen = [], Counter[str]()
    configurations = [one for table in tables or [{}] for one in product(every | table)]
    for given, varied in zip(configurations, differences(configurations), strict=True):
        try:
            points.append(_point(varied, given, chapters, allowed, path.parent, folder))
            seen[points[-1].name] += 1
        except (ValueError, TypeError) as error:
            faults.append(f"point {said(varied)}: {error}")
    faults += [f"point {name} stands there {times} times" for name, times in seen.items() if times > 1]
    if faults:
        raise GridError(f"{path}:\n" + "\n".join(f"  {fault}" for fault in dict.fromkeys(faults)))
    return points


def product(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Every choice of one value from each list of a table."""
    choices = [value if isinstance(value, list) else [value] for value in table.values()]
    return [dict(zip(table, values, strict=True)) for values in itertools.product(*choices)]


def differences(configurations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each configuration what not all have alike, its name first."""
    keys = dict.fromkeys([NAME, *(key for one in configurations for key in one)])
    differ = [key for key in keys if len({json.dumps(one.get(key)) for one in configurations}) > 1]
    return [{key: one[key] for key in differ if key in one} for one in configurations]


def _point(
    varied: dict[str, Any], given: dict[str, Any], chapters: dict[str, dict[str, Any]],
    allowed: Mapping[str, Mapping[str, Any]], here: Path, folder: Path,
) -> Point:  # fmt: skip
    """A point's chapters: what chapter 2 does not know by name is a setting; a cohort's folder is beside the grid.

    Its folder is known by what is trained, however a grid says it. ValueError for what cannot be trained.
    """
    parameters = {key: value for key, value in given.items() if key in allowed[FIRST] and key != "run_dir"}
    extra = {key: value for key, value in given.items() if key not in (*parameters, NAME)}
    parameters["overrides"] = fields.mapping("overrides", parameters.get("overrides", {})) | extra
    cohort = str(parameters.get("cohort", "phantom"))
    parameters["cohort"] = cohort if cohort in NAMED else str((here / cohort).resolve())
    data = [parameters.get(key) for key in ("n", "grid", "opening", "n_train")]
    trained = [*map(asdict, resolved(parameters)), parameters["cohort"], data]
    trained += [parameters.get(key, 0) for key in ("seed", "fold")]
    mark = hashlib.sha256(json.dumps(trained, sort_keys=True).encode()).hexdigest()[:8]
    words = [str(value) if key == NAME else f"{key}={value}" for key, value in varied.items()]
    called = re.sub(r"[^\w.=-]+", "_", "-".join(words))[:100] or "point"
    own = next((folder / "points").glob(f"*-{mark}"), folder / "points" / f"{called}-{mark}")
    run = str(own / RUN)
    follow = {stem: {**chapters[stem], **{key: run for key in ("run_dir", "run_dirs") if key in allowed[stem]}}
              for stem in FOLLOW if stem in chapters}  # fmt: skip
    return Point(own.name, varied, {FIRST: parameters | {"run_dir": run}, **follow}, own)


def resolved(given: dict[str, Any]) -> tuple[Any, Any]:
    """Model and scale of chapter 2's parameters with all settings; ValueError for what is not allowed."""
    steps = {"iterations": given["iterations"]} if given.get("iterations") else {}
    scale = training.choose_scale(given.get("scale", "auto"), choose_device(given.get("device", "auto")))
    return labkit.resolve(given.get("model", "sigmarat2"), scale, **given["overrides"], **steps)


def lay_out(one: Point) -> None:
    """Put a point where its job finds it; what was computed with other parameters is computed anew."""
    file = one.folder / POINT
    before = json.loads(file.read_text(encoding="utf-8"))["chapters"] if file.exists() else {}
    for stem in [stem for stem, parameters in before.items() if one.chapters.get(stem) != parameters]:
        (one.folder / f"{stem}.ipynb").unlink(missing_ok=True)
    (one.folder / FAILED).unlink(missing_ok=True)  # whoever starts it again has mended what was wrong
    one.folder.mkdir(parents=True, exist_ok=True)
    write_json(file, {"varied": one.varied, "chapters": one.chapters})


class Here:
    """Jobs as processes of this machine: no more than some at a time, each with its share of threads or a GPU."""

    pause = 1.0

    def __init__(self, folder: Path, jobs: int | None, share: int) -> None:
        import torch

        self.gpus = torch.cuda.device_count()
        self.jobs = jobs or max(1, self.gpus)
        self.executor = submitit.LocalExecutor(folder / "jobs")
        self.running: dict[str, tuple[submitit.LocalJob[None], int]] = {}
        if "OMP_NUM_THREADS" not in os.environ and self.jobs * share > 1:
            os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // (self.jobs * share)))
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
            gpu = {"gpus_per_node": 1, "visible_gpus": [free[0] % self.gpus]} if self.gpus else {}
            self.executor.update_parameters(timeout_min=366 * 24 * 60, **gpu)
            before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key is for this process, which ends the others
            try:
                job = self.executor.submit(point.Work([str(one.folder) for one in group]))
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
        self.jobs, self.file = jobs, folder / "jobs" / "submitted.json"
        self.numbers: dict[str, str] = json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {}
        self.missing: set[str] = set()
        # a job that is pre-empted or out of time is queued again as often as it takes
        self.executor = submitit.SlurmExecutor(folder / "jobs", max_num_timeout=1000)
        self.executor.update_parameters(job_name=folder.name, **slurm_parameters(options, share))

    def alive(self) -> set[str]:
        """Points whose jobs are queued or running: not in the queue twice means ended. It needs no accounting."""
        asked = subprocess.run(["squeue", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=True)
        gone = {name for name, number in self.numbers.items() if number not in asked.stdout.split()}
        ended, self.missing = gone & self.missing, gone
        return set(self.numbers) - ended

    def start(self, groups: list[list[Point]]) -> list[Point]:
        """Queue all as one array; their points."""
        if groups:
            self.executor.update_parameters(array_parallelism=self.jobs or len(groups))
            jobs = self.executor.submit_array([point.Work([str(one.folder) for one in group]) for group in groups])
            for group, job in zip(groups, jobs, strict=True):
                self.numbers |= {one.name: job.job_id for one in group}
                self.missing -= {one.name for one in group}
            write_json(self.file, self.numbers)
        return [one for group in groups for one in group]

    def leave(self) -> str:
        """Jobs stay."""
        return "the jobs stay in the queue: the same command waits for them again, scancel ends them"


def module_path() -> str:
    """Where jobs find the modules of this folder."""
    return os.pathsep.join(filter(None, [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH")]))


def slurm_parameters(options: str, share: int) -> dict[str, Any]:
    """What is asked for behind ``--slurm`` as submitit takes it.

    GridError for what is not NAME=VALUE, or no option of submitit.
    """
    pairs = [pair.partition("=") for pair in options.split(",") if pair]
    if odd := [name for name, sign, value in pairs if not (sign and value)]:
        raise GridError(f"--slurm {options}: write NAME=VALUE with commas between, not {', '.join(odd)}")
    given: dict[str, Any] = {{"gpus": "gpus_per_node", "cpus": "cpus_per_task"}.get(name, name): value
                             for name, _, value in pairs}  # fmt: skip
    allowed = set(submitit.SlurmExecutor._valid_parameters()) - {"array_parallelism", "job_name", "setup", "srun_args"}
    if odd := sorted(set(given) - allowed):
        raise GridError(f"--slurm {', '.join(odd)}: allowed are gpus, cpus, {', '.join(sorted(allowed))}")
    given = {name: int(value) if value.isdigit() and name != "account" else value for name, value in given.items()}
    given["time"] = minutes(str(given.get("time", "24:00:00")))
    given.setdefault("gpus_per_node", 1)
    if not given["gpus_per_node"]:
        del given["gpus_per_node"]
    kept = {name: value for name in ("LABKIT_DATA", "LABKIT_MIRROR") if (value := os.environ.get(name))}
    cpus = int(given.get("cpus_per_task", share))
    exported = kept | {"PYTHONPATH": module_path(), "OMP_NUM_THREADS": str(max(1, cpus // share))}
    setup = [f"export {name}={shlex.quote(value)}" for name, value in exported.items()]
    # srun no longer takes this from the job around it
    return given | {"setup": setup, "srun_args": ["--cpus-per-task", str(cpus)], "cpus_per_task": cpus}


def minutes(text: str) -> int:
    """A time limit as SLURM writes it: ``90``, ``12:00:00``, ``1-00:00:00``; GridError for anything else."""
    found = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)|(\d+)", text)
    if not found:
        raise GridError(f"--slurm time={text}: write minutes, HH:MM:SS or D-HH:MM:SS")
    if found[5]:
        return int(found[5])
    days, hours, mins, seconds = (int(part or 0) for part in found.groups()[:4])
    return max(1, 1440 * days + 60 * hours + mins + (seconds > 0))


def compute(points: list[Point], place: Here | Slurm, share: int) -> list[str]:
    """All points, each begun again where its job was killed; what is wrong with those that could not be computed."""
    begun, told = Counter[str](), set()
    while True:
        alive = place.alive()
        for one in points:
            if one.name not in told and (one.finished or one.failed):
                told.add(one.name)
                print(f"  {one.failed or 'done'} ({len(told)} of {len(points)}): {said(one.varied)}", flush=True)
        left = [one for one in points if one.name not in told and one.name not in alive]
        waiting = [one for one in left if begun[one.name] < TRIES]
        if not waiting and not alive & {one.name for one in points}:
            killed = [f"{said(one.varied)}: its job was killed {TRIES} times, see its log in jobs" for one in left]
            return killed + [f"{said(one.varied)}: {one.failed}" for one in points if one.failed]
        for one in place.start([waiting[first : first + share] for first in range(0, len(waiting), share)]):
            begun[one.name] += 1
            if begun[one.name] > 1:
                print(f"  its job was killed, begun again: {said(one.varied)}", flush=True)
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
    measured = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    by_key = {f"{entry['metric']}, {entry['flavour']}": entry for entry in measured}
    for name in (name for name in MEASURES if name in by_key):
        found |= {f"{name}{ending}": by_key[name][key] for ending, key in PARTS.items()}
    found["seconds"] = round(sum(sitting["seconds"] for sitting in sittings))
    return found | {"device": ", ".join(dict.fromkeys(sitting["device"] for sitting in sittings))}


def collect(points: list[Point], folder: Path) -> None:
    """The table of what is finished, a picture of each, and the page."""
    import pandas as pd
    from PIL import Image

    done = [one for one in points if one.finished]
    rows = [row(one) for one in done]
    shutil.rmtree(folder / SAMPLES, ignore_errors=True)
    for one in done:
        size = labkit.load_run(one.folder / RUN).scale.size
        side = size * -(-TILE // size)
        (folder / SAMPLES).mkdir(exist_ok=True)
        with Image.open(sorted((one.folder / RUN / "samples").glob("*.png"))[-1]) as picture:
            part = picture.crop((0, 0, min(picture.width, SHOWN * side), 3 * side))
            part.save(folder / SAMPLES / f"{one.name}.png", optimize=True)
    table = pd.DataFrame(rows)
    ends = ["seconds", "device"]  # a point of another model has other losses: columns keep their places
    order = [*(key for one in points for key in one.varied), TRAINED, *LOSSES, *HELD_OUT]
    order = [name for name in dict.fromkeys(["point", *order]) if name in table]
    table = table[[*order, *(name for name in table if name not in [*order, *ends]), *(n for n in ends if n in table)]]
    write_text(folder / SWEEP, table.to_csv(index=False, float_format="%.5g"))
    if done:
        show(folder)


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


def expected(points: list[Point], place: Here | Slurm) -> str:
    """Points, and the hours of their trainings by iterations that are timed where they would run."""
    asked: dict[str, tuple[str, str, dict[str, Any], str]] = {}
    costs = []
    for one in points:
        given, (_, scale) = one.training, resolved(one.training)
        dear = {name: value for name, value in given["overrides"].items() if name not in ("lr", "iterations")}
        key = (given.get("model", "sigmarat2"), scale.name, dear, given.get("device", "auto"))
        costs.append((one, json.dumps(key, sort_keys=True), scale.iterations))
        asked[costs[-1][1]] = key
    keys = list(asked.values())
    seconds = place.executor.submit(point.paces, keys).result() if isinstance(place, Slurm) else point.paces(keys)
    pace, lines, left = dict(zip(asked, seconds, strict=True)), [], 0.0
    for one, mark, iterations in costs:
        hours = iterations * pace[mark] / 3600
        left += 0 if one.finished else hours
        state = "finished" if one.finished else f"{hours:.2g} h"
        lines.append(f"  {state:>9}  {iterations} iterations of {pace[mark]:.3g} s: {said(one.varied)}")
    jobs = f", {left / place.jobs:.2g} h with {place.jobs} at a time" if place.jobs else ""
    return "\n".join(
        [*lines, f"{len(points)} points; trainings that are left: {left:.2g} h{jobs}; chapters not counted"]
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    place: Here | Slurm | None = None
    try:
        points = read(options.grid, folder)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            place = (Here(folder, options.jobs, options.share) if options.slurm is None else
                     Slurm(folder, options.jobs, options.share, options.slurm))  # fmt: skip
            if options.dry_run:
                print(expected(points, place))
                return
            left = [one for one in points if not one.finished]
            print(f"{len(points)} points, {len(points) - len(left)} of them finished; {folder}", flush=True)
            queued = place.alive()
            for one in left:
                if one.name not in queued:
                    lay_out(one)
            open_cohorts(left)
            wrong = compute(points, place, options.share)
            collect(points, folder)
    except (GridError, RunError, labkit.CohortError) as error:
        sys.exit(f"ci/sweep: {error}")
    except KeyboardInterrupt:
        sys.exit(f"ci/sweep: {place.leave()}" if place else 130)
    print(f"{folder / SWEEP}\n{folder / 'sweep.html'}")
    if wrong:
        sys.exit("these points could not be computed; start the same command again when that is mended:\n  "
                 + "\n  ".join(wrong))  # fmt: skip


def open_cohorts(points: list[Point]) -> None:
    """Every cohort once, so that what is wrong with one is said before any job, and rats are simulated once."""
    names = ("cohort", "n", "grid", "opening")
    asked = {json.dumps({name: one.training.get(name) for name in names}): one.training for one in points}
    for given in asked.values():
        labkit.open_cohort(given.get("cohort", "phantom"), n=given.get("n"), grid=given.get("grid"),
                           **fields.mapping("opening", given.get("opening", {})))  # fmt: skip


if __name__ == "__main__":
    main()
