"""Preemption: a signal requests a stop; all ranks agree on the step at which they do."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator


class Preemption:
    """While the `with` block runs, the first of `signals` is noted instead of ending the process.

    A second SIGINT ends it at once.
    """

    def __init__(self, signals: Sequence[str]) -> None:
        self.signals = [signal.Signals[name] for name in signals]
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Preemption":
        # Python lets only the main thread take signals; in another one the caller's own handling stays.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self, accelerator: Accelerator) -> str | None:
        """Name of a signal that any rank got. Every rank must call this at the same step; all get the same answer."""
        number = torch.tensor(self.received or 0, device=accelerator.device)
        dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return signal.Signals(int(number)).name if number else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
