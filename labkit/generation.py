"""From codes to rats and back: draw, decode, encode, interpolate; and the same as NIfTI files like a reference scan.

Codes are float32 tensors (N, Z). Random ones are decoded by the average of G, encoded ones by the G that was trained
beside the encoder (:meth:`labkit.runs.Run.generator`); `kind` says which, ``"random"`` or ``"encoded"``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labkit import __version__, cards
from labkit.data import bids, nifti
from labkit.data.cohort import Cohort, Scan
from labkit.data.file_template import SYNTHETIC, FileTemplate, without_identity
from labkit.data.sources import open_cohort
from labkit.fields import whole
from labkit.files import (
    DamagedFileError,
    changes,
    load_state,
    located,
    new_folder,
    progress_bar,
    save_state,
    seal,
    write_json,
)
from labkit.layers import convolving
from labkit.runs import Run, RunError, choose_device, load_run

DESCRIPTION = "dataset_description.json"

BATCH = 8
"""Volumes a pass. Always as many, so that a volume does not depend on how many others were asked for."""


def draw_codes(run: Run, n: int, seed: int = 0, first: int = 0, truncation: float = 1.0) -> Tensor:
    """Random codes, float32 (n, Z), numbers `first` to `first + n - 1` of a seed, which do not depend on `n`.

    `truncation` is their standard deviation: 1 is N(0, I), which G was trained on; less makes animals more alike, where
    G feels it (:attr:`labkit.variants.Variant.feels_length`).
    """
    if n < 0 or not 0 <= truncation < np.inf:
        raise ValueError(f"n={n} and truncation={truncation}: both must be 0 or more, and finite")
    length = run.variant.latent_dim
    rows = [np.random.default_rng([seed, i]).standard_normal(length, np.float32) for i in range(first, first + n)]
    return torch.from_numpy(np.array(rows, np.float32).reshape(n, length)) * truncation


def in_batches(network: nn.Module, inputs: Tensor, show: str = "", **how: Any) -> Iterator[Tensor]:
    """Pass inputs (N, ...) through a network, :data:`BATCH` at a time, the last batch filled up; outputs on the CPU.

    With a progress bar if `show` has words for one; `how` is passed on.
    """
    for part, full in _parts(network, inputs, show):
        # around the pass alone: around the yield it would reach into the caller
        with torch.no_grad(), convolving(full.device, benchmark=False):
            out = network(full, **how).float().cpu()[: len(part)]
        yield out


def labelled_batches(network: nn.Module, codes: Tensor, show: str = "") -> Iterator[tuple[Tensor, Tensor | None]]:
    """As :func:`in_batches`, with the label maps of a generator that makes labels, uint8 (B, 1, S, S, S), else None."""
    if not getattr(network, "has_labels", False):
        yield from ((volumes, None) for volumes in in_batches(network, codes, show))
        return
    for part, full in _parts(network, codes, show):
        with convolving(full.device, benchmark=False):
            volumes, labels = (made.cpu()[: len(part)] for made in network.labelled(full))
        yield volumes.float(), labels


def _parts(network: nn.Module, inputs: Tensor, show: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of the inputs, and each as a full batch on the network's device."""
    device = next(itertools.chain(network.parameters(), network.buffers())).device
    parts = inputs.split(BATCH)
    for part in progress_bar(parts, show, len(parts)) if show else parts:
        full = torch.cat([part, part[-1:].expand(BATCH - len(part), *part.shape[1:])]) if len(part) < BATCH else part
        yield part, full.to(device)


