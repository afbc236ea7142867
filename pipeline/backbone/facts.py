"""Sizes of a backbone, and the way a prefix takes into it; found without its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pipeline.backbone.injection import KeyValueShape
from pipeline.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pipeline.backbone.config import BackboneConfig
    from pipeline.backbone.probe import Probe

CarrierName = Literal["cache", "attention", "deberta"]
PrefixLayers = tuple[KeyValueShape | None, ...]
TESTED = (
    "bert",
    "bloom",
    "deberta",
    "deberta-v2",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "opt",
    "qwen2",
    "qwen3",
    "roberta",
)
"""Families whose every part is tested with every release. Of others, the loaded model is checked before it is used."""
DEBERTA = ("deberta", "deberta-v2")
ALIBI = ("bloom",)
"""Families that weigh a token by its distance, which has no bound; Falcon may. MPT does, by a table that ends."""
COUNTS_PADDING = ("mpt",)
"""Families in which padding between two tokens is part of their distance."""


@dataclass(frozen=True)
class BackboneFacts:
    """What the rest of the program needs to know of a backbone's shape."""

    family: str
    """`model_type` of the transformers config, e.g. llama."""
    hidden_size: int
    """H"""
    layers: int
    """L"""
    prefix_layers: PrefixLayers
    """What a prefix token has in each of the L layers; None in one without attention. Empty: it takes no prefix."""
    max_positions: int | None
    """Largest number of tokens, prompt or prefix included, as scaled; None where the model sets no bound (ALiBi)."""
    is_decoder: bool
    """Causal (True) or bidirectional (False)."""
    sliding_window: int | None = None
    """Positions, its own included, that a token sees in some layers, an injected prompt's among them; None: all."""
    keeps_states: bool = False
    """Some layers keep a recurrence's state of what they read, be it beside keys and values or without any."""
    sliding_layers: int = 0
    """How many of the L layers have this window."""
    vocab_size: int | None = None
    """Rows of the input embedding; None: not known."""
    carrier: CarrierName | None = "cache"
    """What brings a prefix to the attention layers: the cache of keys and values, the public attention function, or
    DeBERTa's own way. None: nothing does."""

    joined: tuple[int, ...] = ()
    """Layers, from 1, whose states a text's state is made of, side by side, the last of the L layers among them; empty:
    that one alone."""
    pooled: int = 1
    """How many states as wide as a token's pooling makes of a text's tokens, side by side."""

    @property
    def state_width(self) -> int:
        """The numbers in a token's state."""
        return self.hidden_size * max(1, len(self.joined))

    @property
    def pooled_width(self) -> int:
        """M, the numbers in a text's state."""
        return self.state_width * self.pooled

    def prefix_width(self, first_layer: int = 0) -> int:
        """W, the numbers in one prefix token's keys and values, of all layers from `first_layer` on."""
        return sum(shape.width for shape in self.prefix_layers[first_layer:] if shape is not None)


class Form(NamedTuple):
    """How an injection enters the backbone."""

    kind: Literal["prompt", "prefix"]
    first_layer: int = 0
    """The lowest layer that reads it, from 0."""
    is_behind: bool = False
    """A prompt that is read behind the text, not before it: the text's own states do not depend on it."""

    def width(self, facts: BackboneFacts) -> int:
        """W: numbers per token. Raises UserError where the backbone has no such layer, or none above takes a prefix."""
        if self.first_layer >= facts.layers:
            raise UserError(
                f"method.first_layer={self.first_layer}: the backbone has only layers 0 to {facts.layers - 1}, of "
                "those that it reads (backbone.layers)"
            )
        with_attention = [layer for layer, shape in enumerate(facts.prefix_layers) if shape is not None]
        if self.kind == "prefix" and with_attention and self.first_layer > with_attention[-1]:
            raise UserError(
                f"method.first_layer={self.first_layer}: no layer from there on has attention that a prefix could "
                f"enter: set method.first_layer={with_attention[-1]} or less"
            )
        return facts.hidden_size if self.kind == "prompt" else facts.prefix_width(self.first_layer)

    def __str__(self) -> str:
        place = f" from layer {self.first_layer}" if self.first_layer else ""
        return f"{self.kind}{place}{' behind the text' if self.is_behind else ''}"


