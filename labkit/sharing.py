"""Trained runs small enough to lie beside the code: weights in whole steps, compressed.

A weight needs no seven digits: rounded to a third of the spread of its channel, a generator's scans change by less than
a hundredth of their range. The average of G is kept as its distance from G. Nothing here knows of networks or of
cohorts; :mod:`labkit.runs` opens what was packed, and ``book/experiments/reference.py`` packs and measures.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labkit.files import (
    DamagedFileError,
    digest,
    flatten,
    located,
    new_folder,
    runs_folder,
    save_state,
    top,
    unflatten,
)

PACKED = "weights.xz"
"""What a packed run has in the place of its models and its checkpoint."""

SUFFIX = ".xz"
"""Ends the names of what else is packed in a run: segmentation networks, codes that an atlas found."""

REFERENCE = "reference"
REPOSITORY = Path(__file__).resolve().parents[1] / "book" / "reference" / "runs"
"""The packed runs that come with the repository."""

STEPS = {
    "E/": 0.5,
    "G_encoded/head.template": 0.02,
    "G_encoded/head.appearances": 0.4,
    "G/head.template": 0.02,
    "G/head.appearances": 0.4,
    "G_encoded/": 0.3,
    "G/": 0.3,
    "atlas/template": 0.02,
    "atlas/appearances": 0.4,
    "atlas/spread": 0.05,
    "atlas/label_logits": 0.2,
    "scanner/spread": 0.05,
    "scanner/label_logits": 0.2,
}
"""Size of a step by the beginning of a tensor's name, in standard deviations of a channel; others are kept as they are.
What E rounds is spread over all that a code sums up, and may be coarser; the first that fits counts."""

GREY = {"atlas/basis": 0.0025, "atlas/numbers": 0.05}
"""The same of an atlas's numbers, in grey values that they move: most hardly move any. A scan sums up all of its code,
so that a mode is rounded more finely than a number."""

RELATIVE = {"G/": "G_encoded/"}
"""Tensors that are kept as their difference from others."""

MOST = 2**15 - 1
"""Steps that a number may be away from zero."""

LARGEST = 1 << 30
"""Bytes that packed weights may become: a few megabytes can be made to hold any number of equal ones."""

STEP = " step"
"""Ends the name of a tensor's steps."""


def pack(state: Mapping[str, Any], steps: Mapping[str, float] = STEPS) -> bytes:
    """Nested tensors, as :func:`labkit.files.save_state` takes them, to a few bits a number.

    `steps` are as :data:`STEPS`; of any name that begins with a key, all names with the empty one.
    """
    from safetensors.torch import save

    tensors, rest = flatten(state)
    kept: dict[str, Tensor] = {}
    for name in sorted(tensors, reverse=True):  # G_encoded before G
        tensor = tensors[name].cpu().contiguous()
        size = next((size for prefix, size in steps.items() if name.startswith(prefix)), None)
        if name not in GREY and size is None or tensor.ndim < 2 or not tensor.is_floating_point() or not len(tensor):
            kept[name] = tensor
            continue
        apart = tensor - _base(name, kept)
        if name in GREY:
            step, most = GREY[name] / tensors["atlas/weights"].cpu().clamp_min(0.1)[None], apart.abs().max()
        else:
            step, most = size * tensor.flatten(1).std(1, correction=0), apart.abs().flatten(1).amax(1)
            step, most = (part.view(-1, *[1] * (tensor.ndim - 1)) for part in (step, most))
        step = torch.maximum(step, most / MOST)
        whole = (apart / step.clamp_min(1e-30)).round()
        small = torch.int8 if whole.abs().max() <= 127 else torch.int16
        kept |= {name: whole.to(small), name + STEP: step}
    return lzma.compress(save(kept, {"state": json.dumps(rest)}), preset=9)


def unpack(packed: bytes) -> dict[str, Any]:
    """Inverse of :func:`pack`, but for the rounding; the same numbers on every machine.

    Raises
    ------
    DamagedFileError
        `packed` is something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        unpacking = lzma.LZMADecompressor()
        content = unpacking.decompress(packed, max_length=LARGEST)
        if not unpacking.eof:
            raise DamagedFileError(
                f"packed weights end early, or hold more than {LARGEST >> 20} MiB: get the file again"
            )
        length = int.from_bytes(content[:8], "little")
        rest = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["state"])
        kept = load(content)
    except (lzma.LZMAError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"packed weights are damaged ({error}): get the file again") from error
    return unflatten({name: _number(name, kept) for name in kept if not name.endswith(STEP)}, rest)


def _number(name: str, kept: Mapping[str, Tensor]) -> Tensor:
    """A tensor out of its steps, or as it was kept."""
    step = kept.get(name + STEP)
    return kept[name] if step is None else kept[name].float() * step + _base(name, kept)


def _base(name: str, kept: Mapping[str, Tensor]) -> Tensor | float:
    """What a tensor is kept as a difference from."""
    other = next((name.replace(one, another, 1) for one, another in RELATIVE.items() if name.startswith(one)), None)
    return 0.0 if other is None or other not in kept else _number(other, kept)


def packed_run(path: str | os.PathLike) -> Path | None:
    """The packed run that a path means: a folder, or ``reference/<model>`` of the repository; None if there is none."""
    folder = located(path)
    if folder == top() / REFERENCE / folder.name and not folder.exists():
        folder = REPOSITORY / folder.name
    return folder if (folder / PACKED).exists() else None


def unpacked(packed: Path, models: str) -> Path:
    """A packed run as a folder like any other, in ``runs/reference``; made once, and anew where the packed one is new.

    `models` is the name of the file with the weights.
    """
    content, files = (packed / PACKED).read_bytes(), sorted(path for path in packed.rglob("*") if path.is_file())
    known = sha256("".join(f"{path.relative_to(packed)} {digest(path)}\n" for path in files).encode())
    folder = runs_folder() / REFERENCE / f"{packed.name}-{known.hexdigest()[:8]}"
    if folder.exists():
        return folder
    state = unpack(content)
    try:
        with new_folder(folder) as fresh:
            shutil.copytree(packed, fresh, dirs_exist_ok=True, ignore=shutil.ignore_patterns(PACKED))
            save_state(fresh / models, state)
            for path in fresh.rglob(f"*.safetensors{SUFFIX}"):
                save_state(path.with_suffix(""), unpack(path.read_bytes()))
                path.unlink()
    except FileExistsError:  # by another process meanwhile: the same
        pass
    return folder
