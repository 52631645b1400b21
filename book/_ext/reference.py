"""What the reference pages need beyond napoleon, which reads numpydoc a little otherwise than it is written here."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

SEVERAL = re.compile(r"^\w+(, \w+)+ :")
"""Names with one description, ``a, b : type``."""

HIDDEN = "\ue000"
"""In place of a colon that napoleon is not to see."""


def mend(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Change the lines of a docstring in place, before napoleon has them.

    Of a property's first line napoleon takes what stands before a colon for a type. Of several attributes with one
    description Sphinx takes all but the last for a type, unless no space parts them.
    """
    if what in ("attribute", "data", "property"):
        lines[:1] = [line.replace(":", HIDDEN) for line in lines[:1]]
    inside = False
    for place, line in enumerate(lines):
        if lines[place + 1 : place + 2] and set(lines[place + 1]) == {"-"}:
            inside = line == "Attributes"
        elif inside and SEVERAL.match(line):
            names, colon, kind = line.partition(" :")
            lines[place] = names.replace(", ", ",\u200b") + colon + kind


def restore(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Colons again, after napoleon."""
    lines[:] = [line.replace(HIDDEN, ":") for line in lines]


def pass_over(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples: what they hold stands among the attributes."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", mend, priority=100)
    app.connect("autodoc-process-docstring", restore, priority=900)
    app.connect("autodoc-skip-member", pass_over)
    return {"parallel_read_safe": True}
