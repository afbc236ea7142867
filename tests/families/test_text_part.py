"""Of models that also see or hear, the language model is loaded, and nothing else is read.

covers backbone/text_part
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.loading import load_backbone, open_alike
from pipeline.backbone.model_config import load_model_config
from pipeline.backbone.quantized import QuantizedLinear
from pipeline.distributed.ranks import Ranks
from tests.families.models import _COMMON, TYPES, tiny_model

IDS = torch.tensor([[5, 9, 200, 31, 7]])
_VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
_VISION |= {"image_size": 28, "patch_size": 14}
VISION: dict[str, dict[str, Any]] = {
    "gemma3": _VISION,
    "gemma4": _VISION | {"head_dim": 8, "num_key_value_heads": 2},
    "llama4": _VISION | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    "qwen3_5": _VISION | {"depth": 1, "num_heads": 2, "out_hidden_size": 16},
}


def write(folder: Path, kind: str) -> Path:
    """The whole model, with values in all other parts that no loading lets pass."""
    unset_hf_deepspeed_config()  # a stage before this test has announced ZeRO-3: the model's parts would be partitioned
    config = AutoConfig.for_model(kind, text_config=_COMMON | TYPES[f"{kind}_text"], vision_config=VISION[kind])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    _spoil(folder / "model.safetensors")
    return folder


def write_gemma3n(folder: Path) -> Path:
    """By hand, since its vision tower is another package's."""
    tiny_model("gemma3n_text").save_pretrained(folder)
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3n", "text_config": config}))
    named = {f"model.language_model.{name}": tensor for name, tensor in weights.items()}
    save_file(named | {"model.vision_tower.x": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
    _spoil(folder / "model.safetensors")
    return folder


def _spoil(file: Path) -> None:
    tensors = load_file(file)
    others = [name for name in tensors if "language_model" not in name and not name.startswith("lm_head")]
    assert others
    save_file(tensors | {name: torch.full_like(tensors[name], torch.nan) for name in others}, file, {"format": "pt"})


@pytest.mark.parametrize("kind", [*VISION, "gemma3n"])
def test_the_language_model_is_loaded_alone(kind: str, tmp_path: Path) -> None:
    path = write_gemma3n(tmp_path) if kind == "gemma3n" else write(tmp_path, kind)
    config = BackboneConfig(name_or_path=str(path), dtype="float32")
    assert load_model_config(config).model_type == f"{kind}_text"
    checkpoint = open_alike(config, Ranks.alone()).checkpoint
    assert not any("vision" in name or "visual" in name or "projector" in name for name in checkpoint.tensors)
    cpu = torch.device("cpu")
    ours = load_backbone(config, zero_config=None, device=cpu, ranks=Ranks.alone())
    if kind == "gemma3n":
        theirs = tiny_model("gemma3n_text")
    else:
        decoder = AutoModelForImageTextToText.from_pretrained(path).eval().get_decoder()
        theirs = getattr(decoder, "model", decoder)  # Llama 4's comes with its output layer
    for name, tensor in ours.named_parameters():
        assert torch.equal(tensor, theirs.get_parameter(name)), name
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).last_hidden_state, theirs(IDS).last_hidden_state)
    quantized = load_backbone(
        config.model_copy(update={"quantization": "int4"}), zero_config=None, device=cpu, ranks=Ranks.alone()
    )
    assert any(isinstance(module, QuantizedLinear) for module in quantized.modules())


def test_a_text_model_is_its_own_text_part(tmp_path: Path) -> None:
    tiny_model("qwen3_moe").save_pretrained(tmp_path)
    config = BackboneConfig(name_or_path=str(tmp_path), dtype="float32")
    assert load_model_config(config).model_type == "qwen3_moe"
    assert set(open_alike(config, Ranks.alone()).checkpoint.tensors) == set(load_file(tmp_path / "model.safetensors"))
