"""What training leaves behind: adapter/, the parameters that did best on validation, and adapter-final/, the last."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.adapter.config import AdapterConfig
from pipeline.adapter.directory import save_adapter
from pipeline.adapter.label_states import LabelStates
from pipeline.core.run_dir import RunDir


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

    def summary(self, steps: int, best_step: int, figures: dict[str, Any]) -> dict[str, Any]:
        """What adapter-final/ says of a training. `figures`: the best metrics of the validation split."""
        return {"fingerprint": self.fingerprint, "steps": steps, "best_step": best_step, "validation": figures}

    def write_fitted(self, state: dict[str, Tensor], figures: dict[str, Any]) -> dict[str, Any]:
        """Writes both for a method that takes no steps; gives the summary. `figures`: of the validation split."""
        summary = self.summary(steps=0, best_step=0, figures=figures)
        self.write_best(state, figures)
        self.write_final(state, summary)
        return summary
