"""A run that is ready to train, and what two plain processes make of it: the measure for every launcher."""

import sys
from pathlib import Path

import pytest

from pipeline.distributed.launcher import free_port
from tests.launch.runs import adapter_files, copy_of_run, prepared_run, start, statuses


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launchers")
    prepared_run(folder)
    return folder


@pytest.fixture(scope="session")
def by_hand(folder: Path) -> dict[str, bytes]:
    """Two plain `python -m pipeline`, told by hand that they are two ranks."""
    arguments, port = copy_of_run(folder, "by-hand"), free_port()
    ranks = [
        start(
            [sys.executable, "-m", "pipeline", "train", *arguments],
            folder / "by-hand.log",
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        )
        for rank in range(2)
    ]
    assert statuses(*ranks) == [0, 0], (folder / "by-hand.log").read_text()
    return adapter_files(folder / "by-hand")
