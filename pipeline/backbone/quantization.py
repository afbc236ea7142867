"""Which parts of a backbone are kept in few bits, and in which layers."""

from typing import Protocol

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.experts import ExpertWeights, expert_weights
from pipeline.backbone.int4 import Int4Blocks
from pipeline.backbone.int8 import Int8Linear, Int8Rows
from pipeline.backbone.quantized import Format, QuantizedLinear

FORMATS: dict[str, type[Format]] = {"int8": Int8Rows, "int8_weight_only": Int8Rows, "int4": Int4Blocks}
"""By backbone.quantization, where it is not none."""
READ_FROM_OUTSIDE = ("dt_proj",)
"""Linear layers whose weight their owner multiplies itself, without calling them (Mamba's time steps)."""


class Quantized(Protocol):
    """What keeps a parameter as codes with scales."""

    storage: type[Format]
    scale_bits: Tensor
    """Of the rows of the parameter, [rows, ...]; itself a parameter where the format shards scales."""

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the parameter, as they are stored -> their codes and the bits of their scales."""


def quantize_layers(model: PreTrainedModel, config: BackboneConfig) -> dict[str, Quantized]:
    """Makes room for codes in the place of experts and all linear layers but the output layer; parameter -> keeper.

    What is trained, and what is built around it, stays as it is.
    """
    keepers: dict[str, Quantized] = {}
    if config.quantization == "none":
        return keepers
    for name, module in list(model.named_modules()):
        if module is model.get_output_embeddings() or name.endswith(READ_FROM_OUTSIDE):
            continue
        if any(parameter.requires_grad for parameter in module.parameters()):
            continue
        for leaf in expert_weights(module):
            keepers[f"{name}.{leaf}"] = ExpertWeights(module, leaf, FORMATS[config.quantization])
        layer = quantized_like(module, config)
        if layer is not None:
            model.set_submodule(name, layer)
            keepers[f"{name}.weight"] = layer
    return keepers


def quantized_like(module: nn.Module, config: BackboneConfig) -> QuantizedLinear | None:
    """An unfilled layer of the same function as a linear layer or GPT-2's Conv1D; None for any other module."""
    # The excepted class is the output projection that torch's own attention reads without calling it.
    if not isinstance(module, nn.Linear | Conv1D) or isinstance(module, NonDynamicallyQuantizableLinear):
        return None
    if _is_router(module):
        return None
    # Conv1D keeps its weight as [in, out].
    out_features, in_features = module.weight.shape[::-1] if isinstance(module, Conv1D) else module.weight.shape
    bias, dtype = module.bias is not None, config.torch_dtype
    if config.quantization == "int8":
        return Int8Linear(in_features, out_features, bias, dtype, config.int8_threshold)
    return QuantizedLinear(in_features, out_features, bias, dtype, FORMATS[config.quantization])


def linear_layers(model: nn.Module) -> list[str]:
    """Names of all linear layers that are called: GPT-2's Conv1D and those in few bits included, but for routers."""
    kinds = nn.Linear | Conv1D | QuantizedLinear
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and not _is_router(module) and not name.endswith(READ_FROM_OUTSIDE)
    ]


def _is_router(module: nn.Module) -> bool:
    """Of experts (Llama 4, PhiMoE): it is made as a linear layer, but gives more than its product."""
    return isinstance(module, nn.Linear) and not type(module).__name__.endswith("Linear")
