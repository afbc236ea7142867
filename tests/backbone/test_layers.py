"""`backbone.layers`: the model of the first layers alone, of every family; of the others nothing is read.

covers backbone/weight_names, backbone/model_config
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.facts import facts_of
from pipeline.backbone.loading import load_backbone
from pipeline.backbone.model_config import load_model_config
from pipeline.core.errors import UserError
from pipeline.distributed.ranks import Ranks
from tests.families.models import tiny_model as family_model
from tests.support.tiny import FAMILIES, save_tiny, tiny_model

IDS = torch.tensor([[5, 9, 200, 31, 7], [8, 8, 100, 4, 250]])


def first_layers(path: Path, count: int | None, quantization: str = "none") -> nn.Module:
    config = BackboneConfig(name_or_path=str(path), dtype="float32", layers=count, quantization=quantization)
    return load_backbone(config, zero_config=None, device=torch.device("cpu"), ranks=Ranks.alone())


def spoil(path: Path, layer: int) -> None:
    """Makes every floating-point weight of this layer NaN, which a load that reads it refuses."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    of_layer = [name for name in tensors if f".{layer}." in name or name.startswith(f"{layer}.")]
    assert of_layer
    for name in of_layer:
        tensors[name].fill_(float("nan"))
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rest_is_neither_read_nor_computed(tmp_path: Path, family: str) -> None:
    layers = {"n_layer": 3} if family in ("gpt2", "bloom") else {"num_hidden_layers": 3}
    model = tiny_model(family, **layers)
    save_tiny(tmp_path, family, **layers)
    [stack] = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == 3]
    del stack[2]
    model.config.num_hidden_layers = 2
    spoil(tmp_path, 2)
    with pytest.raises(UserError, match="not finite"):
        first_layers(tmp_path, None)
    cut = first_layers(tmp_path, 2)
    assert facts_of(cut.config).layers == 2
    with torch.no_grad():
        assert torch.equal(cut(IDS).last_hidden_state, model(IDS).last_hidden_state)


def test_kinds_of_layers_are_cut_too(tmp_path: Path) -> None:
    save_tiny(tmp_path, "gemma3", num_hidden_layers=3, layer_types=["full_attention", *2 * ["sliding_attention"]])
    config = load_model_config(BackboneConfig(name_or_path=str(tmp_path), layers=2))
    assert config.layer_types == ["full_attention", "sliding_attention"] and facts_of(config).sliding_layers == 1


@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe", "modernbert"])
def test_layers_of_another_kind_than_the_first_are_cut_too(tmp_path: Path, kind: str) -> None:
    """Those behind have tensors that the first layer lacks: of attention, of experts, of a norm."""
    family_model(kind).save_pretrained(tmp_path)
    with torch.no_grad():
        cut = first_layers(tmp_path, 1)
    assert facts_of(cut.config).layers == 1


def test_a_table_of_embeddings_for_all_layers_is_not_cut(tmp_path: Path) -> None:
    """And its size is not taken for a number of layers: of Gemma 4 it has 262,144 rows."""
    AutoConfig.for_model("gemma4_text").save_pretrained(tmp_path)
    assert facts_of(load_model_config(BackboneConfig(name_or_path=str(tmp_path)))).layers == 30
    with pytest.raises(UserError, match=r"backbone.layers is 12, but gemma4_text has one table .* ends with 30"):
        load_model_config(BackboneConfig(name_or_path=str(tmp_path), layers=12))
    assert load_model_config(BackboneConfig(name_or_path=str(tmp_path), layers=[1, 30])).num_hidden_layers == 30


def test_of_task_models_and_in_8_bits(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama_gqa", AutoModelForCausalLM, num_hidden_layers=3)
    spoil(tmp_path, 2)
    exact, near = first_layers(tmp_path, 2), first_layers(tmp_path, 2, "int8")
    with torch.no_grad():
        assert torch.allclose(exact(IDS).last_hidden_state, near(IDS).last_hidden_state, atol=0.3)


def test_more_layers_than_there_are_and_strangers_are_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    with pytest.raises(UserError, match=r"^backbone\.layers is 3, but the backbone has 2 layers: set 2 or fewer$"):
        first_layers(tmp_path, 3)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"layers.0.other.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="tensors that LlamaModel lacks"):
        first_layers(tmp_path, 1)
