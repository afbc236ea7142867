"""A command's stages read the weights once, and none finds what another did to its model. covers engine/models."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.adapter.label_states import LabelStates
from pipeline.config import RunConfig, load_config
from pipeline.distributed.zero import own_share
from pipeline.engine import models
from pipeline.engine.backbone import backbone_of
from pipeline.engine.models import load_frozen, release
from pipeline.engine.startup import start
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.encode_texts import encode_texts
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.run import run
from pipeline.stages.train import train
from tests.support.tiny_run import tiny_config
from tests.support.worlds import run_worlds

STAGES = (preprocess, encode_labels, encode_texts, train, evaluate)
LATE_PREFIX = {"name": "lt_prefix", "head": "label_aware", "first_layer": 1}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A name for each time that weights are read from files."""
    found: list[str] = []
    real = models.load_backbone

    def counting(config: Any, **options: Any) -> Any:
        found.append(config.name_or_path)
        return real(config, **options)

    monkeypatch.setattr(models, "load_backbone", counting)
    return found


def config_in(folder: Path, zero: int | None, method: dict[str, Any], **backbone: Any) -> RunConfig:
    engine = {}
    if zero is not None:
        settings = json.loads(Path("ds_configs/zero3_cpu.json").read_text())
        settings["zero_optimization"] = {"stage": zero}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "zero.json").write_text(json.dumps(settings))
        engine = {"deepspeed": str(folder / "zero.json")}
    return tiny_config(
        folder,
        method=method,
        engine=engine,
        backbone=backbone,
        train={"max_steps": 3, "batch_size": 4, "eval_every": 2},
        logging={"trackers": ["jsonl"]},
    )


def made(config: RunConfig) -> dict[str, torch.Tensor]:
    """All that came out of a run, by name."""
    directory = config.run_dir
    found = {"labels": LabelStates.load(directory.labels).states, "metrics": _bytes(directory.metrics_file)}
    for file in directory.path.glob("adapter*/*.safetensors"):
        found |= {f"{file.parent.name}/{name}": tensor for name, tensor in load_file(file).items()}
    return found | {f"texts/{file.name}": _bytes(file) for file in directory.path.glob("texts/**/*.safetensors")}


def _bytes(file: Path) -> torch.Tensor:
    return torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("zero", "method", "backbone", "expected"),
    [
        (None, LATE_PREFIX, {"gradient_checkpointing": True}, 1),
        (3, {"name": "prompt", "head": "fitted"}, {"quantization": "int8"}, 1),
        (0, {"name": "lora"}, {}, 1),
        (2, {"name": "full"}, {}, 2),
        (3, {"name": "full"}, {}, 2),
    ],
)
def test_run_makes_what_the_stages_make_one_by_one(
    tmp_path: Path, loads: list[str], zero: int | None, method: dict[str, Any], backbone: dict[str, Any], expected: int
) -> None:
    """`full` writes into the weights: training takes what is kept, and evaluate reads its own."""
    together, alone = (config_in(tmp_path / name, zero, method, **backbone) for name in ("together", "alone"))
    run(together)
    assert len(loads) == expected
    for stage in STAGES:
        stage(alone)
    assert len(loads) > 2 * expected
    found, wanted = made(together), made(alone)
    assert found.keys() == wanted.keys() and len(found) > 4
    assert not [name for name in found if not torch.equal(found[name], wanted[name])]


@pytest.mark.parametrize("zero", [0, 3])
def test_weights_are_in_memory_once(tmp_path: Path, loads: list[str], zero: int) -> None:
    config = config_in(tmp_path, zero, LATE_PREFIX)
    accelerator, ranks = start(config)
    backbone = backbone_of(config.backbone, config.data)
    text = torch.arange(8)[None]

    def places(model: torch.nn.Module) -> set[int]:
        return {own_share(parameter).data_ptr() for parameter in model.parameters()}

    first = load_frozen(accelerator, ranks, backbone)
    where = places(first)
    model = models.prepare_inference(accelerator, first, torch.float32)
    states = model(text, torch.ones_like(text))
    first.model.norm.register_forward_hook(lambda *_: pytest.fail("a hook of another stage's model"))
    release(accelerator, model)
    second = load_frozen(accelerator, ranks, backbone)
    assert places(second) == where and not where & places(first)
    model = models.prepare_inference(accelerator, second, torch.float32)
    assert torch.equal(model(text, torch.ones_like(text)), states)
    release(accelerator, model)
    third = load_frozen(accelerator, ranks, backbone, written=True)
    assert places(third) == where and backbone.kept is None and len(loads) == 1
    load_frozen(accelerator, ranks, backbone)
    other, ranks = start(config_in(tmp_path, 3 - zero, LATE_PREFIX))
    load_frozen(other, ranks, backbone)
    assert len(loads) == 3, "what is cut as one engine needs it is not what another needs"


def both_ways(folder: Path) -> list[str]:
    """On each rank of a world: what differs between a run and its stages one by one."""
    together, alone = (load_config(folder / f"{name}.yaml") for name in ("together", "alone"))
    run(together)
    for stage in STAGES:
        stage(alone)
    found, wanted = made(together), made(alone)
    assert found.keys() == wanted.keys() and len(found) > 4
    return [name for name in found if not torch.equal(found[name], wanted[name])]


def test_ranks_keep_their_shares(tmp_path: Path) -> None:
    for name in ("together", "alone"):
        config = config_in(tmp_path / name, 3, LATE_PREFIX)
        (tmp_path / f"{name}.yaml").write_text(config.to_yaml())
    assert run_worlds("tests.engine.test_kept_model:both_ways", [2], tmp_path, 300) == {2: [[], []]}


def test_an_engine_is_built_without_pytorchs_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed marks a kernel to be compiled where it imports it, and PyTorch imports its compiler for that."""
    for name in ("muon_optimizer", "original_muon"):
        monkeypatch.delitem(sys.modules, f"deepspeed.runtime.zero.muon.{name}", raising=False)
    config = config_in(tmp_path, 3, {"name": "lt_prefix"})
    accelerator, _ = start(config)
    module = torch.nn.Linear(4, 4)
    engine, _ = models.build_engine(accelerator, module, torch.optim.AdamW(module.parameters()))
    release(accelerator, engine)
    kernels = sys.modules["deepspeed.runtime.zero.muon.original_muon"]
    assert not hasattr(kernels.zeropower_via_newtonschulz5, "_torchdynamo_orig_callable")
    assert "TORCHDYNAMO_DISABLE" not in os.environ
