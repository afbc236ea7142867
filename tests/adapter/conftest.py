"""Of the tests of adapters."""

from pathlib import Path

import pytest
import torch

from pipeline.adapter.directory import save_adapter
from tests.support.tiny_adapter import FACTS, LABELS, some_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    method = some_config().method.build(FACTS, 5, 3)
    save_adapter(tmp_path / "adapter", method.state_dict(), some_config().adapter_config(), LABELS)
    return tmp_path / "adapter"
