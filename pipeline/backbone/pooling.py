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

    `how` is last, first (real token), mean (over real tokens) or statistics, of [B, T, M / 2]: the standard deviation,
    and behind it the mean, which heads compare with labels. A text without tokens gives zeros under these two.
    """
    mask = mask.bool()
    if how == "mean":
        return _mean(hidden, mask)
    if how == "statistics":
        return _statistics(hidden.masked_fill(~mask[..., None], 0), mask)
    assert how in ("last", "first"), f"unresolved pooling {how!r}"
    from_left, from_right = mask.int().argmax(dim=1), mask.flip(1).int().argmax(dim=1)
    index = from_left if how == "first" else mask.shape[1] - 1 - from_right
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    total = hidden.masked_fill(~mask[..., None], 0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def _statistics(hidden: Tensor, mask: Tensor) -> Tensor:
    mean = _mean(hidden, mask)
    apart = (hidden - mean[:, None]).to(torch.promote_types(hidden.dtype, torch.float32))
    variance = _mean(apart.square(), mask)
    # The root's slope at zero, as of a single token, is infinite.
    deviation = torch.where(variance > 0, variance, 1).sqrt().where(variance > 0, 0)
    return torch.cat([deviation.to(mean), mean], dim=-1)
