"""Faults that a forked rank carries into its own training."""

import os
import signal
from pathlib import Path

import pipeline.engine.checkpoint as checkpoint
from pipeline.engine.training import Trainer


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


def work_in(folder: str) -> None:
    """A relative run directory then is another one than that of the other ranks."""
    os.chdir(folder)


def _at_step(step: int, number: signal.Signals) -> None:
    original = Trainer.step

    def interrupted(self: Trainer, at: int) -> float:
        if at == step:
            os.kill(os.getpid(), number)
        return original(self, at)

    Trainer.step = interrupted  # type: ignore[method-assign]
