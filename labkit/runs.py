"""A run is a folder: what was asked, what was seen, the networks, and enough to go on where it stopped.

::

    runs/sigmarat2-sigma-laptop-s0/
        config.json         variant, scale, seed, the training animals and their fingerprint
        provenance.json     commit, versions, device, wall time of every sitting
        losses.csv          a row a logging interval
        checkpoint.safetensors   everything needed to continue bit for bit
        models.safetensors       encoder and generators for use and sharing
        encodings.safetensors    of an atlas, codes that were found of scans
        file_template.json       grid, header and intensity ranges of the training scans, for what is generated
        atlas/              the run of the atlas that its G moves, if it moves one
        README.md           its card, with what chapters 4 and 5 measured
        samples/            fixed codes and scans as they change: NIfTI and montage
        events/             TensorBoard
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labkit import networks, sharing
from labkit.atlas import Atlas, AtlasEncoder, AtlasGenerator
from labkit.data.cohort import Cohort
from labkit.data.file_template import FileTemplate
from labkit.data.sources import SIMULATED, CohortError, open_cohort
from labkit.fields import from_dict, known
from labkit.files import digest, load_state, located, runs_folder, top
from labkit.variants import MODELS as MODEL_NAMES
from labkit.variants import AtlasSettings, Scale, Variant, asdict

CHECKPOINT = "checkpoint.safetensors"
MODELS = "models.safetensors"
LOSSES = "losses.csv"
OWN_ATLAS = "atlas"
FILE_TEMPLATE = "file_template.json"


GREY_LEVELS = 2
"""By which simulated rats may differ from a run's and be the same: another numpy moves a voxel in a thousand by one."""


class RunError(RuntimeError):
    """A run folder that cannot be used as asked: missing, busy, or made with another configuration."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; the lock falls with the process, however it ends.

    Raises
    ------
    RunError
        Another process holds it.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    handle = (folder / ".lock").open("a+")
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise RunError(
                f"{folder} is being trained by another process (number {holder}): wait for it, stop it, or choose "
                "another run_dir"
            ) from error
        except OSError as error:  # some network file systems lock nothing
            warnings.warn(
                f"{folder} cannot be locked ({error.strerror}): see to it yourself that no other process trains there",
                stacklevel=3,
            )
        handle.truncate(0)
        handle.write(f"{os.getpid()} on {platform.node() or 'an unnamed machine'}")
        handle.flush()
        yield
    finally:
        handle.close()


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse to mix two configurations in one folder; how long and where a run is trained may change.

    Raises
    ------
    RunError
        Lists each setting that differs, with both values.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    there, asked = (_comparable(_complete(c)) for c in (json.loads(path.read_text()), json.loads(json.dumps(config))))
    differing = [key for key in sorted(there.keys() | asked.keys()) if there.get(key) != asked.get(key)]
    opened = [key for key in differing if key.startswith("cohort.recipe")]
    if differing == opened:  # the same scans, opened from another place or by other words
        return
    # how a cohort was opened is of no account where the scans are the same; a part of a cohort does not know it
    silent = {key for key in opened if "cohort.fingerprint" not in differing or not (key in there and key in asked)}
    said = [key for key in differing if key not in silent and not key.endswith(("fingerprint", "digests"))]
    lines = [f"  {key}: {_differ(there.get(key), asked.get(key))}" for key in said]
    if not opened and "cohort.fingerprint" in differing and "cohort.name" not in said:
        lines.append("  the cohort's scans or labels, which have changed since")
    raise RunError(
        f"{folder} holds a run with another configuration:\n"
        + "\n".join(lines)
        + "\nChoose another run_dir, or remove that folder."
    )


def finished(folder: Path, iterations: int) -> Run:
    """A run that has weights and no checkpoint, as a packed one; RunError if it has not done `iterations`."""
    run = Run(folder)
    if run.iteration < iterations:
        raise RunError(
            f"{folder} has done {run.iteration} iterations, {iterations} are asked for, and it was packed without the "
            "checkpoint that it would go on from: train it anew in another run_dir"
        )
    return run


def _rounded_alike(found: Sequence[Any], ranges: Sequence[Any]) -> bool:
    """Whether darkest and brightest voxels of as many scans are the same, give or take rounding."""
    a, b = np.array(found), np.array(ranges)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=GREY_LEVELS))


def _given(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe asks for: an older one does not name options that came later, which are None where nobody asks."""
    return {key: value for key, value in recipe.items() if value is not None}


