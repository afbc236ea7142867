"""Trains in real processes, one per rank, that can be killed or signalled on the way.

A parent that has imported torch and DeepSpeed forks every rank of every launch: a launch costs a second, not ten.
"""

import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline.distributed.launcher import free_port
from tests.support.fork_server import run_and_exit
from tests.support.worlds import run_module

HANG_SECONDS = 300
"""Far more than a launch takes, also on a machine busy with something else."""


def run_script(function: str, folder: Path, timeout_seconds: int) -> Any:
    """Calls `module:function`(folder) in a fresh process, which may `launch`; gives what it returned."""
    run_module("tests.support.processes", [function, str(folder)], timeout_seconds)
    return json.loads((folder / "result.json").read_text())


def launch(
    arguments: Sequence[str],
    log: Path,
    *,
    world: int = 1,
    fault: str | None = None,
    faulty: Sequence[int] = (0,),
    timeout_seconds: int = HANG_SECONDS,
) -> list[int]:
    """Runs the command line on `world` forked ranks; exit statuses by rank, negative for a signal.

    `fault` is one of the functions in tests/support/faults.py with an argument, such as "kill_after_step:3"; the
    `faulty` ranks call it before they start. The ranks' output goes to `log`. What does not end, and ranks stopped by
    SIGSTOP once the others have ended, are killed, so that nothing hangs.
    """
    port = free_port()
    ranks = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            _be_rank(rank, world, port, list(arguments), log, fault if rank in faulty else None)
        ranks.append(pid)
    return _statuses(ranks, time.monotonic() + timeout_seconds)


def _be_rank(rank: int, world: int, port: int, arguments: list[str], log: Path, fault: str | None) -> NoReturn:
    def work() -> int:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        if fault is not None:
            name, _, argument = fault.partition(":")
            getattr(importlib.import_module("tests.support.faults"), name)(argument)
        from tqdm import tqdm

        from pipeline.cli import main

        # By default all forked ranks share one lock, which a killed one would keep.
        tqdm.set_lock(threading.RLock())
        return main(arguments)

    run_and_exit(work, failed=70)


def _statuses(ranks: list[int], deadline: float) -> list[int]:
    ended: dict[int, int] = {}
    stopped: set[int] = set()
    while len(ended) < len(ranks):
        for pid in set(ranks) - ended.keys():
            found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if found and os.WIFSTOPPED(status):
                stopped.add(pid)
            elif found:
                ended[pid] = os.waitstatus_to_exitcode(status)
        waiting = set(ranks) - ended.keys()
        if waiting <= stopped or time.monotonic() > deadline:
            for pid in waiting:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [ended[pid] for pid in ranks]


def main(arguments: list[str]) -> None:
    module, _, name = arguments[0].partition(":")
    folder = Path(arguments[1])
    result = getattr(importlib.import_module(module), name)(folder)
    (folder / "result.json").write_text(json.dumps(result))
