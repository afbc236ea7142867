"""The quantized layers against bitsandbytes' own layer and against float64."""

import bitsandbytes
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.int8 import Int8Linear
from pipeline.backbone.quantization import quantized_like
from pipeline.backbone.quantized import QuantizedLinear

THRESHOLDS = [0.0, 2.0, 6.0]


def like(module: nn.Module, quantization: str, threshold: float = 6.0) -> QuantizedLinear | None:
    settings = {"quantization": quantization, "int8_threshold": threshold, "dtype": "float32"}
    return quantized_like(module, BackboneConfig(name_or_path="none", **settings))


def quantized(linear: nn.Linear, quantization: str = "int8", threshold: float = 6.0) -> QuantizedLinear:
    layer = like(linear, quantization, threshold)
    assert layer is not None
    codes, scale_bits = layer.quantize(linear.weight.data)
    layer.weight, layer.scale_bits = nn.Parameter(codes, requires_grad=False), scale_bits
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.data.clone(), requires_grad=False)
    return layer


def inputs(dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[..., 7] *= 10  # a column of outliers
    return x


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(24, 10)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_int8_equals_bitsandbytes(linear: nn.Linear, threshold: float, dtype: torch.dtype, bias: bool) -> None:
    if not bias:
        linear.bias = None
    theirs = bitsandbytes.nn.Linear8bitLt(24, 10, bias=bias, has_fp16_weights=False, threshold=threshold)
    theirs.load_state_dict(linear.state_dict())
    theirs = theirs.to("cpu").eval()
    x = inputs(dtype)
    with torch.no_grad():
        assert torch.equal(quantized(linear, "int8", threshold)(x), theirs(x))


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_int8_gradient_equals_bitsandbytes(linear: nn.Linear, threshold: float) -> None:
    theirs = bitsandbytes.nn.Linear8bitLt(24, 10, has_fp16_weights=False, threshold=threshold)
    theirs.load_state_dict(linear.state_dict())
    x, same = inputs().requires_grad_(), inputs().requires_grad_()
    quantized(linear, "int8", threshold)(x).square().sum().backward()
    theirs = theirs.to("cpu").eval()
    theirs.weight.requires_grad_(False)
    theirs(same).square().sum().backward()
    assert torch.allclose(x.grad, same.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("quantization", "threshold"), [("int8", 0.0), ("int8_weight_only", 6.0)])
def test_rows_depend_on_one_another_by_outliers_alone(linear: nn.Linear, quantization: str, threshold: float) -> None:
    """docs/configuration.md says so: a row beside one with an outlier, and by itself."""
    rows = torch.zeros(2, 24)
    rows[0, 3], rows[:, 7] = 5.9, torch.tensor([0.02, 50])  # 0.02 is less than half a step of the first row
    with torch.no_grad():
        layer, outliers = quantized(linear, quantization, threshold), quantized(linear, "int8", 6.0)
        assert torch.allclose(layer(rows)[:1], layer(rows[:1]), rtol=1e-5, atol=1e-6)
        assert (outliers(rows)[:1] - outliers(rows[:1])).abs().max() > 1e-3


def test_weights_are_rounded_by_at_most_half_a_step(linear: nn.Linear) -> None:
    halves = linear.weight.half().double()  # LLM.int8() quantizes from float16
    step = halves.abs().amax(1, keepdim=True) / 127
    assert ((quantized(linear).dequantized(torch.float64) - halves).abs() <= 0.5001 * step).all()


def test_weight_only_is_exact_for_the_rounded_weight(linear: nn.Linear) -> None:
    layer = quantized(linear, "int8_weight_only")
    weight, bias = layer.dequantized(torch.float64), layer.bias.double()
    x = inputs(torch.float64).requires_grad_()
    same = inputs(torch.float64).requires_grad_()
    out, expected = layer(x), nn.functional.linear(same, weight, bias)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert torch.allclose(out, expected, rtol=1e-12)
    assert torch.allclose(x.grad, same.grad, rtol=1e-12)


@pytest.mark.parametrize("quantization", ["int8", "int8_weight_only"])
def test_activation_checkpointing_changes_nothing(linear: nn.Linear, quantization: str) -> None:
    layer = quantized(linear, quantization)
    x, same = inputs().requires_grad_(), inputs().requires_grad_()
    out = layer(x).tanh()
    recomputed = checkpoint(lambda x: layer(x).tanh(), same, use_reentrant=False)
    out.sum().backward()
    recomputed.sum().backward()
    assert torch.equal(out, recomputed)
    assert torch.equal(x.grad, same.grad)


def test_nothing_is_kept_for_backward(linear: nn.Linear) -> None:
    layer, kept = quantized(linear), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        out = layer(inputs().requires_grad_())
    assert not kept
    assert vars(out.grad_fn.next_functions[0][0]) == {"layer": layer}


def test_input_is_left_alone(linear: nn.Linear) -> None:
    x = inputs(torch.float16).requires_grad_()
    before, version = x.detach().clone(), x._version
    quantized(linear)(x)
    assert torch.equal(x, before)
    assert x._version == version


def test_scales_survive_casts_exactly(linear: nn.Linear) -> None:
    layer = quantized(linear)
    before = layer.scale_bits.clone()
    layer.bfloat16().half().float()
    assert torch.equal(layer.scale_bits, before)
    assert layer.weight.dtype == torch.int8
    assert not any(p.requires_grad for p in layer.parameters())


def test_a_row_of_zeros_stays_zero(linear: nn.Linear) -> None:
    linear.weight.data[3] = 0
    layer = quantized(linear)
    assert not layer.dequantized(torch.float32)[3].any()
    assert torch.equal(layer(inputs())[..., 3], linear.bias[3].expand(3, 5))


def test_rows_of_zeros_in_the_input(linear: nn.Linear) -> None:
    assert torch.equal(quantized(linear)(torch.zeros(2, 24)), linear.bias.expand(2, 10))


def test_conv1d_is_replaced_with_its_sizes_turned() -> None:
    layer = like(Conv1D(10, 24), "int8")
    assert isinstance(layer, Int8Linear)
    assert (layer.in_features, layer.out_features, layer.weight.shape) == (24, 10, (10, 24))


@pytest.mark.parametrize("module", [nn.Embedding(4, 4), nn.LayerNorm(4), nn.MultiheadAttention(4, 1).out_proj])
def test_other_modules_are_not_replaced(module: nn.Module) -> None:
    assert like(module, "int8") is None
