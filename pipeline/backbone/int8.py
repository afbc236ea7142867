"""8 bits: rows of int8 codes with a scale each, and LLM.int8()'s product of them."""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pipeline.backbone.quantized import Format, QuantizedLinear
from pipeline.core.imports import without_compiler


@cache
def _bitsandbytes() -> Any:
    """Its functions; imported when first used, since only 8-bit weights need it."""
    # bitsandbytes 0.50 asks for an optional package when it is imported, for a 4-bit kernel that is not used here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    with without_compiler():
        from bitsandbytes import functional

    return functional


class Int8Rows(Format):
    """Row-wise absmax quantization of LLM.int8(): the scale is a row's largest magnitude, float32 in int32 bits [...].

    One scale for thousands of codes is so little that each rank keeps all of them.
    """

    shards_scales = False

    @staticmethod
    def empty(*shape: int) -> tuple[Tensor, Tensor]:
        codes = torch.empty(shape, dtype=torch.int8, device="meta")
        return codes, torch.zeros(shape[:-1], dtype=torch.int32, device="meta")

    @staticmethod
    def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
        """-> int8 [R, in] and int32 [R]"""
        # The library's CPU routine writes to its argument and divides by zero for rows of zeros.
        codes, scales, _ = _bitsandbytes().int8_vectorwise_quant(rows.to(torch.float16, copy=True))
        codes[scales == 0] = 0
        return codes, scales.contiguous().view(torch.int32)

    @staticmethod
    def dequantize(codes: Tensor, scale_bits: Tensor, width: int, dtype: torch.dtype) -> Tensor:
        """By the formula of bitsandbytes' backward."""
        return codes.to(dtype).mul_(scale_bits.view(torch.float32).unsqueeze(-1) * (1.0 / 127.0))


class Int8Linear(QuantizedLinear):
    """LLM.int8(): activations are quantized row by row too, except the columns with outliers (arXiv 2208.07339).

    `threshold`: a column with a magnitude at or above it is multiplied in the dtype of `x`; 0 turns that off.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, threshold: float) -> None:
        super().__init__(in_features, out_features, bias, dtype, Int8Rows)
        self.threshold = threshold

    def multiply(self, rows: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.data.to(rows.dtype)
        # Copied also where `rows` are float16 already: the CPU routine blanks outliers in place for a moment.
        halves = rows.detach().to(torch.float16, copy=True)
        codes, row_scales, outliers = _bitsandbytes().int8_vectorwise_quant(halves, threshold=self.threshold)
        weight, scales = self.weight.data, self.scale_bits.view(torch.float32)
        if self.threshold == 0:
            return torch.ops.bitsandbytes.int8_scaled_mm.default(
                codes, weight, row_scales, scales, bias=bias, dtype=rows.dtype
            )
        product, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm.default(
            rows, codes, weight, row_scales, scales, outliers, bias
        )
        return product
