"""What a tuning method puts into the backbone."""

from typing import NamedTuple

from torch import Tensor

KeysValues = list[tuple[Tensor, Tensor]]
"""Keys and values [B, G, T, D] of the tokens of a text, layer by layer."""
NO_TOKEN = -100
"""Fills up the shorter rows of continuations: tokens that are read behind a text."""


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
    """[L, 2, B, G, P, D], keys (index 0) and values (index 1) of every layer, as the attention cache holds them."""

    def select(self, rows: Tensor) -> "Injection":
        """Picks rows, with repetition: `rows` [B'] indexes the B axis."""
        return Injection(
            mask=self.mask[rows],
            prompt=None if self.prompt is None else self.prompt[rows],
            prefix=None if self.prefix is None else self.prefix[:, :, rows],
        )

    def expand(self, rows: int) -> "Injection":
        """The only row of B, `rows` times, without a copy."""
        return Injection(
            mask=self.mask.expand(rows, -1),
            prompt=None if self.prompt is None else self.prompt.expand(rows, -1, -1),
            prefix=None if self.prefix is None else self.prefix.expand(-1, -1, rows, -1, -1, -1),
        )
