"""What the launcher (torchrun, deepspeed, accelerate) sets for this process; without one it is the only one."""

import logging
import os
import random
import socket
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.core.bounds import MOST_RANKS
from pipeline.core.errors import UserError

log = logging.getLogger(__name__)

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets."""
UNSET = f"if another program left these variables: unset {' '.join(VARIABLES)}"
SILENT_SECONDS = 10.0
"""Ranks that start together meet sooner, mostly."""


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ.get("RANK", "0"))


def check_launcher() -> None:
    """Raises UserError where the environment says something that no launcher does.

    Other programs leave such variables behind: with them a process would wait for ranks that nobody starts, or be
    silent, since it is not rank 0.
    """
    if fault := _fault():
        raise UserError(f"{fault}: start the ranks with a launcher such as launch/torchrun.sh, or {UNSET}")


def _fault() -> str | None:
    for name, least, most in (("WORLD_SIZE", 1, MOST_RANKS), ("RANK", 0, MOST_RANKS - 1)):
        if name in os.environ and not _is_number(name, least, most):
            return f"the variable {name} is {os.environ[name][:20]!r}, not a number from {least} to {most:,}"
    if rank() >= world_size():
        count = f"WORLD_SIZE is {world_size()}" if "WORLD_SIZE" in os.environ else "WORLD_SIZE is not set"
        return f"the variable RANK is {rank()}, and {count}"
    if world_size() == 1:  # what else is set does not matter
        return None
    if missing := [name for name in VARIABLES if name not in os.environ and name != "LOCAL_WORLD_SIZE"]:
        return f"the variable WORLD_SIZE is {world_size()}, and {', '.join(missing)} not set"
    for name, least, most in (("LOCAL_RANK", 0, MOST_RANKS - 1), ("MASTER_PORT", 1, 65_535)):
        if not _is_number(name, least, most):
            return f"the variable {name} is {os.environ[name][:20]!r}, not a number from {least} to {most:,}"
    return None


def _is_number(name: str, least: int, most: int) -> bool:
    text = os.environ[name]
    return text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most


def be_alone() -> None:
    """Sets what torchrun would set for one process, on a free port of its own.

    Whatever stands there: an address that another program left would be waited for.
    """
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # torchrun's own store is at the address it gave


def ignore_renamed_collectives() -> None:
    """torch 2.13 renamed collectives that DeepSpeed 0.19.8 still calls by their old names, at every step."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


@contextmanager
def joining(silent_seconds: float = SILENT_SECONDS, every_seconds: float = 60.0) -> Iterator[None]:
    """Around what joins a process group: a rank that waits for the others says so, and why it does.

    Raises UserError where they do not come, or nobody can be reached.
    """
    import torch.distributed as dist  # late: `--help` and the launch scripts need none

    met = threading.Event()

    def speak() -> None:
        pause = silent_seconds
        while not met.wait(pause):
            log.warning("%s waits for the others; %s", _place(), UNSET)
            pause = every_seconds

    if world_size() > 1:
        threading.Thread(target=speak, name="joining", daemon=True).start()
    try:
        yield
    except dist.DistError as error:
        raise UserError(f"{_place()} does not meet the others ({error}); {UNSET}") from error
    finally:
        met.set()


def _place() -> str:
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return f"rank {rank()} of {world_size()} at {where} (variables RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)"


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
