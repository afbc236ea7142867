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
from pipeline.backbone.sites import Edits
from pipeline.methods.edit import Directions
from pipeline.methods.prompt_generators import Generator
from tests.support.tiny import tiny_model

B, T, P = 2, 5, 3
CASES = [  # (family, injection, activation checkpointing, first layer): few, since an engine start takes a second
    ("bert", "prefix", True, 0),
    ("bert", "late", False, 1),
    ("deberta", "prefix", True, 0),
    ("deberta_v2", "prompt", True, 0),
    ("falcon_40b", "prefix", True, 0),
    ("gemma2", "prompt", True, 0),
    ("gpt2", "prefix", True, 0),
    ("llama_gqa", "prefix", False, 0),
    ("llama_gqa", "prefix", True, 1),
    ("llama_gqa", "late", True, 1),
    ("llama_gqa", "behind", True, 0),
    ("opt_projected", "prompt", False, 0),
    ("qwen3", "prefix", True, 0),
    ("bert", "edits", False, 0),
    ("llama_gqa", "edits", True, 0),
]
ENGINE = {
    "train_micro_batch_size_per_gpu": B,
    "optimizer": {"type": "AdamW", "params": {"lr": 1.0e-3, "torch_adam": True}},
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


class Injected(nn.Module):
    """A trainable injection in a frozen backbone: token ids [B, T] -> a number."""

    def __init__(self, family: str, kind: str, checkpointing: bool, first_layer: int):
        super().__init__()
        model = tiny_model(family)
        facts = facts_of(model.config)
        self.backbone = FrozenBackbone(model, facts, gradient_checkpointing=checkpointing)
        self.kind, self.first_layer = kind, first_layer
        shape = (P, facts.prefix_width(first_layer) if kind == "prefix" else facts.hidden_size)
        if kind == "late":  # what the text adds to the prompt where that enters
            torch.manual_seed(1)
            self.made = Generator(P, facts.hidden_size, 2, "adaptive_mean", "relu")
            torch.nn.init.normal_(self.made.up.weight)
        if kind == "edits":
            torch.manual_seed(1)
            made = [Directions(facts.hidden_size, 2, None, orthonormal=True) for _ in range(facts.layers + 2)]
            for edit in made:
                edit.bias.data.fill_(0.5)
            self.edits = nn.ModuleList(made)
            return
        self.injected = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))

    @property
    def trained(self) -> nn.Parameter:
        """The injection, or what is trained in the edit of layer 0's output, or in what makes a late prompt."""
        if self.kind == "late":
            return self.made.down.weight
        return self.edits[2].get_parameter("directions") if self.kind == "edits" else self.injected

    def forward(self, ids: Tensor) -> Tensor:
        mask, seen = torch.ones(B, P, dtype=torch.bool), torch.ones_like(ids)
        if self.kind == "edits":
            embeddings, *before = self.edits
            return self.backbone(ids, seen, edits=Edits(embeddings, dict(enumerate(before)))).pow(2).mean()
        if self.kind == "behind":  # two prompts behind each text
            prompts = Injection(mask.repeat(2, 1), prompt=self.injected.expand(2 * B, -1, -1))
            return self.backbone.behind(self.backbone.keep(ids, seen), prompts).pow(2).mean()
        kind = "prompt" if self.kind == "late" else self.kind
        injection = Injection(mask, **{kind: self.injected.expand(B, -1, -1)})
        trunk = self.backbone.trunk(ids, seen, self.first_layer) if self.first_layer else None
        edits = Edits(before={self.first_layer: self.made}, of_prompt=True) if self.kind == "late" else None
        return self.backbone(ids, seen, injection, trunk=trunk, edits=edits).pow(2).mean()


def compare_all(folder: Path) -> dict[str, dict[str, float]]:
    """Case -> differences from the plain model, and the number of backbone parameters left gathered."""
    torch.set_num_threads(1)
    return {" ".join(map(str, case)): compare(*case) for case in CASES}


def is_gathered(parameter: Any) -> bool:
    return parameter.ds_status != ZeroParamStatus.NOT_AVAILABLE


def compare(family: str, kind: str, checkpointing: bool, first_layer: int) -> dict[str, float]:
    ids = torch.randint(4, 200, (B, T), generator=torch.Generator().manual_seed(1))
    plain = Injected(family, kind, False, first_layer)
    expected = plain(ids)
    expected.backward()
    model = Injected(family, kind, checkpointing, first_layer)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[parameter for parameter in model.parameters() if parameter.requires_grad],
        config=ENGINE,
    )
    with torch.no_grad():
        engine(ids)  # a forward without backward, as in evaluation, must not disturb the next step
    loss = engine(ids)
    engine.backward(loss)
    gradient = safe_get_full_grad(model.trained)
    expected_gradient = plain.trained.grad
    assert expected_gradient is not None
    gathered = sum(is_gathered(parameter) for parameter in model.backbone.parameters())
    engine.step()
    engine.destroy()
    return {
        "loss": (loss - expected).abs().item(),
        "gradient": ((gradient - expected_gradient).norm() / expected_gradient.norm()).item(),
        "left gathered": gathered,
    }
