"""Adapters for the tests of the server."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.served import save_adapters


@pytest.fixture(autouse=True)
def _formatters_as_before() -> Iterator[None]:
    """`serve` gives every handler JSON lines, those of pytest too, which serve later tests."""
    before = [(handler, handler.formatter) for handler in logging.getLogger().handlers]
    yield
    for handler, formatter in before:
        handler.setFormatter(formatter)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories by name: every method, on one backbone."""
    return save_adapters(tmp_path_factory.mktemp("adapters"))
