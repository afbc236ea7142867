"""What only several processes can find out together: whether they meet, see the same files, and agree on the time.

Every function must be called by all ranks alike, after `join`.
"""

import os
import platform
import socket
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.distributed.launcher import rank, world_size
from pipeline.doctor.check import Check, failure, ok, reason, warning

PATIENCE_SECONDS = 60
"""How long ranks wait for each other."""
FILE_SECONDS = 10
"""How long they wait for a file to show up on another host."""
SKEW_SECONDS = 1.0
"""Difference of clocks from which on there is a warning."""


def join() -> list[Check]:
    """Meets the other ranks over gloo, and over NCCL where there are GPUs; alone, that both can start at all."""
    import torch
    import torch.distributed as dist

    # Alone there is nobody to meet, and no address of a meeting point.
    store = dist.HashStore() if world_size() == 1 else None
    try:
        dist.init_process_group(
            "gloo", store=store, rank=rank(), world_size=world_size(), timeout=timedelta(seconds=PATIENCE_SECONDS)
        )
        dist.all_reduce(torch.ones(1))
    except Exception as error:
        advice = "check MASTER_ADDR, firewalls, and GLOO_SOCKET_IFNAME (the network card to use)"
        return [failure("gloo", f"{world_size()} rank(s) do not meet: {reason(error)}", advice)]
    return [ok("gloo", f"{world_size()} rank(s) meet"), *_nccl()]


def _nccl() -> list[Check]:
    import torch
    import torch.distributed as dist

    if not torch.cuda.is_available():
        return [ok("NCCL", "not used: no GPU")]
    try:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        total = torch.ones(1, device="cuda")
        dist.all_reduce(total, group=dist.new_group(backend="nccl", timeout=timedelta(seconds=PATIENCE_SECONDS)))
        assert float(total) == world_size()
    except Exception as error:
        advice = "run again with NCCL_DEBUG=INFO; NCCL_SOCKET_IFNAME names the network card, one GPU per rank"
        return [failure("NCCL", reason(error), advice)]
    return [ok("NCCL", f"{'.'.join(map(str, torch.cuda.nccl.version()))}, all {world_size()} rank(s) add up")]


def leave() -> None:
    """Ends the group."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def gathered(value: Any) -> list[Any]:
    """Every rank's `value`, by rank."""
    import torch.distributed as dist

    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def same_software() -> list[Check]:
    """All ranks run the same versions of Python, torch and this package."""
    import torch

    from pipeline import __version__

    mine = f"Python {platform.python_version()}, torch {torch.__version__}, pipeline {__version__}"
    versions = gathered(mine)
    others = [number for number, other in enumerate(versions) if other != versions[0]]
    if others:
        found = f"rank {others[0]} has {versions[others[0]]}, rank 0 has {versions[0]}"
        return [failure("same software", found, "use one environment on all hosts")]
    hosts = len(set(gathered(socket.gethostname())))
    return [ok("same software", f"{world_size()} rank(s) on {hosts} host(s): {mine}")]


def shared_folder(run: Path | None) -> list[Check]:
    """A file that any rank writes into the run directory is soon seen by all."""
    if run is None:
        return [warning("shared folder", "not checked", "give the run directory: doctor DIR")]
    token = gathered(uuid.uuid4().hex)[0]
    mine = run / f".doctor-{token}-{rank()}"
    try:
        with suppress(OSError):
            run.mkdir(parents=True, exist_ok=True)
            mine.write_text(token)
        gathered(None)  # all have written
        missing = _missing([run / f".doctor-{token}-{number}" for number in range(world_size())], token)
        gathered(None)  # all have looked
    finally:
        with suppress(OSError):
            mine.unlink()
    if missing:
        names = ", ".join(file.name.rpartition("-")[2] for file in missing[:8])
        found = f"'{run}' shows this rank no file of rank(s) {names}"
        return [failure("shared folder", found, "run.dir must lie on a file system that all hosts mount and may write")]
    return [ok("shared folder", f"every rank sees every rank's file in '{run}'")]


def _missing(files: Sequence[Path], token: str) -> list[Path]:
    """The files that do not show up in time: network file systems remember for seconds what was not there."""
    end = time.monotonic() + FILE_SECONDS
    while missing := [file for file in files if not _holds(file, token)]:
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    return missing


def _holds(file: Path, token: str) -> bool:
    try:
        return file.read_text() == token
    except OSError:
        return False


def clocks() -> list[Check]:
    """Rank 0 requests each rank's time, and compares it with the midpoint of the round trip."""
    skews = [_skew(other) for other in range(1, world_size())]
    worst = max(skews, key=abs, default=0.0)
    if rank() != 0:
        return []
    if abs(worst) > SKEW_SECONDS:
        found = f"rank {1 + skews.index(worst)} is {worst:+.1f} s off rank 0"
        return [warning("clocks", found, "logs will mislead: let chrony or ntpd set the clocks")]
    return [ok("clocks", f"within {abs(worst) * 1000:.0f} ms")]


def _skew(other: int, rounds: int = 5) -> float:
    """Seconds by which rank `other`'s clock is ahead, from the quickest of several answers; 0 on other ranks than 0."""
    import torch
    import torch.distributed as dist

    answer, best = torch.zeros(1, dtype=torch.float64), (float("inf"), 0.0)
    for _ in range(rounds):
        if rank() == other:
            dist.recv(answer, src=0)
            dist.send(torch.tensor([time.time()], dtype=torch.float64), dst=0)
        elif rank() == 0:
            sent = time.time()
            dist.send(answer, dst=other)
            dist.recv(answer, src=other)
            received = time.time()
            best = min(best, (received - sent, float(answer) - (sent + received) / 2))
    return best[1]
