"""Writes checkpoints in the background, so that training does not wait for the disk."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.training.checkpoint import write_checkpoint
from pipeline.training.run_state import RunState

log = logging.getLogger(__name__)


class CheckpointWriter:
    """One thread that writes one checkpoint at a time. Rank 0 alone has one at work."""

    def __init__(self, folder: Path, keep: int, *, stop_on_error: bool) -> None:
        """`stop_on_error`: a full or read-only disk is raised by the next `submit` or `wait`; else it is logged."""
        self.folder, self.keep, self.stop_on_error = folder, keep, stop_on_error
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *error: object) -> None:
        """However training ends, what was begun is written."""
        self._thread.shutdown()

    def submit(self, state: RunState, before: Callable[[], None]) -> None:
        """Calls `before` and writes a state, which must not change any more, once the one before it is written."""
        self.wait()
        self._pending = self._thread.submit(self._write, state, before)

    def wait(self) -> None:
        """Returns when nothing is left to write. Raises what went wrong."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, state: RunState, before: Callable[[], None]) -> None:
        try:
            before()
            write_checkpoint(self.folder, state, self.keep)
        except UserError as error:
            if self.stop_on_error:
                raise UserError(f"checkpoint of step {state.step} (train.on_write_error=stop): {error}") from error
            log.warning(
                "CHECKPOINT OF STEP %d NOT WRITTEN: %s. Training goes on; older checkpoints stay", state.step, error
            )
