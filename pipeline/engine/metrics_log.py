"""Training figures: one JSON object per line, and accelerate's trackers beside it."""

import json
import logging
import os
from typing import Any

from accelerate import Accelerator

from pipeline.rundir import RunDir

log = logging.getLogger(__name__)


class MetricsLog:
    """Writes each logged step to logs/metrics.jsonl and to the trackers; does nothing on ranks other than 0."""

    def __init__(self, accelerator: Accelerator, run_dir: RunDir, step: int = 0, size_bytes: int = 0) -> None:
        """Goes on after `step`, at which the file had `size_bytes`: what a killed run wrote later is cut off."""
        self.accelerator, self.path = accelerator, run_dir.metrics_log
        self.size_bytes = 0
        self._pending = b""
        if accelerator.is_main_process:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            self.size_bytes = min(size_bytes, self.path.stat().st_size)
            os.truncate(self.path, self.size_bytes)
            if self.size_bytes < size_bytes:
                log.warning("train: '%s' is shorter than it was at step %d; lines are missing", self.path, step)
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": step + 1}})

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends one line: `step` and the figures."""
        if self.accelerator.is_main_process:
            self._pending += (json.dumps({"step": step, **values}) + "\n").encode()
            self._append()
        self.accelerator.log(values, step=step)

    def synced_bytes(self) -> int:
        """Length of the file, which is on the disk after this; 0 on ranks other than 0."""
        if self.accelerator.is_main_process:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        return self.size_bytes

    def _append(self) -> None:
        """Writes the waiting lines; where the disk is full, they wait for the next time."""
        try:
            with self.path.open("r+b") as file:
                # Not append: a line that a full disk cut off is written over.
                file.seek(self.size_bytes)
                file.write(self._pending)
        except OSError as error:
            log.warning("train: '%s' cannot be written (%s); its lines wait in memory", self.path, error.strerror)
        else:
            self.size_bytes += len(self._pending)
            self._pending = b""

    def close(self) -> None:
        """Flushes the trackers. (accelerate's own `end_training` would end the process group with them.)"""
        for tracker in self.accelerator.trackers:
            tracker.finish()
