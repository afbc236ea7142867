"""Checkpoints in FP8 and MXFP4: read as the floats that transformers unpacks them to, in slices."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, FineGrainedFP8Config, Mxfp4Config, PreTrainedModel

from pipeline.backbone.config import BackboneConfig, Quantization
from pipeline.backbone.loading import load_backbone
from pipeline.backbone.quantized import QuantizedLinear
from pipeline.core.errors import UserError
from pipeline.distributed.ranks import Ranks
from tests.families.models import tiny_model

BLOCK = 8


def load(path: Path, quantization: Quantization = "none") -> PreTrainedModel:
    config = BackboneConfig(name_or_path=str(path), quantization=quantization, dtype="float32")
    return load_backbone(config, zero_config=None, device=torch.device("cpu"), ranks=Ranks.alone())


def pack(path: Path, kind: str, settings: dict[str, Any]) -> Path:
    """A tiny checkpoint of this type, its matrices packed by hand; norms and embeddings stay floats."""
    tiny_model(kind, **({"hidden_size": 64} if kind == "gpt_oss" else {})).save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    for name, tensor in list(tensors.items()):
        if settings["quant_method"] == "fp8" and "proj.weight" in name:
            tensors[name], tensors[f"{name}_scale_inv"] = fp8(tensor)
        if settings["quant_method"] == "mxfp4" and name.endswith("_proj") and tensor.ndim == 3:
            del tensors[name]
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = mxfp4(tensor)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return path


def fp8(matrix: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = (-(-size // BLOCK) for size in matrix.shape)
    scales = torch.rand(rows, columns, generator=torch.Generator().manual_seed(rows)) + 0.5
    return (matrix * 3).to(torch.float8_e4m3fn), scales


def mxfp4(experts: Tensor) -> tuple[Tensor, Tensor]:
    """Of [E, in, out]: any bytes will do."""
    count, inputs, outputs = experts.shape
    generator = torch.Generator().manual_seed(inputs)
    blocks = torch.randint(0, 256, (count, outputs, inputs // 32, 16), generator=generator, dtype=torch.uint8)
    exponents = torch.randint(120, 126, (count, outputs, inputs // 32), generator=generator, dtype=torch.uint8)
    return blocks, exponents


FP8 = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}


@pytest.fixture(scope="module", params=["llama", "deepseek_v3", "gpt_oss"])
def packed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "gpt_oss":
        return pack(folder, "gpt_oss", {"quant_method": "mxfp4"}), Mxfp4Config(dequantize=True)
    return pack(folder, request.param, FP8), FineGrainedFP8Config(weight_block_size=(BLOCK, BLOCK), dequantize=True)


def test_floats_are_those_that_transformers_unpacks(packed: tuple[Path, Any]) -> None:
    path, settings = packed
    theirs = AutoModel.from_pretrained(path, dtype=torch.float32, quantization_config=settings)
    for name, tensor in load(path).named_parameters():
        # transformers unpacks MXFP4 to bfloat16, in which these values are exact.
        assert torch.equal(tensor, theirs.get_parameter(name).float()), name


def test_8_bits_are_within_a_step_of_them(packed: tuple[Path, Any]) -> None:
    path, _ = packed
    plain, near = load(path), load(path, "int8")
    layers = {name: module for name, module in near.named_modules() if isinstance(module, QuantizedLinear)}
    assert layers
    for name, layer in layers.items():
        weight = plain.get_parameter(f"{name}.weight")
        step = weight.abs().amax(dim=1, keepdim=True) / 127
        assert ((layer.dequantized(torch.float32) - weight).abs() <= step).all()


def test_other_ways_are_refused_by_name(tmp_path: Path) -> None:
    path = pack(tmp_path, "llama", {"quant_method": "awq", "bits": 4})
    with pytest.raises(UserError, match=r"is quantized already \(awq\); give the original .* or those in fp8 or"):
        load(path, "int8")


def test_one_scale_for_a_matrix_and_scales_that_do_not_fit(tmp_path: Path) -> None:
    path = pack(tmp_path, "llama", FP8)
    name, tensors = "layers.0.mlp.up_proj.weight", load_file(path / "model.safetensors")
    save_file(tensors | {f"{name}_scale_inv": torch.tensor(0.5)}, path / "model.safetensors", {"format": "pt"})
    assert torch.equal(load(path).get_parameter(name), tensors[name].float() * 0.5)
    save_file(tensors | {f"{name}_scale_inv": torch.ones(2, 2)}, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"weight_scale_inv is \[2, 2\] for .*up_proj\.weight of \[32, 16\], a layout"):
        load(path)


def test_exponents_that_do_not_fit_and_blocks_that_are_none(tmp_path: Path) -> None:
    path = pack(tmp_path / "experts", "gpt_oss", {"quant_method": "mxfp4"})
    tensors = load_file(path / "model.safetensors")
    name = "layers.0.mlp.experts.down_proj_scales"
    save_file(tensors | {name: tensors[name][:, :3].contiguous()}, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"down_proj_scales is \[4, 3, 1\] for .*down_proj_blocks"):
        load(path)
    with pytest.raises(UserError, match=r"config\.json has blocks of \[0, 8\]"):
        load(pack(tmp_path / "blocks", "llama", FP8 | {"weight_block_size": [0, 8]}))