def decode(run: Run, codes: Tensor, kind: str = "random", device: str = "auto", noise: bool = True) -> Tensor:
    """Codes (N, Z) to volumes, float32 (N, 1, S, S, S) in [-1, 1].

    Parameters
    ----------
    run : Run
        Trained.
    codes : torch.Tensor
        As long as the run's; ValueError otherwise.
    kind : {"random", "encoded"}
        Where the codes come from.
    device : str
        As in :func:`labkit.training.train`.
    noise : bool
        Whether an atlas's random scans have noise: see :meth:`labkit.runs.Run.generator`.

    Examples
    --------
    >>> volumes = labkit.decode(run, labkit.encode(run, rats[:2]), "encoded")
    >>> tuple(volumes.shape)
    (2, 1, 16, 16, 16)
    """
    _check_codes(run, codes)
    network = run.generator(choose_device(device), kind, noise)
    return _gathered(in_batches(network, codes), (1, *(run.scale.size,) * 3))


ENCODINGS = "encodings.safetensors"
"""Codes that an atlas took a second a scan to find, in its run's folder."""

PROBES, SAME = 128, 0.95
"""Voxels by which a scan is known again that another machine made again, and how many of them have to be equal.

One voxel in a thousand of a simulated rat is rounded otherwise; no two of the study's 25 real mice share a tenth."""


def encode(run: Run, cohort: Cohort, device: str = "auto", coarse: bool = False) -> Tensor:
    """Scans to codes, (N, Z), for ``kind="encoded"``; ValueError for scans on another grid than the run's.

    Of an atlas the codes of its own training scans are those of the fit, and others are found once and kept in the
    run's folder, also for scans that are the same but for rounding. With `coarse`, all of an atlas's are found at half
    the resolution, in a third of the time, for codes that are compared with each other alone.

    Examples
    --------
    >>> codes = labkit.encode(run, rats)
    >>> tuple(codes.shape)
    (8, 500)
    """
    run.file_template.check_grid(cohort)
    network, of_atlas = run.encoder(choose_device(device)), run.variant.name == "atlas"
    if coarse and not of_atlas:
        raise ValueError(f"coarse=True is of an atlas; {run.path.name} is of {run.variant.name}")
    how: dict[str, Any] = {"coarse": True} if coarse else {}
    kept, kind = _kept_codes(run) if of_atlas else {}, "coarse" if coarse else "full"
    known = ({} if coarse else run.fitted_codes(network)) | kept.get(kind, {})
    known |= _known_again(cohort, known, kept.get("voxels", {}))
    new = {digest: place for place, digest in enumerate(cohort.digests) if digest not in known}
    if new:
        scans = cohort.subset(new.values()).volumes(run.scale.size)
        found = torch.cat(list(in_batches(network, scans, "", **how)))
        known |= dict(zip(new, found, strict=True))
        if of_atlas:
            kept[kind] = kept.get(kind, {}) | {digest: known[digest] for digest in new}
            kept["voxels"] = kept.get("voxels", {}) | {scan.digest: _probes(scan) for scan in cohort}
            with contextlib.suppress(OSError):  # a folder that cannot be written to, or a full disk, keeps nothing
                save_state(run.path / ENCODINGS, {"run": run.fingerprint, **kept})
    rows = [known[digest] for digest in cohort.digests]
    return torch.stack(rows) if rows else torch.empty(0, run.variant.latent_dim)


