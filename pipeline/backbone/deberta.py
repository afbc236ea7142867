"""Prefix keys and values for DeBERTa, whose attention takes no cache.

The prefix joins the keys and values of the text inside the disentangled attention (He et al., arXiv 2006.03654, Eq. 4).
A prefix token has no place in the text, so it gets the content-to-content term only: no content-to-position, no
position-to-content, and no shift of the text's own relative positions. Its scores are scaled like the text's, by
sqrt(D * (1 + number of position terms)).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.backbone.injection import KeysValues
from pipeline.core.errors import UserError


@dataclass(frozen=True)
class _MaskedPrefix:
    keys: Tensor
    """[B, N, P, D]"""
    values: Tensor
    """[B, N, P, D]"""
    mask: Tensor
    """[B, P] bool"""


class DebertaPrefix:
    """Wraps every attention of a DeBERTa model in place; `active` then gives the prefix to one forward call."""

    def __init__(self, model: PreTrainedModel):
        if getattr(model.config, "talking_head", False):
            raise UserError("DeBERTa with talking_head attention is not supported; choose another backbone")
        self._layers: list[_MaskedPrefix] = []
        encoder: Any = model.encoder
        self._encoder_layers = list(encoder.layer)
        for index, layer in enumerate(self._encoder_layers):
            attention = layer.attention.self
            attention.forward = partial(_attend, attention, attention.forward)
            layer.forward = partial(_layer_forward, layer, layer.forward)
            # The model passes its layers no extra argument. A hook adds the prefix as one, outside of activation
            # checkpointing, so that recomputation in backward sees the prefix of its own forward call.
            layer.register_forward_pre_hook(partial(self._add_prefix, index), with_kwargs=True)

    @contextmanager
    def active(self, prefix: KeysValues, mask: Tensor) -> Iterator[None]:
        """The last layers' `prefix` and its `mask` [B, P] bool reach the layers of the calls made inside."""
        below = prefix[:1] * (len(self._encoder_layers) - len(prefix))  # of layers that are not run
        self._layers = [_MaskedPrefix(keys, values, mask) for keys, values in (*below, *prefix)]
        try:
            yield
        finally:
            self._layers = []

    @contextmanager
    def keeping(self, keep: KeysValues) -> Iterator[None]:
        """The calls made inside add the keys and values [B, N, T, D] of their text, layer by layer."""
        hooks = [
            layer.attention.self.register_forward_pre_hook(partial(_keep, keep), with_kwargs=True)
            for layer in self._encoder_layers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _add_prefix(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs | {"prefix": self._layers[index]} if self._layers else kwargs


def _keep(keep: KeysValues, attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A pre-hook of `DisentangledSelfAttention`."""
    hidden_states = args[0] if args else kwargs["hidden_states"]
    project = _projections_v1 if hasattr(attention, "in_proj") else _projections_v2
    _, key, value = project(attention, hidden_states)
    keep.append((key, value))


def _layer_forward(
    layer: Any, original: Any, hidden_states: Tensor, *args: Any, prefix: _MaskedPrefix | None = None, **kwargs: Any
) -> tuple[Tensor, None]:
    """`DebertaLayer.forward`, handing `prefix` down to the attention."""
    if prefix is None:
        return original(hidden_states, *args, **kwargs)
    context, _ = layer.attention.self(hidden_states, *args, prefix=prefix, **kwargs)
    attended = layer.attention.output(context, hidden_states)
    return layer.output(layer.intermediate(attended), attended), None


def _attend(
    attention: Any,
    original: Any,
    hidden_states: Tensor,
    attention_mask: Tensor,
    *args: Any,
    prefix: _MaskedPrefix | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """`DisentangledSelfAttention.forward` over [prefix; text]: hidden_states [B, T, H] -> context [B, T, H].

    `attention_mask` is [B, 1, T, T].
    """
    if prefix is None:
        positions = {"relative_pos": relative_pos, "rel_embeddings": rel_embeddings}
        return original(hidden_states, attention_mask, *args, **positions, **kwargs)
    score = _scores_v1 if hasattr(attention, "in_proj") else _scores_v2
    query, values, text_scores = score(attention, hidden_states, relative_pos, rel_embeddings)
    prefix_scores = query @ prefix.keys.to(query.dtype).transpose(-1, -2)
    scores = torch.cat([prefix_scores, text_scores], dim=-1)
    prefix_mask = prefix.mask[:, None, None, :].expand(-1, 1, query.shape[-2], -1)
    mask = torch.cat([prefix_mask, attention_mask.bool()], dim=-1)
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    context = weights @ torch.cat([prefix.values.to(values.dtype), values], dim=-2)
    return context.transpose(1, 2).flatten(2), None


def _scores_v1(
    attention: Any, hidden_states: Tensor, relative_pos: Tensor | None, rel_embeddings: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """DeBERTa v1: scaled queries and values [B, N, T, D], scores of the text [B, N, T, T]."""
    query, key, value = _projections_v1(attention, hidden_states)
    factor = 1 + len(attention.pos_att_type)
    query = query / math.sqrt(query.shape[-1] * factor)
    scores = query @ key.transpose(-1, -2)
    if attention.relative_attention:
        scores = scores + attention.disentangled_att_bias(query, key, relative_pos, rel_embeddings, factor)
    return query, value, scores


def _scores_v2(
    attention: Any, hidden_states: Tensor, relative_pos: Tensor | None, rel_embeddings: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """DeBERTa v2 and v3: scaled queries and values [B, N, T, D], scores of the text [B, N, T, T]."""
    projected = _projections_v2(attention, hidden_states)
    query, key, _ = (tensor.flatten(0, 1) for tensor in projected)  # [B * N, T, D], as the bias below takes them
    factor = 1 + sum(kind in attention.pos_att_type for kind in ("c2p", "p2c"))
    scaled = query / math.sqrt(query.shape[-1] * factor)
    scores = scaled @ key.transpose(-1, -2)
    if attention.relative_attention:
        scores = scores + attention.disentangled_attention_bias(query, key, relative_pos, rel_embeddings, factor)
    scaled, scores = (tensor.unflatten(0, (-1, attention.num_attention_heads)) for tensor in (scaled, scores))
    return scaled, projected[2], scores


def _projections_v1(attention: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, H] -> queries, keys and values [B, N, T, D]"""
    split = attention.transpose_for_scores
    query, key, value = split(attention.in_proj(hidden_states)).chunk(3, dim=-1)
    return query + split(attention.q_bias[None, None]), key, value + split(attention.v_bias[None, None])


def _projections_v2(attention: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, H] -> queries, keys and values [B, N, T, D]"""
    heads = attention.num_attention_heads
    query, key, value = (
        attention.transpose_for_scores(projection(hidden_states), heads).unflatten(0, (-1, heads))
        for projection in (attention.query_proj, attention.key_proj, attention.value_proj)
    )
    return query, key, value
