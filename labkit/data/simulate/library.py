"""The anatomies by name, and what a simulated data set is made of, so that it can be told from any other."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from .. import grids, labels
from ..manifest import fetch, load_manifest
from .anatomy import Anatomy
from .departures import DEPARTURES, chosen
from .individual import Individual
from .scanner import Scanner
from .sigma import sigma_anatomy

ANATOMIES = ("phantom", "sigma")


@cache
def load_anatomy(name: str) -> Anatomy:
    """One of :data:`ANATOMIES`, built once a process; SIGMA's maps are fetched if need be."""
    _check(name)
    if name == "sigma":
        return sigma_anatomy(fetch("sigma"))
    from .phantom import phantom_anatomy

    return phantom_anatomy()


def parameters(
    anatomy: Anatomy | str,
    individual: Individual | None = None,
    scanner: Scanner | None = None,
    departures: str | Sequence[str] = (),
) -> dict[str, object]:
    """Everything a simulated data set follows from but its seed, ready for JSON.

    An anatomy given by name does not have to be built or fetched for this. In the result ``anatomy`` is its name and
    the sha256 of each file (or of its own content, if it is none of :data:`ANATOMIES`), ``individual`` and ``scanner``
    are their fields, ``source`` is the sha256 over what the simulator's source does, and ``acquisition`` the scan in
    BIDS terms, seconds and degrees. Only where `departures` are asked for are they there, in words, and counts their
    source.
    """
    individual, scanner, names = individual or Individual(), scanner or Scanner(), chosen(departures)
    told = {"departures": {name: DEPARTURES[name] for name in names}} if names else {}
    return {
        "anatomy": _identity(anatomy),
        "individual": dataclasses.asdict(individual),
        "scanner": dataclasses.asdict(scanner),
        **told,
        "source": _source_hash(bool(names)),
        "acquisition": {
            "Modality": "MR",
            "MagneticFieldStrength": scanner.b0_tesla,
            "PulseSequenceType": "Gradient-echo EPI (simulated)",
            "RepetitionTime": scanner.tr_ms / 1000,
            "EchoTime": scanner.te_ms / 1000,
            "FlipAngle": scanner.flip_deg,
            "EffectiveEchoSpacing": scanner.echo_spacing_ms / 1000,
            "PhaseEncodingDirection": "j",
            "NumberOfAverages": scanner.averages,
            "ReceiveCoilName": "4-element surface coil (simulated)",
        },
    }


def _check(name: str) -> None:
    if name not in ANATOMIES:
        raise ValueError(f"no anatomy is called {name!r}; allowed: {', '.join(ANATOMIES)}")


def _identity(anatomy: Anatomy | str) -> dict[str, object]:
    if isinstance(anatomy, Anatomy):
        # The study's own anatomies follow from source and files; any other has to be known by its content.
        if anatomy.name not in ANATOMIES or anatomy is not load_anatomy(anatomy.name):
            return {"name": anatomy.name, "content": _content_hash(anatomy)}
        anatomy = anatomy.name
    _check(anatomy)
    files = {file.name: file.sha256 for file in load_manifest("sigma").files} if anatomy == "sigma" else {}
    return {"name": anatomy, "files": files}


def _content_hash(anatomy: Anatomy) -> str:
    digest = hashlib.sha256(repr((anatomy.tissues, anatomy.centre_mm)).encode())
    digest.update(anatomy.affine.tobytes())
    for volume in (anatomy.maps, anatomy.air, anatomy.texture):
        if volume is not None:
            digest.update(volume.contiguous().numpy().tobytes())
    return digest.hexdigest()


@cache
def _source_hash(departed: bool) -> str:
    """sha256 over what the simulator's source files do, in the order of their names."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    own = [path for path in sorted(folder.rglob("*.py")) if departed or path.name != "departures.py"]
    for path in [*own, Path(grids.__file__), Path(labels.__file__)]:
        digest.update(f"{path.name}\0{meaning(path.read_text(encoding='utf-8'))}".encode())
    return digest.hexdigest()


def meaning(source: str) -> str:
    """Python source without docstrings and comments: prose may change, and what was computed with it is kept."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            body[:] = [part for part in body if not _only_words(part)] or [ast.Pass()]
    return ast.unparse(tree)


def _only_words(part: ast.stmt) -> bool:
    return isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str)
