"""Parameters that this rank holds whole, or only its ZeRO-3 share of."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
        self._zero = None
        if zero_config is not None:
            import deepspeed  # takes seconds, and only sharding needs it

            self._zero = deepspeed.zero.Init(config_dict_or_path=zero_config)

    @property
    def world_size(self) -> int:
        """Number of ranks a parameter is cut for."""
        return 1 if self._zero is None else self._zero.dp_world_size

    def filled(self, shape: torch.Size, dtype: torch.dtype, read_rows: RowReader) -> nn.Parameter:
        """A frozen parameter of what `read_rows` gives; rows this rank keeps nothing of are not asked for."""
        # Under ZeRO-3 only this rank's range is written, hence, on a CPU, resident, before DeepSpeed takes it out.
        whole = torch.empty(shape, dtype=dtype, device=self.device)
        for start, stop in self._kept_ranges(whole.numel()):
            _fill_range(whole, start, stop, read_rows)
        parameter = nn.Parameter(whole, requires_grad=False)
        if self._zero is not None:
            # Not zero.Init(module=...): it broadcasts every parameter from rank 0, as if rank 0 had all of it.
            self._zero._convert_to_deepspeed_param(parameter)
            parameter.partition()  # type: ignore[attr-defined]  # the line above added it
        return parameter

    def _kept_ranges(self, size: int) -> list[tuple[int, int]]:
        """Element ranges of a flat parameter of `size` elements that DeepSpeed keeps on this rank."""
        zero = self._zero
        if zero is None:
            return [(0, size)]
        shares = [(zero.rank, zero.dp_world_size)]
        if zero.zero_param_process_group is not None:  # ZeRO++ hpZ: the node keeps a second, coarser partition
            shares.append((zero.rank_in_group, zero.num_ranks_in_param_group))
        aligned = math.ceil(size / zero.dp_world_size) * zero.dp_world_size
        return [(min(size, rank * aligned // n), min(size, (rank + 1) * aligned // n)) for rank, n in shares]


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
