"""Layers in few bits and every type of backbone: on a GPU as on the CPU beside it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.backbone.as_injection import AsInjection
from pipeline.backbone.check import check_reading
from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.backbone.quantization import FORMATS, quantized_like
from pipeline.backbone.quantized import QuantizedLinear
from pipeline.backbone.verdict import PASSED, Verdict
from tests.families.models import TYPES, tiny_model

B, T, P = 3, 6, 4
MASK = torch.arange(T) < torch.tensor([6, 3, 4])[:, None]
IDS = torch.randint(4, 200, (B, T), generator=torch.Generator().manual_seed(1)).where(MASK, 1)
HOLES = torch.arange(P) < torch.tensor([P, 2, P])[:, None]


def filled(quantization: str, dtype: torch.dtype, device: str, threshold: float = 6.0) -> QuantizedLinear:
    """A layer of 192 to 320, quantized on the device."""
    torch.manual_seed(0)
    linear = nn.Linear(192, 320).to(dtype)
    settings = {"quantization": quantization, "int8_threshold": threshold, "dtype": str(dtype).removeprefix("torch.")}
    layer = quantized_like(linear, BackboneConfig(name_or_path="none", **settings))
    assert layer is not None
    codes, scale_bits = layer.quantize(linear.weight.data.to(device))
    layer.weight = nn.Parameter(codes, requires_grad=False)
    if layer.storage.shards_scales:
        layer.scale_bits = nn.Parameter(scale_bits, requires_grad=False)  # type: ignore[assignment]
    else:
        layer.scale_bits = scale_bits
    layer.bias = nn.Parameter(linear.bias.data.to(device), requires_grad=False)
    return layer


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, of the whole."""
    expected = expected.detach().double().cpu()
    return float((found.detach().double().cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize("quantization", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_a_layer_in_few_bits(quantization: str, dtype: torch.dtype, threshold: float) -> None:
    """Its codes, what it gives and its gradient."""
    here, there = (filled(quantization, dtype, device, threshold) for device in ("cpu", "cuda"))
    different = (here.weight != there.weight.cpu()).double().mean()
    assert different < 2e-3, "a number on the edge between two codes may fall to either side"
    x = torch.randn(37, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[:, 7] *= 10
    mine, other = x.clone().requires_grad_(), x.cuda().requires_grad_()
    found, expected = there(other), here(mine)
    assert found.dtype == dtype
    # Activations are rounded to 8 bits too, and one on the edge may fall to either side.
    bound = 2e-2 if dtype == torch.bfloat16 else 2e-3 if quantization == "int8" else 1e-4
    assert distance(found, expected) < bound
    weight = torch.randn(37, 320, generator=torch.Generator().manual_seed(1)).to(dtype)
    (expected * weight).sum().backward()
    (found * weight.cuda()).sum().backward()
    assert mine.grad is not None and other.grad is not None
    assert distance(other.grad, mine.grad) < (1e-2 if dtype == torch.bfloat16 else 1e-4)


@pytest.mark.parametrize("kind", TYPES)
def test_a_backbone_is_read_alike(kind: str) -> None:
    """In float32, with the kernels it has by itself there: texts alone, with a prefix, and the prefix's gradient."""
    model = tiny_model(kind)
    here, there = (readings(copy.deepcopy(model).to(device)) for device in ("cpu", "cuda"))
    assert here[0] == there[0], "what the check of a loaded model says"
    for found, expected in zip(there[1], here[1], strict=True):
        assert distance(found, expected) < 1e-4


def readings(model: PreTrainedModel) -> tuple[Verdict, list[Tensor]]:
    """The verdict on this model; states of texts alone and with a prefix, where they are no padding; the gradient."""
    backbone, device = FrozenBackbone(model, facts_of(model.config)), model.device
    reader = AsInjection(backbone, None)
    verdict = check_reading(reader, reader)
    ids, mask = IDS.to(device), MASK.to(device)
    states = [backbone(ids, mask)[mask]]
    if verdict.prefix == PASSED:
        width, generator = backbone.facts.prefix_width(), torch.Generator().manual_seed(2)
        values = torch.randn(B, P, width, generator=generator).to(device).requires_grad_()
        states.append(backbone(ids, mask, Injection(HOLES.to(device), prefix=values))[mask])
        # Not of their squares: the sum of those is the same for any normalized state.
        weights = torch.randn(states[-1].shape, generator=generator).to(device)
        (states[-1] * weights).sum().backward()
        assert values.grad is not None
        states.append(values.grad)
    return verdict, states
