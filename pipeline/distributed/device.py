"""The kind of device that DeepSpeed is to expect, and its memory."""

import ctypes
import gc
import os
from contextlib import suppress


def announce_device() -> None:
    """Without a GPU, says so before DeepSpeed is imported, which else warns that it found none."""
    import torch  # late: not every command needs it

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def is_out_of_memory(error: Exception) -> bool:
    """Of a GPU, or of the machine, for which torch has no exception of its own."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Gives back what nothing holds any more."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Gives the system the pages of freed tensors. glibc keeps them, in pieces: gigabytes in a long comparison."""
    with suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
