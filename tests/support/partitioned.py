"""What every rank of test_frozen_zero3.py does: the frozen backbone under ZeRO-3 against the plain one."""

from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn

from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from tests.support.tiny import tiny_model

B, T, P = 2, 5, 3
CASES = [  # (family, injection, activation checkpointing): few, since an engine start costs about a second
    ("bert", "prefix", True),
    ("deberta", "prefix", True),
    ("deberta_v2", "prompt", True),
    ("falcon_40b", "prefix", True),
    ("gemma2", "prompt", True),
    ("gpt2", "prefix", True),
    ("llama_gqa", "prefix", False),
    ("opt_projected", "prompt", False),
    ("qwen3", "prefix", True),
]
ENGINE = {
    "train_micro_batch_size_per_gpu": B,
    "optimizer": {"type": "AdamW", "params": {"lr": 1.0e-3, "torch_adam": True}},
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


class Injected(nn.Module):
    """A trainable injection in a frozen backbone: token ids [B, T] -> a number."""

    def __init__(self, family: str, kind: str, checkpointing: bool):
        super().__init__()
        model = tiny_model(family)
        facts = facts_of(model.config)
        self.backbone = FrozenBackbone(model, facts, gradient_checkpointing=checkpointing)
        shape = (P, facts.hidden_size) if kind == "prompt" else (facts.layers, 2, facts.kv_heads, P, facts.head_dim)
        self.kind = kind
        self.injected = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))

    def forward(self, ids: Tensor) -> Tensor:
        mask = torch.ones(B, P, dtype=torch.bool)
        if self.kind == "prompt":
            injection = Injection(mask, prompt=self.injected.expand(B, -1, -1))
        else:
            injection = Injection(mask, prefix=self.injected[:, :, None].expand(-1, -1, B, -1, -1, -1))
        return self.backbone(ids, torch.ones_like(ids), injection).pow(2).mean()


def compare_all(folder: Path) -> dict[str, dict[str, float]]:
    """Case -> differences from the plain model, and the number of backbone parameters left gathered."""
    torch.set_num_threads(1)
    return {
        f"{family} {kind} {checkpointing}": compare(family, kind, checkpointing)
        for family, kind, checkpointing in CASES
    }


def is_gathered(parameter: Any) -> bool:
    return parameter.ds_status != ZeroParamStatus.NOT_AVAILABLE


def compare(family: str, kind: str, checkpointing: bool) -> dict[str, float]:
    ids = torch.randint(4, 200, (B, T), generator=torch.Generator().manual_seed(1))
    plain = Injected(family, kind, checkpointing=False)
    expected = plain(ids)
    expected.backward()
    model = Injected(family, kind, checkpointing)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=[model.injected], config=ENGINE)
    with torch.no_grad():
        engine(ids)  # a forward without backward, as in evaluation, must not disturb the next step
    loss = engine(ids)
    engine.backward(loss)
    gradient = safe_get_full_grad(model.injected)
    assert plain.injected.grad is not None
    gathered = sum(is_gathered(parameter) for parameter in model.backbone.parameters())
    engine.step()
    engine.destroy()
    return {
        "loss": (loss - expected).abs().item(),
        "gradient": ((gradient - plain.injected.grad).norm() / plain.injected.grad.norm()).item(),
        "left gathered": gathered,
    }
