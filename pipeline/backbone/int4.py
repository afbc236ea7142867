"""4 bits: rows in blocks of 64 numbers, two to a byte, and a scale for each block."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.backbone.quantized import Format

BLOCK, HALF_BLOCK = 64, 32
"""Of 32, 64 and 128 the relative error of MiniLM's and SmolLM2's weights is 9, 10 and 11 %, at 4.5, 4.25 and 4.125
bits each; and 64 divides the widths of all well-known models, so that nothing is padded (Falcon-7B: 71 x 64)."""
LARGEST_CODE = 8
"""Codes are -8 to 7, written as 0 to 15."""


class Int4Blocks(Format):
    """Round to nearest; a block's number of the largest magnitude has code -8 and is exact, whatever its sign.

    The scale is that number, float16 as two bytes, since communication libraries know no 16-bit integers. A byte has
    the codes of number j of a block, in its lower half, and of j + 32. The last block of a row is padded with zeros.
    """

    shards_scales = True

    @staticmethod
    def empty(*shape: int) -> tuple[Tensor, Tensor]:
        blocks = -(-shape[-1] // BLOCK)
        codes = torch.empty(*shape[:-1], blocks * HALF_BLOCK, dtype=torch.int8, device="meta")
        return codes, torch.empty(*shape[:-1], blocks * 2, dtype=torch.uint8, device="meta")

    @staticmethod
    def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
        """-> int8 [R, blocks * 32] and uint8 [R, blocks * 2]"""
        halves = pad(rows.to(torch.float16), (0, -rows.shape[1] % BLOCK)).view(len(rows), -1, BLOCK)
        numbers = halves.float()
        extremes = numbers.gather(-1, numbers.abs().argmax(-1, keepdim=True))
        steps = numbers.mul_(-LARGEST_CODE).div_(extremes).nan_to_num_(0.0)  # a block of zeros
        codes = steps.round_().clamp_(-LARGEST_CODE, LARGEST_CODE - 1).add_(LARGEST_CODE).to(torch.uint8)
        packed = codes[..., :HALF_BLOCK] | codes[..., HALF_BLOCK:] << 4
        # As int8: models cast what they multiply to a weight's type, unless it is that one (T5).
        return packed.flatten(1).view(torch.int8), extremes.to(torch.float16).view(torch.uint8).flatten(1)

    @staticmethod
    def dequantize(codes: Tensor, scale_bits: Tensor, width: int, dtype: torch.dtype) -> Tensor:
        """Exact in float32: four bits times eleven."""
        packed = codes.view(torch.uint8).unflatten(-1, (-1, HALF_BLOCK))
        numbers = torch.cat([packed & 15, packed >> 4], -1).to(dtype).sub_(LARGEST_CODE)
        # A copy, since a gathered parameter may begin at an odd byte.
        extremes = scale_bits.clone().view(torch.float16).float()
        return numbers.mul_(extremes.unsqueeze(-1) * (-1.0 / LARGEST_CODE)).flatten(-2)[..., :width]
