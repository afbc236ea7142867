"""Runs a function on every rank of several gloo worlds, in real processes, forked after the imports."""

import importlib
import json
import os
import traceback
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from pipeline.distributed.launcher import free_port
from tests.support.fork_server import run_forked


def run_module(module: str, arguments: list[str], timeout_seconds: int) -> None:
    """Calls `main`(arguments) of a test's worker module in a process group of its own; a failure fails the test."""
    with NamedTemporaryFile() as file:
        log = Path(file.name)
        status = run_forked(f"{module}:main", arguments, log, timeout_seconds)
        assert status == 0, log.read_text()[-6000:]


def run_worlds(function: str, sizes: list[int], folder: Path, timeout_seconds: int) -> dict[int, list[Any]]:
    """Calls `module:function`(folder) on every rank of a world of each size; world size -> what its ranks returned.

    The results travel as JSON. A failed rank or a passed timeout fails the test with the ranks' output.
    """
    run_module("tests.support.worlds", [function, str(folder), *map(str, sizes)], timeout_seconds)
    return {
        size: [json.loads((folder / f"result-{size}-{rank}.json").read_text()) for rank in range(size)]
        for size in sizes
    }


def main(arguments: list[str]) -> int:
    module, _, name = arguments[0].partition(":")
    folder, sizes = Path(arguments[1]), [int(size) for size in arguments[2:]]
    work = getattr(importlib.import_module(module), name)
    import deepspeed
    import torch.distributed

    for size in sizes:
        port = free_port()
        ranks = []
        for rank in range(size):
            pid = os.fork()
            if pid == 0:
                os.environ.update(
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(size),
                    LOCAL_WORLD_SIZE=str(size),
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=str(port),
                )
                try:
                    deepspeed.init_distributed("gloo", verbose=False)
                    result = work(folder)
                    (folder / f"result-{size}-{rank}.json").write_text(json.dumps(result))
                    torch.distributed.barrier()
                except BaseException:
                    print(f"world {size}, rank {rank}:\n{traceback.format_exc()}", flush=True)
                    os._exit(1)
                os._exit(0)
            ranks.append(pid)
        statuses = [os.waitpid(pid, 0)[1] for pid in ranks]
        if any(statuses):
            return 1
    return 0
