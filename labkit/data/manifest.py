"""Published files the study builds on: where they are, what they must be, and how they get here.

``data_manifest/*.toml`` names every file with its address, size and sha256; :func:`fetch` returns local paths to files
that match. In a checkout (and an editable install) the folder stands beside ``labkit``; a wheel carries it inside.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urljoin, urlparse
from urllib.request import url2pathname

from labkit.files import located


class DataUnavailableError(OSError):
    """Files that are neither on this machine nor within reach; the message says what to put where."""


class HashMismatchError(ValueError):
    """A source gave a file that is not the one the manifest names; it was not used."""


@dataclass(frozen=True)
class RemoteFile:
    """One published file.

    Parameters
    ----------
    name : str
        File name on disk, without folders.
    url : str
        Complete address it is published at.
    sha256 : str
        Hash of its content, 64 lower-case hexadecimal digits.
    bytes : int
        Size.
    description : str
        Grid, voxel size, content.
    """

    name: str
    url: str
    sha256: str
    bytes: int
    description: str


@dataclass(frozen=True)
class Manifest:
    """One dataset: its files, terms and axes.

    Parameters
    ----------
    name : str
        Name of the TOML file, and of the dataset's folder in :func:`data_folder`.
    title, licence, citation, doi, space : str
        What it is, on what terms, whom to cite, and array axes and world space.
    mirror_path : str
        The dataset's folder inside a mirror.
    files : tuple of RemoteFile
        Its files, in the manifest's order.
    """

    name: str
    title: str
    licence: str
    citation: str
    doi: str
    space: str
    mirror_path: str
    files: tuple[RemoteFile, ...]


def manifest_folder() -> Path:
    """Folder of the TOML files: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "data_manifest"
    return inside if inside.is_dir() else package.parent / "data_manifest"


def datasets() -> list[str]:
    """Names of the datasets that can be fetched, sorted."""
    return sorted(path.stem for path in manifest_folder().glob("*.toml"))


def data_folder() -> Path:
    """Folder in which fetched and generated data are kept: ``LABKIT_DATA``, else the user's cache folder.

    The default is the place ``pooch.os_cache("labkit")`` names, found without importing pooch. Nothing is created.
    """
    if chosen := os.environ.get("LABKIT_DATA"):
        return located(chosen).absolute()
    home = Path.home()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "labkit" / "labkit" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "labkit"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "labkit"


def load_manifest(name: str) -> Manifest:
    """Read one dataset's manifest.

    Parameters
    ----------
    name : str
        One of :func:`datasets`.

    Returns
    -------
    Manifest
        With complete addresses.

    Raises
    ------
    ValueError
        If there is no such dataset (the message names the nearest), or the TOML file is not as
        ``data_manifest/README.md`` describes.
    """
    if name not in datasets():
        raise ValueError(f"no dataset is called {name!r}; {_choice(name, datasets())}")
    path = manifest_folder() / f"{name}.toml"
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        base_url, entries = table.pop("base_url"), table.pop("files")
        files = tuple(RemoteFile(**{**entry, "url": urljoin(base_url, entry["url"])}) for entry in entries)
        manifest = Manifest(name=name, files=files, **table)
    except (KeyError, TypeError) as fault:
        raise ValueError(f"{path}: {fault}; the keys are described in data_manifest/README.md") from fault
    faults = [f"{file.name}: {fault}" for file in files for fault in _faults(file)]
    if len({file.name for file in files}) < len(files):
        faults.append("two files have the same name")
    if faults:
        raise ValueError(f"{path}: " + "; ".join(faults))
    return manifest


