"""What a process needed at most."""

import resource
from typing import Any

import torch


def peak_memory() -> dict[str, Any]:
    """Most bytes in use so far by this process: of its GPU, as PyTorch allocated them, or of the host without one."""
    if torch.cuda.is_available():
        return {"memory": "GPU", "peak_memory_bytes": torch.cuda.max_memory_allocated()}
    return {"memory": "host", "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
