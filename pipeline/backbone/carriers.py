"""How a prefix comes to the attention layers of a model: three ways, by what the model's own code offers."""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.masking_utils import eager_mask, sdpa_mask

from pipeline.backbone.deberta import DebertaPrefix
from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import KeysValues, put_before
from pipeline.backbone.prefix_cache import PrefixCache
from pipeline.backbone.probe import cache_argument, probe
from pipeline.core.errors import UserError

MASKS: dict[str, Callable[..., Tensor | None]] = {"sdpa": sdpa_mask, "eager": eager_mask}
"""By attention kernel: what its masks are made by."""
_whole_masks: ContextVar[bool] = ContextVar("whole_masks", default=False)
"""Whether every mask is made, also one that the kernel could do without."""


class Carrier(Protocol):
    """Runs a model with a prefix."""

    def run(self, inputs: dict[str, Any], mask: Tensor, prefix: KeysValues, prefix_mask: Tensor) -> Tensor:
        """Last hidden states [B, T, H] of a right-padded text with the mask [B, T], behind the last layers' prefix.

        `prefix_mask` [B, P] bool; `inputs` are the model's other arguments. Of `prefix` each row may serve several
        texts in a row.
        """

    def keep(self, inputs: dict[str, Any], mask: Tensor, kept: KeysValues) -> Tensor:
        """The same without a prefix; the text's own keys and values are added to `kept`."""


def carrier_of(model: Any, facts: BackboneFacts) -> Carrier | None:
    """The carrier that the facts name, at work in this base model; None where it takes no prefix."""
    match facts.carrier:
        case "cache":
            return CacheCarrier(model, facts.layers)
        case "attention":
            return AttentionCarrier(model)
        case "deberta":
            return DebertaCarrier(model)
    return None


class CacheCarrier:
    """By the cache of keys and values: the prefix stands where tokens that were read before would."""

    def __init__(self, model: PreTrainedModel, layers: int) -> None:
        self._model: Any = model
        self._argument = cache_argument(model) or ""
        self._layers = layers

    def run(self, inputs: dict[str, Any], mask: Tensor, prefix: KeysValues, prefix_mask: Tensor) -> Tensor:
        seen = torch.cat([prefix_mask, mask], dim=1).long()
        given = {self._argument: PrefixCache(prefix, self._layers)}
        return self._model(attention_mask=seen, **given, **inputs).last_hidden_state

    def keep(self, inputs: dict[str, Any], mask: Tensor, kept: KeysValues) -> Tensor:
        cache = DynamicCache()
        given = {self._argument: cache}
        hidden = self._model(attention_mask=mask.long(), **given, **inputs).last_hidden_state
        layers: list[Any] = cache.layers
        kept.extend((layer.keys, layer.values) for layer in layers)
        return hidden


class DebertaCarrier:
    """By a wrapper around DeBERTa's own attention."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        self._prefix = DebertaPrefix(model)

    def run(self, inputs: dict[str, Any], mask: Tensor, prefix: KeysValues, prefix_mask: Tensor) -> Tensor:
        with self._prefix.active(prefix, prefix_mask):
            return self._model(attention_mask=mask.long(), **inputs).last_hidden_state

    def keep(self, inputs: dict[str, Any], mask: Tensor, kept: KeysValues) -> Tensor:
        with self._prefix.keeping(kept):
            return self._model(attention_mask=mask.long(), **inputs).last_hidden_state


@dataclass(frozen=True)
class _Carried:
    """A prefix on its way through the model, as an argument that its layers hand down to the attention function."""

    layers: dict[nn.Module, tuple[Tensor, Tensor]]
    mask: Tensor | None
    """[B, P] bool; None: nothing is put in, and the text's own keys and values are kept in `layers`."""


class AttentionCarrier:
    """By transformers' public attention function: the prefix is put before the keys and values it is called with.

    Every token of the text sees the whole prefix, also beyond a sliding window.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = model
        self._modules = [model.get_submodule(attention.name) for attention in probe(model.config).attended]
        kernel = model.config._attn_implementation
        if kernel not in MASKS:
            raise UserError(
                f"backbone.attention={kernel}: a prefix reaches {model.config.model_type} through sdpa or eager alone; "
                "set one of these, or auto"
            )
        name = f"ltune_{kernel}"
        AttentionInterface.register(name, partial(_attend, kernel))
        AttentionMaskInterface.register(name, partial(_make_mask, kernel))
        model.set_attn_implementation(name)

    def run(self, inputs: dict[str, Any], mask: Tensor, prefix: KeysValues, prefix_mask: Tensor) -> Tensor:
        modules = self._modules[-len(prefix) :]  # those below are not run
        carried = _Carried(dict(zip(modules, prefix, strict=True)), prefix_mask)
        token = _whole_masks.set(True)
        try:
            return self._model(attention_mask=mask.long(), carried=carried, **inputs).last_hidden_state
        finally:
            _whole_masks.reset(token)

    def keep(self, inputs: dict[str, Any], mask: Tensor, kept: KeysValues) -> Tensor:
        carried = _Carried({}, None)
        hidden = self._model(attention_mask=mask.long(), carried=carried, **inputs).last_hidden_state
        kept.extend(carried.layers[module] for module in self._modules)
        return hidden


def _make_mask(kernel: str, *args: Any, **kwargs: Any) -> Tensor | None:
    if _whole_masks.get():
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return MASKS[kernel](*args, **kwargs)


def _attend(
    kernel: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    carried: _Carried | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The kernel's attention over [prefix; text]: queries [B, N, T, D], keys and values [B, G, T, D]."""
    # The plain function stands in each model's own file.
    plain: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = AttentionInterface().get_interface(kernel, plain)
    if carried is None or carried.mask is None:
        if carried is not None:
            carried.layers[module] = key, value
        return attend(module, query, key, value, attention_mask, *args, **kwargs)
    assert attention_mask is not None
    keys, values = carried.layers[module]
    key, value = put_before(keys, key), put_before(values, value)
    if (bias := kwargs.get("position_bias")) is not None:  # T5: a prefix has no distance from a token
        kwargs["position_bias"] = functional.pad(bias, (keys.shape[-2], 0))
    return attend(module, query, key, value, _widened(attention_mask, carried.mask), *args, **kwargs)


def _widened(mask: Tensor, prefix_mask: Tensor) -> Tensor:
    """A mask [B, 1, T, T], of truth values or to be added to scores -> [B, 1, T, P + T], with [B, P] in front."""
    added = prefix_mask[:, None, None, :].expand(-1, 1, mask.shape[-2], -1)
    if mask.dtype != torch.bool:
        added = torch.zeros_like(added, dtype=mask.dtype).masked_fill(~added, torch.finfo(mask.dtype).min)
    return torch.cat([added, mask.expand(len(added), -1, -1, -1)], dim=-1)
