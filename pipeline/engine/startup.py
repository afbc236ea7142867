"""Starts the processes' common ground: process group, device, seeds; the same alone and under any launcher."""

import logging
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs, is_mlflow_available, is_wandb_available
from torch.utils import deterministic
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pipeline.config import RunConfig
from pipeline.core.errors import UserError, about
from pipeline.distributed.heartbeat import Heartbeat
from pipeline.distributed.launcher import free_port, world_size
from pipeline.distributed.zero import end_process_group, keep_quiet
from pipeline.engine.agreement import check_alike, parts_of_run
from pipeline.engine.deepspeed_config import resolve_deepspeed

log = logging.getLogger(__name__)
Result = TypeVar("Result")
_heartbeat: Heartbeat | None = None  # lives as long as the process group


def start(config: RunConfig) -> Accelerator:
    """Joins the process group and returns the accelerator, whose DeepSpeed config is complete.

    Every stage calls this first; later calls in one process reuse the group. DeepSpeed must know the group before any
    partitioned parameter is made (deepspeedai/DeepSpeed #8084). Raises UserError, on every rank, where the ranks were
    not started with the same config and program.
    """
    _pretend_launcher()
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    # `accelerate launch --cpu` sets this; accelerate would then leave DeepSpeed out.
    os.environ.pop("ACCELERATE_USE_CPU", None)
    with about(f"engine.deepspeed {config.engine.deepspeed!r}"):
        resolved = resolve_deepspeed(config, world_size())
    keep_quiet()
    # accelerate keeps its state for the life of a process; another config in the same process starts afresh.
    AcceleratorState._reset_state()
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if resolved["bf16"]["enabled"] else "no"
    # Without a backend by name, accelerate takes several CPU ranks under DeepSpeed for one process each.
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    group = InitProcessGroupKwargs(backend=backend, timeout=timedelta(seconds=config.engine.timeout_seconds))
    accelerator = Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=resolved),
        mixed_precision=os.environ["ACCELERATE_MIXED_PRECISION"],
        gradient_accumulation_steps=config.train.gradient_accumulation,
        kwargs_handlers=[group],
        log_with=trackers_of(config.logging.trackers) or None,  # accelerate warns of an empty list
        project_dir=str(config.run_dir.logs),
    )
    check_alike(parts_of_run(config))
    _make_deterministic(config.run.seed)
    global _heartbeat
    if accelerator.num_processes > 1 and _heartbeat is None:
        _heartbeat = Heartbeat(config.engine.heartbeat_seconds)
    return accelerator


def explain_failure(message: str, *, known: bool) -> str | None:
    """Which other rank was lost, if that is why this one fails; else tells the others how this one failed.

    `known`: the message names the cause already.
    """
    if _heartbeat is None:
        return None
    lost = None if known else _heartbeat.find_lost()
    if lost is None:
        _heartbeat.failed(message)
    return lost


def leave() -> None:
    """Ends the process group in good order. A later `start` in this process joins a new one."""
    global _heartbeat
    if _heartbeat is not None:
        _heartbeat.stop()
        _heartbeat = None
    if torch.distributed.is_initialized():
        end_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        unset_hf_deepspeed_config()


def on_main_process(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """Runs `work` on rank 0 alone, however long it takes, and gives its result, or its failure, to every rank."""
    if accelerator.num_processes == 1:
        return work()
    # A group of its own: work on rank 0 may outlast the timeout of ordinary collectives.
    group = torch.distributed.new_group(backend="gloo", timeout=timedelta(days=7))
    outcome: list[object] = [None, None]
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = str(error) if isinstance(error, UserError) else f"rank 0 failed: {error!r}"
            failure = error
    torch.distributed.broadcast_object_list(outcome, src=0, group=group)
    torch.distributed.destroy_process_group(group)
    if outcome[1] is not None:
        raise failure or UserError(str(outcome[1]))
    return outcome[0]  # type: ignore[return-value]


def trackers_of(names: Sequence[str]) -> list[str]:
    """accelerate's trackers among `logging.trackers`; the JSONL file is our own. UserError where one is missing."""
    for name, available in (("wandb", is_wandb_available), ("mlflow", is_mlflow_available)):
        if name in names and not available():
            raise UserError(f"logging.trackers names {name}, which is not installed: pip install {name}")
    return [name for name in names if name != "jsonl"]


def _pretend_launcher() -> None:
    """Without a launcher: the environment that torchrun would set for one process, on a free port."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return
    os.environ.update(
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
    )


def _make_deterministic(seed: int) -> None:
    """Same seed, machine and world size: the same adapter, bit for bit."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.manual_seed(seed)