def fetch(name: str, files: str | Iterable[str] | None = None, progress: bool = True) -> dict[str, Path]:
    """Local paths of a dataset's files, each verified; what is missing comes from the mirror or the network.

    A file already in ``data_folder() / name`` is used if its sha256 is right, whoever put it there, and else replaced.
    ``LABKIT_MIRROR`` (a folder, or an http(s) or file address) is asked first, for ``<mirror>/<mirror_path>/<name>``,
    then the address in the manifest. A file arrives under a temporary name and is renamed once verified, so that a
    name never stands for half a file.

    Parameters
    ----------
    name : str
        One of :func:`datasets`.
    files : str or iterable of str, optional
        File names wanted; all of them by default.
    progress : bool
        Show a progress bar for each download.

    Returns
    -------
    dict of str to pathlib.Path
        File name to local path, in the manifest's order.

    Raises
    ------
    ValueError
        Unknown dataset or file name.
    NotADirectoryError
        ``LABKIT_MIRROR`` names a folder that does not exist.
    HashMismatchError
        The mirror or the published address gave a file with another hash.
    DataUnavailableError
        Some files could not be had; lists each with address, size, sha256 and the folder to put it in.
    """
    manifest = load_manifest(name)
    known = {file.name: file for file in manifest.files}
    wanted = set(known if files is None else [files] if isinstance(files, str) else files)
    if unknown := sorted(wanted - set(known)):
        raise ValueError(f"dataset {name!r} has no file {unknown[0]!r}; {_choice(unknown[0], known)}")

    folder = data_folder() / name
    paths = {file: folder / file for file in known if file in wanted}
    # hashed at every call: 6 ms for SIGMA's 9 MB, and no stamp that could be wrong
    found = {file: sha256_of(path) for file, path in paths.items() if path.is_file()}
    missing = [known[file] for file in paths if found.get(file) != known[file].sha256]
    if not missing:
        return paths

    folder.mkdir(parents=True, exist_ok=True)
    sources = _sources(manifest)
    unavailable, reason = [], "nothing was tried"
    for file in missing:
        for source in tuple(sources):
            try:
                _receive(source(file), file, paths[file.name], progress)
                break
            except OSError as fault:
                if fault.errno not in (None, errno.ENOENT):
                    raise  # a full disk or a forbidden folder is not a missing file
                reason = f"{type(fault).__name__}: {fault}"
                if fault.errno is None and getattr(fault, "response", None) is None:
                    sources.remove(source)  # no answer at all: do not wait for it once more for every file
        else:
            unavailable.append(file)
    if unavailable:
        raise DataUnavailableError(_what_to_do(manifest, unavailable, folder, found, reason))
    return paths


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sources(manifest: Manifest) -> list[Callable[[RemoteFile], str | Path]]:
    """Where to look for a file, in order: the mirror if one is set, then the published address."""
    published = [lambda file: file.url]
    value = os.environ.get("LABKIT_MIRROR")
    if not value:
        return published
    parts = urlparse(value)
    if parts.scheme in ("http", "https"):
        return [lambda file: f"{value.rstrip('/')}/{quote(f'{manifest.mirror_path}/{file.name}')}", *published]
    folder = located(url2pathname(parts.path) if parts.scheme == "file" else value).absolute()
    if not folder.is_dir():
        raise NotADirectoryError(f"LABKIT_MIRROR is {value!r}, and {folder} is not a folder; correct it or unset it")
    return [lambda file: folder / manifest.mirror_path / file.name, *published]


def _receive(source: str | Path, file: RemoteFile, path: Path, progress: bool) -> None:
    """Bring one file to ``path``, by way of a temporary name and its hash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if isinstance(source, Path):
            shutil.copyfile(source, temporary)
        else:
            _download(source, temporary, progress)
        if (found := sha256_of(temporary)) != file.sha256:
            raise HashMismatchError(
                f"{source} is not {file.name} as published: expected sha256 {file.sha256} ({file.bytes} bytes), "
                f"found {found} ({temporary.stat().st_size} bytes). It was not used; mend or replace the source."
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _download(url: str, path: Path, progress: bool) -> None:
    import pooch

    pooch.HTTPDownloader(progressbar=progress, timeout=60)(url, str(path), None)


def _what_to_do(manifest: Manifest, files: list[RemoteFile], folder: Path, found: dict[str, str], reason: str) -> str:
    """Text of the error for files that could not be had."""
    lines = [
        f"{len(files)} of the {len(manifest.files)} files of {manifest.name!r} are not here and could not be fetched."
    ]
    lines += [f"Download them where there is a network and put them into the folder {folder}"]
    for file in files:
        lines += [f"  {file.name}", f"    from    {file.url}"]
        lines += [f"    size    {file.bytes} bytes", f"    sha256  {file.sha256}"]
        if file.name in found:
            lines += [f"    a file of that name is there, but its sha256 is {found[file.name]}"]
    lines += [f"or set LABKIT_MIRROR to a folder or an http(s) address that holds them in {manifest.mirror_path!r}."]
    return "\n".join([*lines, f"The last attempt ended with {reason}"])


def _faults(file: RemoteFile) -> list[str]:
    """What is wrong with a manifest's entry."""
    faults = []
    if not file.name or Path(file.name).name != file.name or "\\" in file.name:
        faults.append("name must be a file name without folders")
    if not re.fullmatch("[0-9a-f]{64}", file.sha256):
        faults.append("sha256 must be 64 lower-case hexadecimal digits")
    if not isinstance(file.bytes, int) or file.bytes <= 0:
        faults.append("bytes must be a positive whole number")
    if urlparse(file.url).scheme not in ("http", "https"):
        faults.append(f"url must be an http(s) address, not {file.url!r}")
    return faults


def _choice(given: str, allowed: Iterable[str]) -> str:
    """The allowed names, the one most like what was given first."""
    names = list(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + "Allowed: " + ", ".join(names)
