"""Open mutated NIfTI files: each has to end in an error that names it, or in the voxels that it holds.

    ci/fuzz [--rounds 1000] [--seed 0] [--keep FOLDER]

A round takes a sound file of one of several kinds, spoils it in one way, and opens it as a cohort. What a file holds is
decoded here, apart from labkit and nibabel. A round that ends in anything else is told, its file kept, and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import logging
import math
import os
import shutil
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from labkit.data import reading
from labkit.data.folders import CohortError
from labkit.data.sources import open_cohort

SHAPE, ZOOMS = (32, 32, 20), (0.75, 0.75, 1.0)
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 32: "c8", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
         1280: "u8", 1792: "c16"}  # fmt: skip
FIELDS = [("i", 0), ("h", 70), ("h", 72), ("f", 108), ("f", 112), ("f", 116), ("b", 123), ("h", 252), ("h", 254)]
FIELDS += [("h", place) for place in range(40, 56, 2)]
FIELDS += [("f", place) for place in (*range(76, 108, 4), *range(256, 328, 4))]
"""Type and place of a NIfTI-1 header's fields that say how the rest is read: sizes, types, scaling, axes."""
HOSTILE = (0, 1, -1, 2, 3, 7, 255, 1e-30, 1e-6, 1e6, 1e30, 32767, -32768, math.inf, -math.inf, math.nan)


def sound(rng: np.random.Generator) -> tuple[bytearray, str]:
    """A file of one of the kinds that people have, not packed, and the letter of its byte order."""
    index = np.indices(SHAPE) - (np.array(SHAPE).reshape(3, 1, 1, 1) - 1) / 2
    head = np.square(index / (0.4 * np.array(SHAPE).reshape(3, 1, 1, 1))).sum(0) < 1
    values = np.where(head, 180, 10) + rng.integers(0, 60, SHAPE)
    kind, order = rng.choice(["i2", "u1", "f4", "f8", "c8", "series", "scaled"]), str(rng.choice(["<", ">"]))
    if kind == "series":
        values = np.stack([values, values + 5, values + 9], axis=-1)
    stored = values.astype("i2" if kind in ("series", "scaled") else kind)
    header = nib.Nifti1Image(stored, np.diag([*ZOOMS, 1])).header.as_byteswapped(order)
    raw = bytearray(nib.Nifti1Image(stored, None, header).to_bytes())
    if kind == "scaled":
        struct.pack_into(f"{order}2f", raw, 112, 0.01, -3)
    return raw, order


