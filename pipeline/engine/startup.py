"""Starts the processes' common ground: process group, device, seeds; the same alone and under any launcher."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs, is_mlflow_available, is_wandb_available
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pipeline.config import RunConfig
from pipeline.core.errors import UserError, about
from pipeline.core.ownership import check_ours
from pipeline.core.run_dir import RunDir
from pipeline.core.run_lock import RunLock
from pipeline.distributed.heartbeat import Heartbeat
from pipeline.distributed.launcher import be_alone, check_launcher, ignore_renamed_collectives, joining, world_size
from pipeline.distributed.ranks import Ranks
from pipeline.distributed.zero import end_process_group, keep_quiet
from pipeline.engine.agreement import check_alike, parts_of_run
from pipeline.engine.config import EngineConfig
from pipeline.engine.deepspeed_config import resolve_deepspeed
from pipeline.engine.determinism import as_it_was, make_deterministic
from pipeline.training.config import TrainConfig

log = logging.getLogger(__name__)
KEPT_OF_ACCELERATE = ("ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE", "ACCELERATE_LOG_LEVEL")
"""Variables about this machine, not about training."""
# Both live as long as the process group.
_ranks: Ranks | None = None
_heartbeat: Heartbeat | None = None


def join(config: RunConfig) -> Ranks:
    """The processes of this command, for work without a model: one process alone needs no engine for that."""
    return Ranks.alone() if world_size() == 1 else start(config)[1]


def start(config: RunConfig) -> tuple[Accelerator, Ranks]:
    """Joins the process group; gives the accelerator, whose DeepSpeed config is complete, and the ranks of the group.

    Every stage calls this first; later calls in one process reuse the group. DeepSpeed must know the group before any
    partitioned parameter is made (deepspeedai/DeepSpeed #8084). Raises UserError, on every rank, where the ranks were
    not started with the same config and program.
    """
    global _ranks, _heartbeat
    check_launcher()
    if world_size() == 1 and not torch.distributed.is_initialized():
        be_alone()
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    accelerator = _accelerator(config.engine, config.train, config.backbone.dtype, config.logging.trackers)
    _ranks = _ranks or Ranks.joined()
    if _ranks.size > 1:
        check_alike(parts_of_run(config.model_dump(mode="json"), config.engine.deepspeed), _ranks)
    make_deterministic(config.run.seed, strict=config.engine.deterministic)
    if _ranks.size > 1 and _heartbeat is None:
        _heartbeat = Heartbeat(_ranks, config.engine.heartbeat_seconds)
    return accelerator, _ranks


def _accelerator(engine: EngineConfig, train: TrainConfig, dtype: str, trackers: Sequence[str]) -> Accelerator:
    """Joins the process group, if it is not joined yet. Raises UserError where the other ranks do not come."""
    check_trackers(trackers)
    _forget_settings_of_accelerate()
    with about(f"engine.deepspeed {engine.deepspeed!r}"):
        resolved = resolve_deepspeed(engine, train, dtype, world_size())
    keep_quiet()
    # accelerate keeps its state for the life of a process; another config in the same process starts afresh.
    AcceleratorState._reset_state()
    os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if resolved["bf16"]["enabled"] else "no"
    # Without a backend by name, accelerate takes several CPU ranks under DeepSpeed for one process each.
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    group = InitProcessGroupKwargs(backend=backend, timeout=timedelta(seconds=engine.timeout_seconds))
    with nullcontext() if torch.distributed.is_initialized() else joining():
        return Accelerator(
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=resolved),
            mixed_precision=os.environ["ACCELERATE_MIXED_PRECISION"],
            gradient_accumulation_steps=train.gradient_accumulation,
            kwargs_handlers=[group],
        )


@contextmanager
def own_run_dir(run_dir: RunDir, ranks: Ranks) -> Iterator[None]:
    """The run directory, made, cleaned up and locked by rank 0; where that fails, all ranks end."""
    lock = RunLock(run_dir.path)

    def take() -> None:
        check_ours(run_dir.path, "run")  # not even a lock goes into a folder that is somebody else's
        lock.acquire()
        run_dir.create()

    ranks.on_main(take)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def as_guest() -> Iterator[None]:
    """Around stages in one process of another program, such as a notebook, which is left as it was found.

    Raises UserError under a launcher, and where that program has a process group: a stage would take it for its own.
    """
    if world_size() > 1 or torch.distributed.is_initialized():
        raise UserError(
            "this process belongs to a process group, and training from Python takes one process alone: use "
            "`ltune train` under a launcher, and LTuningClassifier.from_pretrained"
        )
    environment, threads, hook = dict(os.environ), torch.get_num_threads(), sys.excepthook
    with torch.random.fork_rng(), as_it_was(), warnings.catch_warnings():
        ignore_renamed_collectives()
        try:
            yield
        finally:
            leave()
            for name in os.environ.keys() - environment.keys():
                del os.environ[name]
            os.environ.update(environment)
            torch.set_num_threads(threads)
            sys.excepthook = hook  # a process group has set one that writes [rank0] before each line


def explain_failure(message: str, *, known: bool) -> str | None:
    """Which other rank was lost, if that is why this one fails; else reports to the others how this one failed.

    `known`: the message names the cause already.
    """
    if _heartbeat is None:
        return None
    lost = None if known else _heartbeat.find_lost()
    if lost is None:
        _heartbeat.failed(message)
    return lost


def leave() -> None:
    """Ends the process group in good order, the ranks' control group with it. A later `start` joins a new one."""
    global _ranks, _heartbeat
    _ranks = None
    if _heartbeat is not None:
        _heartbeat.stop()
        _heartbeat = None
    if torch.distributed.is_initialized():
        end_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        unset_hf_deepspeed_config()


def check_trackers(names: Sequence[str]) -> None:
    """UserError where one of `logging.trackers` is not installed: now, not when training begins to log."""
    for name, available in (("wandb", is_wandb_available), ("mlflow", is_mlflow_available)):
        if name in names and not available():
            raise UserError(f"logging.trackers names {name}, which is not installed: pip install {name}")


def _forget_settings_of_accelerate() -> None:
    """Takes the settings of `accelerate config` and `accelerate launch` out of the environment.

    They are about programs that leave them to accelerate: it would refuse our DeepSpeed config beside those of another,
    take another number of passes per step, leave DeepSpeed out (--cpu), or compile the model. Ours come from the run
    config and its DeepSpeed file alone.
    """
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        if name not in KEPT_OF_ACCELERATE:
            del os.environ[name]
