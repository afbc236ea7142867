"""On a run's PYTHONPATH: a training step lasts SECONDS longer while the file that SLOW_STEPS_WHILE names exists.

So that a test can interrupt a tiny run on its way. What is computed stays the same.
"""

import importlib.util
import os
import sys
import time
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

SECONDS = 1.0
MODULE = "pipeline.training.trainer"


class SlowSteps:
    """Finds MODULE as usual, and wraps its Trainer.step when it has been executed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            step = module.Trainer.step

            def slow_step(self: Any, at: int) -> float:
                if os.path.exists(os.environ["SLOW_STEPS_WHILE"]):
                    time.sleep(SECONDS)
                return step(self, at)

            module.Trainer.step = slow_step

        spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec


if "SLOW_STEPS_WHILE" in os.environ:
    sys.meta_path.insert(0, SlowSteps())  # type: ignore[arg-type]
