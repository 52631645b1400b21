"""Fetch what other projects made, by pinned version and sha256, as ``vendor.toml`` lists them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "ci" / "vendor.toml"
KEPT = ROOT / "build" / "vendor"


def fetch(name: str) -> Path:
    """The folder of a vendored package, fetched if it is not there as listed; SystemExit if it cannot be."""
    entry = tomllib.loads(LIST.read_text(encoding="utf-8"))[name]
    target, stamp, wanted = KEPT / name, KEPT / f"{name}.json", json.dumps(entry, sort_keys=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    with (KEPT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two tests that need one package fetch it once
        if not (target.is_dir() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted):
            stamp.unlink(missing_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            _fetch(entry, target)
            stamp.write_text(wanted, encoding="utf-8")
    return target


def _fetch(entry: dict[str, Any], target: Path) -> None:
    if shutil.which("npm") is None:
        sys.exit(f"{entry['package']} is needed and npm was not found: install Node.js, which brings npm")
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            ["npm", "pack", "--silent", entry["package"]], cwd=scratch, capture_output=True, text=True, check=False
        )
        packed = sorted(Path(scratch).glob("*.tgz"))
        if done.returncode or len(packed) != 1:
            sys.exit(f"npm could not fetch {entry['package']}: {done.stderr.strip() or done.stdout.strip()}")
        found = hashlib.sha256(packed[0].read_bytes()).hexdigest()
        if found != entry["sha256"]:
            sys.exit(f"{entry['package']} has sha256 {found}, and {LIST.name} says {entry['sha256']}: not used")
        fresh = Path(scratch) / "fresh"
        _unpack(packed[0], entry["from"], entry["members"], fresh)
        _decompress(fresh)
        shutil.copytree(fresh, target)


def _unpack(packed: Path, start: str, members: list[str], target: Path) -> None:
    with tarfile.open(packed) as archive:
        for member in archive.getmembers():
            if not member.isfile() or not member.name.startswith(tuple(members)):
                continue
            inside = PurePosixPath(member.name.removeprefix(start).removeprefix("package/"))
            if ".." in inside.parts or inside.is_absolute():
                sys.exit(f"{packed.name} holds a file outside itself: {member.name}")
            path = target / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.extractfile(member).read())


BROTLI = """
const { readFileSync, writeFileSync } = require("fs"), { brotliDecompressSync } = require("zlib");
for (const path of process.argv.slice(1)) writeFileSync(path.slice(0, -3), brotliDecompressSync(readFileSync(path)));
"""
"""For node, which comes with npm: Python's own library does not know that compression."""


def _decompress(folder: Path) -> None:
    if not (packed := sorted(folder.glob("*.br"))):
        return
    subprocess.run(["node", "-e", BROTLI, *map(str, packed)], check=True)
    for path in packed:
        path.unlink()
        if path.stem.endswith(".tar"):
            with tarfile.open(path.with_suffix("")) as archive:
                archive.extractall(folder, filter="data")
            path.with_suffix("").unlink()
