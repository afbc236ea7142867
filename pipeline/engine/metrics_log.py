"""Training figures: one JSON object per line, and accelerate's trackers beside it."""

import json
from typing import Any

from accelerate import Accelerator

from pipeline.rundir import RunDir


class MetricsLog:
    """Writes each logged step to logs/metrics.jsonl and to the trackers; does nothing on ranks other than 0."""

    def __init__(self, accelerator: Accelerator, run_dir: RunDir) -> None:
        self.accelerator = accelerator
        self.path = run_dir.metrics_log
        if accelerator.is_main_process:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("")
        accelerator.init_trackers("tensorboard")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends one line: `step` and the figures."""
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(values, step=step)

    def close(self) -> None:
        """Flushes the trackers. (accelerate's own `end_training` would end the process group with them.)"""
        for tracker in self.accelerator.trackers:
            tracker.finish()
