"""What takes the time in a training step: a trace of a few steps, and the operations that took most of it."""

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.core.files import atomic_file
from pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)

WARM_UP_STEPS = 2
"""Not traced: the first steps make buffers and choose kernels."""
SHOWN = 5
"""Operations that are named."""


class StepTrace:
    """Traces so many training steps of one rank: chrome://tracing and Perfetto show what is written."""

    def __init__(self, file: Path, steps: int) -> None:
        self.file, self.steps = file, steps
        self._seen = 0
        self._began = 0.0
        self._profile: profile | None = None

    def after_step(self) -> None:
        """Called after every step."""
        self._seen += 1
        if self._seen == WARM_UP_STEPS:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self._profile, self._began = profile(activities=activities), time.perf_counter()
            self._profile.start()
        elif self._seen == WARM_UP_STEPS + self.steps:
            self.close()

    def close(self) -> None:
        """Ends the trace and writes it, if it runs. UserError where it cannot be written."""
        if self._profile is None:
            return
        traced, self._profile = self._profile, None
        seconds = (time.perf_counter() - self._began) / max(1, self._seen - WARM_UP_STEPS)
        traced.stop()
        with atomic_file(self.file) as temporary:
            traced.export_chrome_trace(str(temporary))
        log.info("train: %.3g s per traced step; of that %s; trace in '%s'", seconds, _most(traced), self.file)


@contextmanager
def traced(trainer: Trainer, file: Path, steps: int | None) -> Iterator[None]:
    """The trainer's first steps inside are traced; None: none are."""
    if steps is None:
        yield
        return
    with closing(StepTrace(file, steps)) as trace:
        trainer.after_step = trace.after_step
        yield


def _most(traced: profile) -> str:
    """The operations that took most of the device's time, or of the CPU's where there is no other device."""
    found = traced.key_averages()
    on_device = sum(each.self_device_time_total for each in found) > 0
    spent = {each.key: each.self_device_time_total if on_device else each.self_cpu_time_total for each in found}
    total = sum(spent.values()) or 1
    most = sorted(spent, key=lambda key: -spent[key])[:SHOWN]
    return ", ".join(f"{key} {spent[key] / total:.0%}" for key in most)
