"""Faults that a forked rank carries into its own work."""

import importlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import pipeline.training.checkpoint as checkpoint
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.core.errors import UserError
from pipeline.training.trainer import Trainer

PHASES = {
    "preprocess": "pipeline.stages.preprocess:_build",
    "preprocessed": "pipeline.stages.preprocess:write_json",
    "encode labels": "pipeline.stages.encode_labels:_read",
    "label states": "pipeline.stages.encode_labels:_write",
    "load": "pipeline.engine.models:load_backbone",
    "step": "pipeline.training.trainer:Trainer.step",
    "save": "pipeline.training.loop:TrainingRun._save",
    "background write": "pipeline.training.checkpoint:_write_files",
    "latest": "pipeline.training.checkpoint:write_text",
    "prune": "pipeline.training.checkpoint:_prune",
    "evaluation": "pipeline.evaluation.scoring:_score_batch",
    "best adapter": "pipeline.training.loop:TrainingRun._keep_if_best",
    "end": "pipeline.training.loop:TrainingRun.finish",
    "evaluate": "pipeline.stages.evaluate:_score_splits",
    "metrics": "pipeline.stages.evaluate:_write",
    "read part": "pipeline.stages.predict_parts:_Work.read",
    "write part": "pipeline.core.parts:Parts.write",
    "record": "pipeline.core.parts:write_json",
}
"""Where a run can be struck: the function that is called there."""


def strike(argument: str) -> None:
    """`SIGKILL,evaluation,2,15`: the signal comes 15 ms after the second call of the phase's function begins.

    The kernel sends it (a timer whose signal nobody handles), wherever the process is then.
    """
    name, phase, call, milliseconds = argument.split(",")
    owner, attribute = _place(PHASES[phase])
    original, calls = getattr(owner, attribute), iter(range(1, 1_000_000))

    def struck(*args: Any, **keywords: Any) -> Any:
        if next(calls) == int(call):
            _note_time()
            _send_later(signal.Signals[name], int(milliseconds) / 1000)
        return original(*args, **keywords)

    setattr(owner, attribute, struck)


def failure(argument: str) -> None:
    """`KeyError,evaluation`: the phase's function raises this."""
    kind, _, phase = argument.partition(",")
    owner, attribute = _place(PHASES[phase])

    def failing(*args: Any, **keywords: Any) -> None:
        raise {"KeyError": KeyError, "UserError": UserError}[kind]("struck")

    setattr(owner, attribute, failing)


def _send_later(number: signal.Signals, seconds: float) -> None:
    if number == signal.SIGKILL and seconds > 0:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends a process as abruptly
        return
    time.sleep(seconds)
    os.kill(os.getpid(), number)


def _note_time() -> None:
    """For those who measure how long the run takes to end after a fault; FAULT_TIME names the file."""
    if file := os.environ.get("FAULT_TIME"):
        Path(file).write_text(str(time.time()))


def _place(name: str) -> tuple[Any, str]:
    module, _, path = name.partition(":")
    *owners, attribute = path.split(".")
    found: Any = importlib.import_module(module)
    for owner in owners:
        found = getattr(found, owner)
    return found, attribute


def kill_after_step(steps: str) -> None:
    """SIGKILL before the step after this many."""
    _at_step(int(steps), signal.SIGKILL)


def signal_at_step(argument: str) -> None:
    """`SIGTERM,4`: the signal arrives in the middle of the fifth step."""
    name, _, step = argument.partition(",")
    _at_step(int(step), signal.Signals[name])


def kill_in_save(argument: str) -> None:
    """`4,files`: SIGKILL while the checkpoint of step 4 is being written; `4,latest`: before LATEST names it."""
    step, _, place = argument.partition(",")
    name = {"files": "_write_files", "latest": "write_text"}[place]
    original = getattr(checkpoint, name)

    def fatal(path: Path, content: object) -> None:
        at_this_step = f"step-{int(step):06d}" in (path.name if place == "files" else str(content))
        if at_this_step and place == "files":
            (path / checkpoint.PARAMETERS).write_bytes(b"half")
        if at_this_step:
            os.kill(os.getpid(), signal.SIGKILL)
        original(path, content)

    setattr(checkpoint, name, fatal)


def full_disk(step: str) -> None:
    """The checkpoint of this step meets a full disk."""
    original = checkpoint._write_files

    def failing(path: Path, state: checkpoint.RunState) -> None:
        if state.step == int(step):
            raise OSError(28, "No space left on device")
        original(path, state)

    checkpoint._write_files = failing


def no_memory_above(argument: str, put: Callable[..., None] = setattr) -> None:
    """`6,3`: after three of them, allocations fail, for real, in readings of more than six rows with an injection."""
    most, after = map(int, argument.split(","))
    original, large = FrozenBackbone.forward, iter(range(1, 1_000_000))

    def short(
        self: FrozenBackbone, ids: torch.Tensor, mask: torch.Tensor, injection: Any = None, *rest: Any, **named: Any
    ) -> Any:
        if injection is not None and len(ids) > most and next(large) > after:
            torch.empty(2**55)
        return original(self, ids, mask, injection, *rest, **named)

    put(FrozenBackbone, "forward", short)


def started_with(argument: str) -> None:
    """This rank gets one more argument than the others."""
    cli = importlib.import_module("pipeline.cli")
    original = cli.main
    cli.main = lambda arguments: original([*arguments, argument])  # type: ignore[attr-defined]


def work_in(folder: str) -> None:
    """A relative run directory then is another one than that of the other ranks."""
    os.chdir(folder)


def work_in_own(folders: str) -> None:
    """`A,B`: rank 0 works in A, rank 1 in B."""
    os.chdir(folders.split(",")[int(os.environ["RANK"])])


def _at_step(step: int, number: signal.Signals) -> None:
    original = Trainer.step

    def interrupted(self: Trainer, at: int) -> float:
        if at == step:
            os.kill(os.getpid(), number)
        return original(self, at)

    Trainer.step = interrupted  # type: ignore[method-assign]
