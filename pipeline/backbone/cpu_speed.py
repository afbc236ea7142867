"""Whether this CPU has arithmetic for bfloat16: without it, products take several times as long as in float32."""

import time

import torch
from torch.nn import functional

SLOW = 2.0
"""Times as long as float32, above which float32 is the better choice."""


def bfloat16_slowdown() -> float:
    """How many times as long this CPU takes for a product in bfloat16 as in float32. Takes some milliseconds."""
    return _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype, repeats: int = 5) -> float:
    """The fastest of several products of a size that a small backbone has."""
    texts, weight = torch.ones(128, 384, dtype=dtype), torch.ones(1536, 384, dtype=dtype)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        functional.linear(texts, weight)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
