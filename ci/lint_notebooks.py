"""Notebook lint: the form every chapter of the book keeps. ``ci/lint_notebooks [NOTEBOOK ...]``.

Needs nothing beyond Python's own library. A fault is one line, ``file: cell 3: what is wrong and what to do``; cells
count from 1, as readers count them. Exit status 1 if there is any.

Alt text is where Jupyter Book 1 takes it from: myst-nb passes the cell metadata
``{"mystnb": {"image": {"alt": "..."}}}`` to every image the cell puts out. Figures that are HTML (plotly) have to carry
their own.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

MAX_LINES = 15
MIN_ALT_LENGTH = 20
FIGURE_SOURCES = ("labkit.figures", "matplotlib", "nilearn.plotting", "plotly")  # a call into these draws
FIGURE_METHODS = {"show", "plot", "hist", "imshow", "boxplot", "violinplot"}
NO_FIGURE = "no-figure"  # tag of a cell that calls one of the above and draws nothing

_UNIX_ROOTS = "|".join(["home", "root", "tmp", "work", "Users", "mnt", "media", "scratch", "private"])
MACHINE_PATH = re.compile(rf"(?<![\w.])/(?:{_UNIX_ROOTS})/|\b[A-Za-z]:[\\/]+Users\b")


def lint(path: Path) -> list[str]:
    """Every fault of one notebook, as ``name: cell 3: text``."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
    except (ValueError, KeyError, TypeError) as fault:
        return [f"{path}: not a notebook ({type(fault).__name__}: {fault})"]
    found = [(0, fault) for fault in _notebook_faults(notebook, cells)]
    sources = ["".join(cell.get("source", "")) for cell in cells]
    trees = [
        _tree(source) if cell.get("cell_type") == "code" else None for cell, source in zip(cells, sources, strict=True)
    ]
    drawing = _drawing_names(trees)
    for number, (cell, source, tree) in enumerate(zip(cells, sources, trees, strict=True), start=1):
        found += [(number, fault) for fault in _cell_faults(cell, source)]
        if cell.get("cell_type") == "code":
            found += [(number, fault) for fault in _code_faults(cell, source, tree, drawing)]
    return [f"{path}: cell {number}: {fault}" if number else f"{path}: {fault}" for number, fault in found]


def _notebook_faults(notebook: dict, cells: list[dict]) -> Iterator[str]:
    first = "".join(cells[0].get("source", "")) if cells else ""
    if not cells or cells[0].get("cell_type") != "markdown" or not first.startswith("# "):
        yield "the first cell must be markdown and begin with the title, `# ...`"
    tagged = sum("parameters" in _tags(cell) for cell in cells)
    if tagged != 1:
        yield f"{tagged} cells are tagged `parameters`; papermill needs exactly one"
    metadata = notebook.get("metadata", {})
    if "papermill" in metadata or any("injected-parameters" in _tags(cell) for cell in cells):
        yield "an executed copy made by papermill; commit the source notebook"
    if match := _machine_path(json.dumps(metadata)):
        yield f"the notebook's metadata holds a path of one machine ({match})"


def _cell_faults(cell: dict, source: str) -> Iterator[str]:
    if match := _machine_path(source):
        yield f"a path of one machine ({match}); use a parameter or a path relative to the repository"
    if match := _machine_path(json.dumps(cell.get("metadata", {}))):
        yield f"the cell's metadata holds a path of one machine ({match})"
    if "parameters" in _tags(cell) and cell.get("cell_type") != "code":
        yield "the `parameters` cell must be a code cell"


