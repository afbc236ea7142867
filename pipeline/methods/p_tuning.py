"""P-tuning: prompt embeddings that come out of a trained encoder (Liu et al., arXiv 2103.10385)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import Injection
from pipeline.core.bounds import MOST_TOKENS, WIDEST
from pipeline.methods.text_classifier import TextClassifierConfig


class PTuningConfig(TextClassifierConfig):
    """An encoded soft prompt."""

    is_baseline: ClassVar[bool] = True
    injects: ClassVar[Literal["prompt", "prefix"] | None] = "prompt"

    name: Literal["p_tuning"] = "p_tuning"
    tokens: int = Field(default=20, ge=1, le=MOST_TOKENS)
    """Prompt tokens."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """mlp: three linear layers; lstm: two bidirectional LSTM layers, then two linear ones."""
    encoder_width: int | None = Field(default=None, ge=1, le=WIDEST)
    """Hidden width of the encoder; null: H."""

    def build_injector(self, facts: BackboneFacts) -> "PromptEncoder":
        return PromptEncoder(self, facts.hidden_size)

    def injector_parameters(self, facts: BackboneFacts) -> int:
        hidden, width = facts.hidden_size, self.encoder_width or facts.hidden_size
        embedding = self.tokens * hidden
        if self.encoder == "mlp":
            return embedding + (hidden + 1) * width + (width + 1) * width + (width + 1) * hidden
        # Four gates with two biases each, in two directions; the second layer reads both directions of the first.
        lstm = 2 * 4 * width * (hidden + width + 2) + 2 * 4 * width * (3 * width + 2)
        return embedding + lstm + (2 * width + 1) * (2 * width) + (2 * width + 1) * hidden

    def injected_tokens(self, hypothesis_tokens: int) -> int:
        return self.tokens


class PromptEncoder(nn.Module):
    """Embeddings, and an encoder over all P of them."""

    def __init__(self, config: PTuningConfig, hidden_size: int) -> None:
        super().__init__()
        width = config.encoder_width or hidden_size
        self.embedding = nn.Embedding(config.tokens, hidden_size)
        self.lstm_head: nn.LSTM | None = None
        layers = [nn.Linear(hidden_size, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
        if config.encoder == "lstm":
            self.lstm_head = nn.LSTM(hidden_size, width, num_layers=2, bidirectional=True, batch_first=True)
            width = 2 * width
            layers = [nn.Linear(width, width), nn.ReLU()]
        self.mlp_head = nn.Sequential(*layers, nn.Linear(width, hidden_size))

    def forward(self) -> Injection:
        """-> Injection of one row with prompt [1, P, H]."""
        places = torch.arange(self.embedding.num_embeddings, device=self.embedding.weight.device).unsqueeze(0)
        states = self.embedding(places)
        if self.lstm_head is not None:
            states, _ = self.lstm_head(states)
        return Injection(mask=torch.ones_like(places, dtype=torch.bool), prompt=self.mlp_head(states))
