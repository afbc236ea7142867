"""A short prompt, and low-rank offsets of the text's own embeddings: prompt tuning at the cost of fewer tokens.

DePT (Shi and Lipani, arXiv 2309.05173) has an offset for each place in the text, ADePT (Tang et al., arXiv 2501.03291)
one for each token, made by a small network. Here a place is counted in the text, not in its padding.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import Injection
from pipeline.backbone.sites import Edits
from pipeline.core.bounds import MOST_TOKENS, WIDEST
from pipeline.methods.base import Vocabulary
from pipeline.methods.heads import ClassHead, FittedHead
from pipeline.methods.prompt import Prompt, PromptTuning, SoftPromptConfig

DEFAULT_LENGTH = 256
ALPHA = 8.0
"""DePT's offsets are scaled by ALPHA / sqrt(rank), as in its code."""


class DecomposedConfig(SoftPromptConfig):
    """A soft prompt and offsets of the text's embeddings."""

    name: Literal["decomposed"] = "decomposed"
    kind: Literal["adept", "dept"] = "adept"
    """adept: an offset for each token, ReLU(e A + a) B + b; dept: for each place in the text, rows of A B."""
    rank: int = Field(default=16, ge=1, le=WIDEST)
    """Columns of A."""
    length: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Places that have an offset (dept); null: 256. Tokens behind them stay as they are."""
    pace: float = Field(default=100.0, gt=0)
    """How many times as fast as the offsets the prompt is trained; train.learning_rate is that of the offsets."""

    @model_validator(mode="after")
    def _length_belongs_to_places(self) -> "DecomposedConfig":
        if self.length is not None and self.kind != "dept":
            raise ValueError("method.length has a meaning only with method.kind=dept")
        return self

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> "DecomposedTuning":
        return DecomposedTuning(self, facts, self.build_head(facts, label_count))

    def build_injector(self, facts: BackboneFacts) -> "PacedPrompt":
        return PacedPrompt(self.tokens, facts.hidden_size, self.pace)

    def build_offset(self, facts: BackboneFacts) -> nn.Module:
        """(embeddings [B, T, H], mask [B, T]) -> the same, with what is added to them."""
        if self.kind == "adept":
            return TokenOffset(facts.hidden_size, self.rank)
        return PlaceOffset(facts.hidden_size, self.rank, self._length)

    def injector_parameters(self, facts: BackboneFacts) -> int:
        hidden = facts.hidden_size
        offset = self.rank * (self._length + hidden)
        if self.kind == "adept":
            offset = 2 * hidden * self.rank + self.rank + hidden
        return self.tokens * hidden + offset

    @property
    def _length(self) -> int:
        return self.length or DEFAULT_LENGTH


class DecomposedTuning(PromptTuning):
    """Prompt tuning on a text whose embeddings are offset. At first the offsets are zero."""

    def __init__(self, config: DecomposedConfig, facts: BackboneFacts, head: ClassHead | FittedHead) -> None:
        super().__init__(config, facts, head)
        self.offset = config.build_offset(facts)
        self.edits = Edits(embeddings=self.offset)
        self.pace = config.pace

    def initialize(self, vocabulary: Vocabulary, names: Sequence[str]) -> None:
        super().initialize(vocabulary, names)
        assert isinstance(self.injector, PacedPrompt)
        self.injector.embedding.weight.data /= self.pace


class PacedPrompt(Prompt):
    """A prompt that is kept divided by `pace`: Adam, which moves every number alike, moves it so much faster."""

    def __init__(self, tokens: int, hidden_size: int, pace: float) -> None:
        super().__init__(tokens, hidden_size)
        self.pace = pace

    def forward(self) -> Injection:
        """-> Injection of one row with prompt [1, P, H]."""
        kept = super().forward()
        assert kept.prompt is not None
        return kept._replace(prompt=self.pace * kept.prompt)


class TokenOffset(nn.Module):
    """e -> e + ReLU(e A + a) B + b."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(hidden_size, rank), nn.Linear(rank, hidden_size)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """embeddings [B, T, H] -> [B, T, H]"""
        offset: Tensor = self.up(functional.relu(self.down(embeddings.to(self.down.weight.dtype))))
        return embeddings + offset


class PlaceOffset(nn.Module):
    """e -> e + c A_i B for the token at place i of its text, c = ALPHA / sqrt(rank)."""

    def __init__(self, hidden_size: int, rank: int, length: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.empty(length, rank))
        self.up = nn.Parameter(torch.zeros(rank, hidden_size))
        nn.init.kaiming_uniform_(self.places, a=math.sqrt(5))

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """embeddings [B, T, H], mask [B, T], padded on either side -> [B, T, H]"""
        place = mask.cumsum(dim=1) - 1
        length, rank = self.places.shape
        rows = functional.embedding(place.clamp(0, length - 1), self.places) * (place < length).unsqueeze(-1)
        return embeddings + ALPHA / math.sqrt(rank) * rows @ self.up
