"""What the tests of several stages count."""

from typing import Any

import pytest
import torch

from pipeline.backbone.frozen import FrozenBackbone


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts in every forward of a frozen backbone."""
    counts: list[int] = []
    original = FrozenBackbone.forward

    def counted(self: FrozenBackbone, input_ids: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        counts.append(len(input_ids))
        return original(self, input_ids, *rest, **named)

    monkeypatch.setattr(FrozenBackbone, "forward", counted)
    return counts
