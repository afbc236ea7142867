"""Hidden states edited behind each layer, by a few trained numbers: no token is added, and no weight is changed.

RED (Wu et al., arXiv 2402.15179) scales and shifts them. LoReFT and DiReFT (Wu et al., arXiv 2404.03592) change them
in r directions R [r, H] only: by R^T (W h + b - R h), with orthonormal rows of R, and by R^T (W h + b), with any.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.sites import Edits, chosen_layers
from pipeline.core.bounds import MOST_TOKENS, WIDEST
from pipeline.core.errors import UserError
from pipeline.core.settings import Distinct
from pipeline.methods.heads import ClassHead, FittedHead
from pipeline.methods.text_classifier import TextClassifier, TextClassifierConfig

DEFAULT_RANK = 8


class EditConfig(TextClassifierConfig):
    """Edited hidden states."""

    is_baseline: ClassVar[bool] = True

    name: Literal["edit"] = "edit"
    kind: Literal["red", "bias", "direft", "loreft"] = "red"
    """red: a scale and a shift for each number of the states; bias: the shift alone; direft, loreft: in `rank` trained
    directions, loreft's orthonormal."""
    rank: int | None = Field(default=None, ge=1, le=WIDEST)
    """Directions of direft and loreft; null: 8."""
    layers: Distinct[int] | None = Field(default=None, min_length=1)
    """Layers, from 0, whose states are edited when they come out; null: all."""
    ends: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Only so many tokens at the text's beginning, and as many at its end, are edited; null: all."""

    @model_validator(mode="after")
    def _rank_belongs_to_directions(self) -> "EditConfig":
        if self.rank is not None and self.kind in ("red", "bias"):
            raise ValueError("method.rank has a meaning only with method.kind=direft or loreft")
        return self

    def check_layers(self, facts: BackboneFacts) -> None:
        chosen_layers(self.layers, facts)

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> "EditTuning":
        edits = self.build_injector(facts)
        return EditTuning(chosen_layers(self.layers, facts), edits, self.build_head(facts, label_count))

    def build_injector(self, facts: BackboneFacts) -> nn.ModuleList:
        """An edit for each layer. UserError for a layer or a rank that the backbone has not."""
        if self.kind == "loreft" and self._rank > facts.hidden_size:
            raise UserError(f"method.rank={self._rank}: the backbone's states have only {facts.hidden_size} directions")
        return nn.ModuleList(self._build_edit(facts.hidden_size) for _ in chosen_layers(self.layers, facts))

    def injector_parameters(self, facts: BackboneFacts) -> int:
        rank, hidden = self._rank, facts.hidden_size
        one = {"red": 2 * hidden, "bias": hidden}.get(self.kind, rank * (2 * hidden + 1))
        return len(chosen_layers(self.layers, facts)) * one

    @property
    def _rank(self) -> int:
        return self.rank or DEFAULT_RANK

    def _build_edit(self, hidden_size: int) -> nn.Module:
        if self.kind in ("direft", "loreft"):
            return Directions(hidden_size, self._rank, self.ends, orthonormal=self.kind == "loreft")
        return ScaleAndShift(hidden_size, self.ends, scaled=self.kind == "red")


class EditTuning(TextClassifier):
    """A head on a backbone whose layers' states are edited. Before the first step they are what they were."""

    def __init__(self, layers: list[int], edits: nn.ModuleList, head: ClassHead | FittedHead) -> None:
        super().__init__(None, head)
        self.of_layers = edits
        self.edits = Edits(before={layer + 1: edit for layer, edit in zip(layers, edits, strict=True)})


class ScaleAndShift(nn.Module):
    """h -> (1 + s) * h + b, with s and b zero at first. s, not 1 + s, is kept: near 1 bfloat16 is coarse."""

    def __init__(self, hidden_size: int, ends: int | None, *, scaled: bool) -> None:
        super().__init__()
        self.ends = ends
        self.scale = nn.Parameter(torch.zeros(hidden_size)) if scaled else None
        self.shift = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, S, H], mask [B, S] -> [B, S, H]"""
        change = self.shift if self.scale is None else hidden * self.scale + self.shift
        return hidden + change * _at_ends(mask, self.ends)


class Directions(nn.Module):
    """h -> h + R^T (W h + b), or h + R^T (W h + b - R h) where R is orthonormal. At first that is h."""

    def __init__(self, hidden_size: int, rank: int, ends: int | None, *, orthonormal: bool) -> None:
        super().__init__()
        self.ends, self.orthonormal = ends, orthonormal
        self.directions = nn.Parameter(nn.init.orthogonal_(torch.empty(rank, hidden_size)))
        start = self.directions.detach().clone() if orthonormal else torch.zeros(rank, hidden_size)
        self.weight = nn.Parameter(start)
        self.bias = nn.Parameter(torch.zeros(rank))

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, S, H], mask [B, S] -> [B, S, H]"""
        given, hidden = hidden, hidden.to(self.weight.dtype)
        rows = orthonormal_rows(self.directions) if self.orthonormal else self.directions
        weight = self.weight - rows if self.orthonormal else self.weight
        return given + (hidden @ weight.T + self.bias) @ rows * _at_ends(mask, self.ends)


def orthonormal_rows(matrix: Tensor) -> Tensor:
    """The rows [r, H] made orthonormal from the first on (Gram-Schmidt): itself, where they are so already.

    Here and not by torch's parametrization, which would read the parameter outside of its module's forward.
    """
    columns, triangle = torch.linalg.qr(matrix.T.to(torch.promote_types(matrix.dtype, torch.float32)))
    return (columns * triangle.diagonal().sign()).T.to(matrix.dtype)


def _at_ends(mask: Tensor, ends: int | None) -> Tensor:
    """[B, S] -> [B, S, 1], 1 for the tokens that are edited, else 0. In each row real tokens come first."""
    if ends is None:
        return torch.ones_like(mask[:1, :1, None], dtype=torch.uint8)
    places, lengths = torch.arange(mask.shape[1], device=mask.device), mask.sum(dim=1, keepdim=True)
    return ((places < ends) | (places >= lengths - ends)).unsqueeze(-1)
