"""Fields of a configuration: declared with what they allow, brought to their type, refused with a sentence that helps.

A frozen dataclass declares its fields with `one_of` and `number` and calls `check` from `__post_init__`. Values may
come from code, JSON, or a command line, where YAML reads 1e-4 as text and a missing word as None.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import operator
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def one_of(*choices: str | int, **kwargs: Any) -> Any:
    """Declare a field that holds one of a few words or numbers; `kwargs` go to `dataclasses.field`."""
    return dataclasses.field(metadata={"choices": choices}, **kwargs)


def number(low: float, high: float = math.inf, **kwargs: Any) -> Any:
    """Declare a field that holds a number from `low` to `high`, both included; `kwargs` as in `one_of`."""
    return dataclasses.field(metadata={"low": low, "high": high}, **kwargs)


def known(kind: str, given: str, allowed: Iterable[str]) -> str:
    """Return `given` if it is `allowed`; otherwise ValueError with the nearest allowed name, and all of them."""
    allowed = list(allowed)
    if given in allowed:
        return given
    near = difflib.get_close_matches(str(given).lower(), allowed, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown {kind} {given!r}: {hint}allowed are {', '.join(allowed)}")


def whole(name: str, value: Any, least: int, what: str = "") -> int:
    """A whole number of any kind, numpy's too, as Python's; ``True`` is none.

    ValueError if it is less than `least`, saying what was given and what is allowed; `what` says what it counts.
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise ValueError(f"{name}={value!r}: {what}{', ' if what else ''}a whole number of at least {least}")
    return number


def mapping(name: str, value: Any) -> dict[str, Any]:
    """Settings by name, as a dictionary or as the text of one (JSON); ValueError for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{name}: settings by name are wanted. With papermill: -y '{{{name}: {{latent_dim: 1000}}}}', "
            f"or -p {name} '{{\"latent_dim\": 1000}}'"
        )
    return dict(value)


def option(name: str, value: Any) -> str:
    """How :func:`labkit.open_cohort` is given an option, from Python and from papermill.

    >>> option("axes", "RSA")
    "axes='RSA' (chapters 1 and 2: -y '{opening: {axes: RSA}}')"
    >>> option("voxel_mm", (0.4, 0.4, 0.5))
    "voxel_mm=(0.4, 0.4, 0.5) (chapters 1 and 2: -y '{opening: {voxel_mm: [0.4, 0.4, 0.5]}}')"
    """
    plain = json.loads(json.dumps(value))
    text = plain if isinstance(plain, str) else json.dumps(plain).replace('"', "")
    return f"{name}={value!r} (chapters 1 and 2: -y '{{opening: {{{name}: {text}}}}}')"


def check(config: Any) -> None:
    """Bring each field of a frozen dataclass instance to its declared type: str, bool, int or float.

    ValueError, one for all fields whose value is not allowed; a str field without choices is left alone.
    """
    faults = []
    for f in dataclasses.fields(config):
        try:
            object.__setattr__(config, f.name, _value(f, getattr(config, f.name)))
        except ValueError as fault:
            faults.append(str(fault))
    if faults:
        raise ValueError(f"{type(config).__name__} {config.name!r}: " + "; ".join(faults))


def from_dict(kind: type[T], values: Mapping[str, Any]) -> T:
    """Make a configuration from what `dataclasses.asdict` gave, read back from JSON; defaults may be missing.

    ValueError if a field is unknown, missing, of the wrong type or out of range.
    """
    fields = dataclasses.fields(kind)
    for given in values:
        known(f"field of {kind.__name__}", given, [f.name for f in fields])
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise ValueError(f"{kind.__name__} lacks {', '.join(missing)}: give every field that has no default")
    return kind(**values)


def _value(f: dataclasses.Field, value: Any) -> Any:
    """Convert one value to its field's type, or say what is allowed."""
    choices = f.metadata.get("choices")
    text = value.strip().lower() if isinstance(value, str) else value
    if f.type == "bool":
        converted = {"true": True, "false": False}.get(text) if isinstance(text, str) else text
        if not isinstance(converted, bool):
            raise ValueError(f"{f.name} is {value!r}, allowed are true and false")
        return converted
    if f.type == "str" and choices is None:
        return value
    converted = ("none" if text is None else text) if f.type == "str" else _number(f, text)
    if choices is not None:
        if isinstance(converted, bool) or converted not in choices:
            raise ValueError(f"{f.name} is {value!r}, allowed are {', '.join(map(str, choices))}")
        return converted
    low, high = f.metadata["low"], f.metadata["high"]
    if converted is None or not low <= converted <= high:
        what = "a whole number" if f.type == "int" else "a number"
        bounds = f"from {low:g} " + (f"to {high:g}" if high < math.inf else "up")
        raise ValueError(f"{f.name} is {value!r}, allowed is {what} {bounds}")
    return converted


def _number(f: dataclasses.Field, value: Any) -> float | int | None:
    """Read a finite number of the field's type; None where it is none."""
    if isinstance(value, bool):
        return None
    try:
        exact = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(exact) or (f.type == "int" and not exact.is_integer()):
        return None
    return int(exact) if f.type == "int" else exact
