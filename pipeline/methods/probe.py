"""The probe: logistic regression on the untouched backbone's states, fitted until it converges.

What the states know already, and the cheapest thing to use: it takes no steps, and seconds.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.core.settings import Distinct
from pipeline.methods.base import MethodConfig, Reader, Readings, TuningMethod
from pipeline.methods.heads import ScoreLayer, state_similarity
from pipeline.methods.logistic import CS, fit_to_readings


class ProbeConfig(MethodConfig):
    """Penalized multinomial logistic regression on standardized states."""

    is_baseline: ClassVar[bool] = True
    from_states: ClassVar[bool] = True

    name: Literal["probe"] = "probe"
    c: Distinct[Annotated[float, Field(gt=0, lt=float("inf"))]] = Field(default=list(CS), min_length=1)
    """Inverse strengths of the penalty (scikit-learn's C) to choose from: on validation, or by cross-validation."""
    prior: Literal["auto", "always", "never"] = "auto"
    """Whether to add the similarity of text and hypothesis, with a fitted weight: always, never, or auto: where it does
    better on validation."""

    @property
    def reads_alone(self) -> bool:
        return True

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> "Probe":
        return Probe(facts.pooled_width, label_count)

    def trainable_count(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> int:
        return label_count * (facts.pooled_width + 1) + 1

    def fitted_state(self, readings: Readings) -> dict[str, Tensor]:
        priors = {"auto": (False, True), "always": (True,), "never": (False,)}[self.prior]
        found = fit_to_readings(readings, self.c, priors)
        return {
            "logits.weight": found.weight.float(),
            "logits.bias": found.bias.float(),
            "prior_weight": torch.tensor([found.prior_weight], dtype=torch.float32),
        }


class Probe(TuningMethod):
    """K logits from M, and the weighted prior. It stays in float32, whatever the backbone computes in."""

    judges_hypotheses: ClassVar[bool] = True

    def __init__(self, pooled_width: int, label_count: int) -> None:
        super().__init__()
        self.logits = ScoreLayer(pooled_width, label_count)
        self.prior_weight = nn.Parameter(torch.zeros(1))

    @property
    def depends_on_hypotheses(self) -> bool:
        return bool(self.prior_weight != 0)

    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        pooled = read(None, 1)
        logits: Tensor = self.logits(pooled)
        own = logits if self.trained is None else logits[:, self.trained]
        scores = own + self.prior_weight * state_similarity(pooled, states, mask)
        return scores.gather(1, candidates).float()
