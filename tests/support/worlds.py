"""Runs a function on every rank of several gloo worlds, in real processes.

One child imports torch and DeepSpeed (seconds) and forks the ranks of each world, so that four worlds cost one import.
"""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from pipeline.distributed.launcher import free_port
from pipeline.distributed.zero import keep_quiet

REPOSITORY = Path(__file__).resolve().parents[2]


def run_module(module: str, arguments: list[str], timeout_seconds: int) -> None:
    """Runs a test's worker module in a process group of its own; a failure or a passed timeout fails the test."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}
    child = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env=os.environ | quiet,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
        raise AssertionError(f"no end after {timeout_seconds} s:\n{output[-6000:]}") from None
    assert child.returncode == 0, output[-6000:]


def run_worlds(function: str, sizes: list[int], folder: Path, timeout_seconds: int) -> dict[int, list[Any]]:
    """Calls `module:function`(folder) on every rank of a world of each size; world size -> what its ranks returned.

    The results travel as JSON. A failed rank or a passed timeout fails the test with the ranks' output.
    """
    run_module("tests.support.worlds", [function, str(folder), *map(str, sizes)], timeout_seconds)
    return {
        size: [json.loads((folder / f"result-{size}-{rank}.json").read_text()) for rank in range(size)]
        for size in sizes
    }


def import_before_forking() -> None:
    """Imports, once for all ranks, what a stage would import on its way: 2 s of each rank's processor time."""
    for name in ("deepspeed.runtime.zero.muon.muon_optimizer", "sklearn.linear_model", "sklearn.metrics"):
        importlib.import_module(name)
    for family in ("bert", "gpt2", "llama"):
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    gc.freeze()  # DeepSpeed collects garbage at every start: seconds, with all that is imported here


def _main(function: str, folder: Path, sizes: list[int]) -> int:
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)
    import deepspeed
    import torch.distributed

    keep_quiet()
    import_before_forking()
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


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], Path(sys.argv[2]), [int(size) for size in sys.argv[3:]]))
