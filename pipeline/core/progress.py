"""What a person sees of long work: a bar on a terminal or in a notebook, else a line every minute."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

from tqdm import tqdm

EVERY_SECONDS = 60.0
_WANTED: ContextVar[bool | None] = ContextVar("bars", default=None)


@contextmanager
def bars(wanted: bool | None) -> Iterator[None]:
    """Bars within the block: always, never, or, for None, on a terminal and in a notebook."""
    token = _WANTED.set(wanted)
    try:
        yield
    finally:
        _WANTED.reset(token)


def is_hidden(shown: bool = True) -> bool:
    """tqdm's `disable`, for a bar of this rank if `shown`."""
    wanted = _WANTED.get()
    if wanted is None:  # a notebook shows bars, though its standard error is not a terminal
        wanted = "ipykernel" in sys.modules or sys.stderr.isatty()
    return not (shown and wanted)


class Counted:
    """Work of `total` equal parts, called `parts`. `shown`: on this rank."""

    def __init__(self, log: logging.Logger, what: str, total: int, *, shown: bool, parts: str) -> None:
        self.log, self.what, self.total, self.parts, self.done = log, what, total, parts, 0
        self.bar = tqdm(total=total, desc=what, unit=f" {parts}", disable=is_hidden(shown), leave=False)
        self._speaks = shown and self.bar.disable
        self._began = self._said = time.monotonic()

    def update(self) -> None:
        """After every part."""
        self.bar.update()
        self.done += 1
        now = time.monotonic()
        if self._speaks and now - self._said >= EVERY_SECONDS:
            left = (now - self._began) / self.done * (self.total - self.done)
            self.log.info(
                "%s: %s of %s %s, %s left",
                *(self.what, f"{self.done:,}", f"{self.total:,}", self.parts, timedelta(seconds=round(left))),
            )
            self._said = now


@contextmanager
def counted(log: logging.Logger, what: str, total: int, *, shown: bool, parts: str = "batches") -> Iterator[Counted]:
    """Yields what to `update` after each of `total` parts."""
    work = Counted(log, what, total, shown=shown, parts=parts)
    try:
        yield work
    finally:
        work.bar.close()
