"""Weights of 4 bits against the definition in float64, and a model that is loaded in them.

covers backbone/quantized, backbone/quantization
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.int4 import Int4Blocks
from pipeline.backbone.loading import load_backbone
from pipeline.backbone.quantization import quantized_like
from pipeline.backbone.quantized import QuantizedLinear
from pipeline.distributed.ranks import Ranks
from tests.support.tiny import save_tiny, tiny_model

WIDTHS = [1, 31, 64, 65, 200]
IN_4_BITS = BackboneConfig(name_or_path="none", quantization="int4", dtype="float32")


def rows_of(width: int) -> Tensor:
    """Nine rows in float16: some far wider than others, one of zeros, one of ones, one too small to divide by."""
    rows = torch.randn(9, width, generator=torch.Generator().manual_seed(width))
    rows *= torch.logspace(-3, 3, 9).unsqueeze(1)
    rows[2], rows[3], rows[4] = 0, 1, 6e-8
    return rows.half()


def defined(rows: Tensor) -> Tensor:
    """What 4 bits leave of rows, number by number: whole eighths of each block's number of largest magnitude."""
    found = torch.zeros_like(rows, dtype=torch.float64)
    for row, numbers in enumerate(rows.double()):
        for start in range(0, len(numbers), 64):
            block = numbers[start : start + 64].tolist()
            extreme = max(block, key=abs)
            step = -extreme / 8
            codes = [max(-8, min(7, round(number / step))) if step else 0 for number in block]
            found[row, start : start + 64] = torch.tensor([code * step for code in codes], dtype=torch.float64)
    return found


def layer_of(rows: Tensor, bias: Tensor | None = None) -> QuantizedLinear:
    layer = quantized_like(nn.Linear(rows.shape[1], len(rows), bias is not None, device="meta"), IN_4_BITS)
    assert layer is not None
    codes, scale_bits = layer.quantize(rows)
    assert codes.shape == layer.weight.shape and scale_bits.shape == layer.scale_bits.shape
    layer.weight, layer.scale_bits = (nn.Parameter(part, requires_grad=False) for part in (codes, scale_bits))
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


@pytest.mark.parametrize("width", WIDTHS)
def test_weights_are_the_definition_s(width: int) -> None:
    rows, layer = rows_of(width), layer_of(rows_of(width))
    expected = defined(rows)
    assert torch.equal(layer.dequantized(torch.float64), expected)
    assert torch.equal(layer.dequantized(torch.float32).double(), expected)  # exact there too
    assert torch.equal(layer.dequantized(torch.bfloat16), expected.bfloat16())
    blocks = -(-width // 64)
    assert layer.weight.nbytes == 9 * blocks * 32 and layer.scale_bits.nbytes == 9 * blocks * 2
    assert (rows.double() - expected).abs().max(1).values.le(rows.abs().amax(1).double() / 8).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_products_and_gradients_are_those_of_the_definition(width: int) -> None:
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(9, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 3, width, generator=generator, dtype=torch.float64).requires_grad_()
    same, again = (x.detach().clone().requires_grad_() for _ in range(2))
    layer = layer_of(rows_of(width), bias)
    found, expected = layer(x), same @ defined(rows_of(width)).t() + bias
    recomputed = checkpoint(layer, again, use_reentrant=False)
    for output in (found, expected, recomputed):
        output.square().sum().backward()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, same.grad, rtol=1e-12, atol=1e-9)
    assert torch.equal(found, recomputed) and torch.equal(x.grad, again.grad)


def test_codes_and_scales_survive_casts_and_an_odd_place_in_memory() -> None:
    layer = layer_of(rows_of(200))
    before = layer.dequantized(torch.float64)
    layer.bfloat16().half()
    assert torch.equal(layer.dequantized(torch.float64), before)
    for name in ("weight", "scale_bits"):
        tensor = getattr(layer, name).data
        flat = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
        flat[1:] = tensor.flatten()
        setattr(layer, name, nn.Parameter(flat[1:].view(tensor.shape), requires_grad=False))
    assert torch.equal(layer.dequantized(torch.float64), before)


def test_a_loaded_model_has_the_weights_of_the_definition(tmp_path: Path) -> None:
    """Gpt2's are stored in columns; both have sizes that are no multiples of a block."""
    for family in ("llama_gqa", "gpt2"):
        save_tiny(tmp_path / family, family)
        config = IN_4_BITS.model_copy(update={"name_or_path": str(tmp_path / family)})
        model = load_backbone(config, zero_config=None, device=torch.device("cpu"), ranks=Ranks.alone())
        plain = tiny_model(family)
        layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
        assert len(layers) == (14 if family == "llama_gqa" else 8)
        for name, layer in layers.items():
            weight = plain.get_parameter(f"{name}.weight")
            stored = weight.t() if family == "gpt2" else weight
            assert layer.storage is Int4Blocks
            assert torch.equal(layer.dequantized(torch.float64), defined(stored.half())), name
