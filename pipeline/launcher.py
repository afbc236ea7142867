"""What the launcher (torchrun, deepspeed, accelerate) tells this process; alone, it is the only one."""

import os
from pathlib import Path


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_copy(folder: str) -> str:
    """This node's copy of a folder, where the launch script has made one (`submit.sh --stage-in`); else `folder`.

    The copy of /shared/model is $LTUNE_LOCAL/shared/model: settings and fingerprints keep the shared name.
    """
    copy = Path(f"{os.environ.get('LTUNE_LOCAL', '')}{Path(folder).resolve()}")
    return str(copy) if "LTUNE_LOCAL" in os.environ and copy.is_dir() else folder
