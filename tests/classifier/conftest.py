"""The backbone of the classifiers, and a process without what a test before has left in it."""

import pytest

from pipeline.engine.startup import leave
from tests.support.tiny import save_tiny


@pytest.fixture(autouse=True)
def _no_group() -> None:
    """What a test before has left in this process."""
    leave()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("backbone") / "tiny", "llama_gqa"))
