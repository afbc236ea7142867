"""Three lists of packages agree: ranges in pyproject.toml, pins in requirements*.txt, all in constraints.txt."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]


def pins(file: str) -> dict[str, str]:
    lines = (REPOSITORY / file).read_text().splitlines()
    pairs = [line.split("==") for line in lines if re.match(r"[\w.-]+==", line)]
    return {canonicalize_name(name): version for name, version in pairs}


def ranges() -> list[Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["dependencies"]]


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_constraints_hold_every_pin(file: str) -> None:
    constraints = pins("constraints.txt")
    assert pins(file) and {name: constraints.get(name) for name in pins(file)} == pins(file)


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned = pins("requirements.txt")
    assert {canonicalize_name(dependency.name) for dependency in ranges()} == set(pinned)
    assert all(dependency.specifier.contains(pinned[canonicalize_name(dependency.name)]) for dependency in ranges())


def test_oldest_versions_can_be_read_off_the_ranges() -> None:
    """.ci/versions installs the lower ends."""
    for dependency in ranges():
        assert [part.operator for part in dependency.specifier if part.operator != "<"] == [">="], dependency
