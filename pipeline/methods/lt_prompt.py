"""LT-prompt: label states become a soft prompt before the text (paper, Eq. 2, Alg. 2)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backbone.facts import BackboneFacts, Form
from pipeline.backbone.injection import Injection
from pipeline.methods.label_tuning_config import LabelTuningConfig


class PlacedPromptsConfig(LabelTuningConfig):
    """A prompt for each label, before or behind the text."""

    injects: ClassVar[Literal["prompt", "prefix"] | None] = "prompt"

    position: Literal["before", "after"] = "before"
    """Where the prompt stands: before or after the text. after (decoders only): the text is read once for all labels,
    each label adds only the reading of its own tokens, and their states are scored."""

    @model_validator(mode="after")
    def _all_layers_read_what_is_behind(self) -> Self:
        if self.position == "after" and self.first_layer:
            raise ValueError("method.first_layer has a meaning only with method.position=before: drop one of the two")
        return self

    @property
    def form(self) -> Form:
        return Form("prompt", self.first_layer, is_behind=self.position == "after")


class LTPromptConfig(PlacedPromptsConfig):
    """Label-tuned prompts."""

    came_later: ClassVar[Mapping[str, str]] = {
        **LabelTuningConfig.came_later,
        "judge": "probe",
        "label_scale": "raw",
    }

    name: Literal["lt_prompt"] = "lt_prompt"
    label_scale: Literal["unit", "raw"] = "raw"
    """Scale of the label states before the map. raw: as they are; in some decoders they are hundreds of times as long
    as an embedding, so that the first step moves the prompt far from its start. unit: length 1, so that a step moves
    the prompt by a few learning rates (the default with position=after and start=hypothesis)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the label states."""
    init_std: float | None = Field(default=None, ge=0)
    """Standard deviation of the initial map, where the start is random; null: 1/sqrt(H), which keeps the states' scale.
    """

    @model_validator(mode="before")
    @classmethod
    def _behind_the_text(cls, values: Any) -> Any:
        """What is the default there."""
        if not isinstance(values, dict) or values.get("position") != "after":
            return values
        judge = "fitted" if values.get("head", "fitted") == "fitted" else "probe"
        scale = "unit" if values.get("start", "hypothesis") == "hypothesis" else "raw"
        return {"judge": judge, "label_scale": scale, **values}

    def build_producer(self, facts: BackboneFacts, hypothesis_tokens: int) -> nn.Module:
        return LTPrompt(self, facts)

    def producer_parameters(self, facts: BackboneFacts, hypothesis_tokens: int) -> int:
        return facts.hidden_size * self.form.width(facts)


class LTPrompt(nn.Module):
    """Producer of prompts: states [K, P, H] -> prompt embeddings [K, P, H]."""

    def __init__(self, config: LTPromptConfig, facts: BackboneFacts) -> None:
        super().__init__()
        self.config = config
        hidden = facts.hidden_size
        self.dropout = nn.Dropout(config.dropout)
        self.map = nn.Linear(hidden, hidden, bias=False)
        random = hidden**-0.5 if config.init_std is None else config.init_std
        nn.init.normal_(self.map.weight, std=random if config.start == "random" else 0.0)

    def forward(self, states: Tensor, mask: Tensor, start: Tensor | None) -> Injection:
        """states [K, P, H], mask [K, P], start [K, P, H] -> Injection with prompt [K, P, H]."""
        assert (start is None) == (self.config.start == "random"), "the labels' start is the one that the method takes"
        if self.config.label_scale == "unit":
            states = functional.normalize(states, dim=-1)
        prompt = self.map(self.dropout(states))
        return Injection(mask=mask, prompt=prompt if start is None else prompt + start)
