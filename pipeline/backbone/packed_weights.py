"""Checkpoints that are quantized already, in FP8 or MXFP4: read row by row as the floats that they stand for.

FP8 (DeepSeek, many Qwen releases): a matrix of 8-bit floats, and a scale for each block of it.
MXFP4 (gpt-oss): experts as blocks of 32 numbers of 4 bits, and a power of two for each (Open Compute's MX formats 1.0).
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from pipeline.backbone.weights import Checkpoint, StoredTensor
from pipeline.core.errors import UserError

FP8_SCALES, BLOCKS, SCALES = "_scale_inv", "_blocks", "_scales"
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower three of the four bits stand for; the upper one is the sign."""
EXPONENT_BIAS = 127
HALF_BLOCK = 16
"""Bytes of a block of 32 numbers."""
METHODS = ("fp8", "mxfp4")


def unpacked(checkpoint: Checkpoint, model_config: PreTrainedConfig) -> Checkpoint:
    """The checkpoint as if it held floats; itself where it does. Takes the note that it does not off the config.

    Raises UserError for other ways of quantization than these two.
    """
    settings = getattr(model_config, "quantization_config", None)
    if settings is None:
        return checkpoint
    settings = settings if isinstance(settings, Mapping) else settings.to_dict()
    method = str(settings.get("quant_method", "an unknown method"))
    if method not in METHODS:
        raise UserError(
            f"{model_config.name_or_path} is quantized already ({method}); give the original weights, which "
            f"backbone.quantization turns into 8 bits, or those in {' or '.join(METHODS)}"
        )
    block = settings.get("weight_block_size") or (128, 128)
    if not (
        isinstance(block, list | tuple) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    ):
        raise UserError(f"{model_config.name_or_path}: config.json has blocks of {block!r}: fetch it again")
    del model_config.quantization_config
    return _Unpacked(checkpoint, *block)


class _Unpacked(Checkpoint):
    """Tensors by the names of the floats, under which `read_rows` gives them as float32."""

    def __init__(self, packed: Checkpoint, rows: int, columns: int) -> None:
        """`rows` and `columns`: of a block of FP8 numbers."""
        self.files, self.headers, self._packed = packed.files, packed.headers, packed
        self._rows, self._columns = rows, columns
        self.tensors = {}
        for name, stored in packed.tensors.items():
            floats = name.removesuffix(BLOCKS)
            if floats != name and floats + SCALES in packed.tensors:
                self.tensors[floats] = _as_floats(stored, self._shape_of_experts(floats))
            elif name + FP8_SCALES in packed.tensors:
                self.tensors[name] = _as_floats(stored, self._shape_of_blocks(name))
            elif not self._is_scale(name):
                self.tensors[name] = stored

    def _shape_of_experts(self, name: str) -> tuple[int, ...]:
        """[E, in, out]. Raises UserError where blocks and exponents do not fit each other."""
        blocks, scales = (self._packed.tensors[name + end] for end in (BLOCKS, SCALES))
        if blocks.dtype != "U8" or scales.dtype != "U8" or blocks.shape != (*scales.shape, HALF_BLOCK):
            raise _misfit(name + BLOCKS, blocks, name + SCALES, scales)
        experts, outputs, groups, _ = blocks.shape
        return experts, groups * HALF_BLOCK * 2, outputs

    def _shape_of_blocks(self, name: str) -> tuple[int, ...]:
        """[out, in]. Raises UserError where the scales are neither one, nor one for each block."""
        matrix, scales = self._packed.tensors[name], self._packed.tensors[name + FP8_SCALES]
        sizes = (self._rows, self._columns)[: len(matrix.shape)]
        blocks = tuple(math.ceil(length / size) for length, size in zip(matrix.shape, sizes, strict=False))
        if len(matrix.shape) != 2 or (scales.shape != blocks and math.prod(scales.shape) != 1):
            raise _misfit(name, matrix, name + FP8_SCALES, scales)
        return matrix.shape

    def check_unchanged(self) -> None:
        self._packed.check_unchanged()

    def read_rows(self, name: str, first: int, last: int, transposed: bool = False) -> Tensor:
        packed = self._packed
        if name + BLOCKS in packed.tensors:
            return self._experts(name, first, last)
        if name + FP8_SCALES not in packed.tensors:
            return packed.read_rows(name, first, last, transposed)
        rows = packed.read_rows(name, first, last).to(torch.float32)
        if math.prod(packed.tensors[name + FP8_SCALES].shape) == 1:  # one for the whole matrix
            return rows * packed.read_rows(name + FP8_SCALES, 0, 1).to(torch.float32).view(())
        start = first // self._rows
        scales = packed.read_rows(name + FP8_SCALES, start, math.ceil(last / self._rows)).to(torch.float32)
        scales = scales.repeat_interleave(self._rows, 0)[first - start * self._rows :][: last - first]
        return rows * scales.repeat_interleave(self._columns, 1)[:, : rows.shape[1]]

    def _experts(self, name: str, first: int, last: int) -> Tensor:
        """[E', out, groups, 16] bytes of two numbers each -> [E', in, out]"""
        blocks = self._packed.read_rows(name + BLOCKS, first, last)
        exponents = self._packed.read_rows(name + SCALES, first, last).to(torch.int32) - EXPONENT_BIAS
        values = torch.tensor([*FP4, *(-value for value in FP4)])
        numbers = torch.stack([values[(blocks & 15).long()], values[(blocks >> 4).long()]], dim=-1).flatten(-2)
        return torch.ldexp(numbers, exponents.unsqueeze(-1)).flatten(-2).transpose(1, 2)

    def _is_scale(self, name: str) -> bool:
        tensors = self._packed.tensors
        return (name.endswith(FP8_SCALES) and name.removesuffix(FP8_SCALES) in tensors) or (
            name.endswith(SCALES) and name.removesuffix(SCALES) + BLOCKS in tensors
        )


def _misfit(name: str, stored: StoredTensor, other: str, scales: StoredTensor) -> UserError:
    return UserError(
        f"{scales.file}: {other} is {list(scales.shape)} for {name} of {list(stored.shape)}, a layout that is not "
        "read; give the original weights"
    )


def _as_floats(stored: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    return replace(stored, dtype="F32", shape=shape, size=4 * math.prod(shape))
