"""The plan of the house: the hall's maths stands on itself, wings do not look up, and importing labkit stays light."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1]
MATHS = {"variants", "fields", "layers", "networks", "losses", "updates", "capture", "published"}
MATHS |= {"warps", "rendering", "atlas", "parallel"}
GROUND = {"files", "fields", "warps"}  # what data may use of the hall: no model, no run
WINGS = ["data", "evidence", "figures", "widgets"]  # each may import those before it, the hall after data
FLOORS = 8
HEAVY = ["nilearn", "ipywidgets", "matplotlib", "plotly", "monai", "pandas", "scipy", "pooch", "papermill"]
NOT_ON_TRAINING_PATH = ["scipy", "pooch", "monai", "nilearn", "pandas", "tqdm"]


def module_name(path: Path) -> str:
    parts = ["labkit", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "tests"
}


def labkit_imports(tree: ast.AST, module: str, is_package: bool) -> set[str]:
    """Modules of labkit that a module imports, anywhere in it but for type checkers, as full dotted names."""
    found = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            home = module.split(".") if is_package else module.split(".")[:-1]
            start = home[: len(home) - (node.level - 1)] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                if (source, alias.name) == ("labkit", "__version__"):
                    continue  # a string that needs nothing loaded
                deeper = f"{source}.{alias.name}"
                found.add(deeper if deeper in SOURCES else source)
    return {name for name in found if name.split(".")[0] == "labkit"}


def graph() -> dict[str, set[str]]:
    imports = {
        module: labkit_imports(ast.parse(path.read_text("utf-8")), module, path.name == "__init__.py") - {module}
        for module, path in SOURCES.items()
    }
    for facade in ("labkit", "labkit.__main__"):  # they gather names from everywhere, and nobody imports from them
        imports.pop(facade)
    return imports


def place(module: str) -> str:
    """The wing that a module stands in, ``hall``, or an empty string for the facade."""
    parts = module.split(".")[1:]
    return "" if not parts else parts[0] if parts[0] in WINGS else "hall"


def fault(module: str, target: str) -> str | None:
    """What is wrong with an import, in words."""
    here, there = place(module), place(target)
    room, other = module.split(".")[1], target.split(".")[-1]
    if not there:
        return f"{module} imports from the facade labkit; import from the module that has the name"
    if {room, other} == {"networks", "losses"}:
        return f"{module} imports {target}: losses know no networks, networks know no losses"
    if here == "hall" and room in MATHS and (there != "hall" or other not in MATHS):
        return f"{module} imports {target}: the hall's maths imports nothing but maths"
    order = ["data", "hall", "evidence", "figures", "widgets"]
    if here == "data" and there == "hall" and other in GROUND:
        return None
    if order.index(there) > order.index(here):
        return f"{module} imports {target}, which stands above it: {' < '.join(order)}"
    return None


def package_of(module: str) -> str:
    """A subfolder of a wing as one, and every other module by itself."""
    parts = module.split(".")
    deep = 3 if parts[1] in ("data", "evidence") else 2
    folder = ".".join(parts[:deep])
    return folder if folder in SOURCES and SOURCES[folder].name == "__init__.py" and len(parts) >= deep else module


def together(imports: dict[str, set[str]], group) -> dict[str, set[str]]:
    """The graph of groups of modules."""
    found: dict[str, set[str]] = {}
    for module, targets in imports.items():
        found.setdefault(group(module), set()).update(group(target) for target in targets)
    return {name: targets - {name} for name, targets in found.items()}


def check_no_circle(imports: dict[str, set[str]]) -> None:
    try:
        tuple(graphlib.TopologicalSorter(imports).static_order())
    except graphlib.CycleError as error:
        pytest.fail("they import each other in a circle: " + " -> ".join(error.args[1]))


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120)


def test_no_module_imports_what_stands_above_it():
    found = [fault(module, target) for module, targets in graph().items() for target in sorted(targets)]
    assert [text for text in found if text] == []


def test_no_circle_of_modules():
    check_no_circle(graph())


def test_no_circle_of_packages():
    check_no_circle(together(graph(), package_of))


def test_the_house_has_few_floors():
    """A wing is one room here, as it is on the plan; what builds the book stands beside the widgets."""
    rooms = together(graph(), lambda m: ".".join(m.split(".")[:2]))
    height: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(rooms).static_order():
        height[room] = 1 + max((height[target] for target in rooms.get(room, ())), default=0)
    assert max(height.values()) <= FLOORS, sorted(height.items(), key=lambda item: item[1])


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("labkit.losses", "from labkit.networks import Generator"),
        ("labkit.networks", "from . import losses"),
        ("labkit.updates", "from labkit.data import volumes"),
        ("labkit.layers", "from labkit.files import located"),
        ("labkit.data.cohort", "def read():\n    from labkit.training import train"),
        ("labkit.data.cohort", "from labkit.runs import Run"),
        ("labkit.data.simulate.anatomy", "from labkit.figures import show"),
        ("labkit.runs", "from labkit.evidence import describe"),
        ("labkit.figures.style", "import labkit.widgets"),
        ("labkit.evidence.metrics.study", "from labkit import open_cohort"),
        ("labkit.evidence.metrics.study", "import labkit"),
    ],
)
def test_a_forbidden_import_is_seen(module, line):
    (target,) = labkit_imports(ast.parse(line), module, False)
    assert fault(module, target)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("labkit.data.cohort", "from . import manifest, volumes"),
        ("labkit.data.cohort", "from labkit.files import located"),
        ("labkit.data.simulate.anatomy", "from ..grids import grid_affine"),
        ("labkit.training", "from labkit.losses import gdl\nimport torch"),
        ("labkit.generation", "from .runs import Run"),
        ("labkit.runs", "from labkit import __version__"),
        ("labkit.evidence.latent", "from labkit.generation import decode"),
        ("labkit.figures.quality", "from labkit.evidence.metrics import study"),
        ("labkit.widgets.judge", "import labkit.figures as figures"),
    ],
)
def test_an_allowed_import_is_let_through(module, line):
    assert not any(fault(module, target) for target in labkit_imports(ast.parse(line), module, False))


def test_a_circle_of_packages_is_seen():
    imports = {"labkit.evidence.metrics.study": {"labkit.evidence.segmentation.reader"},
               "labkit.evidence.segmentation.experiment": {"labkit.evidence.metrics.measures"}}  # fmt: skip
    with pytest.raises(pytest.fail.Exception, match="metrics.*segmentation"):
        check_no_circle(together(imports, package_of))


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
    absent = "".join(f"sys.modules[{name!r}] = None; " for name in NOT_ON_TRAINING_PATH)  # None: import fails
    result = run_python(f"import sys; {absent}import labkit.training, labkit.generation, labkit.published")
    assert result.returncode == 0, result.stderr


def test_the_reference_pages_name_every_room():
    pages = PACKAGE.parent / "book" / "api"
    if not pages.is_dir():
        pytest.skip("the book is part of a checkout, not of an installed labkit")
    named = {line.strip() for page in pages.glob("*.md") for line in page.read_text("utf-8").splitlines()}
    rooms = {module for module, path in SOURCES.items() if path.name != "__init__.py"}
    assert rooms - named == set() and {name for name in named if name.startswith("labkit.")} - rooms == set()


def test_no_scan_and_no_environment_is_part_of_the_repository():
    listed = subprocess.run(["git", "-C", str(PACKAGE.parent), "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    unwanted = (".nii", ".nii.gz", ".npz", ".safetensors", ".pt")
    assert not [name for name in listed.stdout.splitlines() if name.endswith(unwanted) or name.startswith(".venv")]