def facts_of(config: "PreTrainedConfig", settings: "BackboneConfig | None" = None) -> BackboneFacts:
    """Facts of the base model (without head) that AutoModel builds from a transformers config, read as `settings` say.

    Without `settings`: its last layer, one state per text.
    Raises UserError for a model that does not read plain text, such as one of images.
    """
    from pipeline.backbone.probe import probe  # late: it takes two seconds, and a config is read without it

    found = probe(config)
    carrier = _carrier(config, found)
    windows = [attention.window for attention in found.attended if attention.window is not None]
    return BackboneFacts(
        family=config.model_type,
        hidden_size=found.hidden_size,
        layers=config.num_hidden_layers,
        prefix_layers=_prefix_layers(config, found, carrier),
        max_positions=_max_positions(config, found),
        is_decoder=found.is_causal,
        keeps_states=found.keeps_states,
        sliding_window=min(windows, default=None),
        sliding_layers=len(windows),
        vocab_size=found.vocab_size,
        carrier=carrier,
        joined=settings.joined if settings else (),
        pooled=settings.pooled if settings else 1,
    )


def prefix_refusal(facts: BackboneFacts) -> str | None:
    """Why a backbone takes no prefix, for methods that need one; None where it takes one."""
    if facts.carrier is not None:
        return None
    return (
        f"{facts.family} has no attention that a prefix could enter in the {facts.layers} layer(s) that are read "
        "(neither a cache of keys and values in all of them, nor in each a module of its own that calls "
        "transformers' attention function)"
    )


def behind_refusal(facts: BackboneFacts) -> str | None:
    """Why nothing can be read behind a text that was read before; None where it can."""
    if not facts.is_decoder:
        return f"in {facts.family}, which is no decoder, a text's states depend on what stands behind it"
    if facts.carrier is None or not facts.prefix_layers or None in facts.prefix_layers or facts.keeps_states:
        return f"{facts.family} does not keep all of a text as keys and values of attention layers"
    if facts.family in COUNTS_PADDING:
        return f"in {facts.family} a token's distance from the text before it would depend on the padding between them"
    return None


def _carrier(config: "PreTrainedConfig", found: "Probe") -> CarrierName | None:
    """The cache, in a model whose every layer fills it and sees all of it; else the attention function."""
    if config.model_type in DEBERTA:
        return "deberta"
    is_windowed = any(attention.window is not None for attention in found.attended)
    fills_all = bool(found.cached) and None not in found.cached and not found.keeps_states
    if fills_all and not is_windowed:
        return "cache"
    places = [attention.layer for attention in found.attended]
    # A module that stands for several layers could not tell whose prefix it gets.
    if places and len(set(places)) == len(places) and max(places) < config.num_hidden_layers:
        return "attention"
    return "cache" if fills_all else None


def _prefix_layers(config: "PreTrainedConfig", found: "Probe", carrier: CarrierName | None) -> PrefixLayers:
    layers: int = config.num_hidden_layers
    match carrier:
        case "cache":
            return found.cached
        case "attention":
            shapes = {attention.layer: attention.shape for attention in found.attended}
            return tuple(shapes.get(layer) for layer in range(layers))
        case "deberta":
            heads = config.num_attention_heads
            width = config.hidden_size // heads
            return (KeyValueShape(heads, width, width),) * layers
    return ()


def _max_positions(config: "PreTrainedConfig", found: "Probe") -> int | None:
    positions = getattr(config, "max_seq_len" if config.model_type == "mpt" else "max_position_embeddings", None)
    if positions is None or config.model_type in ALIBI or getattr(config, "alibi", False):
        return None
    if not found.is_rotary:
        return positions - found.first_position
    ropes = getattr(config, "rope_parameters", None) or {}
    by_layer = [rope for rope in ropes.values() if isinstance(rope, dict)]
    return min(_scaled_positions(rope, positions) for rope in by_layer or [ropes])


def _scaled_positions(rope: Mapping[str, Any], positions: int) -> int:
    """How many positions rotary embeddings reach; `positions`: the config's `max_position_embeddings`.

    A factor multiplies it for linear and dynamic scaling, and for yarn the positions before scaling. For llama3 and
    longrope, transformers requires that it is the scaled number already. One kind of layer may have its own scaling.
    """
    factor = rope.get("factor") or 1
    match rope.get("rope_type"):
        case "linear" | "dynamic":
            return int(positions * factor)
        case "yarn":
            return max(positions, int(rope["original_max_position_embeddings"] * factor))
    return positions
