"""Frozen linear layers whose weight is kept in 8 bits.

The quantized matrix is an ordinary integer parameter without gradient, so ZeRO-3 partitions and gathers it as it is, in
8 bits. The row scales are float32 bit patterns in an int32 buffer, because an engine that casts the module to bfloat16
would round floats. Forward keeps no state and no dequantized copy: backward reads the weight from the module again,
which by then ZeRO-3 has gathered again (bitsandbytes' own layer keeps the whole matrix instead; its issues 1249, 1927).
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from pipeline.backbone.config import Quantization


def _bitsandbytes() -> Any:
    """Its functions; imported when first used, since that takes seconds and only 8-bit weights need it."""
    # bitsandbytes 0.50 asks for an optional package when it is imported, for a 4-bit kernel that is not used here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from bitsandbytes import functional

    return functional


class QuantizedLinear(nn.Module):
    """A frozen `y = x W^T + b` with W [out, in] in 8 bits; subclasses say how it is multiplied.

    Made on meta; the loader fills it with what `quantize` returns. `dtype` is the bias's.
    """

    scale_bits: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        codes = torch.empty(out_features, in_features, dtype=torch.int8, device="meta")
        self.weight = nn.Parameter(codes, requires_grad=False)
        empty = torch.empty(out_features, dtype=dtype, device="meta")
        self.bias = nn.Parameter(empty, requires_grad=False) if bias else None
        self.register_buffer("scale_bits", torch.zeros(out_features, dtype=torch.int32, device="meta"))

    @staticmethod
    def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
        """Row-wise absmax quantization of LLM.int8(): [R, in] float -> int8 [R, in] and scales [R] as int32 bits."""
        # The library's CPU routine writes to its argument and divides by zero for rows of zeros.
        codes, scales, _ = _bitsandbytes().int8_vectorwise_quant(rows.to(torch.float16, copy=True))
        codes[scales == 0] = 0
        return codes, scales.contiguous().view(torch.int32)

    @property
    def scales(self) -> Tensor:
        """Largest magnitude of each row, float32 [out]."""
        return self.scale_bits.view(torch.float32)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] in `dtype`, by the formula of bitsandbytes' backward."""
        return self.weight.data.to(dtype).mul_(self.scales.unsqueeze(1) * (1.0 / 127.0))

    def multiply(self, rows: Tensor) -> Tensor:
        """[R, in] -> [R, out], without autograd."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of `x`; differentiable with respect to `x` alone."""
        rows: Tensor = _FrozenMatmul.apply(x.reshape(-1, self.in_features), self)
        return rows.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Linear(QuantizedLinear):
    """LLM.int8(): activations are quantized row by row too, except the columns with outliers (arXiv 2208.07339).

    `threshold`: a column with a magnitude at or above it is multiplied in the dtype of `x`; 0 turns that off.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, threshold: float) -> None:
        super().__init__(in_features, out_features, bias, dtype)
        self.threshold = threshold

    def multiply(self, rows: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.data.to(rows.dtype)
        # Copied also where `rows` are float16 already: the CPU routine blanks outliers in place for a moment.
        halves = rows.detach().to(torch.float16, copy=True)
        codes, row_scales, outliers = _bitsandbytes().int8_vectorwise_quant(halves, threshold=self.threshold)
        weight, scales = self.weight.data, self.scales
        if self.threshold == 0:
            return torch.ops.bitsandbytes.int8_scaled_mm.default(
                codes, weight, row_scales, scales, bias=bias, dtype=rows.dtype
            )
        product, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm.default(
            rows, codes, weight, row_scales, scales, outliers, bias
        )
        return product


class Int8WeightOnlyLinear(QuantizedLinear):
    """The 8-bit weight is dequantized for the product: exact gradients, activations are not rounded."""

    def multiply(self, rows: Tensor) -> Tensor:
        weight = self.dequantized(rows.dtype)
        return rows @ weight.t() if self.bias is None else torch.addmm(self.bias.data.to(rows.dtype), rows, weight.t())


class _FrozenMatmul(torch.autograd.Function):
    """Keeps the layer for backward, not its weight, which ZeRO-3 frees after forward and gathers again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.multiply(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output @ ctx.layer.dequantized(grad_output.dtype), None


READ_FROM_OUTSIDE = ("dt_proj",)
"""Linear layers whose weight their owner multiplies itself, without calling them (Mamba's time steps)."""


def quantized_like(
    module: nn.Module, quantization: Quantization, threshold: float, dtype: torch.dtype
) -> QuantizedLinear | None:
    """An unfilled layer of the same function as a linear layer or GPT-2's Conv1D; None for any other module."""
    # The excepted class is the output projection that torch's own attention reads without calling it.
    if not isinstance(module, nn.Linear | Conv1D) or isinstance(module, NonDynamicallyQuantizableLinear):
        return None
    if isinstance(module, nn.Linear) and not type(module).__name__.endswith("Linear"):  # a router, which gives more
        return None
    # Conv1D keeps its weight as [in, out].
    out_features, in_features = module.weight.shape[::-1] if isinstance(module, Conv1D) else module.weight.shape
    if quantization == "int8":
        return Int8Linear(in_features, out_features, module.bias is not None, dtype, threshold)
    assert quantization == "int8_weight_only", quantization
    return Int8WeightOnlyLinear(in_features, out_features, module.bias is not None, dtype)
