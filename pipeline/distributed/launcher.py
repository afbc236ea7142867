"""What the launcher (torchrun, deepspeed, accelerate) tells this process; alone, it is the only one."""

import os
import random
import socket
from contextlib import suppress
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


def free_port() -> int:
    """A port that nobody listens on; none of those that the system gives away, since it is listened on only later."""
    draw = random.SystemRandom()  # runs that start together have the same seeds
    while True:
        port = draw.randrange(10000, 32000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