def _code_faults(cell: dict, source: str, tree: ast.Module | None, drawing: set[str]) -> Iterator[str]:
    outputs = cell.get("outputs", [])
    if any(output.get("output_type") == "error" for output in outputs):
        yield "a saved traceback; run the cell to success, then clear it"
    elif outputs:
        yield "saved outputs; clear them before committing"
    if cell.get("execution_count") is not None:
        yield "an execution count; clear outputs before committing"
    lines = [line for line in source.splitlines() if line.strip()]
    if len(lines) > MAX_LINES:
        yield f"{len(lines)} lines that are not blank; at most {MAX_LINES}, move work into labkit"
    if tree is None:
        magic = next((line.strip() for line in lines if line.lstrip().startswith(("%", "!"))), None)
        yield f"a magic or shell line (`{magic}`); write Python" if magic else "does not parse as Python"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield f"defines `{node.name}`; definitions belong in labkit"
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Lambda):
            yield f"defines a function by lambda in line {node.lineno}; definitions belong in labkit"
    if "parameters" in _tags(cell):
        yield from _parameter_faults(source, tree)
    draws = "figure" in _tags(cell) or _draws(tree, drawing)
    if draws and NO_FIGURE not in _tags(cell):
        yield from _figure_faults(cell)


def _parameter_faults(source: str, tree: ast.Module) -> Iterator[str]:
    comments = {
        token.start[0]: token.string.lstrip("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield f"parameter in line {node.lineno} has no type; write `name: str = ...  # what is allowed`"
        elif not isinstance(node, ast.AnnAssign) or node.value is None:
            yield f"line {node.lineno} is no parameter; only `name: type = value  # comment` may stand here"
            continue
        comment = comments.get(node.end_lineno, "")
        if not comment:
            yield f"parameter in line {node.lineno} has no comment behind it saying what is allowed"
        elif "=" in comment:
            yield f"comment in line {node.lineno} holds an equals sign, which papermill's help cannot read"


def _figure_faults(cell: dict) -> Iterator[str]:
    shown = cell.get("metadata", {}).get("mystnb") or {}
    alt = (shown.get("image") or {}).get("alt")
    caption = (shown.get("figure") or {}).get("caption")
    if not isinstance(caption, str) or len(caption.strip()) < MIN_ALT_LENGTH:
        yield (
            'a figure without a caption that says what there is to see; put {"mystnb": {"figure": {"caption": "..."}}} '
            f"with at least {MIN_ALT_LENGTH} characters into the cell's metadata"
        )
    if not isinstance(alt, str) or len(alt.strip()) < MIN_ALT_LENGTH:
        yield (
            'a figure without alt text; put {"mystnb": {"image": {"alt": "..."}}} with at least '
            f"{MIN_ALT_LENGTH} characters into the cell's metadata, or tag a cell that draws nothing `{NO_FIGURE}`"
        )


def _drawing_names(trees: list[ast.Module | None]) -> set[str]:
    """Names, as the notebook knows them, whose call draws: `plt`, `labkit.figures`, `three_planes`."""
    names = set(FIGURE_SOURCES)
    for node in (node for tree in trees if tree for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            names |= {alias.asname for alias in node.names if alias.asname and _is_drawing(alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name for a in node.names if _is_drawing(f"{node.module}.{a.name}")}
    return names


def _is_drawing(module: str) -> bool:
    return any(f"{module}.".startswith(f"{source}.") for source in FIGURE_SOURCES)


def _draws(tree: ast.Module, drawing: set[str]) -> bool:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in FIGURE_METHODS:
            return True
        name = _dotted(node.func)
        if any(f"{name}.".startswith(f"{source}.") for source in drawing):
            return True
    return False


def _dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression made of names and attributes, with `?` for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _tree(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except SyntaxError:
        return None


def _tags(cell: dict) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def _machine_path(text: str) -> str | None:
    match = MACHINE_PATH.search(text)
    return match.group() if match else None


def main(arguments: list[str]) -> int:
    """Lint the notebooks named, or all of ``book/``; print the faults and return the exit status."""
    book = Path(__file__).resolve().parents[1] / "book"
    paths = [Path(argument) for argument in arguments] or sorted(book.glob("*.ipynb"))
    faults = [fault for path in paths for fault in lint(path)]
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{len(paths)} notebooks, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
