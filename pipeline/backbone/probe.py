"""What a model makes of three tokens, found on tensors without contents: its shapes by its own code, layer by layer.

The model is built and run once on fake tensors, which have shapes and types but no memory. A 70B model takes a second.
"""

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.integrations.moe import ExpertsInterface
from transformers.masking_utils import sdpa_mask

from pipeline.backbone.injection import KeyValueShape
from pipeline.backbone.trunk import end_of
from pipeline.core.errors import UserError, first_line

TOKENS = 3
OF_NO_SHAPE = {"dtype", "_name_or_path", "transformers_version", "architectures"}
"""Keys of a config that differ between a file, an estimate and a loaded model."""
FAR = 2**18
"""Positions among which a window shows, in the middle: longer ones hide nothing from any text that is read here."""
SPY = "ltune_spy"
_KNOWN: dict[tuple[type, str], "Probe"] = {}


@dataclass(frozen=True)
class Attention:
    """One call of the public attention function."""

    name: str
    """Of the module that calls it, within the base model."""
    shape: KeyValueShape
    """Of the keys and values it hands over."""
    window: int | None
    """Positions, its own included, that a token sees; None: all."""

    @property
    def layer(self) -> int:
        """Number of the layer it is in: the first one in its name. -1: there is none."""
        found = re.search(r"\d+", self.name)
        return -1 if found is None else int(found[0])


@dataclass(frozen=True)
class Probe:
    """What was found. `cached` and `attended` are two ways to the same layers; a model may have one of them or none."""

    hidden_size: int
    """H, of the output."""
    vocab_size: int
    """Rows of the input embedding."""
    cached: tuple[KeyValueShape | None, ...]
    """By layer, what it hands to its cache; None: nothing. Empty: the model takes no cache."""
    attended: tuple["Attention", ...]
    """The modules that call transformers' public attention function, in call order."""
    keeps_states: bool
    """Some layers keep the state of a recurrence, beside their keys and values or in the place of them."""
    is_causal: bool
    first_position: int
    """Number of the first token's position: behind the padding's, in RoBERTa and its kin."""
    is_rotary: bool
    behind: tuple[str, ...]
    """What runs behind the last layer, in this order, by its name beside the list of layers: mostly a norm."""
    gives_tuples: bool
    """Its layers give tuples, in which their states come first."""


def probe(config: PreTrainedConfig) -> Probe:
    """Of the base model that transformers builds from a config. Found once per process.

    Raises UserError where it is not a model of text: of images or sounds, or one whose decoder needs its encoder.
    """
    key = (type(config), repr({name: value for name, value in config.to_dict().items() if name not in OF_NO_SHAPE}))
    if key not in _KNOWN:
        with torch.device("cpu"):  # whatever the caller makes its tensors on
            _KNOWN[key] = _probe(config)
    return _KNOWN[key]


def base_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of the base model; of an encoder-decoder, that of its encoder. Raises UserError as `probe` does."""
    mapping = MODEL_FOR_TEXT_ENCODING_MAPPING if is_encoder_decoder(config) else MODEL_MAPPING
    own_code = getattr(config, "auto_map", {}).get("AutoModel")
    if own_code is not None:  # `load_model_config` leaves it where its author is trusted
        revision = getattr(config, "_commit_hash", None)
        return get_class_from_dynamic_module(own_code, str(config.name_or_path), revision=revision)
    family = config.model_type
    if any(hasattr(config, key) for key in ("image_size", "vision_config")):
        raise _refusal(config, f"is a vision model ({family})")
    if type(config) in mapping:
        found: Any = mapping[type(config)]
        model_class: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
        return model_class
    if is_encoder_decoder(config):
        raise _refusal(config, f"is an encoder-decoder model ({family}), whose encoder cannot be had alone")
    raise _refusal(config, f"has the type {family!r}, of which transformers has no base model")


def is_encoder_decoder(config: PreTrainedConfig) -> bool:
    """Whether the family is one of encoder-decoders: the encoder's own config may say no."""
    return config.is_encoder_decoder or type(config).is_encoder_decoder


