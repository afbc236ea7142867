"""What a run knows beside its tensors: how far it is, and the best validation metrics so far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from torch import Tensor

from pipeline.training.optimizer_state import OptimizerState


@dataclass
class Best:
    """The best validation metrics so far, the parameters that reached them, and whether training still gets better.

    The start may be the best (a fitted head), and stay so for long, while training makes up for its first steps. So
    patience looks at what steps have reached.
    """

    value: float = -math.inf
    step: int = 0
    evaluations_since: int = 0
    """Since steps reached `value_of_steps`."""
    figures: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    """fp32, whole, on the CPU; empty before the first evaluation."""
    value_of_steps: float | None = None
    """The best but for the start; None before there is one."""

    def __post_init__(self) -> None:
        if self.step and self.value_of_steps is None:  # a checkpoint of a version that did not tell them apart
            self.value_of_steps = self.value

    def count(self, metric: str, step: int, figures: dict[str, Any]) -> bool:
        """Counts an evaluation; whether its metrics are the best: of equally good ones, those of the least log-loss.

        A few validation texts tell few values of accuracy apart, and the probe that training starts from is too sure.
        """
        value = worth(metric, figures)
        if step and (self.value_of_steps is None or value > self.value_of_steps):
            self.value_of_steps, self.evaluations_since = value, 0
        elif step:
            self.evaluations_since += 1
        if value == self.value:
            return bool(figures["log_loss"] < self.figures["log_loss"])
        return value > self.value

    def is_perfect(self, metric: str) -> bool:
        """Whether no evaluation can be better."""
        return self.value >= (0.0 if metric == "log_loss" else 1.0)

    def replace(self, metric: str, step: int, figures: dict[str, Any], parameters: dict[str, Tensor]) -> None:
        """Takes these metrics as the best."""
        self.value, self.step = worth(metric, figures), step
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


def worth(metric: str, figures: Mapping[str, Any]) -> float:
    """How good validation metrics are by one of them: more is better."""
    return float(-figures["log_loss"] if metric == "log_loss" else figures[metric])
