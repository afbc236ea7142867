"""What the launcher (torchrun, deepspeed, accelerate) tells this process; alone, it is the only one."""

import os


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))
