"""The layers of labkit: a module imports from its own row or the rows above, and importing labkit stays light."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1]
ROWS = [
    {"fields", "variants", "places"},  # configuration
    # data: where scans come from (simulate, manifest, bids, nifti, sources), what they become, how they are kept
    {
        "grids",
        "progress",
        "simulate",
        "manifest",
        "nifti",
        "bids",
        "store",
        "volumes",
        "cohort",
        "likeness",
        "sources",
        "augment",
    },
    {"convolutions", "spectral", "blocks", "networks", "losses"},  # maths
    {"checkpoints", "runs", "samples", "updates", "capture", "training", "codes", "generation"},  # learning
    {"describe", "architecture", "attributes", "latent", "metrics", "segmentation", "judging"},  # evidence
    {"figures", "widgets"},  # eyes
]
LEARNING_ORDER = ["runs", "training", "codes", "generation"]
ROW_OF = {name: number for number, row in enumerate(ROWS) for name in row}
HEAVY = ["nilearn", "ipywidgets", "matplotlib", "plotly", "monai", "pandas", "scipy", "pooch", "papermill"]
TRAINING_PATH = ["variants", "grids", "volumes", "augment", "cohort", "networks", "losses", "runs", "training"]
NOT_ON_TRAINING_PATH = ["scipy", "pooch", "monai", "nilearn", "pandas", "tqdm"]


def module_name(path: Path) -> str:
    parts = ["labkit", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "tests"
}


def labkit_imports(tree: ast.AST, module: str, is_package: bool, known: set[str]) -> set[str]:
    """Modules of labkit that a module imports, anywhere in it, as full dotted names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = module.split(".") if is_package else module.split(".")[:-1]
            start = home[: len(home) - (node.level - 1)] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                if (source, alias.name) == ("labkit", "__version__"):
                    continue  # a string that needs nothing loaded
                deeper = f"{source}.{alias.name}"  # `from labkit import grids` means labkit.grids, not the facade
                found.add(deeper if deeper in known or (source == "labkit" and alias.name in ROW_OF) else source)
    return {name for name in found if name.split(".")[0] == "labkit"}


def row_name(module: str) -> str:
    """The name a row knows a module by: labkit.simulate.anatomy is `simulate`; labkit itself is an empty string."""
    return ".".join(module.split(".")[1:2])


def graph() -> dict[str, set[str]]:
    return {
        module: labkit_imports(ast.parse(path.read_text("utf-8")), module, path.name == "__init__.py", set(SOURCES))
        for module, path in SOURCES.items()
    }


def faults(imports: dict[str, set[str]]) -> list[str]:
    """Every import that breaks the order of the rows, in words."""
    found = []
    for module, targets in imports.items():
        name = row_name(module)
        if not name:
            continue  # the facade gathers names from every row
        for target in sorted(targets):
            other = row_name(target)
            if other == name:
                continue
            if not other:
                found.append(f"{module} imports from the facade labkit; import from the module that has the name")
            elif name not in ROW_OF or other not in ROW_OF:
                found.append(f"{module} imports {target}: add {other if name in ROW_OF else name} to a row")
            elif ROW_OF[other] > ROW_OF[name]:
                found.append(f"{module} imports {target}, which is a row below it")
            elif {name, other} == {"networks", "losses"}:
                found.append(f"{module} imports {target}: losses know no networks, networks know no losses")
            elif {name, other} <= set(LEARNING_ORDER) and LEARNING_ORDER.index(other) > LEARNING_ORDER.index(name):
                found.append(f"{module} imports {target}: the order is {' -> '.join(LEARNING_ORDER)}")
    return found


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120)


def test_every_module_stands_in_a_row():
    unknown = sorted({row_name(module) for module in SOURCES} - set(ROW_OF) - {""})
    assert not unknown, f"unknown modules of labkit: {unknown}; add it to a row in {Path(__file__).name}"


def test_no_module_imports_from_a_row_below():
    assert faults(graph()) == []


def test_the_import_graph_has_no_cycle():
    imports = {module: targets - {module} for module, targets in graph().items()}
    imports.pop("labkit", None)  # the facade is imported by nobody (see above), so it closes no cycle
    try:
        tuple(graphlib.TopologicalSorter(imports).static_order())
    except graphlib.CycleError as fault:
        pytest.fail("modules import each other in a circle: " + " -> ".join(fault.args[1]))


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("labkit.losses", "from labkit.networks import Generator"),
        ("labkit.networks", "from . import losses"),
        ("labkit.cohort", "def read():\n    from .training import train"),
        ("labkit.simulate.anatomy", "from ..figures import show"),
        ("labkit.runs", "import labkit.training"),
        ("labkit.training", "from labkit.generation import draw"),
        ("labkit.metrics", "from labkit import open_cohort"),
        ("labkit.metrics", "import labkit"),
        ("labkit.volumes", "from labkit.newcomer import thing"),
    ],
)
def test_a_forbidden_import_is_seen(module, line):
    assert len(faults({module: labkit_imports(ast.parse(line), module, False, set(SOURCES))})) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("labkit.cohort", "from . import manifest, volumes"),
        ("labkit.simulate.anatomy", "from ..grids import grid_affine"),
        ("labkit.simulate.anatomy", "from . import other"),
        ("labkit.training", "from labkit.losses import gdl\nimport torch"),
        ("labkit.generation", "from .runs import Run"),
        ("labkit.runs", "from labkit import __version__"),
        ("labkit.widgets", "import labkit.figures as figures"),
    ],
)
def test_an_allowed_import_is_let_through(module, line):
    assert faults({module: labkit_imports(ast.parse(line), module, False, set(SOURCES))}) == []


def test_nothing_moves_tensors_to_a_gpu_by_name():
    calls = [
        f"{module}:{node.lineno}"
        for module, path in SOURCES.items()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"
    ]
    assert not calls, f".cuda() at {calls}: take the device from the input"


def test_importing_labkit_loads_no_heavy_library():
    result = run_python(f"import labkit, sys; print(*[m for m in {HEAVY} if m in sys.modules])")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_the_training_path_needs_only_torch_numpy_and_nibabel():
    modules = [f"labkit.{name}" for name in TRAINING_PATH if f"labkit.{name}" in SOURCES]
    absent = "".join(f"sys.modules[{name!r}] = None; " for name in NOT_ON_TRAINING_PATH)  # None: import fails
    result = run_python(f"import sys; {absent}import importlib; [importlib.import_module(m) for m in {modules}]")
    assert result.returncode == 0, result.stderr
