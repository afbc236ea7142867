"""From one hidden state per token to one per text."""

import torch
from torch import Tensor

from pipeline.backbone.config import Pooling
from pipeline.backbone.facts import BackboneFacts


def resolve_pooling(how: Pooling, facts: BackboneFacts) -> Pooling:
    """Replaces `auto`: a decoder's last token has seen the whole text, an encoder's tokens all have."""
    if how != "auto":
        return how
    return "last" if facts.is_decoder else "mean"


def pool(hidden: Tensor, mask: Tensor, how: Pooling) -> Tensor:
    """[B, T, M] hidden states and [B, T] mask (nonzero: real token), padded on either side -> [B, M].

    `how` is last, first (real token) or mean (over real tokens). A text without tokens gives zeros under mean.
    """
    mask = mask.bool()
    if how == "mean":
        total = hidden.masked_fill(~mask[..., None], 0).sum(dim=1)
        return total / mask.sum(dim=1, keepdim=True).clamp(min=1)
    assert how in ("last", "first"), f"unresolved pooling {how!r}"
    from_left, from_right = mask.int().argmax(dim=1), mask.flip(1).int().argmax(dim=1)
    index = from_left if how == "first" else mask.shape[1] - 1 - from_right
    return hidden[torch.arange(len(hidden), device=hidden.device), index]
