"""What a run knows beside its tensors: how far it is, and the best validation metrics so far."""

import math
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from torch import Tensor

from pipeline.training.optimizer_state import OptimizerState


@dataclass
class Best:
    """The best validation metrics so far, the parameters that reached them, and how many evaluations ago that was."""

    value: float = -math.inf
    step: int = 0
    evaluations_since: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """fp32, whole, on the CPU; empty before the first evaluation."""

    def better(self, metric: str, figures: dict[str, Any]) -> bool:
        """Whether these metrics beat the best."""
        return _worth(metric, figures) > self.value

    def replace(self, metric: str, step: int, figures: dict[str, Any], parameters: dict[str, Tensor]) -> None:
        """Takes these metrics as the best."""
        self.value, self.step, self.evaluations_since = _worth(metric, figures), step, 0
        self.figures, self.parameters = figures, parameters


@dataclass(frozen=True)
class LogPosition:
    """A place in logs/metrics.jsonl, and what stands before it."""

    size_bytes: int = 0
    sha256: str = sha256().hexdigest()
    """Of all bytes before the place."""


@dataclass(frozen=True)
class RunState:
    """All that training needs to go on from a step as if it had never stopped; the same on every rank.

    The learning rate, the order of the texts, wrong labels and dropout are functions of the seed and the step, so no
    random state is among it.
    """

    step: int
    """Optimizer steps done."""
    optimizer: OptimizerState
    best: Best
    global_batch: int
    """Texts per optimizer step, over all ranks."""
    metrics_log: LogPosition
    """End of logs/metrics.jsonl at this step."""
    evaluation_due: bool
    """Whether an evaluation at this step was interrupted and comes first."""
    fingerprint: dict[str, str]
    """What the run depends on, part by part."""


def _worth(metric: str, figures: dict[str, Any]) -> float:
    return float(-figures["log_loss"] if metric == "log_loss" else figures[metric])
