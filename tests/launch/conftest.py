"""A run that is ready to train, and what two plain processes make of it: the measure for every launcher."""

from pathlib import Path

import pytest

from tests.launch.runs import adapter_files, copy_of_run, prepared_run
from tests.support.processes import launch, run_script


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launchers")
    prepared_run(folder)
    return folder


def two_processes(folder: Path) -> list[int]:
    """Told by hand that they are two ranks."""
    return launch(["train", *copy_of_run(folder, "by-hand")], folder / "by-hand.log", world=2)


@pytest.fixture(scope="session")
def by_hand(folder: Path) -> dict[str, bytes]:
    """Of processes that no launcher has started."""
    statuses = run_script("tests.launch.conftest:two_processes", folder, 400)
    assert statuses == [0, 0], (folder / "by-hand.log").read_text()
    return adapter_files(folder / "by-hand")
