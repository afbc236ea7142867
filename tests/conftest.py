"""Of every test."""

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline.core.imports import quick_imports, without_compiler
from pipeline.core.run_lock import RunLock

# A loaded machine must not fail a property.
settings.register_profile("ltune", deadline=None)
settings.load_profile("ltune")


FIRST = ("tests/slurm", "tests/launch", "tests/faults")
"""They start launchers, clusters and ranks of their own, so they take longest, most of it waiting."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """All test files are imported."""
    with quick_imports(), without_compiler():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files are handed out in this order (launch/test.sh): a long one must not be the last."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.fixture(autouse=True)
def _quick_garbage_collection() -> Iterator[None]:
    """Accelerate and DeepSpeed collect garbage in every stage: a second each time, through all that is imported here.

    What a test leaves alive is taken out of the collector's sight, garbage is not.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def owner_of() -> Iterator[Callable[..., int]]:
    """Starts a process that holds the lock until it is killed; `with_child` it leaves a child behind."""
    started: list[int] = []

    def start(folder: Path, *, with_child: bool = False) -> int:
        ready, told = os.pipe()
        owner = os.fork()
        if owner == 0:
            lock = RunLock(folder)
            lock.acquire()
            child = os.fork() if with_child else os.getpid()
            if child:
                os.write(told, str(child).zfill(10).encode())
            time.sleep(600)
            os._exit(0)
        started.extend({owner, int(os.read(ready, 10))})
        return owner

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
