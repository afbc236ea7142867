"""What training leaves behind: adapter/, the parameters that did best on validation, and adapter-final/, the last."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pipeline.adapter.config import AdapterConfig
from pipeline.adapter.directory import save_adapter
from pipeline.adapter.label_states import LabelStates
from pipeline.core.files import remove
from pipeline.core.run_dir import RunDir


@dataclass(frozen=True)
class FittedMethod:
    """A method that takes no steps, as its training texts make it."""

    state: dict[str, Tensor]
    figures: dict[str, Any] = field(default_factory=dict)
    """Metrics of the validation split; empty where there is none, or nothing is trained."""
    readings: int = 0
    """Training texts that the backbone has read for it."""
    seconds: float = 0.0
    """Of the fit, when the texts had been read."""


@dataclass(frozen=True)
class AdapterWriter:
    """Writes both adapters of a run. One rank calls it."""

    run_dir: RunDir
    config: AdapterConfig
    labels: LabelStates
    fingerprint: dict[str, str]
    """What the adapters depend on, part by part."""

    def write_best(self, parameters: dict[str, Tensor], figures: dict[str, Any]) -> None:
        """Writes adapter/. `figures`: metrics of the validation split; empty where there is none."""
        metrics = {"validation": figures} if figures else None
        save_adapter(self.run_dir.adapter, parameters, self.config, self.labels, metrics)

    def write_final(self, parameters: dict[str, Tensor], summary: dict[str, Any]) -> None:
        """Writes adapter-final/, with which training is over."""
        save_adapter(self.run_dir.adapter_final, parameters, self.config, self.labels, summary=summary)

    def summary(
        self, steps: int, best_step: int, figures: dict[str, Any], *, converged: bool, readings: int
    ) -> dict[str, Any]:
        """What adapter-final/ says of a training.

        `figures`: the best metrics of the validation split; `converged`: whether patience ended it, and not the last
        step; `readings`: of training texts by the backbone.
        """
        progress = {"steps": steps, "best_step": best_step, "converged": converged, "readings": readings}
        return {"fingerprint": self.fingerprint, **progress, "validation": figures}

    def write_fitted(self, fit: FittedMethod) -> dict[str, Any]:
        """Writes both for a method that takes no steps; gives the summary."""
        for file in (self.run_dir.metrics_log, self.run_dir.cost_file, self.run_dir.trace_file):
            remove(file)  # of an earlier training by steps, whose curve and cost would be taken for this one's
        summary = self.summary(0, 0, fit.figures, converged=True, readings=fit.readings) | {"seconds": fit.seconds}
        self.write_best(fit.state, fit.figures)
        self.write_final(fit.state, summary)
        return summary
