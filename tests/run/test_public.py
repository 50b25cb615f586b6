"""The package as users and readers meet it: names, imports in reading order, sizes."""

import ast
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
from conftest import ROOT

import dreamer

ALGORITHM = ["utils", "networks", "rssm", "replay_buffer", "config", "agent"]
REST = "machine checkpoint envs evaluation tensorboard resume run training check cli plot".split()
ORDER = [*ALGORITHM, *REST, "__main__"]


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
            parts = {f"dreamer.{alias.name}" for alias in node.names}
            names |= parts if node.module == "dreamer" else {node.module or ""}
    return names


def test_the_public_names_can_be_imported_and_are_all_there_are():
    from dreamer import Config, evaluate, load_agent, train  # noqa: F401

    for name in dreamer.__all__:
        assert getattr(dreamer, name).__doc__, name
    assert dreamer.__all__ == sorted(dreamer.__all__)
    assert f"version: {dreamer.__version__}" in (ROOT / "CITATION.cff").read_text().splitlines()


def test_importing_dreamer_loads_neither_the_lab_nor_what_draws_and_measures():
    heavy = ("lab", "matplotlib", "PIL", "pygame", "scipy", "sklearn", "stable_baselines3", "dask")
    code = f"import sys, dreamer; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_the_package_is_what_its_map_says():
    files = {path.stem for path in (ROOT / "dreamer").glob("*.py")}
    assert files == {"__init__", *ORDER}
    lines = [line.strip() for line in dreamer.__doc__.splitlines() if line[:4] == "    "]
    assert lines == [", ".join(ALGORITHM), ", ".join(REST)]


@pytest.mark.parametrize("name", ORDER)
def test_each_file_imports_from_those_above_it_only(name):
    """`__main__` uses the package's public face, as its users do. None imports the lab."""
    above = {f"dreamer.{other}" for other in takewhile(lambda other: other != name, ORDER)}
    ours = "dreamer", "lab"
    names = {other for other in imported(module(name)) if other.partition(".")[0] in ours}
    if name == "__main__":
        above |= {f"dreamer.{public}" for public in dreamer.__all__}
    elif name in ("resume", "tensorboard"):  # types alone
        above |= {"dreamer.run"}
    assert names <= above


def test_the_repository_can_be_read_in_one_sitting():
    """The README's promise, in lines."""
    lines = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for folder in (ROOT, ROOT / "dreamer", ROOT / "lab", *(ROOT / "tests").rglob("."))
        for path in folder.glob("*.py")
    }

    def total(folder: Path) -> int:
        return sum(count for path, count in lines.items() if folder in path.parents)

    algorithm = sum(lines[module(name)] for name in ALGORITHM)
    tests, lab = total(ROOT / "tests"), total(ROOT / "lab")
    assert algorithm <= 1_555 and total(ROOT / "dreamer") - algorithm <= 2_270
    assert lab <= 2_840 and tests <= 7_840
    assert total(ROOT) - total(ROOT / "dreamer") - lab - tests <= 1_150  # scripts
    assert {path.name: count for path, count in lines.items() if count > 450} == {}
