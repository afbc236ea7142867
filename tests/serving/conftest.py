"""Adapters for the tests of the server."""

from pathlib import Path

import pytest

from tests.support.served import save_adapters


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories by name: every method, on one backbone."""
    return save_adapters(tmp_path_factory.mktemp("adapters"))
