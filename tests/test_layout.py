"""What a newcomer looks for is where it is said to be: tests by the names of modules, files by the documents."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.test_imports import LOOSE, PACKAGE, REPOSITORY, ROOMS

TESTS = REPOSITORY / "tests"
NO_ROOMS = {"support", "benchmarks", "launch", "faults", "slurm", "hostile", "families", "gpu"}
"""Folders of tests/ that are about no room of the package."""
DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def has_code(file: Path) -> bool:
    return any(not isinstance(node, ast.Expr) for node in ast.parse(file.read_text()).body)


MODULES = [str(file.relative_to(PACKAGE).with_suffix("")) for file in sorted(PACKAGE.rglob("*.py")) if has_code(file)]
TEST_FILES = sorted(TESTS.rglob("test_*.py"))


@cache
def covered(file: Path) -> list[str]:
    """The modules that the lines `covers ROOM/MODULE, ...` of a test file's docstring name."""
    lines = (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()
    return [name for line in lines if line.startswith("covers ") for name in line.removeprefix("covers ").split(", ")]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_tests_that_are_found_by_its_name(module: str) -> None:
    folder, _, name = module.rpartition("/")
    by_name = TESTS / folder / f"test_{name}.py"
    assert by_name.is_file() or any(module in covered(file) for file in TEST_FILES), (
        f"write {by_name.relative_to(REPOSITORY)}, or the line 'covers {module}' into a test file's docstring"
    )


@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_every_test_file_says_what_it_tests(file: Path) -> None:
    """By its name or its docstring; those beside the rooms are about the program as a whole."""
    assert (ast.get_docstring(ast.parse(file.read_text())) or "").strip(), "it has no docstring"
    strays = [name for name in covered(file) if name not in MODULES]
    assert not strays, f"{strays} are not modules"
    room = file.relative_to(TESTS).parts[0]
    if room in ROOMS:
        module = str(file.relative_to(TESTS).with_name(f"{file.stem.removeprefix('test_')}.py").with_suffix(""))
        assert module in MODULES or covered(file), f"{module} is not a module: which does it cover?"


def test_tests_stand_in_rooms() -> None:
    folders = {folder.name for folder in TESTS.iterdir() if folder.is_dir() and folder.name != "__pycache__"}
    assert folders <= set(ROOMS) | NO_ROOMS


def test_contributing_lists_the_rooms_in_their_order() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    [layout] = re.findall(r"^## Layout\n.*?^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rooms = re.findall(r"^  (\w+)(?:/|\.py) +\S", layout, re.MULTILINE)
    assert rooms == ROOMS
    others = re.findall(r"^(\w+)/ +\S", layout, re.MULTILINE)
    assert all((REPOSITORY / folder).is_dir() for folder in others) and {"tests", "docs", "launch"} <= set(others)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_documents_name_files_that_exist(document: Path) -> None:
    text = document.read_text().replace("pipeline/methods/mlp_probe.py", "")  # which CONTRIBUTING.md lets one write
    links = [link.partition("#")[0] for link in re.findall(r"\]\((?!\w+:)([^)\s]*)\)", text)]
    assert all((document.parent / link).exists() for link in links), links
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]+\.(?:py|sh|yaml|json|md))`", text)
    generated = {"evaluation/metrics.json", "data/manifest.json", "logs/trace.json", "logs/memory.json"}
    strays = [
        name
        for name in named
        if name not in generated and not any((place / name).is_file() for place in (REPOSITORY, PACKAGE))
    ]
    assert not strays


def test_loose_modules_are_rooms_of_their_own() -> None:
    assert {name for name in LOOSE if not name.startswith("__")} <= set(ROOMS)
