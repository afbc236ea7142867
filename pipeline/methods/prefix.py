"""Prefix tuning: the same trained keys and values before every text, in every layer (Li and Liang, arXiv 2101.00190).

They may start as what the backbone computes for words, here for all labels' hypotheses.

Without the MLP, and with the linear head that every method here has, this is P-tuning v2 (arXiv 2110.07602).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import Injection
from pipeline.core.bounds import MOST_TOKENS, WIDEST
from pipeline.methods.base import Vocabulary
from pipeline.methods.text_classifier import TextClassifier, TextClassifierConfig


class PrefixConfig(TextClassifierConfig):
    """A prefix."""

    is_baseline: ClassVar[bool] = True
    injects: ClassVar[Literal["prompt", "prefix"] | None] = "prefix"

    name: Literal["prefix"] = "prefix"
    tokens: int = Field(default=20, ge=1, le=MOST_TOKENS)
    """Prefix tokens."""
    start: Literal["random", "hypotheses"] = "random"
    """hypotheses: keys and values that the backbone computes for the concatenated hypotheses of all labels, cut or
    repeated to `tokens` tokens; random: normal with init_std."""
    reparametrisation: bool = False
    """Keys and values come out of a two-layer MLP over embeddings, as in the paper; False: they are trained as such."""
    bottleneck: int | None = Field(default=None, ge=1, le=WIDEST)
    """Width of the MLP; null: that of one layer's keys."""
    init_std: float = Field(default=0.02, ge=0)
    """Standard deviation of the initial embeddings, or keys and values."""

    @model_validator(mode="after")
    def _bottleneck_needs_the_mlp(self) -> "PrefixConfig":
        if self.bottleneck is not None and not self.reparametrisation:
            raise ValueError("method.bottleneck has a meaning only with method.reparametrisation=true")
        return self

    @model_validator(mode="after")
    def _what_is_read_is_not_drawn(self) -> "PrefixConfig":
        if self.start == "hypotheses" and self.reparametrisation:
            raise ValueError("method.start=hypotheses sets keys and values, which method.reparametrisation=true makes")
        if self.start == "hypotheses" and self.init_std != type(self).model_fields["init_std"].default:
            raise ValueError("method.init_std has a meaning only with method.start=random: drop it or change the start")
        return self

    @property
    def starts_with(self) -> int | None:
        return self.tokens if self.start == "hypotheses" else None

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> "PrefixTuning":
        return PrefixTuning(self.build_injector(facts), self.build_head(facts, label_count))

    def build_injector(self, facts: BackboneFacts) -> "Prefix":
        return Prefix(self, facts)

    def injector_parameters(self, facts: BackboneFacts) -> int:
        if not self.reparametrisation:
            return self.tokens * facts.prefix_width()
        width = _narrow_width(facts)
        inner = self.bottleneck or width
        return self.tokens * width + inner * (width + 1) + facts.prefix_width() * (inner + 1)

    def injected_tokens(self, hypothesis_tokens: int) -> int:
        return self.tokens


class PrefixTuning(TextClassifier):
    """A prefix that may start from words."""

    def initialize(self, vocabulary: Vocabulary, names: Sequence[str]) -> None:
        """Keys and values start as those of the hypotheses, where the backbone has read them for that."""
        if vocabulary.hypotheses is not None:
            assert isinstance(self.injector, Prefix)
            weight = self.injector.embedding.weight
            weight.data.copy_(vocabulary.hypotheses.to(weight))


class Prefix(nn.Module):
    """Keys and values of P tokens in every layer."""

    def __init__(self, config: PrefixConfig, facts: BackboneFacts) -> None:
        super().__init__()
        width, outputs = _narrow_width(facts), facts.prefix_width()
        self.transform: nn.Module = nn.Identity()
        if config.reparametrisation:
            inner = config.bottleneck or width
            self.transform = nn.Sequential(nn.Linear(width, inner), nn.Tanh(), nn.Linear(inner, outputs))
        self.embedding = nn.Embedding(config.tokens, width if config.reparametrisation else outputs)
        nn.init.normal_(self.embedding.weight, std=config.init_std)

    def forward(self) -> Injection:
        """-> Injection of one row with prefix [1, P, W]."""
        places = torch.arange(self.embedding.num_embeddings, device=self.embedding.weight.device)
        flat = self.transform(self.embedding(places))
        mask = torch.ones_like(places, dtype=torch.bool).unsqueeze(0)
        return Injection(mask=mask, prefix=flat.unsqueeze(0))


def _narrow_width(facts: BackboneFacts) -> int:
    """Of the embeddings that the MLP reads: that of the keys in the first layer that has some."""
    first = next(shape for shape in facts.prefix_layers if shape is not None)
    return first.heads * first.key_dim
