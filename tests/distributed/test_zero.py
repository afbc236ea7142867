"""The fence around DeepSpeed: every name that it relies on is there, and does what it is used for."""

import gc
import json
import pkgutil
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
from torch import nn

from pipeline.distributed import zero
from pipeline.engine.startup import start
from tests.support.tiny_run import tiny_config

HOW_TO_MEND = "this version of DeepSpeed lacks a name that pipeline/distributed/zero.py uses: mend it there"


@pytest.mark.parametrize("name", zero.NAMES)
def test_deepspeed_has(name: str) -> None:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        pytest.fail(f"{name}: {HOW_TO_MEND}")


def engine_of(folder: Path, stage: int) -> tuple[Any, nn.Module]:
    """An engine around a small layer, after one step."""
    settings = {
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "bf16": {"enabled": "auto"},
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }
    (folder / f"zero{stage}.json").write_text(json.dumps(settings))
    config = tiny_config(folder, engine={"deepspeed": str(folder / f"zero{stage}.json")})
    accelerator, _ = start(config)
    layer = nn.Linear(4, 3)
    engine, optimizer = accelerator.prepare(layer, torch.optim.AdamW(layer.parameters(), lr=0.1))
    accelerator.backward(engine(torch.ones(2, 4)).square().sum())
    optimizer.step()
    return engine, layer


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_hangs_on_its_objects(stage: int, tmp_path: Path) -> None:
    engine, layer = engine_of(tmp_path, stage)
    for name in zero.ON_PARAMETERS[stage]:
        assert all(hasattr(parameter, name) for parameter in layer.parameters()), f"{name}: {HOW_TO_MEND}"
    for name in zero.ON_OPTIMIZERS.get(stage, ()):
        assert hasattr(engine.optimizer, name), f"{name}: {HOW_TO_MEND}"
    assert any(hasattr(engine.optimizer, name) for name in zero.FLAT_MASTERS), f"{zero.FLAT_MASTERS}: {HOW_TO_MEND}"
    assert hasattr(engine.basic_optimizer, "state"), f"basic_optimizer: {HOW_TO_MEND}"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_values_come_back_as_they_were_set(stage: int, tmp_path: Path) -> None:
    engine, layer = engine_of(tmp_path, stage)
    zero.link_moments(engine.optimizer)
    for number, parameter in enumerate(layer.parameters(), start=1):
        assert zero.element_count(parameter) == (12 if number == 1 else 3)
        assert zero.is_partitioned(parameter) == (stage == 3)
        value = torch.arange(zero.element_count(parameter)).float() / 7 + number
        value = value.view(3, 4) if number == 1 else value
        zero.set_master(parameter, value)
        assert torch.equal(zero.master(parameter), value)
        for offset, key in enumerate(zero.MOMENTS):
            zero.set_moment(engine, parameter, value + offset, key)
            assert torch.equal(zero.moment(engine, parameter, key), value + offset)
        with zero.whole(parameter, written=True), torch.no_grad():
            parameter.mul_(2)
        with zero.whole(parameter):
            assert parameter.shape == value.shape
    zero.give_back(layer)
    assert all(parameter.numel() == 0 for parameter in layer.parameters())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_module_that_was_given_back_is_freed(stage: int, tmp_path: Path) -> None:
    """DeepSpeed holds it in a list and in a cache: a comparison would have the engines of all its cells in memory."""
    engine, layer = engine_of(tmp_path, stage)
    for _ in range(2):  # what to release after a layer is looked up from the second forward on
        engine.backward(engine(torch.ones(2, 4)).square().sum())
        engine.step()
    engine.destroy()
    zero.give_back(layer)
    kept = ref(layer)
    del engine, layer
    gc.collect()
    assert kept() is None