def build(model_class: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model of this class, without the pooler that nothing here reads.

    Not by `from_config`, which would enter zero.Init by itself wherever accelerate has announced ZeRO-3.
    """
    options = {"add_pooling_layer": False} if "add_pooling_layer" in signature(model_class.__init__).parameters else {}
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return model_class(config, **options)
    finally:
        torch.set_default_dtype(default)


def empty_model(
    config: PreTrainedConfig, dtype: torch.dtype, attention: str | None = None, experts: str | None = None
) -> PreTrainedModel:
    """The base model on the meta device, in eval mode; `attention` and `experts`: names of registered functions."""
    config = deepcopy(config)
    config.dtype = dtype
    if attention is not None:
        config._attn_implementation = attention
    if experts is not None:
        config._experts_implementation = experts
    with torch.device("meta"):
        model = build(base_class(config), config, dtype)
    module: Any
    for module in model.modules():  # frequencies that follow a text's length would depend on contents
        kinds = getattr(module, "rope_type", None)
        if kinds is not None:
            module.rope_type = dict.fromkeys(kinds, "default") if isinstance(kinds, dict) else "default"
    return model.eval()


def make_fake(model: nn.Module) -> None:
    """Inside a FakeTensorMode: gives every tensor on meta a fake one on the CPU in its place, a tied one once."""
    made: dict[Tensor, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if tensor not in made:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[tensor] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        return made[tensor]

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, fake(parameter))
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, fake(buffer))


def cache_argument(model: nn.Module) -> str | None:
    """What its forward calls the cache of keys and values, if it takes one."""
    taken = signature(model.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in taken), None)  # the first from 5.24 on


@dataclass
class _Spy:
    """Notes what a model asks of its attention function, and answers with shapes alone."""

    calls: list[tuple[nn.Module, KeyValueShape, Tensor | None]] = field(default_factory=list)
    masks: list[tuple[Tensor, Callable[..., Tensor]]] = field(default_factory=list)
    """Each mask, and the rule it was made by."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *_: Any, **__: Any
    ) -> tuple[Tensor, None]:
        self.calls.append((module, KeyValueShape.of(key, value), mask))
        return value.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    def make_mask(self, *args: Any, **kwargs: Any) -> Tensor:
        kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        mask = sdpa_mask(*args, **kwargs)
        assert mask is not None
        self.masks.append((mask, kwargs["mask_function"]))
        return mask

    def window(self, mask: Tensor | None, config: PreTrainedConfig) -> int | None:
        """Positions that a token far from both ends sees, its own included; None: all on at least one side."""
        rule = next((rule for made, rule in self.masks if made is mask), None)
        if rule is None:
            return None
        zero, places = torch.zeros((), dtype=torch.long), torch.arange(FAR)
        try:
            seen = int(rule(zero, zero, places[FAR // 2], places).expand(FAR).sum())
        except Exception:  # chunked attention looks at the padding, which has no contents here
            return getattr(config, "attention_chunk_size", None)
        return None if seen > FAR // 2 else seen

    def model(self, config: PreTrainedConfig) -> PreTrainedModel:
        """One that asks here. Its mixtures of experts, whose choice depends on contents, choose none."""
        AttentionInterface.register(SPY, self.attend)
        AttentionMaskInterface.register(SPY, self.make_mask)
        ExpertsInterface.register(SPY, lambda module, hidden, *_: torch.empty_like(hidden))
        try:
            return empty_model(config, torch.float32, attention=SPY, experts=SPY)
        except KeyError:  # it looks its attention up in a table of its own
            return empty_model(config, torch.float32, experts=SPY)


def _probe(config: PreTrainedConfig) -> Probe:
    spy = _Spy()
    try:
        model = spy.model(config)
        argument, cache = cache_argument(model), DynamicCache(config=model.config)
        given: dict[str, Any] = {}
        if argument is not None:
            given = {argument: cache, "use_cache": True} if _has_room(cache) else {"use_cache": False}
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            make_fake(model)
            ids = torch.zeros(1, TOKENS, dtype=torch.long)
            end = end_of(model)
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), **given).last_hidden_state
    except UserError:
        raise
    except Exception as error:  # whatever the code of any model raises
        problem = f"({config.model_type}) does not read a plain text: {first_line(error)}"
        raise _refusal(config, problem) from error
    names = {module: name for name, module in model.named_modules()}
    cached = tuple(_cached_shape(layer) for layer in cache.layers)
    return Probe(
        hidden_size=output.shape[-1],
        vocab_size=len(model.get_input_embeddings().get_parameter("weight")),
        cached=cached if any(cached) else (),
        attended=tuple(
            Attention(names[module], shape, spy.window(mask, model.config)) for module, shape, mask in spy.calls
        ),
        keeps_states=any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers),
        is_causal=_is_causal(model),
        first_position=_first_position(model),
        is_rotary=any(name.endswith("inv_freq") for name, _ in model.named_buffers()),
        behind=tuple(end.behind),
        gives_tuples=end.gives_tuples,
    )


def _has_room(cache: DynamicCache) -> bool:
    """For keys and values. A cache of recurrences' states alone cannot say how long a text is, and no mask is made."""
    return not cache.layers or any(isinstance(layer, CacheLayerMixin) for layer in cache.layers)


def _cached_shape(layer: Any) -> KeyValueShape | None:
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    return KeyValueShape.of(keys, values) if isinstance(keys, Tensor) and isinstance(values, Tensor) else None


def _is_causal(model: PreTrainedModel) -> bool:
    """By its attention modules; where they do not say it, by the tasks that transformers has models of its kind for."""
    said = {module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)}
    kind = type(model.config)
    return True in said if said else kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def _first_position(model: PreTrainedModel) -> int:
    """Where a row of the position table stands for padding, the first token comes behind it."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return module.padding_idx + 1
    return 0


def _refusal(config: PreTrainedConfig, problem: str) -> UserError:
    name = f"backbone {config.name_or_path!r}" if config.name_or_path else "the backbone"
    return UserError(f"{name} {problem}; choose a text model (docs/backbones.md lists those that were tried)")
