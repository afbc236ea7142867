"""The kind of device that DeepSpeed is to expect, and its memory."""

import gc
import os


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
