"""Preemption: a signal requests a stop; all ranks agree on the step at which they do."""

import logging
import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from pipeline.core.errors import Preempted, UserError
from pipeline.core.files import write_json
from pipeline.core.run_dir import RunDir
from pipeline.distributed.ranks import Ranks

log = logging.getLogger(__name__)


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

    def check(self, accelerator: Accelerator, ranks: Ranks, run: RunDir, where: str) -> None:
        """Raises Preempted where any rank got a signal, for work that takes no step. Collective.

        `where`: how far it is.
        """
        if name := self.requested(accelerator):
            ranks.on_main(lambda: leave_sign(run, {"signal": name}))
            raise Preempted(f"train: {name}: stopped {where}; the same command goes on from there")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def leave_sign(run: RunDir, sign: dict[str, Any]) -> None:
    """For launchers that lose exit status 85. Rank 0 calls it."""
    try:
        write_json(run.preempted, sign)
    except UserError as error:
        log.warning("train: %s", error)
