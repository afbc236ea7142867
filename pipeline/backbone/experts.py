"""Mixtures of experts whose weights, a matrix per expert in a parameter of three dimensions, are kept in few bits.

Codes and scales are kept as in `QuantizedLinear`, in the same formats. An expert's matrix is dequantized when it is
multiplied with the tokens that were sent to it, and again in backward: neither is kept. No collective depends on which
experts a rank's texts hit.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.integrations.moe import ExpertsInterface

from pipeline.backbone.quantized import Format, keep_scales

IMPLEMENTATION, WITHOUT_CONTENTS = "ltune", "ltune_without_contents"
MATRICES = ("gate_up_proj", "up_proj", "down_proj")


class ExpertWeights:
    """One of an experts module's parameters [E, out, in], or [E, in, out], made ready for codes of [E, out, in].

    The module keeps its class, which says how an expert's gate works. The loader fills the codes and `scale_bits`.
    """

    def __init__(self, module: Any, name: str, storage: type[Format]) -> None:
        self._module, self._name, self.storage = module, name, storage
        module.storage = storage
        experts, outputs, inputs = _by_rows(module, getattr(module, name)).shape
        codes, scale_bits = storage.empty(experts, outputs, inputs)
        setattr(module, name, nn.Parameter(codes, requires_grad=False))
        keep_scales(module, _bits_name(name), scale_bits, storage)

    @property
    def scale_bits(self) -> Tensor:
        """[E, out, ...]"""
        bits: Tensor = getattr(self._module, _bits_name(self._name))
        return bits

    @scale_bits.setter
    def scale_bits(self, filled: Tensor) -> None:
        setattr(self._module, _bits_name(self._name), filled)

    def quantize(self, experts: Tensor) -> tuple[Tensor, Tensor]:
        """Matrices of some experts, as they are stored -> codes and scale bits of [E', out, in]."""
        rows = _by_rows(self._module, experts)
        codes, bits = self.storage.quantize(rows.reshape(-1, rows.shape[-1]))
        return codes.unflatten(0, rows.shape[:2]), bits.unflatten(0, rows.shape[:2])


def expert_weights(module: nn.Module) -> list[str]:
    """Names of the parameters of an experts module that transformers lets be run in another way; of others none."""
    if not hasattr(module, "is_transposed") or getattr(module, "has_post_expert_norm", False):
        return []
    return [name for name, tensor in module.named_parameters(recurse=False) if name in MATRICES and tensor.ndim == 3]


def run_one_by_one(model: PreTrainedModel) -> None:
    """Makes its mixtures of experts run as `run_experts` does.

    Their activations are called for each expert that a rank's tokens hit, and ZeRO-3 asks all ranks to call the same
    modules: so they become functions.
    """
    model.config._experts_implementation = IMPLEMENTATION
    for module in model.modules():
        for name, activation in list(module.named_children()) if expert_weights(module) else ():
            assert not any(activation.parameters()), f"{name} of experts has parameters"
            delattr(module, name)
            setattr(module, name, activation.forward)


def run_experts(module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Tokens [R, H], each sent to k experts [R, k] with weights [R, k] -> [R, H]."""
    output = torch.zeros_like(hidden)
    up = "gate_up_proj" if module.has_gate else "up_proj"
    for expert in top_k_index.unique().tolist():
        if expert >= module.num_experts:  # tokens that were sent nowhere
            continue
        tokens, place = torch.where(top_k_index == expert)
        inner = _Multiply.apply(hidden[tokens], module, up, expert)
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        found = _Multiply.apply(inner, module, "down_proj", expert)
        output = output.index_add(0, tokens, (found * top_k_weights[tokens, place, None]).to(output.dtype))
    return output


def run_first_expert(module: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """As many products as `run_experts` makes, all with the first expert: for tensors without contents.

    Notes how many experts a token is sent to as `module.chosen`.
    """
    module.chosen = top_k_index.shape[-1]
    up = "gate_up_proj" if module.has_gate else "up_proj"
    inner = _Multiply.apply(hidden.repeat_interleave(module.chosen, 0), module, up, 0)
    inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
    found = _Multiply.apply(inner, module, "down_proj", 0) * top_k_weights.reshape(-1, 1)
    return found.view(len(hidden), module.chosen, -1).sum(1).to(hidden.dtype)


class _Multiply(torch.autograd.Function):
    """An expert's linear layer. Keeps the module for backward, not its weight."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, module: Any, name: str, expert: int) -> Tensor:
        ctx.of = module, name, expert, rows.shape[1]
        product = rows @ _matrix(rows.dtype, *ctx.of).t()
        return product + getattr(module, f"{name}_bias")[expert].to(rows.dtype) if module.has_bias else product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        return grad_output @ _matrix(grad_output.dtype, *ctx.of), None, None, None


def _matrix(dtype: torch.dtype, module: Any, name: str, expert: int, width: int) -> Tensor:
    """[out, width]"""
    stored, storage = getattr(module, name).data, getattr(module, "storage", None)
    if storage is None:
        return _by_rows(module, stored)[expert].to(dtype)
    scale_bits = getattr(module, _bits_name(name)).data[expert]
    matrix: Tensor = storage.dequantize(stored[expert], scale_bits, width, dtype)
    return matrix


def _by_rows(module: Any, experts: Tensor) -> Tensor:
    """Matrices of experts as a parameter of the module has them -> [E, out, in]"""
    return experts.transpose(1, 2) if module.is_transposed else experts


def _bits_name(name: str) -> str:
    return f"{name}_scale_bits"


ExpertsInterface.register(IMPLEMENTATION, run_experts)
ExpertsInterface.register(WITHOUT_CONTENTS, run_first_expert)
