"""What the two ranks of test_startup.py do."""

from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.distributed.launcher import world_size
from pipeline.engine.startup import on_main_process, start
from tests.support.tiny_run import tiny_config


def outcome(accelerator: Any, work: Any) -> list[str]:
    try:
        return ["result", str(on_main_process(accelerator, work))]
    except Exception as error:
        return [type(error).__name__, str(error)]


def main_process(folder: Path) -> dict[str, Any]:
    accelerator = start(tiny_config(folder / "rank"))
    calls: list[int] = []

    def wrong_input() -> None:
        raise UserError("no such file")

    def defect() -> None:
        raise KeyError("key")

    def good() -> dict[str, int]:
        calls.append(1)
        return {"rows": 3}

    return {
        "good": outcome(accelerator, good),
        "calls": len(calls),
        "wrong_input": outcome(accelerator, wrong_input),
        "defect": outcome(accelerator, defect),
        "again": outcome(accelerator, good),
        "world": [world_size(), accelerator.num_processes, accelerator.process_index],
    }
