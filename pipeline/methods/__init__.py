"""Tuning methods by name. A new method is one file and one entry here."""

from typing import Annotated

from pydantic import Field

from pipeline.backbone.facts import BackboneFacts
from pipeline.methods.base import MethodConfig, TuningMethod
from pipeline.methods.heads import build_head, head_parameters
from pipeline.methods.lt_prefix import LTPrefixConfig
from pipeline.methods.lt_prompt import LTPromptConfig

AnyMethodConfig = Annotated[LTPrefixConfig | LTPromptConfig, Field(discriminator="name")]
METHOD_NAMES = ("lt_prefix", "lt_prompt")


def build_method(config: MethodConfig, facts: BackboneFacts, prompt_tokens: int) -> TuningMethod:
    """The trainable part for a backbone of these sizes and hypotheses of at most P tokens."""
    return TuningMethod(config.build(facts, prompt_tokens), build_head(config.head, facts.hidden_size))


def trainable_count(config: MethodConfig, facts: BackboneFacts, prompt_tokens: int) -> int:
    """Trainable elements by formula: with the linear head 2*P^2*L*G*D + 3H (LT-prefix) or H^2 + 2H (LT-prompt)."""
    return config.producer_parameters(facts, prompt_tokens) + head_parameters(config.head, facts.hidden_size)
