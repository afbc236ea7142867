"""L-Tuning without its producer: what it made of each label is kept, and enters as it is. Exported adapters are that.

They have no other labels than those, and are not trained; so configs of runs do not know these methods.
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import Injection
from pipeline.methods.label_tuning_config import LabelTuningConfig
from pipeline.methods.lt_prefix import LTPrefixConfig
from pipeline.methods.lt_prompt import LTPromptConfig, PlacedPromptsConfig


class LabelInjectionsConfig(LabelTuningConfig):
    """An injection for each label, which the label states hold as what injections start from."""

    open_labels: ClassVar[bool] = False

    start: Literal["hypothesis"] = "hypothesis"
    every_position: bool = False
    """All P positions of each label's injection exist, also those that its hypothesis does not have."""

    def build_producer(self, facts: BackboneFacts, hypothesis_tokens: int) -> nn.Module:
        return Kept(self)

    def producer_parameters(self, facts: BackboneFacts, hypothesis_tokens: int) -> int:
        return 0


def shared_keys(config: LabelTuningConfig, other: type[LabelTuningConfig]) -> dict[str, Any]:
    """What the other method says too, but for its name and its start."""
    names = type(config).model_fields.keys() & other.model_fields.keys() - {"name", "start"}
    return {name: getattr(config, name) for name in names}


class LabelPromptsConfig(LabelInjectionsConfig, PlacedPromptsConfig):
    """Of lt_prompt."""

    name: Literal["label_prompts"] = "label_prompts"

    @property
    def trained_as(self) -> LTPromptConfig:
        return LTPromptConfig(**shared_keys(self, LTPromptConfig))


class LabelPrefixesConfig(LabelInjectionsConfig):
    """Of lt_prefix."""

    injects: ClassVar[Literal["prompt", "prefix"] | None] = "prefix"
    name: Literal["label_prefixes"] = "label_prefixes"

    @property
    def trained_as(self) -> LTPrefixConfig:
        return LTPrefixConfig(**shared_keys(self, LTPrefixConfig))


class Kept(nn.Module):
    """In the place of a producer."""

    def __init__(self, config: LabelInjectionsConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, states: Tensor, mask: Tensor, start: Tensor | None) -> Injection:
        """mask [K, P], start [K, P, W] -> Injection of K rows. The label states are not used."""
        assert start is not None
        if self.config.every_position:
            mask = torch.ones_like(mask)
        if self.config.injects == "prompt":
            return Injection(mask=mask, prompt=start)
        return Injection(mask=mask, prefix=start)
