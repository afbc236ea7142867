"""Frozen linear layers whose weight is kept in few bits: what those of 8 and of 4 bits have in common.

The codes are an ordinary integer parameter without gradient, so ZeRO-3 partitions and gathers it as it is. The scales
are bit patterns in an integer tensor, because an engine that casts the module to bfloat16 would round floats. Forward
keeps no state and no dequantized copy: backward reads the weight from the module again, which by then ZeRO-3 has
gathered again (bitsandbytes' own layer keeps the whole matrix instead; its issues 1249, 1927).
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Format(ABC):
    """A way to write rows of numbers as codes and scales."""

    shards_scales: ClassVar[bool]
    """Are there so many scales that each rank keeps its share of them, as of the codes?"""

    @staticmethod
    @abstractmethod
    def empty(*shape: int) -> tuple[Tensor, Tensor]:
        """For rows [..., in]: their codes and scale bits without contents, on meta."""

    @staticmethod
    @abstractmethod
    def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
        """[R, in] float, by way of float16 -> codes and scale bits of R rows."""

    @staticmethod
    @abstractmethod
    def dequantize(codes: Tensor, scale_bits: Tensor, width: int, dtype: torch.dtype) -> Tensor:
        """The rows [..., width] that codes and scale bits [..., :] stand for, in `dtype`."""


def keep_scales(module: nn.Module, name: str, scale_bits: Tensor, storage: type[Format]) -> None:
    """As a parameter, which ZeRO-3 partitions, or as a buffer, which it leaves whole."""
    if storage.shards_scales:
        module.register_parameter(name, nn.Parameter(scale_bits, requires_grad=False))
    else:
        module.register_buffer(name, scale_bits)


class QuantizedLinear(nn.Module):
    """A frozen `y = x W^T + b` with W [out, in] in a format of few bits, dequantized for each product.

    Made on meta; the loader fills it with what the format's `quantize` returns. `dtype` is the bias's.
    """

    scale_bits: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, storage: type[Format]
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.storage = in_features, out_features, storage
        codes, scale_bits = storage.empty(out_features, in_features)
        self.weight = nn.Parameter(codes, requires_grad=False)
        empty = torch.empty(out_features, dtype=dtype, device="meta")
        self.bias = nn.Parameter(empty, requires_grad=False) if bias else None
        keep_scales(self, "scale_bits", scale_bits, storage)

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[R, in] float -> codes and scale bits of R rows."""
        return self.storage.quantize(rows)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in] in `dtype`."""
        return self.storage.dequantize(self.weight.data, self.scale_bits.data, self.in_features, dtype)

    def multiply(self, rows: Tensor) -> Tensor:
        """[R, in] -> [R, out], without autograd. Exact gradients, and no rounding of `rows`."""
        weight = self.dequantized(rows.dtype)
        return rows @ weight.t() if self.bias is None else torch.addmm(self.bias.data.to(rows.dtype), rows, weight.t())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of `x`; differentiable with respect to `x` alone."""
        rows: Tensor = _FrozenMatmul.apply(x.reshape(-1, self.in_features), self)
        return rows.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, {self.storage.__name__}"


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
