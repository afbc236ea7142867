"""One pass of the whole model gives what the models of its first layers give, of every family, bit for bit."""

from pathlib import Path

import pytest
import torch

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.every_layer import PARTS, EveryLayer
from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.loading import load_backbone
from pipeline.backbone.pooling import pool
from pipeline.distributed.ranks import Ranks
from tests.support.tiny import FAMILIES, save_tiny

IDS = torch.tensor([[5, 9, 200, 31, 7], [8, 8, 100, 1, 1], [1, 1, 42, 43, 44]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])


def frozen(
    path: Path, layers: int | None, quantization: str = "none", *, checkpointing: bool = False
) -> FrozenBackbone:
    config = BackboneConfig(name_or_path=str(path), dtype="float32", layers=layers, quantization=quantization)
    model = load_backbone(config, zero_config=None, device=torch.device("cpu"), ranks=Ranks.alone())
    return FrozenBackbone(model, facts_of(model.config), gradient_checkpointing=checkpointing)


def check(path: Path, quantization: str = "none", *, checkpointing: bool = False) -> None:
    with torch.no_grad():
        found = EveryLayer(frozen(path, None, quantization, checkpointing=checkpointing))(IDS, MASK)
        assert found.shape[:3] == (3, 4, len(IDS))
        for layers, states in enumerate(found, 1):
            hidden = frozen(path, layers, quantization)(IDS, MASK)
            for how, parts in PARTS.items():
                pooled, expected = torch.cat([*states[list(parts)]], dim=-1), pool(hidden, MASK, how)
                # Sums of states in other places of a row, for the text that is padded on the left.
                assert torch.equal(pooled[:2], expected[:2]) and torch.allclose(pooled, expected, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_the_model_that_ends_there(tmp_path: Path, family: str) -> None:
    layers = {"n_layer": 3} if family in ("gpt2", "bloom") else {"num_hidden_layers": 3}
    check(save_tiny(tmp_path, family, **layers))


def test_what_lies_between_two_layers(tmp_path: Path) -> None:
    check(save_tiny(tmp_path, "deberta_v2", num_hidden_layers=3, conv_kernel_size=3, conv_act="gelu"))


def test_in_8_bits_and_with_checkpointing(tmp_path: Path) -> None:
    check(save_tiny(tmp_path, "llama_gqa", num_hidden_layers=3), "int8", checkpointing=True)