def _differ(there: Any, asked: Any) -> str:
    """Two values of a setting in words: of lists how much they share."""
    if isinstance(there, list) and isinstance(asked, list):
        shared = set(map(str, there)) & set(map(str, asked))
        return f"{len(there)} there, {len(asked)} asked, {len(shared)} of them the same"
    return f"{there!r} there, {asked!r} asked"


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of settings that a run from before they existed does not name."""
    whole = dict(config)
    if "variant" in config:
        whole["variant"] = asdict(settings_of(config["variant"]))
    if "scale" in config:
        whole["scale"] = asdict(from_dict(Scale, config["scale"]))
    return whole


def settings_of(values: Mapping[str, Any]) -> Variant | AtlasSettings:
    """A model's settings, read back from JSON."""
    known("model", values.get("name", ""), MODEL_NAMES)  # it becomes part of names and pages
    return from_dict(AtlasSettings, values) if values["name"] == "atlas" else from_dict(Variant, values)


def _comparable(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, without those that may differ between two sittings of one run."""
    free = {
        "scale.iterations",
        "variant.iterations",
        "scale.name",
        "iterations",
        "device",
        "precision_used",
        "cohort.about",
    }
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in free or name.startswith("scale.") and name.endswith("_every"):  # where data lie may change, too
            continue
        flat |= _comparable(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def choose_device(name: str) -> torch.device:
    """``"auto"`` is a GPU if there is one.

    Raises
    ------
    ValueError
        The device is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not known: allowed are 'auto', 'cpu', 'cuda', 'cuda:<number>'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch finds no GPU here: use 'auto' or 'cpu'")
    return device


@dataclass(frozen=True)
class Run:
    """A training run on disk.

    Attributes
    ----------
    path : pathlib.Path
        Its folder.

    Examples
    --------
    >>> run.variant.name, run.scale.size, run.iteration
    ('sigmarat2', 16, 20)
    """

    path: Path

    @property
    def config(self) -> dict[str, Any]:
        """What was asked: model, variant, scale, seed, cohort with fingerprint and training animals."""
        return json.loads((self.path / "config.json").read_text())

    @property
    def provenance(self) -> dict[str, Any]:
        """Commit, versions, device and wall time of every sitting."""
        return json.loads((self.path / "provenance.json").read_text())

    @property
    def losses(self):
        """`losses.csv` as a pandas.DataFrame, one row a logging interval, with the iteration as index."""
        import pandas as pd

        return pd.read_csv(self.path / LOSSES).set_index("iteration")

    @property
    def iteration(self) -> int:
        """Iterations done at the last checkpoint, or when a run that has none was packed; 0 before the first."""
        path = self.path / CHECKPOINT
        if not path.exists():
            return self.provenance["sittings"][-1]["to"] if (self.path / MODELS).exists() else 0
        from safetensors import safe_open

        with safe_open(path, framework="pt") as handle:
            rest = json.loads(handle.metadata()["state"])
        return dict(rest["items"])["iteration"]["value"]

    @property
    def variant(self) -> Variant | AtlasSettings:
        """The model's resolved settings."""
        return settings_of(self.config["variant"])

    @property
    def own_atlas(self) -> Run | None:
        """The run of the atlas whose template its generator moves, in its own folder, if it moves one."""
        own = Run(self.path / OWN_ATLAS)
        if getattr(self.variant, "generator_head", "") != "atlas" or not (own.path / MODELS).exists():
            return None
        return own if own.iteration >= own.scale.iterations else None  # one whose fit was stopped has no labels yet

    @property
    def seconds(self) -> float:
        """How long it was trained, in all sittings, the fit of its own atlas included."""
        both = self, Run(self.path / OWN_ATLAS)  # a packed run has no more of its atlas than how long it took
        there = [run for run in both if (run.path / "provenance.json").exists()]
        return sum(sitting["seconds"] for run in there for sitting in run.provenance["sittings"])

    @property
    def scale(self) -> Scale:
        """The resolved scale."""
        return from_dict(Scale, self.config["scale"])

    @property
    def fingerprint(self) -> str:
        """Content hash (sha256) of the weights in use: two runs with the same one generate the same scans."""
        return digest(self._written(MODELS))

    @property
    def file_template(self) -> FileTemplate:
        """What the training scans' files were, for what is generated."""
        return FileTemplate.from_json(json.loads(self._written(FILE_TEMPLATE).read_text()))

    def cohort(self) -> Cohort:
        """Open the cohort that the run was trained on, held-out animals included.

        Raises
        ------
        RunError
            It was a part of a cohort, is not there any more, or has changed.

        Examples
        --------
        >>> run.cohort().fingerprint == rats.fingerprint
        True
        """
        recipe = self.config["cohort"].get("recipe")
        if recipe is None:
            raise RunError(f"{self.path.name} was trained on scans chosen by hand: pass that cohort yourself")
        self._check_recipe(recipe)
        try:
            cohort = open_cohort(recipe["source"], **{key: value for key, value in recipe.items() if key != "source"})
        except CohortError as error:
            raise RunError(f"the cohort of {self.path.name} cannot be opened again: {error}") from error
        self._check_cohort(cohort)
        return cohort

    def train_part(self, cohort: Cohort) -> Cohort:
        """The scans of `cohort` that the run was trained on; RunError if `cohort` is not the run's own."""
        return self._part(cohort, "train")

    def held_out(self, cohort: Cohort) -> Cohort:
        """The scans of `cohort` whose animals this run never trained on; RunError if `cohort` is not the run's own.

        Examples
        --------
        >>> len(run.train_part(rats)), len(run.held_out(rats))
        (6, 2)
        """
        return self._part(cohort, "held_out")

    def _part(self, cohort: Cohort, which: str) -> Cohort:
        self._check_cohort(cohort)
        animals = set(self.config[which]["subjects"])
        return cohort.subset(index for index, subject in enumerate(cohort.subjects) if subject in animals)

    def _check_recipe(self, recipe: Mapping[str, Any]) -> None:
        """Refuse, before rats are simulated or files read, what could not be the run's cohort."""
        parts = sum(len(self.config[part]["subjects"]) for part in ("train", "held_out"))
        simulated = recipe.get("source") in SIMULATED  # of a folder unusable files may have been left out
        if self.config["cohort"]["n"] != parts or simulated and recipe.get("n") != parts:
            raise RunError(
                f"{self.path / 'config.json'} contradicts itself: {self.config['cohort']['n']} scans in the cohort, "
                f"n={recipe.get('n')} in its recipe, {parts} trained on or held out"
            )

    def _check_cohort(self, cohort: Cohort) -> None:
        """Refuse scans that are not the run's own; simulated rats that were rounded otherwise are."""
        trained = self.config["cohort"]
        if cohort.fingerprint == trained["fingerprint"]:
            return
        cure = "open that cohort, with the same n"
        if cohort.recipe is not None and _given(cohort.recipe) == _given(trained["recipe"] or {}):
            cure = "its files have changed since, or are read in another way: open them as they were"
            if cohort.recipe.get("source") in SIMULATED:
                if self._same_to_a_grey_level(cohort):
                    return
                cure = "another version of labkit simulates them otherwise: use the one in provenance.json"
        raise RunError(
            f"{self.path.name} was trained on {trained['n']} scans of {trained['name']}, fingerprint "
            f"{trained['fingerprint'][:12]}, not on {cohort!r}: {cure}"
        )

    def _same_to_a_grey_level(self, cohort: Cohort) -> bool:
        """Whether the training scans' darkest and brightest voxels are the run's own, give or take rounding."""
        animals = set(self.config["train"]["subjects"])
        found = [(scan.origin.low, scan.origin.high) for scan in cohort if scan.subject in animals]
        return _rounded_alike(found, self.file_template.ranges)

    def trained_as(self, other: Run) -> bool:
        """Whether both were trained on the same scans; simulated rats that another machine rounded otherwise are."""
        mine, theirs = self.config, other.config
        if mine["train"]["fingerprint"] == theirs["train"]["fingerprint"]:
            return True
        recipe, same = (_given(config["cohort"]["recipe"] or {}) for config in (mine, theirs))
        alike = recipe == same and mine["train"]["subjects"] == theirs["train"]["subjects"]
        simulated = alike and recipe.get("source") in SIMULATED
        return simulated and _rounded_alike(self.file_template.ranges, other.file_template.ranges)

    def digests_of(self, train: Cohort) -> list[str]:
        """Digests under which the run knows its training scans, where they are these but for another rounding."""
        mine, recipe = self.config["train"], self.config["cohort"]["recipe"] or {}
        if set(train.digests) <= set(mine["digests"]) or recipe.get("source") not in SIMULATED:
            return list(train.digests)
        if set(train.subjects) != set(mine["subjects"]) or not self._same_to_a_grey_level(train):
            return list(train.digests)
        known = dict(zip(mine["subjects"], mine["digests"], strict=True))
        return [known[subject] for subject in train.subjects]

    def summary(self):
        """Where the run stands, as a pandas.Series: iterations, time, speed, errors, codes.

        Errors are mean squared errors of scans in [-1, 1]; those of training batches are the mean of the last tenth of
        the rows, those of held-out scans the last measured.

        Examples
        --------
        >>> run.summary()["iterations"]
        20
        """
        import pandas as pd

        losses, sittings = self.losses, self.provenance["sittings"]
        recent = losses.tail(max(1, len(losses) // 10)).mean()
        of_gan = {
            "code mean, training": "z_enc_mean", "code standard deviation, training": "z_enc_sd",
            "Wasserstein estimate, scans": "wasserstein_D",
        }  # fmt: skip
        held = losses[["held_out_mse", "mean_scan_mse", "held_out_code_sd"]].dropna().tail(1).mean()
        return pd.Series(
            {
                "iterations": int(losses.index[-1]),
                "sittings": len(sittings),
                "minutes": self.seconds / 60,
                "iterations per second (median)": losses["iterations_per_s"].median(),
                "scans per second": losses["images_per_s"].median(),
                "peak memory, MiB": losses["peak_memory_mib"].max(),
                "reconstruction error, training": recent["rec_mse"],
                "reconstruction error, held out": held["held_out_mse"],
                "error of the mean training scan, held out": held["mean_scan_mse"],
                "code standard deviation, held out": held["held_out_code_sd"],
                **{name: recent[column] for name, column in of_gan.items() if column in recent},
            },
            name=self.path.name,
            dtype=object,  # so that whole numbers stay whole
        )

    def generator(
        self, device: torch.device | str = "cpu", codes: str = "random", noise: bool = True
    ) -> networks.Generator | AtlasGenerator:
        """The generator in evaluation mode: (B, Z) -> (B, 1, S, S, S) in [-1, 1].

        Parameters
        ----------
        device : torch.device or str
            Where to put it.
        codes : {"random", "encoded"}
            What it is to decode: draws from N(0, I), for which it is the moving average (EMA) of G; or codes of
            :meth:`encoder`, for which it is G as it was trained beside that encoder.
        noise : bool
            Whether an atlas's random scans have noise as scanned ones do, drawn from their code; others have no noise.

        Examples
        --------
        >>> network = run.generator(codes="random")
        >>> network.training
        False
        """
        names = {"random": "G", "encoded": "G_encoded"}
        if codes not in names:
            raise ValueError(f"codes={codes!r} is not known; allowed: {', '.join(names)}")
        state, settings = load_state(self._written(MODELS), device), self.variant
        noise = noise and codes == "random"
        if isinstance(settings, AtlasSettings):
            return AtlasGenerator(Atlas(settings, state["atlas"]), self.scale.size, noise)
        weights, atlas = state[names[codes]], {}
        if settings.generator_head == "atlas":
            try:
                learned = {name: torch.empty_like(weights[f"head.{name}"]) for name in ("template", "appearances")}
                atlas = {"atlas": learned | state["scanner"]}
            except KeyError as error:
                raise self._other_networks() from error
        network = self._network(networks.Generator, weights, device, **atlas)
        network.noisy = noise
        return network

    def encoder(self, device: torch.device | str = "cpu") -> networks.Encoder | AtlasEncoder:
        """The encoder in evaluation mode: (B, 1, S, S, S) -> (B, Z); ``generator(codes="encoded")`` belongs to it."""
        state, settings = load_state(self._written(MODELS), device), self.variant
        if isinstance(settings, AtlasSettings):
            return AtlasEncoder(Atlas(settings, state["atlas"]))
        return self._network(networks.Encoder, state["E"], device)

    def fitted_codes(self, encoder: nn.Module) -> dict[str, Tensor]:
        """Codes of the training scans by digest, where training itself finds them, as an atlas's does; else none."""
        if not isinstance(encoder, AtlasEncoder):
            return {}
        codes = encoder.atlas.codes(encoder.atlas.state["numbers"]).cpu()
        return dict(zip(self.config["train"]["digests"], codes, strict=True))

    def _network(self, kind: type, weights: dict[str, Any], device: torch.device | str, **more: Any) -> Any:
        settings = self.variant, self.scale
        with torch.device("meta"):  # where networks take no memory, however large they would be
            outline = {name: tensor.shape for name, tensor in kind(*settings, **more).state_dict().items()}
        if outline != {name: tensor.shape for name, tensor in weights.items()}:
            raise self._other_networks()
        network = kind(*settings, **more)
        network.load_state_dict(weights)
        return network.to(device).eval()

    def _other_networks(self) -> RunError:
        return RunError(f"{self.path / MODELS} does not hold the networks that config.json describes")

    def _written(self, name: str) -> Path:
        path = self.path / name
        if not path.exists():
            raise RunError(f"{self.path} has no {name} yet: train it first, it has done {self.iteration} iterations")
        return path


def load_run(path: str | os.PathLike | None = None) -> Run:
    """Open a run folder.

    Parameters
    ----------
    path : path, optional
        The folder; default the one in ``runs/`` that was trained, or opened for training, last. A packed run, such as
        ``reference/sigmarat2`` of the repository (:mod:`labkit.sharing`), is unpacked into ``runs/reference`` first.

    Raises
    ------
    RunError
        `path` is no run; lists the runs beside it. There is no trained run at all.

    Examples
    --------
    >>> labkit.load_run(folder / "runs" / "first").iteration
    20
    """
    if path is None:
        trained = [weights.with_name("config.json") for weights in runs_folder().glob(f"*/{MODELS}")]
        trained.sort(key=lambda config: config.stat().st_mtime)
        if not trained:
            raise RunError(
                f"no trained run in {runs_folder().absolute()}: train one first (papermill book/02_train.ipynb "
                "out.ipynb), or name its folder in run_dir"
            )
        path = trained[-1].parent
    if (packed := sharing.packed_run(path)) is not None:
        return Run(sharing.unpacked(packed, MODELS))
    folder = located(path)
    if not (folder / "config.json").exists():
        beside = sorted(p.parent.name for p in folder.parent.glob("*/config.json")) if folder.parent.is_dir() else []
        listed = f"; runs in {folder.parent}: {', '.join(beside)}" if beside else ""
        if folder.parent == top() / sharing.REFERENCE:
            there = sorted(packed.parent.name for packed in sharing.REPOSITORY.glob(f"*/{sharing.PACKED}"))
            where = f"; trained runs in the repository's book/reference/runs: {', '.join(there)}"
            listed += where if there else "; trained runs come with the repository, not with the installed package"
        raise RunError(f"{folder} is no run (it has no config.json){listed}")
    return Run(folder)


def find_atlas(run: Run) -> Run | None:
    """The run itself if it is an atlas's, else the newest beside it that was trained on the same scans, or its own.

    Its own, whose template its generator moves, has the generator's resolution, others the scans'.
    """
    if run.variant.name == "atlas":
        return run
    if run.path.parent.name == sharing.REFERENCE and sharing.packed_run(f"{sharing.REFERENCE}/atlas"):
        load_run(f"{sharing.REFERENCE}/atlas")  # unpacked beside it
    beside = [
        Run(path.parent) for path in run.path.parent.glob(f"*/{MODELS}") if (path.parent / "config.json").exists()
    ]
    alike = [one for one in beside if one.variant.name == "atlas" and one.trained_as(run)]
    return max(alike, key=lambda one: (one.path / MODELS).stat().st_mtime, default=run.own_atlas)
