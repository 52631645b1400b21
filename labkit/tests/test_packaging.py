"""pyproject.toml, environment.yml, ci/constraints.txt and CITATION.cff agree with each other and with the tree."""

import importlib.metadata
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("packaging is that of a checkout, not of an installed labkit", allow_module_level=True)

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
INSTALLED = [name for name in PROJECT["optional-dependencies"] if name != "live"]  # that one ci/live adds
REQUIREMENTS = [
    Requirement(line)
    for line in [
        *PROJECT["dependencies"],
        *(line for lines in PROJECT["optional-dependencies"].values() for line in lines),
    ]
]
CONSTRAINTS = (ROOT / "ci" / "constraints.txt").read_text("utf-8").splitlines()
PINS = [line for line in CONSTRAINTS if not line.startswith("#")]
VERSION_OF = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in PINS)}


def test_constraints_are_exact_pins_sorted_one_a_package():
    assert CONSTRAINTS[0].startswith("# ") and "freeze" in CONSTRAINTS[0]
    # no local versions, addresses or paths: they would tie the pins to one machine
    assert [line for line in PINS if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line)] == []
    names = [line.partition("==")[0].lower() for line in PINS]
    assert names == sorted(names)
    assert len(VERSION_OF) == len(PINS)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_dependency_has_a_pin_that_satisfies_it(requirement):
    pin = VERSION_OF.get(canonicalize_name(requirement.name))
    assert pin is not None, f"{requirement.name} is not in ci/constraints.txt"
    assert requirement.specifier.contains(pin, prereleases=True)


def test_torch_is_the_release_the_study_was_made_with():
    assert VERSION_OF["torch"] == "2.13.0"


@pytest.mark.skipif(
    sys.platform != "linux" or sys.version_info[:2] != (3, 11), reason="the pins are those of Python 3.11 on Linux"
)
def test_everything_the_dependencies_pull_in_is_pinned():
    unpinned, seen, waiting = set(), set(), list(REQUIREMENTS)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        if name.startswith(("nvidia-", "cuda-", "triton")):
            continue  # torch's CUDA builds pin these themselves; the CPU build has none
        if name not in VERSION_OF:
            unpinned.add(name)
        try:
            lines = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # the other tests say when something is not installed
        for needed in map(Requirement, lines):
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    assert unpinned == set()


def test_the_conda_environment_has_the_same_python_constraints_and_extras():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    assert [f"python{PROJECT['requires-python']}"] == [entry for entry in conda if entry.startswith("python")]
    assert "pip" in conda
    (editable,) = (line for line in pip if line.startswith("-e"))
    assert "-c ci/constraints.txt" in pip
    assert re.fullmatch(r"-e \.\[(.*)\]", editable)[1].split(",") == INSTALLED


def test_every_pin_has_the_hash_of_its_file_and_nothing_else_is_taken_but_what_torch_runs_gpus_with():
    lines = [line for line in (ROOT / "ci" / "hashes.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"\S+==[\w.+]+ --hash=sha256:[0-9a-f]{64}", line)] == []
    pins = [line.split()[0] for line in lines]
    assert len(set(pins)) == len(pins)
    versions = {canonicalize_name(name): version for name, _, version in (pin.partition("==") for pin in pins)}
    assert {"torch==2.13.0", "torch==2.13.0+cpu"} <= set(pins)
    apart = {name for name, version in VERSION_OF.items() if versions.get(name, "").removesuffix("+cpu") != version}
    assert apart == set()
    more = versions.keys() - VERSION_OF.keys()
    assert {name for name in more if not name.startswith(("cuda-", "nvidia-"))} == {"pip", "triton"}


def test_the_scripts_install_with_the_constraints_and_every_extra_but_one():
    text = (ROOT / "ci" / "environment").read_text("utf-8")
    assert f"extras={','.join(INSTALLED)}${{1:+,$1}}" in text and '-c ci/constraints.txt -e ".[$extras]"' in text
    assert text.count("--require-hashes") == 3 and "--no-deps --no-build-isolation -e ." in text  # one of them is said
    assert "make_environment live" in (ROOT / "ci" / "live").read_text("utf-8")
    floor = re.search(r"sys\.version_info < \((\d+), (\d+)\)", text)
    assert PROJECT["requires-python"] == f">={floor[1]}.{floor[2]}"
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.11.0")


def test_every_package_of_the_tree_is_in_the_wheel():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "labkit").rglob("__init__.py")}
    packages = {".".join(folder.parts) for folder in folders if "tests" not in folder.parts}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages | {"labkit.data_manifest"}
    assert PYPROJECT["tool"]["setuptools"]["package-data"]["labkit"] == ["py.typed"]  # its types are for users, too
    assert (ROOT / "labkit" / "py.typed").is_file()


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    module = re.search(r'__version__ = "(.*)"', (ROOT / "labkit" / "__init__.py").read_text("utf-8"))
    assert {str(citation["version"]), module[1]} == {PROJECT["version"]}


def test_the_citation_names_the_paper_and_sigma():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["license"] == PROJECT["license"] == "MIT"
    works = {work["doi"]: work for work in citation["references"]}
    paper, sigma = works["10.3390/app12104844"], works["10.1038/s41467-019-13575-7"]
    assert (paper["journal"], paper["year"], paper["volume"]) == ("Applied Sciences", 2022, 12)
    assert [author["family-names"] for author in paper["authors"]] == ["Ferreira", "Magalhães", "Mériaux", "Alves"]
    assert (sigma["journal"], sigma["year"], sigma["volume"]) == ("Nature Communications", 2019, 10)
    assert sigma["authors"][0]["family-names"] == "Barrière"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no executable bits")
@pytest.mark.parametrize("script", ["ci/environment", "ci/test", "ci/lint_notebooks", "ci/chrome", ".ci/run"])
def test_the_scripts_can_be_executed(script):
    assert os.access(ROOT / script, os.X_OK)


def test_hooks_before_a_commit_are_those_of_the_check_and_at_its_versions():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"], "others bring a ruff of their own"
    hooks = repositories[0]["hooks"]
    check = (ROOT / "ci" / "test").read_text("utf-8")
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/python ") for hook in hooks)
    for words in ("-m ruff check", "-m ruff format", "ci/lint_notebooks.py"):
        assert words in check and any(words in hook["entry"] for hook in hooks)
