"""Prompt tuning: the same trained embeddings before every text (Lester et al., arXiv 2104.08691).

They may enter at a layer further up: the static prompt of Late Prompt Tuning (Liu et al., arXiv 2210.11292).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from pipeline.backbone.facts import BackboneFacts, Form
from pipeline.backbone.injection import Injection
from pipeline.core.bounds import MOST_TOKENS
from pipeline.core.errors import UserError
from pipeline.methods.base import Vocabulary
from pipeline.methods.heads import ClassHead, FittedHead
from pipeline.methods.text_classifier import TextClassifier, TextClassifierConfig


class SoftPromptConfig(TextClassifierConfig):
    """Keys of what puts a soft prompt before the text."""

    is_baseline: ClassVar[bool] = True
    injects: ClassVar[Literal["prompt", "prefix"] | None] = "prompt"

    tokens: int = Field(default=20, ge=1, le=MOST_TOKENS)
    """Prompt tokens."""
    init: Literal["vocabulary", "text", "labels"] = "vocabulary"
    """What the prompt starts from. vocabulary: embeddings of random tokens; text: those of init_text; labels: those of
    the labels' names, then of random tokens."""
    init_text: str | None = None
    """The text to start from, cut or repeated to fill the prompt."""

    @model_validator(mode="after")
    def _text_comes_with_its_init(self) -> Self:
        if (self.init == "text") != bool(self.init_text and self.init_text.strip()):
            raise ValueError("method.init=text needs method.init_text, and no other init takes one")
        return self

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> "PromptTuning":
        return PromptTuning(self, facts, self.build_head(facts, label_count))

    def build_injector(self, facts: BackboneFacts) -> "Prompt":
        return Prompt(self.tokens, facts.hidden_size)

    def injector_parameters(self, facts: BackboneFacts) -> int:
        return self.tokens * facts.hidden_size

    def injected_tokens(self, hypothesis_tokens: int) -> int:
        return self.tokens


class PromptConfig(SoftPromptConfig):
    """A soft prompt."""

    name: Literal["prompt"] = "prompt"
    first_layer: int = Field(default=0, ge=0)
    """The lowest layer of the backbone that reads the prompt. Those below read the text alone, without a gradient."""

    @property
    def form(self) -> Form:
        return Form("prompt", self.first_layer)

    def injector_parameters(self, facts: BackboneFacts) -> int:
        return self.tokens * self.form.width(facts)


class Prompt(nn.Module):
    """P embeddings of width H."""

    def __init__(self, tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, hidden_size)

    def forward(self) -> Injection:
        """-> Injection of one row with prompt [1, P, H]."""
        places = torch.arange(self.embedding.num_embeddings, device=self.embedding.weight.device)
        prompt = self.embedding(places).unsqueeze(0)
        return Injection(mask=torch.ones_like(places, dtype=torch.bool).unsqueeze(0), prompt=prompt)


class PromptTuning(TextClassifier):
    """A prompt that starts from embeddings of words."""

    def __init__(self, config: SoftPromptConfig, facts: BackboneFacts, head: ClassHead | FittedHead) -> None:
        super().__init__(config.build_injector(facts), head)
        self.config = config
        self.form = config.form

    def initialize(self, vocabulary: Vocabulary, names: Sequence[str]) -> None:
        """Each prompt token starts as the mean embedding of a word's tokens."""
        words = self._words(vocabulary, names)
        vectors = vocabulary.embed(torch.tensor([token for word in words for token in word]))
        means = [part.mean(0) for part in vectors.split([len(word) for word in words])]
        assert isinstance(self.injector, Prompt)
        weight = self.injector.embedding.weight
        weight.data.copy_(torch.stack(means).to(weight))

    def _words(self, vocabulary: Vocabulary, names: Sequence[str]) -> list[list[int]]:
        """Token ids of the word behind each prompt token."""
        count = self.config.tokens
        if self.config.init == "text":
            tokens = vocabulary.encode(self.config.init_text or "")
            if not tokens:
                raise UserError("method.init_text becomes no token of this backbone's: give other words")
            return [[tokens[place % len(tokens)]] for place in range(count)]
        words = [ids for name in names if (ids := vocabulary.encode(name))] if self.config.init == "labels" else []
        drawn = torch.randint(len(vocabulary.tokens), (count,)).tolist()
        return [*words, *([vocabulary.tokens[place]] for place in drawn)][:count]
