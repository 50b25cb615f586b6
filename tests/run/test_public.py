"""The package as users and readers meet it: names, imports in reading order, sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
from conftest import ROOT

import dreamer

ALGORITHM = ["utils", "networks", "rssm", "replay_buffer", "config", "agent"]
WHAT_RUNS_IT = "checkpoint spaces envs evaluation run resume tensorboard training check".split()
ORDER = [*ALGORITHM, *WHAT_RUNS_IT, "__main__"]
FOR_COMMANDS = {f"dreamer.{n}" for n in "check envs evaluation resume run training".split()}


def module(name: str) -> Path:
    return ROOT / "dreamer" / f"{name}.py"


def imported(path: Path) -> set[str]:
    """The full names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relative to itself"
            names.add(node.module or "")
            if node.module == "dreamer":
                names |= {f"dreamer.{alias.name}" for alias in node.names}
    return names


def test_the_public_names_can_be_imported_and_are_all_there_are():
    from dreamer import Config, evaluate, load_agent, train  # noqa: F401

    for name in dreamer.__all__:
        assert getattr(dreamer, name).__doc__, name
    assert dreamer.__all__ == sorted(dreamer.__all__)


def test_importing_dreamer_loads_neither_the_lab_nor_what_draws_and_measures():
    heavy = ("lab", "matplotlib", "PIL", "pygame", "scipy", "sklearn", "stable_baselines3", "tyro")
    code = f"import sys, dreamer; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_the_package_is_what_its_map_says():
    files = {path.stem for path in (ROOT / "dreamer").glob("*.py")}
    assert files == {"__init__", *ORDER}
    words = [line.split() for line in dreamer.__doc__.splitlines() if "," in line and "  " in line]
    order = [[word.strip(",") for word in line] for line in words]
    parts = [line for line in order if line[0] in ("utils", "checkpoint")]
    sizes = len(ALGORITHM), len(WHAT_RUNS_IT)
    assert [line[:size] for line, size in zip(parts, sizes, strict=True)] == [
        ALGORITHM,
        WHAT_RUNS_IT,
    ]


@pytest.mark.parametrize("name", ORDER)
def test_each_file_imports_from_those_above_it_only(name):
    """`__main__` uses the package's public face, as its users do, and a few tools."""
    above = {f"dreamer.{other}" for other in takewhile(lambda other: other != name, ORDER)}
    names = {other for other in imported(module(name)) if other.partition(".")[0] == "dreamer"}
    if name == "__main__":
        public = {"dreamer", *(f"dreamer.{public}" for public in dreamer.__all__)}
        assert names - public == FOR_COMMANDS <= above
    else:
        assert names <= above


def test_nothing_in_dreamer_imports_the_lab():
    for path in (ROOT / "dreamer").glob("*.py"):
        assert not {name for name in imported(path) if name.partition(".")[0] == "lab"}, path.name


def test_the_repository_can_be_read_in_one_sitting():
    """The README's promise, in lines."""
    folders = [ROOT, ROOT / "dreamer", ROOT / "lab", ROOT / "tests"]
    lines = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in folder.glob("*.py")
    }
    assert sum(lines[module(name)] for name in ALGORITHM) <= 1_600
    assert sum(count for path, count in lines.items() if path.parent.name != "tests") <= 8_550
    assert {path.name: count for path, count in lines.items() if count > 450} == {}
