"""Files: written whole or not at all, found from wherever one stands, with a bar while one waits."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

CHAPTER = "02_train.ipynb"
"""By which the folder of the chapters is known."""


SCRATCH = ".writing-"
"""Begins the names of folders in which something is written that is not complete yet."""

DAY = 86_400
"""Seconds after which nobody is writing any more."""


def sweep(folder: Path, age: float = DAY) -> None:
    """Remove scratch folders of writers who were killed; `age` in seconds, 0 where nobody else can be writing."""
    for left in folder.glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):  # somebody else's, or gone in between
            if time.time() - left.stat().st_mtime >= age:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def whole_file(path: Path, sync: bool = False) -> Iterator[Path]:
    """A hidden path to write to; what stands there takes the file's own name when the block has ended well.

    Parameters
    ----------
    path : pathlib.Path
        The file; its folder is made. What was there before is untouched until the new one is complete.
    sync : bool
        Wait until the disk has it, so that not even a power cut leaves half a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=path.parent) as folder:
        partial, usual = Path(folder) / path.name, Path(folder) / ".usual"
        yield partial
        usual.touch()  # as readable for others as any new file here; some libraries make theirs for their owner alone
        partial.chmod(usual.stat().st_mode)
        if sync:
            with partial.open("rb+") as handle:
                os.fsync(handle.fileno())
        os.replace(partial, path)


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill under a hidden name; it gets its own name when the block has ended well, and goes otherwise.

    Raises
    ------
    FileExistsError
        If `folder` is there already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already: choose a new folder, or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder.parent) as writing:
        fresh = Path(writing) / "fresh"
        fresh.mkdir()
        yield fresh
        if folder.exists():  # another process was quicker; moved onto it, this one would end up inside
            raise FileExistsError(f"{folder} appeared while it was being written: another process made it")
        os.rename(fresh, folder)


SUMS = "SHA256SUMS"
"""Lists what a folder was filled with; ``sha256sum -c`` reads it, too."""


def seal(folder: Path) -> None:
    """List every file of a folder with its digest, but for :data:`SUMS` itself and the card, which is renewed."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{digest(folder / name)}  {name}" for name in files if name not in (SUMS, "README.md")]
    write_text(folder / SUMS, "\n".join(lines) + "\n")


def changes(folder: Path) -> list[str]:
    """What is no longer as :func:`seal` found it, in words: files that are missing, other ones, and scans more."""
    if not (folder / SUMS).exists():  # filled before there were such lists
        return []
    listed = dict(line.split("  ", 1)[::-1] for line in (folder / SUMS).read_text(encoding="utf-8").splitlines())
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*.nii*")}
    said = [f"{name} is missing" for name in listed if not (folder / name).is_file()]
    said += [f"{name} has another content" for name, sum_ in listed.items()
             if (folder / name).is_file() and digest(folder / name) != sum_]  # fmt: skip
    return said + [f"{name} was not made with the others" for name in sorted(there - listed.keys())]


def digest(path: Path) -> str:
    """Content hash (sha256) of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


class DamagedFileError(RuntimeError):
    """A file that is there and cannot be read as what it is to be."""


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nested dicts and lists as tensors by path (``networks/G/head.weight``), and the same nesting without them."""
    import torch

    tensors: dict[str, Any] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[path] = value.detach()
            return {"tensor": path}
        if isinstance(value, Mapping):
            return {"items": [[key, walk(item, f"{path}/{key}".lstrip("/"))] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [walk(item, f"{path}/{index}") for index, item in enumerate(value)]}
        return {"value": value}

    return tensors, walk(state, "")


def unflatten(tensors: Mapping[str, Any], rest: Mapping[str, Any]) -> Any:
    """Inverse of :func:`flatten` (tuples come back as lists)."""
    (kind, content), *_ = rest.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "items":
        return {key: unflatten(tensors, item) for key, item in content}
    if kind == "list":
        return [unflatten(tensors, item) for item in content]
    return content


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested tensors and values to one safetensors file, which holds numbers and text and nothing that runs.

    Raises
    ------
    OSError
        The disk does not take it; the file that was there before is untouched.
    """
    from safetensors.torch import save_file

    tensors, rest = flatten(state)
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole_file(path, sync=True) as partial:
        try:
            save_file(tensors, partial, metadata={"state": json.dumps(rest)})
        except Exception as error:  # safetensors reports a full disk as its own error
            raise OSError(f"could not write {path}: {error}; the previous file, if any, is untouched") from error


def load_state(path: Path, device: Any = "cpu") -> dict[str, Any]:
    """Read what :func:`save_state` wrote, tensors onto `device`; DamagedFileError if that is not possible."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (no mapping)
            rest = json.loads(handle.metadata()["state"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged ({error}); remove it to start again from the beginning") from error
    return unflatten(tensors, rest)


def top() -> Path:
    """The working directory, or, if that is the folder of the chapters, the top of the repository above it.

    Jupyter and VS Code start a notebook's kernel in the notebook's own folder, papermill where it is called: without
    this a run that one of them trained would be out of sight of the other.
    """
    here = Path.cwd()
    of_chapters = here.name == "book" and Path(CHAPTER).exists() and (here.parent / "labkit").is_dir()
    return here.parent if of_chapters else Path()


def located(path: str | os.PathLike) -> Path:
    """A path as given (``~`` is the home folder), or, from within the folder of the chapters, as seen from :func:`top`.

    What is there is taken as it is, and so is what begins at the root or with ``..``. ValueError for what is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"{path!r} is no path. papermill reads a name like 0123 as a number: give it as text, with -r instead of -p"
        )
    path = Path(path).expanduser()
    return path if path.exists() or path.parts[:1] == ("..",) else top() / path


def runs_folder() -> Path:
    """Where runs are kept unless a folder is named: ``runs/`` at the :func:`top`, whatever lies beside the chapters."""
    return top() / "runs"


def in_live_kernel() -> bool:
    """Whether somebody sits at the kernel, so that a bar is seen and a slider would be moved.

    Jupyter and VS Code allow a running cell to ask for keyboard input; papermill, nbclient and Jupyter Book, which
    execute for later, do not. Outside a kernel it is False.
    """
    return bool(getattr(_kernel(), "_allow_stdin", False))  # what a front end sent with the cell that runs


def in_executed_notebook() -> bool:
    """Whether a notebook is executed by papermill or the like: lines that are printed reach a log, and nobody a bar."""
    return _kernel() is not None and not in_live_kernel()


def _kernel() -> object | None:
    ipython = sys.modules.get("IPython")
    return getattr(ipython.get_ipython(), "kernel", None) if ipython else None


def watched() -> bool:
    """Whether standard error is read as it is written: a terminal, or a live notebook."""
    return in_live_kernel() or (sys.stderr is not None and sys.stderr.isatty())


def progress_bar(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate over `items` with a plain text bar on standard error; silent where that is no terminal or notebook.

    `what` is said before the bar, e.g. ``"reading rats"``; `total` says how many where `items` has no length.
    """
    try:
        from tqdm import tqdm  # not tqdm.auto: its widgets add megabytes to a built page
    except ImportError:  # a bar is no reason not to go on
        return iter(items)
    # a bar that would come and go within a second is noise
    return iter(tqdm(items, what, total, leave=False, disable=not watched(), delay=1.0, mininterval=0.5))
