"""Training metrics: one JSON object per line, and the trackers beside it."""

import json
import logging
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from pipeline.training.run_state import LogPosition
from pipeline.training.trackers import Trackers

log = logging.getLogger(__name__)


class MetricsLog:
    """Writes each logged step to logs/metrics.jsonl and to the trackers; does nothing on ranks other than 0."""

    def __init__(self, path: Path, trackers: Trackers | None, step: int, position: LogPosition) -> None:
        """Goes on after `step`, at which the file ended at `position`: what a killed run wrote later is cut off.

        `trackers`: None on ranks other than 0.
        """
        self.path, self.trackers = path, trackers
        self.size_bytes, self._digest = 0, sha256()
        self._pending = b""
        if trackers is not None:
            self._cut_off(step, position)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends one line: `step` and the metrics."""
        if self.trackers is not None:
            self._pending += (json.dumps({"step": step, **values}) + "\n").encode()
            self._append()
            self.trackers.log(values, step)

    def position(self) -> LogPosition:
        """Where the file ends; at its beginning on ranks other than 0."""
        return LogPosition(self.size_bytes, self._digest.hexdigest())

    def sync(self) -> None:
        """Makes what is written so far survive a power cut. Rank 0 calls it, in any thread."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def _cut_off(self, step: int, position: LogPosition) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.seek(0)
            kept = file.read(position.size_bytes)
            kept = kept[: kept.rfind(b"\n") + 1]  # whole lines, if the file was damaged
            file.truncate(len(kept))
        self.size_bytes, self._digest = len(kept), sha256(kept)
        if self.position() != position:
            log.warning("train: '%s' is not what it was at step %d: lines are lost or altered", self.path, step)

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
            self._digest.update(self._pending)
            self._pending = b""

    def close(self) -> None:
        """Ends the trackers' runs."""
        if self.trackers is not None:
            self.trackers.close()
