"""What a tuning method puts into the backbone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from pipeline.backbone.padding import take

KeysValues = list[tuple[Tensor, Tensor]]
"""Keys [B, G, T, D] and values [B, G, T, D'] of the tokens of a text or prefix, layer by layer."""
NO_TOKEN = -100
"""Fills up the shorter rows of continuations: tokens that are read behind a text."""


@dataclass(frozen=True)
class KeyValueShape:
    """Of one layer's keys [B, G, T, D] and values [B, G, T, D']. Layers may differ."""

    heads: int
    """G"""
    key_dim: int
    """D"""
    value_dim: int
    """D', as a rule D."""

    @property
    def width(self) -> int:
        """Numbers in one token's keys and values."""
        return self.heads * (self.key_dim + self.value_dim)

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> Self:
        return cls(keys.shape[1], keys.shape[-1], values.shape[-1])


class Injection(NamedTuple):
    """Prompt embeddings or per-layer prefix keys and values, one row per candidate (or per label, before `select`).

    Exactly one of `prompt` and `prefix` is set. A named tuple, because ZeRO-3 finds the tensors that pass between
    modules, and hangs its backward hooks on them, only in tuples, lists and dicts.
    """

    mask: Tensor
    """[B, P] bool, True where a prompt or prefix token exists."""
    prompt: Tensor | None = None
    """[B, P, H], put before the text's input embeddings."""
    prefix: Tensor | None = None
    """[B, P, W], keys and values of every layer side by side: `split_prefix` takes them apart."""

    @property
    def content(self) -> Tensor:
        """Whichever of the two is set."""
        found = self.prompt if self.prompt is not None else self.prefix
        assert found is not None
        return found

    def select(self, rows: Tensor) -> "Injection":
        """Picks rows, with repetition: `rows` [B'] indexes the B axis."""
        return Injection(
            mask=self.mask[rows],
            prompt=None if self.prompt is None else self.prompt[rows],
            prefix=None if self.prefix is None else self.prefix[rows],
        )

    def after(self, tokens: int) -> "Injection":
        """A prompt without its first tokens."""
        assert self.prompt is not None
        return Injection(mask=self.mask[:, tokens:], prompt=self.prompt[:, tokens:])

    def expand(self, rows: int) -> "Injection":
        """The only row of B, `rows` times, without a copy."""
        return Injection(
            mask=self.mask.expand(rows, -1),
            prompt=None if self.prompt is None else self.prompt.expand(rows, -1, -1),
            prefix=None if self.prefix is None else self.prefix.expand(rows, -1, -1),
        )


class KeptTexts(NamedTuple):
    """B texts that a decoder has read, and can go on from: of each row real tokens first."""

    hidden: Tensor
    """[B, T + S, M]"""
    mask: Tensor
    """[B, T + S] bool"""
    layers: KeysValues
    """Keys and values of all layers."""
    begun: int = 0
    """S: so many last tokens of each row are not the text's. All that is read behind the texts begins with them."""

    @property
    def text_mask(self) -> Tensor:
        """[B, T + S] bool, of the texts alone."""
        return self.mask & (self.mask.cumsum(dim=1) <= self._lengths)

    @property
    def beginning(self) -> Tensor:
        """[B, S, M], the hidden states of what was begun."""
        return take(self.hidden, self._lengths + torch.arange(self.begun, device=self.mask.device))

    @property
    def _lengths(self) -> Tensor:
        """[B, 1], the texts' tokens."""
        return self.mask.sum(dim=1, keepdim=True) - self.begun


def split_prefix(prefix: Tensor, layers: Sequence[KeyValueShape | None]) -> KeysValues:
    """A prefix [B, P, W] as views: the keys and values of each layer that has attention."""
    shapes = [shape for shape in layers if shape is not None]
    sizes = [shape.heads * width for shape in shapes for width in (shape.key_dim, shape.value_dim)]
    parts = iter(prefix.split(sizes, dim=-1))
    return [(_by_head(next(parts), shape.heads), _by_head(next(parts), shape.heads)) for shape in shapes]


def join_prefix(layers: KeysValues) -> Tensor:
    """What `split_prefix` takes apart: [B, P, W]."""
    return torch.cat([part.transpose(1, 2).flatten(2) for layer in layers for part in layer], dim=-1)


def common_tokens(content: Tensor, mask: Tensor) -> int:
    """How many first tokens all rows of `content` [K, P, W] with the mask [K, P] have in common, at most P - 1."""
    same = (content == content[:1]).all(dim=-1) & mask.bool()
    return min(int(same.all(dim=0).cumprod(dim=0).sum()), mask.shape[1] - 1)


def put_before(prefix: Tensor, tokens: Tensor) -> Tensor:
    """One layer's keys or values of a prefix [B, G, P, D] before those of tokens [B * C, G, T, D] -> [.., P + T, D].

    Each row of the prefix serves C rows in a row. It is copied into the result alone.
    """
    groups = tokens.unflatten(0, (len(prefix), -1))
    shared = prefix.to(tokens.dtype).unsqueeze(1).expand(-1, groups.shape[1], -1, -1, -1)
    return torch.cat([shared, groups], dim=-2).flatten(0, 1)


def _by_head(part: Tensor, heads: int) -> Tensor:
    """[B, P, G * D] -> [B, G, P, D]"""
    return part.unflatten(-1, (heads, -1)).transpose(1, 2)