def field(rng: np.random.Generator, raw: bytearray, order: str) -> None:
    """One number of the header is another one."""
    letter, place = FIELDS[rng.integers(len(FIELDS))]
    value = HOSTILE[rng.integers(len(HOSTILE))]
    if letter != "f":
        bits = 8 * struct.calcsize(letter)
        value = int(np.clip(np.nan_to_num(value), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    struct.pack_into(order + letter, raw, place, value)


def swapped(rng: np.random.Generator, raw: bytearray, order: str) -> None:
    """Two sides of the matrix change places: as large, and not what it was."""
    one, other = 42 + 2 * rng.choice(3, 2, replace=False)
    raw[one : one + 2], raw[other : other + 2] = raw[other : other + 2], raw[one : one + 2]


def header_bytes(rng: np.random.Generator, raw: bytearray, order: str) -> None:
    """A few bytes of the header."""
    for place in rng.integers(0, 352, rng.integers(1, 5)):
        raw[place] = rng.integers(256)


def voxel_bytes(rng: np.random.Generator, raw: bytearray, order: str) -> None:
    """A few bytes behind the header."""
    for place in rng.integers(352, len(raw), rng.integers(1, 5)):
        raw[place] = rng.integers(256)


def cut(rng: np.random.Generator, raw: bytearray, order: str = "") -> None:
    """The end is missing."""
    del raw[rng.integers(len(raw)) :]


def longer(rng: np.random.Generator, raw: bytearray, order: str = "") -> None:
    """Something stands behind the end."""
    raw += rng.bytes(int(2 ** rng.uniform(0, 14)))


def hole(rng: np.random.Generator, raw: bytearray, order: str = "") -> None:
    """A part in the middle is missing."""
    place = int(rng.integers(len(raw)))
    del raw[place : place + int(2 ** rng.uniform(0, 12))]


def flipped(rng: np.random.Generator, raw: bytearray, order: str = "") -> None:
    """One bit."""
    raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)


Spoil = Callable[[np.random.Generator, bytearray, str], None]
BEFORE: tuple[Spoil, ...] = (field, field, field, swapped, header_bytes, voxel_bytes, cut, longer, hole)
"""Done to a file that is then packed, or not."""
AFTER: tuple[Spoil, ...] = (flipped, flipped, cut, longer, hole)
"""Done to a packed file."""


def mutated(rng: np.random.Generator) -> tuple[str, str, bytes]:
    """Name, what was done to it, and bytes of a spoiled file."""
    raw, order = sound(rng)
    packed = rng.random() < 0.5
    if packed and rng.random() < 0.5:
        spoil, raw = AFTER[rng.integers(len(AFTER))], bytearray(gzip.compress(raw, 1))
        spoil(rng, raw, order)
        return "scan.nii.gz", f"packed, {spoil.__name__}", bytes(raw)
    spoil = BEFORE[rng.integers(len(BEFORE))]
    spoil(rng, raw, order)
    return (
        ("scan.nii.gz", spoil.__name__, gzip.compress(raw, 1)) if packed else ("scan.nii", spoil.__name__, bytes(raw))
    )


def held(name: str, content: bytes) -> np.ndarray:
    """The voxels that a file holds, float32 (X, Y, Z): scaled, magnitude, mean of a series."""
    raw = gzip.decompress(content) if name.endswith(".gz") else content
    order = "<" if struct.unpack_from("<i", raw)[0] == 348 else ">"
    dimensions, *sides = struct.unpack_from(f"{order}8h", raw, 40)
    shape = sides[:dimensions]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    begins, slope, inter = struct.unpack_from(f"{order}3f", raw, 108)
    kind = np.dtype(order + TYPES[struct.unpack_from(f"{order}h", raw, 70)[0]])
    stored = np.frombuffer(raw, kind, math.prod(shape), int(begins) or 352).reshape(shape, order="F")
    values = stored * slope + inter if slope and math.isfinite(slope) else stored
    values = np.abs(values) if np.iscomplexobj(values) else values
    return (values.mean(-1, dtype=np.float64) if values.ndim == 4 else values).astype(np.float32)


def outcome(folder: Path, name: str, content: bytes) -> tuple[str, str]:
    """``refused``, ``opened`` or ``failed`` of one file, and in what."""
    (folder / name).write_bytes(content)
    try:
        cohort = open_cohort(folder)
    except CohortError as error:
        named = [path for path in error.faults if Path(path).name == name]
        return ("refused", error.faults[named[0]]) if named else ("failed", f"an error that names no file: {error}")
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"
    read = reading.read_array(cohort[0].origin.path)[0]
    try:
        truth = held(name, content)
    except Exception as error:
        return "failed", f"opened, and holds no voxels: {error}"
    same = read.shape == truth.shape and np.allclose(read, truth, rtol=1e-5, atol=1e-5 * float(np.abs(truth).max()))
    return ("opened", "") if same else ("failed", "opened with other voxels than it holds")


def main(arguments: list[str] | None = None) -> int:
    """Open them, and tell how they ended."""
    parser = argparse.ArgumentParser(prog="ci/fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="where files that failed are left")
    options = parser.parse_args(arguments)
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it tells what it mends in a header
    counts: collections.Counter[str] = collections.Counter()
    spent = 0.0
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["LABKIT_DATA"] = f"{scratch}/data"
        for number in range(options.rounds):
            name, spoiled, content = mutated(np.random.default_rng((options.seed, number)))
            folder = Path(scratch) / "animals"
            folder.mkdir()
            began = time.perf_counter()
            ended, how = outcome(folder, name, content)
            spent += time.perf_counter() - began
            counts[ended] += 1
            if ended == "failed":
                kept = options.keep / f"{options.seed}-{number}-{name}"
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / name, kept)
                print(f"round {number}, {spoiled}: {how}; the file is {kept}")
            shutil.rmtree(folder)
    print(f"{options.rounds} files: {counts['refused']} refused by name, {counts['opened']} opened as they are, "
          f"{counts['failed']} failed; {1000 * spent / max(options.rounds, 1):.0f} ms a file")  # fmt: skip
    return int(counts["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
