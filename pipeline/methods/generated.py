"""A prompt to which each text adds: before chosen layers, what its tokens have become is pooled into the slots.

After IAPT (Zhu et al., arXiv 2405.18203), which writes the slots before every layer.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.sites import Edits, chosen_layers
from pipeline.core.bounds import MOST_TOKENS, WIDEST
from pipeline.core.settings import Distinct
from pipeline.methods.heads import ClassHead, FittedHead
from pipeline.methods.prompt import PromptConfig, PromptTuning


class GeneratedConfig(PromptConfig):
    """A soft prompt that depends on the text."""

    is_baseline: ClassVar[bool] = True

    name: Literal["generated"] = "generated"  # type: ignore[assignment]
    tokens: int = Field(default=4, ge=1, le=MOST_TOKENS)
    """Prompt tokens."""
    rank: int = Field(default=64, ge=1, le=WIDEST)
    """Bottleneck of a generator: H -> rank -> H."""
    layers: Distinct[int] | None = Field(default=None, min_length=1)
    """Layers, from 0, before which the text adds to the prompt; null: all."""
    pooling: Literal["attention", "mean"] = "attention"
    """How the text's tokens become one vector per prompt token: weighted by learned scores, or all alike."""

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> "GeneratedTuning":
        return GeneratedTuning(self, facts, self.build_head(facts, label_count))

    def build_generators(self, facts: BackboneFacts) -> dict[int, "Generator"]:
        """Layer -> what is called before it. UserError for a layer that the backbone has not."""
        learned = self.pooling == "attention"
        return {
            layer: Generator(self.tokens, facts.hidden_size, self.rank, learned=learned)
            for layer in chosen_layers(self.layers, facts)
        }

    def injector_parameters(self, facts: BackboneFacts) -> int:
        one = 2 * facts.hidden_size * self.rank + (self.rank * self.tokens if self.pooling == "attention" else 0)
        return self.tokens * facts.hidden_size + len(chosen_layers(self.layers, facts)) * one


class GeneratedTuning(PromptTuning):
    """Prompt tuning, to whose prompt each text adds. At first it adds nothing."""

    def __init__(self, config: GeneratedConfig, facts: BackboneFacts, head: ClassHead | FittedHead) -> None:
        super().__init__(config, facts, head)
        generators = config.build_generators(facts)
        self.generators = nn.ModuleList(generators.values())
        self.edits = Edits(before=generators)


class Generator(nn.Module):
    """Adds U g(sum_t w_tp Z_t) to slot p, where Z_t = D h_t and w_tp is a softmax over the text's tokens of S Z_t."""

    def __init__(self, tokens: int, hidden_size: int, rank: int, *, learned: bool) -> None:
        super().__init__()
        self.tokens = tokens
        self.down = nn.Linear(hidden_size, rank, bias=False)
        self.score = nn.Linear(rank, tokens, bias=False) if learned else None
        self.up = nn.Linear(rank, hidden_size, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, P + T, H], mask [B, P + T], the P slots first in each row -> the same with other slots."""
        slots, text = hidden[:, : self.tokens], hidden[:, self.tokens :].to(self.down.weight.dtype)
        inner = self.down(text)
        weights = self._weights(inner, mask[:, self.tokens :])
        added: Tensor = self.up(functional.gelu(weights.transpose(1, 2) @ inner))
        return torch.cat([slots + added.to(slots.dtype), hidden[:, self.tokens :]], dim=1)

    def _weights(self, inner: Tensor, mask: Tensor) -> Tensor:
        """inner [B, T, r], mask [B, T] -> [B, T, P], which sum to 1 over the text's tokens."""
        scores = inner.new_zeros(*mask.shape, self.tokens) if self.score is None else self.score(inner)
        return scores.masked_fill(~mask.unsqueeze(-1), torch.finfo(scores.dtype).min).softmax(dim=1)