def _known_again(cohort: Cohort, codes: Mapping[str, Tensor], voxels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Codes of those scans whose digests have none, but whose voxels are those of one that has, but for rounding."""
    named = [digest for digest in voxels if digest in codes]
    if not named:
        return {}
    table, found = torch.stack([voxels[digest] for digest in named]), {}
    for scan in cohort:
        if scan.digest not in codes:
            equal = (table == _probes(scan)).float().mean(1)
            if equal.max() >= SAME:
                found[scan.digest] = codes[named[int(equal.argmax())]]
    return found


def _probes(scan: Scan) -> Tensor:
    """Voxels spread evenly over the middle of a scan, where it is no air, float32 (PROBES,)."""
    middle = scan.image[tuple(slice(n // 4, n - n // 4) for n in scan.image.shape)].reshape(-1)
    return torch.from_numpy(middle[np.linspace(0, middle.size - 1, PROBES).astype(int)])


def _kept_codes(run: Run) -> dict[str, dict[str, Tensor]]:
    """Codes by kind and digest of scans that were found before, with the weights that the run has, and their voxels."""
    try:
        state = load_state(run.path / ENCODINGS)
        if state["run"] != run.fingerprint:
            return {}
        lengths = {"full": run.variant.latent_dim, "coarse": run.variant.latent_dim, "voxels": PROBES}
        return {
            kind: {digest: row.float() for digest, row in state.get(kind, {}).items() if row.shape == (length,)}
            for kind, length in lengths.items()
        }
    except (FileNotFoundError, DamagedFileError, KeyError, TypeError, AttributeError):
        return {}  # they can be found again


def interpolate(
    run: Run, a: Tensor, b: Tensor, steps: int = 9, kind: str = "random", device: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Volumes on the way from one code to another, and their codes.

    Parameters
    ----------
    run : Run
        Trained.
    a, b : torch.Tensor
        (Z,), both of one `kind`.
    steps : int
        How many, both ends included; at least 2.
    kind, device : str
        As in :func:`decode`.

    Returns
    -------
    volumes, codes : torch.Tensor
        (steps, 1, S, S, S) in [-1, 1], and (steps, Z).

    Examples
    --------
    >>> a, b = labkit.encode(run, rats[:2])
    >>> volumes, codes = labkit.interpolate(run, a, b, steps=5, kind="encoded")
    >>> len(volumes), bool((codes[0] - a).abs().max() < 1e-3)
    (5, True)
    """
    if steps < 2:
        raise ValueError(f"steps={steps}: a way has two ends, so at least 2")
    codes = slerp(a, b, torch.linspace(0, 1, steps))
    return decode(run, codes, kind, device, noise=False), codes


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation of directions, linear of lengths: codes (Z,) and (Z,), t (n,) in [0, 1] -> (n, Z).

    Gaussian codes lie in a thin shell; the straight line between two of them leaves it for the middle, where G was
    never trained, and the arc does not (White 2016, arXiv 1609.04468).
    """
    length_a, length_b = a.norm(), b.norm()
    unit_a, unit_b = a / length_a.clamp_min(1e-12), b / length_b.clamp_min(1e-12)
    angle = torch.arccos((unit_a @ unit_b).clamp(-1, 1))
    t = t.to(a)[:, None]
    if angle < 1e-4:  # hardly an arc, and its formula would divide by zero
        return a + t * (b - a)
    direction = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / torch.sin(angle)
    return direction * (length_a + t * (length_b - length_a))


def _check_codes(run: Run, codes: Tensor) -> None:
    length = run.variant.latent_dim
    if codes.ndim != 2 or codes.shape[1] != length:
        raise ValueError(f"codes of {run.path.name} have the shape (N, {length}); got {tuple(codes.shape)}")


def _gathered(batches: Iterator[Tensor], shape: tuple[int, ...]) -> Tensor:
    parts = list(batches)
    return torch.cat(parts) if parts else torch.empty(0, *shape)


def generate(
    run: Run | str | os.PathLike,
    n: int,
    out_dir: str | os.PathLike | None = None,
    like: Cohort | Scan | None = None,
    seed: int = 0,
    *,
    truncation: float = 1.0,
    modes: int | None = None,
    device: str = "auto",
) -> Cohort:
    """Write synthetic scans: noise, generator, crop, and the grid and unit of real scans (the paper's figure 3).

    An atlas that was trained on scans of which some had labels writes label maps beside its scans (``*_dseg.nii.gz``).

    Parameters
    ----------
    run : Run or path
        Trained.
    n : int
        How many scans; scan i of a seed is the same whatever `n`.
    out_dir : path, optional
        New folder, a BIDS derivative with a card (``README.md``, :mod:`labkit.cards`); it appears only when everything
        is written. Default: inside the run. If it holds just what is asked for, it is opened and nothing is made anew.
    like : Cohort or Scan, optional
        Whose files the synthetic ones are to be like: grid, affine, header, orientation and data type of the first
        scan, intensity ranges of all. Default: the training scans; where these were brought to the cohort's grid from
        others, files have the cohort's, since a finer one would only interpolate what a network made.
    seed : int
        Of the codes. The same seed gives the same bytes on the same machine.
    truncation : float
        Standard deviation of the codes; 1 is what the model was trained on. ValueError where a model's G does not feel
        it (:attr:`labkit.variants.Variant.feels_length`): of the paper's, `adni` does.
    modes : int, optional
        How many numbers of a code are drawn, of an atlas those that move most; the others are 0, as in the page that
        makes rats (:func:`labkit.export_page`). Default: all.
    device : str
        As in :func:`labkit.training.train`.

    Returns
    -------
    Cohort

    Raises
    ------
    FileExistsError
        `out_dir` is there and holds something else.
    RunError
        The run has no weights yet.

    Examples
    --------
    >>> synthetic = labkit.generate(run, 3, folder / "synthetic")
    >>> len(synthetic), synthetic.shape == rats.shape
    (3, True)
    """
    run = run if isinstance(run, Run) else load_run(run)
    n, seed = whole("n", n, 1, "how many scans to generate"), whole("seed", seed, 0)
    if isinstance(truncation, str) or not 0 <= float(truncation) < np.inf:
        raise ValueError(f"truncation={truncation!r}: a standard deviation of codes, 0 or more; 1 is the model's own")
    if float(truncation) != 1 and not run.variant.feels_length:
        raise ValueError(
            f"truncation={truncation}: {run.path.name} makes the same scan of a code whatever its length, as its first "
            "layer has no bias and ends in an instance norm (a code is a direction): leave truncation at 1"
        )
    modes = None if modes is None else whole("modes", modes, 1, "how many numbers of a code are drawn")
    if not (like is None or isinstance(like, Scan) or isinstance(like, Cohort) and len(like)):
        raise ValueError(f"like={like!r}: a scan, a cohort with scans (labkit.open_cohort opens a folder), or None")
    scans = [like] if isinstance(like, Scan) else list(like or ())
    file_template = FileTemplate.of(scans, own_files=True) if scans else run.file_template
    run.file_template.check_grid(scans)
    made = _made(run, n, seed, truncation, like) | ({} if modes is None else {"modes": modes})
    folder = located(out_dir) if out_dir else default_folder(run, n, seed, truncation, like, modes)

    def write(fresh: Path) -> None:
        codes, index = draw_codes(run, n, seed, truncation=truncation), 0
        if modes is not None:
            codes[:, modes:] = 0
        network = run.generator(choose_device(device))
        _check_unchanged(run, made)
        for volumes, labels in labelled_batches(network, codes, f"generating {n} scans"):
            for place, volume in enumerate(volumes):
                own = None if labels is None else labels[place]
                _write_scan(fresh, file_template, volume, own, index, codes[index], made)
                index += 1
        if getattr(network, "has_labels", False) and run.file_template.label_names:
            bids.write_label_names(fresh, {0: "background", **run.file_template.label_names})
        _write_description(fresh, run, made)

    fill(folder, made, write)
    return open_cohort(folder, **file_template.opening)


def default_folder(
    run: Run,
    n: int,
    seed: int,
    truncation: float = 1.0,
    like: Cohort | Scan | None = None,
    modes: int | None = None,
) -> Path:
    """``<run>/synthetic/<weights>-s<seed>-n<n>``, so that a run trained further does not meet its earlier scans."""
    more = "" if truncation == 1 else f"-t{truncation:g}"
    more += "" if like is None else f"-like{_digest(like)[:8]}"
    more += "" if modes is None else f"-m{modes}"
    return run.path / "synthetic" / f"{run.fingerprint[:8]}-s{seed}-n{n}{more}"


def reconstruct(run: Run, cohort: Cohort, out_dir: str | os.PathLike | None = None, device: str = "auto") -> Cohort:
    """Write what encoder and generator make of scans, each like its own file and under its animal's name.

    Parameters
    ----------
    run : Run
        Trained.
    cohort : Cohort
        Any scans; held-out ones make the honest test.
    out_dir : path, optional
        New folder; default inside the run. If it holds the reconstructions of these scans, it is opened.
    device : str
        As in :func:`labkit.training.train`.

    Returns
    -------
    Cohort
        In the order of subjects and sessions, as `cohort` has it.

    Examples
    --------
    >>> back = labkit.reconstruct(run, rats[:2], folder / "reconstructed")
    >>> back.subjects == rats[:2].subjects
    True
    """
    if not len(cohort):
        raise ValueError("no scans to reconstruct: the cohort is empty (a run may hold nothing out)")
    if len(kinds := sorted({scan.suffix for scan in cohort})) > 1:
        raise ValueError(f"scans of several kinds ({', '.join(kinds)}): open one kind with suffix={kinds[0]!r}")
    run.file_template.check_grid(cohort)
    made = {"run": run.path.name, "run_fingerprint": run.fingerprint, "reconstructed": cohort.fingerprint}
    folder = (
        located(out_dir) if out_dir else run.path / "reconstructed" / f"{run.fingerprint[:8]}-{cohort.fingerprint[:8]}"
    )
    opening = FileTemplate.of([cohort[0]]).opening
    names = cohort.bids_labels()

    def write(fresh: Path) -> None:
        volumes = decode(run, encode(run, cohort, device), "encoded", device)
        _check_unchanged(run, made)
        for scan, volume in zip(progress_bar(cohort, "writing reconstructions"), volumes, strict=True):
            image = nifti.restore(volume, scan.image.shape, nifti.on_grid(scan.origin, scan.image.shape))
            _check_not_constant(image, f"the scan of {scan.subject}")
            image.header["descrip"] = b"synthetic: reconstructed by an encoder and a generator"
            path = bids.scan_path(names[scan.subject], scan.session, scan.suffix, "reconstruction")
            bids.save_scan(fresh, path, image, None)
            _write_sidecar(fresh / path, {"Reconstruction": True, **air_field(scan.origin)})
        bids.write_description(fresh, f"Reconstructions by {made['run']}", "derivative", **generated_by(run), **made)

    fill(folder, made, write)
    return open_cohort(folder, **opening)


def save_volume(run: Run, volume: Tensor, path: str | os.PathLike, text: str = SYNTHETIC) -> Path:
    """Write one volume (1, S, S, S), whatever code it comes from, as a file like the run's training scans.

    `path` (``.nii.gz``) is replaced if it is there; `text` is the header's description, 79 characters at most.
    """
    path = located(path)
    image = run.file_template.image(volume, np.random.default_rng(0))
    nifti.save(type(image)(image.dataobj, image.affine, without_identity(image.header, text)), path)
    return path


def _made(run: Run, n: int, seed: int, truncation: float, like: Cohort | Scan | None) -> dict[str, Any]:
    """What decides every byte of a generated folder."""
    return {
        "run": run.path.name,
        "model": run.variant.name,
        "scale": run.scale.name,
        "run_fingerprint": run.fingerprint,
        "training_fingerprint": run.config["train"]["fingerprint"],
        "seed": seed,
        "n": n,
        "truncation": float(truncation),
        "like": "training scans" if like is None else _digest(like),
    }


def _digest(like: Cohort | Scan) -> str:
    return like.fingerprint if isinstance(like, Cohort) else like.digest


def _check_not_constant(image: nifti.nib.Nifti1Image, what: str) -> None:
    """Nothing could open such a file as a scan."""
    data = np.asarray(image.dataobj)
    if data.min() == data.max():
        raise ValueError(
            f"the generator makes {data.flat[0]:g} everywhere of {what}: it has not learned yet, or broke down; look "
            "at the run's samples, train it longer, or take an earlier run. Nothing was written."
        )


def _check_unchanged(run: Run, made: dict[str, Any]) -> None:
    """A run that is still training may have written other weights since they were named."""
    if run.fingerprint != made["run_fingerprint"]:
        raise RunError(f"{run.path.name} got new weights just now, it is still being trained: start again")


def fill(folder: Path, made: Mapping[str, Any], write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder; one that is there has to be just what it would write.

    `made` is what decides its content, and stands in its description; what the run's folder is called does not count.

    Raises
    ------
    FileExistsError
        The folder holds something else, or what was made there has been changed since.
    """
    if not folder.exists():
        try:
            with new_folder(folder) as fresh:
                write(fresh)
                seal(fresh)
            return
        except FileExistsError:
            if not folder.exists():
                raise
            # another process was quicker: what it made is looked at as what was there
    try:
        there = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError):
        there = {}
    apart = [f"{key}: {there.get(key)!r} there, {value!r} asked" for key, value in made.items()
             if key != "run" and there.get(key) != value]  # fmt: skip
    apart = apart or changes(folder)
    if apart:
        more = [f"and {len(apart) - 10} more"] if len(apart) > 10 else []
        raise FileExistsError(
            f"{folder} is there already and holds something else:\n  " + "\n  ".join(apart[:10] + more)
            + "\nChoose a new out_dir, or remove that folder."
        )  # fmt: skip


def _write_scan(
    folder: Path,
    file_template: FileTemplate,
    volume: Tensor,
    labels: Tensor | None,
    index: int,
    code: Tensor,
    made: dict,
) -> None:
    subject = f"synthetic{index:05d}"
    # scanned rats differ in gain, and so do these; drawn apart from the code, which decides nothing about it
    gain = [made["seed"], index, 1]
    image = file_template.image(volume, np.random.default_rng(gain))
    _check_not_constant(image, f"code {index} of seed {made['seed']}")
    path = bids.scan_path(subject, suffix=file_template.suffix, description="synthetic")
    bids.save_scan(folder, path, image, None if labels is None else file_template.label_image(labels))
    origin = file_template.origin
    sidecar = {
        "Synthetic": True,
        "Description": SYNTHETIC,
        "Model": made["model"],
        "RunFingerprint": made["run_fingerprint"],
        "Seed": made["seed"],
        "Index": index,
        "Truncation": made["truncation"],
        "IntensityRange": file_template.draw_range(np.random.default_rng(gain)),  # what -1 and 1 became
        # where the network's grid is in a file on another one, so that it is put there again when that is opened
        **({"GridAffine": np.asarray(origin.grid_affine).tolist()} if origin.resampled else {}),
        **air_field(origin),
        "Code": [float(f"{value:.9g}") for value in code.tolist()],  # nine digits give a float32 back exactly
    }
    _write_sidecar(folder / path, sidecar)


def air_field(origin: nifti.Origin) -> dict[str, float]:
    """What reading has to take off again; it would otherwise be guessed from what a network made."""
    return {nifti.AIR: origin.air} if origin.air else {}


def _write_sidecar(path: Path, content: dict[str, Any]) -> None:
    write_json(path.with_name(path.name.replace(".nii.gz", ".json")), content)


def _write_description(folder: Path, run: Run, made: dict[str, Any]) -> None:
    rows = [
        {"participant_id": f"sub-synthetic{index:05d}", "synthetic": "yes", "seed": made["seed"], "index": index}
        for index in range(made["n"])
    ]
    bids.write_table(folder / "participants.tsv", rows)
    bids.write_description(
        folder, f"Synthetic brain scans by {made['run']}", "derivative", Synthetic=True, **generated_by(run),
        **made, TrainedOnScans=run.config["train"]["digests"],
    )  # fmt: skip
    cards.write_card(run, made["run_fingerprint"], folder, made)


def generated_by(run: Run) -> dict[str, Any]:
    """What a data set's description says of its maker."""
    kind = "atlas" if run.variant.name == "atlas" else f"3-D alpha-GAN {run.variant.name}"
    what = f"{kind} at {run.scale.size}^3"
    return {"GeneratedBy": [{"Name": "labkit", "Version": __version__, "Description": what}]}
