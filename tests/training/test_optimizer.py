"""Learning-rate schedule and parameter groups."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.training.config import TrainConfig
from pipeline.training.optimizer import build_optimizer, learning_rate


def rates(total: int, **keys: Any) -> list[float]:
    config = TrainConfig(learning_rate=1.0, **keys)
    return [learning_rate(step, total, config) for step in range(total)]


def test_values_by_formula() -> None:
    """Four steps of warm-up, the last of them at the peak; then from the peak towards zero over the other six."""
    warm_up = [0.25, 0.5, 0.75, 1.0]
    assert rates(10, warmup_ratio=0.4) == pytest.approx(warm_up + [1 - k / 6 for k in range(6)])
    cosine = [0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(6)]
    assert rates(10, warmup_ratio=0.4, schedule="cosine") == pytest.approx(warm_up + cosine)
    assert rates(10, warmup_ratio=0.4, schedule="constant") == pytest.approx(warm_up + [1] * 6)
    assert rates(4, warmup_ratio=0) == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates(1) == [1.0] and rates(2, warmup_ratio=1) == [0.5, 1.0]


@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from(["linear", "cosine", "constant"]))
def test_rises_then_falls_within_bounds(total: int, warmup: float, schedule: Any) -> None:
    values = rates(total, warmup_ratio=warmup, schedule=schedule)
    peak = values.index(max(values))
    assert all(0 < value <= 1 for value in values), "no step is lost on a rate of zero"
    assert values[: peak + 1] == sorted(values[: peak + 1]) and values[peak:] == sorted(values[peak:], reverse=True)


def test_matrices_decay_and_vectors_do_not() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 1, bias=False))
    optimizer = build_optimizer(module.parameters(), TrainConfig(weight_decay=0.3, learning_rate=0.1))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert isinstance(optimizer, torch.optim.AdamW) and len(decay) == len(list(module.parameters()))
    assert all(decay[id(p)] == (0.3 if p.ndim > 1 else 0.0) for p in module.parameters())
    assert all(group["lr"] == 0.1 and group["params"] for group in optimizer.param_groups)


@pytest.mark.parametrize("module", [nn.Linear(3, 2, bias=False), nn.LayerNorm(3)])
def test_no_group_is_empty(module: nn.Module) -> None:
    [group] = build_optimizer(module.parameters(), TrainConfig()).param_groups
    assert len(group["params"]) == len(list(module.parameters()))
