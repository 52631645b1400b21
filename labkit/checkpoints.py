"""Nested state of a run as one file of tensors: written whole or not at all, read without executing anything.

safetensors hold numbers and text and nothing that runs.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class RunError(RuntimeError):
    """A run folder that cannot be used as asked: missing, busy, or made with another configuration."""


def flatten(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split nested dicts and lists into tensors by path and the rest as JSON.

    Returns
    -------
    tensors : dict of str to torch.Tensor
        Keys are paths, ``generator/net.0.weight``.
    rest : dict
        The same nesting with tensors replaced by ``{"tensor": path}``.
    """
    tensors: dict[str, torch.Tensor] = {}

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


def unflatten(tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> Any:
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
    """Write nested tensors and values to one safetensors file, whole or not at all.

    Raises
    ------
    OSError
        The disk does not take it; the file that was there before is untouched.
    """
    from safetensors.torch import save_file

    tensors, rest = flatten(state)
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        try:
            save_file(tensors, partial, metadata={"state": json.dumps(rest)})
        except Exception as error:  # safetensors reports a full disk as its own error
            raise OSError(f"could not write {path}: {error}; the previous file, if any, is untouched") from error
        with partial.open("rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what :func:`save_state` wrote.

    Raises
    ------
    RunError
        The file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device=str(device)) as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (no mapping)
            rest = json.loads(handle.metadata()["state"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it to start again from the beginning") from error
    return unflatten(tensors, rest)
