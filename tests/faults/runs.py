"""The small run that faults strike, and how it is compared with the undisturbed one."""

import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.processes import launch
from tests.support.tiny_run import tiny_config

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "fp32": {},
    "int8": {
        "backbone": {"dtype": "bfloat16", "quantization": "int8"},
        "engine": {"deepspeed": "ds_configs/zero3_int8.json"},
    },
    "zero2": {
        "backbone": {"dtype": "bfloat16", "quantization": "int8"},
        "engine": {"deepspeed": "ds_configs/zero2_int8.json"},
    },
}
"""Changes of the config: fp32 under ZeRO-3, int8 and bf16 under ZeRO-3, and the same under ZeRO-2."""
HEARTBEAT_SECONDS = 6


@dataclass
class Workshop:
    """A folder with the config of each variant; `start` runs one in a run directory of its own."""

    folder: Path
    seconds: list[float] = field(default_factory=list)
    """Of each launch."""

    def __post_init__(self) -> None:
        for variant, changes in VARIANTS.items():
            sections: dict[str, dict[str, Any]] = {
                "method": {"dropout": 0.1},
                "train": {"max_steps": 8, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 0.01}
                | {"eval_every": 3, "save_every": 2, "log_every": 1},
                "evaluate": {"batch_size": 6},
                "logging": {"trackers": ["jsonl"]},
                "engine": {"threads": 1, "heartbeat_seconds": HEARTBEAT_SECONDS},
            }
            for name, section in changes.items():
                sections[name] = sections.get(name, {}) | section
            (self.folder / f"{variant}.yaml").write_text(tiny_config(self.folder, **sections).to_yaml())

    def start(self, run: str, *overrides: str, variant: str = "fp32", command: str = "run", **how: Any) -> list[int]:
        """Exit statuses by rank of one launch; its output is added to RUN.log."""
        config = str(self.folder / f"{variant}.yaml")
        started = time.monotonic()
        statuses = launch(
            [command, "--config", config, f"run.dir={self.folder / run}", *overrides], self.log(run), **how
        )
        self.seconds.append(time.monotonic() - started)
        return statuses

    def copy(self, source: str, run: str) -> str:
        """A copy of a run directory."""
        shutil.copytree(self.folder / source, self.folder / run)
        return run

    def log(self, run: str) -> Path:
        return self.folder / f"{run.replace('/', '-')}.log"

    def differing(self, run: str, undisturbed: str) -> list[str]:
        """Names of all results that are not those of the undisturbed run, bit for bit."""
        ours, wanted = results(self.folder / run), results(self.folder / undisturbed)
        return sorted(name for name in ours.keys() | wanted.keys() if ours.get(name) != wanted.get(name))


def results(run: Path) -> dict[str, Any]:
    """Content of each file that a run ends with, by name; checkpoints are a means and no result."""
    found: dict[str, Any] = {}
    for folder in ("data", "labels", "adapter", "adapter-final", "evaluation"):
        for file in sorted((run / folder).rglob("*")):
            if file.is_file():
                found[str(file.relative_to(run))] = file.read_bytes()
    # Arrow writes a random fingerprint beside its tables.
    found = {name: content for name, content in found.items() if not name.endswith("state.json")}
    log = run / "logs" / "metrics.jsonl"
    if log.is_file():
        found["metrics.jsonl"] = [_without_clock(line) for line in log.read_bytes().splitlines()]
    leftovers = [name for name in os.listdir(run) if name.startswith(".") and name != ".lock"]
    return found | {"leftovers": leftovers}


def _without_clock(line: bytes) -> Any:
    try:
        return {key: value for key, value in json.loads(line).items() if key not in ("examples_per_second", "seconds")}
    except (ValueError, AttributeError):
        return repr(line)  # damaged
