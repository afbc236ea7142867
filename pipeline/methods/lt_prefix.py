"""LT-prefix: label states become keys and values of every attention layer (paper, Eq. 1, Alg. 1, App. A.5)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import Injection
from pipeline.core.bounds import WIDEST
from pipeline.methods.label_tuning_config import LabelTuningConfig


class LTPrefixConfig(LabelTuningConfig):
    """Label-tuned prefixes."""

    injects: ClassVar[Literal["prompt", "prefix"] | None] = "prefix"

    name: Literal["lt_prefix"] = "lt_prefix"
    pooling: Literal["tokens", "scores", "softmax"] = "tokens"
    """How label states become keys and values. tokens: each token's state is mapped to its own; scores: each state is
    reduced to one number, and these P numbers are mapped to all (the published code); softmax: the same, with the
    numbers normalized (the paper's text)."""
    rank: int | None = Field(default_factory=lambda keys: 16 if keys["pooling"] == "tokens" else None, ge=1, le=WIDEST)
    """Bottleneck of pooling tokens: H -> rank -> W, the width of all layers' keys and values; null: H -> W."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the label states."""
    init_std: float = Field(default=0.02, ge=0)
    """Standard deviation of the initial map to keys and values, where the start is random."""

    @model_validator(mode="after")
    def _rank_needs_tokens(self) -> "LTPrefixConfig":
        if self.rank is not None and self.pooling != "tokens":
            raise ValueError("method.rank has a meaning only with method.pooling=tokens: drop it or change the pooling")
        return self

    def build_producer(self, facts: BackboneFacts, hypothesis_tokens: int) -> nn.Module:
        return LTPrefix(self, facts, hypothesis_tokens)

    def producer_parameters(self, facts: BackboneFacts, hypothesis_tokens: int) -> int:
        width = self.form.width(facts)
        if self.pooling == "tokens":
            return facts.hidden_size * width if self.rank is None else self.rank * (facts.hidden_size + width)
        return facts.hidden_size + hypothesis_tokens**2 * width


class LTPrefix(nn.Module):
    """Producer of prefixes: states [K, P, H] -> keys and values of all layers [K, P, W]."""

    def __init__(self, config: LTPrefixConfig, facts: BackboneFacts, hypothesis_tokens: int) -> None:
        super().__init__()
        self.config, self.facts = config, facts
        hidden, width = facts.hidden_size, config.form.width(facts)
        self.dropout = nn.Dropout(config.dropout)
        if config.pooling == "tokens":
            self.down = nn.Linear(hidden, config.rank, bias=False) if config.rank else nn.Identity()
            self.expand = nn.Linear(config.rank or hidden, width, bias=False)
        else:
            self.token_score = nn.Linear(hidden, 1, bias=False)
            nn.init.uniform_(self.token_score.weight, -1, 1)
            self.expand = nn.Linear(hypothesis_tokens, hypothesis_tokens * width, bias=False)
        nn.init.normal_(self.expand.weight, std=config.init_std if config.start == "random" else 0.0)

    def forward(self, states: Tensor, mask: Tensor, start: Tensor | None) -> Injection:
        """states [K, P, H], mask [K, P], start [K, P, W] -> Injection with prefix [K, P, W]."""
        assert (start is None) == (self.config.start == "random"), "the labels' start is the one that the method takes"
        states = self.dropout(states)
        if self.config.pooling == "tokens":
            flat = self.expand(self.down(states))
        else:
            flat = self.expand(self._token_scores(states, mask)).unflatten(1, (mask.shape[1], -1))
        if start is not None:
            flat = flat + start
        elif self.config.pooling != "tokens":
            # The map mixes all tokens' scores into every prefix position, so all P positions exist.
            mask = torch.ones_like(mask)
        return Injection(mask=mask, prefix=flat)

    def _token_scores(self, states: Tensor, mask: Tensor) -> Tensor:
        """states [K, P, H] -> one score per token [K, P], zero where the mask is False.

        The weight is stored times sqrt(H). Adam moves every element by about the learning rate, and so the score of
        H of them by H times as much: at rates that suit prefixes, training would collapse in some seeds
        (equalized learning rate: Karras et al., arXiv 1710.10196, Sec. 4.1).
        """
        scores = self.token_score(states * self.facts.hidden_size**-0.5).squeeze(-1)
        if self.config.pooling == "softmax":
            return scores.masked_fill(~mask, float("-inf")).softmax(-1)
        return scores.masked_fill(~mask, 0.0)
