"""Heads: the backbone's pooled output (and the label it judged) to one score."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

HeadName = Literal["linear", "label_aware"]


class LinearHead(nn.Module):
    """The paper's head (App. A.5): two logits from H without bias; the score is logit(true) - logit(false).

    Binary cross-entropy on this score equals softmax cross-entropy on the two logits.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.logits = nn.Linear(hidden_size, 2, bias=False)

    def forward(self, pooled: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """pooled [B, H], states [B, P, H], mask [B, P] -> scores [B]. The label's states are not used."""
        true, false = self.logits(pooled).unbind(-1)
        return true - false


class LabelAwareHead(nn.Module):
    """The linear head, started at zero, plus a scaled cosine between the output and the mapped label states.

    With the linear head alone the first scores are a product of two small unknowns (head times the injection's
    effect), a slow saddle; the cosine starts training from the backbone's own idea of which label is near the text.
    """

    def __init__(self, hidden_size: int, initial_scale: float = 10.0) -> None:
        super().__init__()
        self.logits = nn.Linear(hidden_size, 2, bias=False)
        self.label_map = nn.Linear(hidden_size, hidden_size, bias=False)
        self.log_scale = nn.Parameter(torch.tensor([math.log(initial_scale)]))
        nn.init.zeros_(self.logits.weight)
        nn.init.eye_(self.label_map.weight)

    def forward(self, pooled: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """pooled [B, H], states [B, P, H], mask [B, P] -> scores [B]."""
        true, false = self.logits(pooled).unbind(-1)
        weights = mask.to(states.dtype).unsqueeze(-1)
        label = self.label_map((states * weights).sum(1) / weights.sum(1))
        cosine = nn.functional.cosine_similarity(pooled.float(), label.float(), dim=-1)
        return (true - false).float() + self.log_scale.float().exp() * cosine


def build_head(name: HeadName, hidden_size: int) -> nn.Module:
    """The head of that name for a backbone of width H."""
    return {"linear": LinearHead, "label_aware": LabelAwareHead}[name](hidden_size)


def head_parameters(name: HeadName, hidden_size: int) -> int:
    """Trainable elements of a head, by formula."""
    return 2 * hidden_size + (hidden_size**2 + 1 if name == "label_aware" else 0)
