"""Sizes of a backbone, read from its config alone (no weights)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from pipeline.core.errors import UserError


@dataclass(frozen=True)
class BackboneFacts:
    """What the rest of the program needs to know of a backbone's shape."""

    family: str
    """`model_type` of the transformers config, e.g. llama."""
    hidden_size: int
    """H"""
    layers: int
    """L"""
    heads: int
    """A"""
    kv_heads: int
    """G, the heads an attention-cache entry has (1 for Falcon-7B; A where the model repeats keys before caching)."""
    head_dim: int
    """D"""
    max_positions: int | None
    """Largest number of tokens, prompt or prefix included, as scaled; None where the model sets no bound (ALiBi)."""
    is_decoder: bool
    """Causal (True) or bidirectional (False)."""
    sliding_window: int | None = None
    """Positions, its own included, that a token sees in some layers, an injection's among them; None: all of them."""
    sliding_layers: int = 0
    """How many of the L layers have this window."""
    vocab_size: int | None = None
    """Rows of the input embedding; None: not known."""


ENCODERS = ("bert", "roberta", "deberta", "deberta-v2")
DECODERS = (
    "bloom",
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
)
SLIDING = ("gemma2", "gemma3_text", "mistral", "qwen2", "qwen3")
"""Families whose attention heeds `sliding_window`; in configs of others the key may stand without a meaning."""

ROTARY = ("falcon", "gemma", "gemma2", "gemma3_text", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
"""Families with rotary positions, which can be scaled beyond `max_position_embeddings`."""


def facts_of(config: PreTrainedConfig) -> BackboneFacts:
    """Facts of the base model (without head) that AutoModel builds from a transformers config.

    Raises UserError for encoder-decoder and vision models and for families that were never tried.
    """
    family = config.model_type
    _refuse_unsupported(config)
    heads: int = config.num_attention_heads
    window, sliding_layers = _sliding_window(config)
    return BackboneFacts(
        family=family,
        # OPT-350m embeds its tokens, and puts out its last states, in a width below that of its layers.
        hidden_size=config.word_embed_proj_dim if family == "opt" else config.hidden_size,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=_cached_heads(config),
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        max_positions=_max_positions(config),
        is_decoder=family in DECODERS,
        sliding_window=window,
        sliding_layers=sliding_layers,
        vocab_size=config.vocab_size,
    )


def _refuse_unsupported(config: PreTrainedConfig) -> None:
    family = config.model_type
    if family in ENCODERS + DECODERS:
        return
    name = f"backbone {config.name_or_path!r}" if config.name_or_path else "the backbone"
    if config.is_encoder_decoder:
        problem = f"is an encoder-decoder model ({family})"
    elif any(hasattr(config, key) for key in ("image_size", "vision_config")):
        problem = f"is a vision model ({family})"
    else:
        problem = f"has the unknown model type {family!r}"
    raise UserError(f"{name} {problem}; choose a text model of one of: {', '.join(sorted(ENCODERS + DECODERS))}")


def _cached_heads(config: PreTrainedConfig) -> int:
    """G, by what each family's attention hands to the cache."""
    heads: int = config.num_attention_heads
    if config.model_type == "falcon":
        # The new architecture (40B, 180B) repeats its grouped keys for every head before it caches them.
        return 1 if config.multi_query and not config.new_decoder_architecture else heads
    return getattr(config, "num_key_value_heads", None) or heads


def _sliding_window(config: PreTrainedConfig) -> tuple[int | None, int]:
    """The window and how many layers have it."""
    window = getattr(config, "sliding_window", None)
    if config.model_type not in SLIDING or window is None:
        return None, 0
    types = getattr(config, "layer_types", None)
    count = config.num_hidden_layers if types is None else types.count("sliding_attention")
    return (window, count) if count else (None, 0)


def _max_positions(config: PreTrainedConfig) -> int | None:
    if config.model_type == "bloom" or (config.model_type == "falcon" and config.alibi):
        return None
    if config.model_type == "roberta":  # position numbers start behind the padding's
        return config.max_position_embeddings - config.pad_token_id - 1
    if config.model_type not in ROTARY:
        return config.max_position_embeddings
    ropes = getattr(config, "rope_parameters", None) or {}
    by_layer = [rope for rope in ropes.values() if isinstance(rope, dict)]
    return min(_scaled_positions(rope, config.max_position_embeddings) for rope in by_layer or [ropes])


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
