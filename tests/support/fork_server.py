"""Processes forked from one that has imported torch, DeepSpeed and the stages, and has read transformers' tables.

Each is as good as a fresh Python with those imports, and starts in a tenth of a second, not in five. Every process of
the test suite has at most one server, which starts when it is first asked and ends with the process.
"""

import functools
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from pipeline.core.imports import quick_imports, without_compiler

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",  # as the command line has it, where no terminal is
    "DS_ACCELERATOR": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
}


def run_forked(function: str, arguments: list[str], log: Path, timeout_seconds: float, **variables: str) -> int:
    """Calls `module:function`(arguments) in a process group of its own; its exit status, negative for a signal.

    What it writes is added to `log`. It has this process's environment, with ENVIRONMENT and `variables`. After the
    timeout the whole group is killed, and the test fails.
    """
    server = _server()
    assert server.stdin and server.stdout
    environment = os.environ | ENVIRONMENT | variables
    order = {"function": function, "arguments": arguments, "log": str(log), "environment": environment}
    server.stdin.write(json.dumps(order).encode() + b"\n")
    server.stdin.flush()
    pid = int(server.stdout.readline())
    ended, _, _ = select.select([server.stdout], [], [], timeout_seconds)
    if not ended:
        os.killpg(pid, signal.SIGKILL)
    status = int(server.stdout.readline())
    assert ended, f"no end after {timeout_seconds} s:\n{log.read_text()[-6000:]}"
    return status


@functools.cache
def _server() -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.support.fork_server"]
    environment = os.environ | ENVIRONMENT
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}  # select sees what no buffer hides
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True, **pipes)


def _import_all() -> None:
    """What a stage imports, and what libraries import on its way: seconds of each process's time."""
    for stage in ("run", "compare", "dry_run", "predict", "report"):
        importlib.import_module(f"pipeline.stages.{stage}")
    importlib.import_module("sklearn.model_selection")
    with without_compiler():  # as when an engine is built
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    for family in ("bert", "gpt2", "llama"):
        importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    from pipeline.distributed.zero import keep_quiet

    keep_quiet()


def _fill_caches() -> None:
    """What every process finds out once and does not change: old names of weights, shapes of a tiny Llama."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from pipeline.backbone.config import BackboneConfig
    from pipeline.backbone.facts import facts_of
    from pipeline.backbone.model_config import load_model_config
    from tests.support.tiny import save_tiny

    get_checkpoint_conversion_mapping("llama")
    with TemporaryDirectory() as folder:
        facts_of(load_model_config(BackboneConfig(name_or_path=str(save_tiny(Path(folder), "llama_gqa")))))


def _serve() -> None:
    with quick_imports():
        _import_all()
    _fill_caches()
    for line in sys.stdin.buffer:  # up to the end of the process that asks
        pid = os.fork()
        if pid == 0:
            _be_process(json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def run_and_exit(work: Callable[[], int | None], failed: int) -> NoReturn:
    """All that a forked process does: `work`, whose status it ends with as a Python would; `failed` after an error."""
    status = failed
    try:
        status = work() or 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _be_process(order: dict[str, Any]) -> NoReturn:
    def work() -> int | None:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor in (1, 2):
            os.dup2(os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
        os.environ.clear()
        os.environ.update(order["environment"])
        from tqdm import tqdm

        tqdm.set_lock(threading.RLock())  # by default all forked processes share one, which a killed one would keep
        module, _, name = order["function"].partition(":")
        status: int | None = getattr(importlib.import_module(module), name)(order["arguments"])
        return status

    run_and_exit(work, failed=1)


if __name__ == "__main__":
    _serve()
