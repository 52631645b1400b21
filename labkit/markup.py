"""What a page, a notebook or a card is made of, so that no name, file or answer of others becomes a part of it.

A browser runs what stands in a page as a tag, and in a live notebook that is the reader's machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

LONGEST = 1000
"""Characters that are shown of a text of a file."""


def styled(
    table: pd.DataFrame, precision: int = 3, formats: Mapping[str, Any] | None = None, na: str = "–", caption: str = ""
) -> Styler:
    """A table for a notebook, of which cells, index, columns and caption are read as they stand.

    Parameters
    ----------
    table : pandas.DataFrame
        With unique index and columns.
    precision : int
        Decimals of fractional numbers.
    formats : mapping, optional
        By column: a format string, or a function of a number that gives its text.
    na : str
        In place of a missing number.
    caption : str
        Above it.

    Examples
    --------
    >>> import pandas as pd
    >>> "<b>" in styled(pd.DataFrame({"<b>": ["<b>"]}, index=["<b>"]), caption="<b>").to_html()
    False
    """
    for axis in (0, 1):
        names = [name if name is None else escape(str(name)) for name in table.axes[axis].names]
        table = table.rename_axis(names, axis=axis)
    styler = table.style.format(dict(formats or {}), na_rep=na, precision=precision, escape="html")
    styler = styler.format_index(escape="html", axis=0).format_index(escape="html", axis=1)
    return styler.set_caption(escape(caption)) if caption else styler


def script_json(content: object) -> str:
    """JSON for a page's ``<script>``: no text in it can end the element, or begin a comment that swallows the rest."""
    return json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")


def one_line(value: object) -> str:
    """Text of a file as one printable line, at most :data:`LONGEST` characters."""
    text = " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in str(value)).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def plain(value: object) -> str:
    """Text of a file for Markdown, table cells included: read as it stands, whatever marks or tags it holds."""
    text = re.sub(r"([\\`*\[\]|#~$])", r"\\\1", one_line(value))
    return escape(re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text), quote=False)


def points(sentences: Iterable[str]) -> str:
    """A Markdown list of sentences; what stands before a sentence's first colon, which says what it is of, is bold.

    Examples
    --------
    >>> print(points(["r5 against r100: CSF -0.1", "no colon"]))
    - **r5 against r100:** CSF -0.1
    - no colon
    """
    parts = (plain(sentence).partition(": ") for sentence in sentences)
    return "\n".join(f"- **{what}:** {said}" if said else f"- {what}" for what, _, said in parts)


def table(rows: Mapping[str, str] | Iterable[Iterable[str]], *header: str) -> str:
    """A Markdown table of cells that are Markdown already; a mapping has its keys on the left."""
    lines = [list(row) for row in (rows.items() if isinstance(rows, Mapping) else rows)]
    head = list(header) or [""] * 2
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines])
