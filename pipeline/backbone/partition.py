"""Parameters that this rank holds whole, or only its ZeRO-3 share of."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.core.errors import UserError
from pipeline.distributed.zero import Shares

RowReader = Callable[[int, int], Tensor]
"""(first, last) -> rows [first, last) of the parameter, in the form it is kept in."""
CHUNK_ELEMENTS = 2**20
"""Rows are read this many elements at a time, so that copies made on the way stay small beside the model."""


class Partitioner:
    """Makes filled parameters on `device`: the whole of each, or this rank's share where ZeRO-3 is on.

    `zero_config`: a complete DeepSpeed dict of stage 3, or None. The process group must exist before (DeepSpeed #8084).
    """

    def __init__(self, zero_config: dict[str, Any] | None, device: torch.device) -> None:
        self.device = device
        self._scratch = torch.empty(0, dtype=torch.uint8, device=device)
        self._zero = None if zero_config is None else _shares(zero_config)

    @property
    def world_size(self) -> int:
        """Number of ranks a parameter is cut for."""
        return 1 if self._zero is None else self._zero.world_size

    def filled(self, shape: torch.Size, dtype: torch.dtype, read_rows: RowReader) -> nn.Parameter:
        """A frozen parameter of what `read_rows` gives; rows of which this rank keeps nothing are not read."""
        whole = self._empty(shape, dtype)
        for start, stop in self._kept_ranges(whole.numel()):
            _fill_range(whole, start, stop, read_rows)
        parameter = nn.Parameter(whole, requires_grad=False)
        if self._zero is not None:
            self._zero.partition(parameter)
        return parameter

    def of_share(self, shape: torch.Size, share: Tensor) -> nn.Parameter:
        """A frozen parameter in the memory of what this rank kept of one, with the same ZeRO config and device."""
        if self._zero is None:
            return nn.Parameter(share, requires_grad=False)
        return self._zero.partitioned(self._empty(shape, share.dtype), share)

    def _empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        if self._zero is None:
            return torch.empty(shape, dtype=dtype, device=self.device)
        # DeepSpeed copies this rank's range out of a whole tensor, of which nothing else need be written. One scratch
        # tensor serves them all; on a CPU only its written pages are resident, and the heap stays unfragmented.
        size = math.prod(shape) * dtype.itemsize
        if self._scratch.numel() < size:
            self._scratch = torch.empty(size, dtype=torch.uint8, device=self.device)
        return self._scratch[:size].view(dtype).view(shape)

    def _kept_ranges(self, size: int) -> list[tuple[int, int]]:
        return [(0, size)] if self._zero is None else self._zero.kept_ranges(size)


def _shares(zero_config: dict[str, Any]) -> Shares:
    group = zero_config["zero_optimization"].get("zero_hpz_partition_size", 1)
    if torch.distributed.get_world_size() % group:
        raise UserError(
            f"zero_hpz_partition_size {group} does not divide the {torch.distributed.get_world_size()} ranks"
        )
    return Shares(zero_config)


def _fill_range(whole: Tensor, start: int, stop: int, read_rows: RowReader) -> None:
    """Fills flat elements [start, stop) with whole rows read in chunks, of which the first and last may be cut."""
    if start == stop:
        return
    flat = whole.view(-1)
    width = max(1, math.prod(whole.shape[1:]))
    end = math.ceil(stop / width)
    step = max(1, CHUNK_ELEMENTS // width)
    for first in range(start // width, end, step):
        last = min(first + step, end)
        low, high = max(start, first * width), min(stop, last * width)
        rows = read_rows(first, last).reshape(-1)
        flat[low:high].copy_(rows[low - first * width : high - first * width])
