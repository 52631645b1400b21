"""Published files the study builds on: where they are, what they must be, and how they get here.

``data_manifest/*.toml`` names every file with its address, size and sha256; :func:`fetch` returns local paths to files
that match. In a checkout (and an editable install) the folder stands beside ``labkit``; a wheel carries it inside.
"""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlparse
from urllib.request import url2pathname

from labkit.fields import known
from labkit.files import located

if TYPE_CHECKING:
    from pooch import Pooch


RETRIES = 1
"""How often a download that breaks off, or brings something else, is tried again."""


class DataUnavailableError(OSError):
    """Files that are neither on this machine nor within reach; the message says what to put where."""


class HashMismatchError(OSError, ValueError):
    """A source gave a file that is not the one the manifest names; it was not used."""


@dataclass(frozen=True)
class RemoteFile:
    """One published file: its name (``image/1.nii``), its address, the sha256 and size of its content, what it is."""

    name: str
    url: str
    sha256: str
    bytes: int
    description: str


@dataclass(frozen=True)
class Manifest:
    """One dataset: its files in order, terms and axes; the fields are described in ``data_manifest/README.md``."""

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
    """Folder in which fetched and generated data are kept: ``LABKIT_DATA``, else the user's cache folder."""
    if chosen := os.environ.get("LABKIT_DATA"):
        return located(chosen).absolute()
    import pooch

    return Path(pooch.os_cache("labkit"))


def load_manifest(name: str) -> Manifest:
    """The manifest of one of :func:`datasets`.

    ValueError if there is none, or its TOML file is not as ``data_manifest/README.md`` describes.
    """
    path = manifest_folder() / f"{known('dataset', name, datasets())}.toml"
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


def fetch(name: str, files: str | Iterable[str] | None = None) -> dict[str, Path]:
    """Local paths of a dataset's files, each verified at every call; what is missing comes from mirror or network.

    A file already in ``data_folder() / name`` is used if its sha256 is right, whoever put it there, and else replaced.
    ``LABKIT_MIRROR`` (a folder, or an http(s) or file address) is asked first, for ``<mirror>/<mirror_path>/<name>``,
    then the address in the manifest. Pooch sees to it that a name never stands for half a file.

    `files` are names of files, by default all; the result has them in the manifest's order. HashMismatchError where a
    source gave a file with another hash, DataUnavailableError where files could not be had: it lists each with address,
    size, sha256 and the folder to put it in. NotADirectoryError where ``LABKIT_MIRROR`` names a folder that is not
    there.
    """
    import pooch

    manifest, folder = load_manifest(name), data_folder() / name
    names = [file.name for file in manifest.files]
    wanted = names if files is None else [files] if isinstance(files, str) else list(files)
    for given in wanted:
        known(f"file of dataset {name!r}", given, names)
    # hashed at every call: 6 ms for SIGMA's 9 MB, and no stamp that could be wrong
    found = {file: pooch.file_hash(folder / file) for file in wanted if (folder / file).is_file()}
    missing = [file for file in manifest.files if file.name in wanted and found.get(file.name) != file.sha256]
    if missing:
        _bring(manifest, missing, folder, found)
    return {file: folder / file for file in names if file in wanted}


def _bring(manifest: Manifest, missing: list[RemoteFile], folder: Path, found: dict[str, str]) -> None:
    """Bring each file from the first source that has it; `found` are hashes of what stands in their places."""
    from requests import RequestException  # what pooch downloads with

    sources = _sources(manifest, folder)
    unavailable, reason = [], "nothing was tried"
    for file in missing:
        for source in tuple(sources):
            try:
                source.fetch(file.name, downloader=lambda url, path, _: _receive(url, Path(path)))
                break
            except (FileNotFoundError, RequestException) as fault:  # and not a full disk
                reason = f"{type(fault).__name__}: {fault}"
                if isinstance(fault, RequestException) and fault.response is None:
                    sources.remove(source)  # no answer at all: do not wait for it once more for every file
            except ValueError as fault:
                what = f"{source.get_url(file.name)} is not {file.name} as published ({file.bytes} bytes)"
                raise HashMismatchError(f"{what}: {fault} Mend or replace the source.") from fault
        else:
            unavailable.append(file)
    if unavailable:
        raise DataUnavailableError(_what_to_do(manifest, unavailable, folder, found, reason))


def _sources(manifest: Manifest, folder: Path) -> list[Pooch]:
    """Where to look for a file, in order: the mirror if one is set, then the published address."""
    import pooch

    pooch.get_logger().setLevel("WARNING")  # it tells of every file; the bar is enough
    kept = {"path": folder, "registry": {file.name: file.sha256 for file in manifest.files}}
    addresses = {file.name: file.url for file in manifest.files}
    sources = [pooch.create(base_url="", urls=addresses, retry_if_failed=RETRIES, **kept)]
    if value := os.environ.get("LABKIT_MIRROR"):
        parts = urlparse(value)
        if web := parts.scheme in ("http", "https"):
            mirror = value.rstrip("/")
        else:
            place = located(url2pathname(parts.path) if parts.scheme == "file" else value).absolute()
            if not place.is_dir():
                raise NotADirectoryError(f"LABKIT_MIRROR={value!r}: {place} is not a folder; correct it or unset it")
            mirror = str(place)
        base_url = f"{mirror}/{manifest.mirror_path}/"
        sources.insert(0, pooch.create(base_url=base_url, retry_if_failed=RETRIES if web else 0, **kept))
    return sources


def _receive(source: str, path: Path) -> None:
    """Bring a file of a mirror folder or of an http(s) address to `path`, pooch's temporary file."""
    path.unlink()  # only its owner may read pooch's; a new one may be read by those whom the umask allows
    if urlparse(source).scheme in ("http", "https"):
        _download(source, path)
    else:
        shutil.copyfile(source, path)


def _download(url: str, path: Path) -> None:
    import pooch

    pooch.HTTPDownloader(progressbar=True, timeout=60)(url, str(path), None)


def _what_to_do(manifest: Manifest, files: list[RemoteFile], folder: Path, found: dict[str, str], reason: str) -> str:
    """Text of the error for files that could not be had."""
    lines = [
        f"{len(files)} of the {len(manifest.files)} files of {manifest.name!r} are not here and could not be fetched.",
        f"Download them where there is a network and put them into the folder {folder}",
    ]
    for file in files:
        lines += [f"  {file.name}", f"    from    {file.url}", f"    size    {file.bytes} bytes"]
        lines += [f"    sha256  {file.sha256}"]
        if file.name in found:
            lines += [f"    a file of that name is there, but its sha256 is {found[file.name]}"]
    lines += [f"or set LABKIT_MIRROR to a folder or an http(s) address that holds them in {manifest.mirror_path!r}."]
    return "\n".join([*lines, f"The last attempt ended with {reason}"])


def _faults(file: RemoteFile) -> list[str]:
    """What is wrong with a manifest's entry."""
    faults = []
    if not file.name or set(file.name.split("/")) & {"", ".", ".."} or "\\" in file.name or ":" in file.name:
        faults.append("name must be a file name, or folders below the dataset's and a file name, with / between")
    if not re.fullmatch("[0-9a-f]{64}", file.sha256):
        faults.append("sha256 must be 64 lower-case hexadecimal digits")
    if not isinstance(file.bytes, int) or file.bytes <= 0:
        faults.append("bytes must be a positive whole number")
    if urlparse(file.url).scheme not in ("http", "https"):
        faults.append(f"url must be an http(s) address, not {file.url!r}")
    return faults
