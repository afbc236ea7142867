"""The backbone's config.json: its shape, without a weight."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.text_part import text_config
from pipeline.core.bounds import MOST_LAYERS, MOST_POSITIONS, MOST_SQUARE_POSITIONS, MOST_WIDTH
from pipeline.core.errors import UserError, first_line

AT_LEAST_ONE = {
    "hidden_size",
    "n_embd",
    "num_hidden_layers",
    "n_layer",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
}


def load_model_config(config: BackboneConfig) -> PreTrainedConfig:
    """With `backbone.layers` layers, if that is set; of a model that also sees or hears, the part for texts.

    Raises UserError where there is none, none that transformers can read, or one of fewer layers.
    """
    try:
        _check_sizes(PreTrainedConfig.get_config_dict(config.location, revision=config.revision)[0])
        model_config = AutoConfig.from_pretrained(
            config.location, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        model_config = text_config(model_config)
    except UserError:
        raise
    except Exception as error:  # a damaged or hostile file makes transformers fail in any way
        reason = first_line(error)
        if "trust_remote_code" in str(error):
            reason += "; give --trust-remote-code if you trust the model's authors"
        raise UserError(
            f"backbone.name_or_path {config.name_or_path!r}: config.json cannot be read: {reason}"
        ) from error
    if model_config._attn_implementation not in ("eager", "sdpa"):
        # The file may name a kernel, which transformers would fetch from the hub and run.
        model_config._attn_implementation = None
    if not config.trust_remote_code:
        model_config.auto_map = {}
    if config.depth is not None:
        _keep_layers(model_config, config.depth)
    return model_config


def can_be_cut(model_config: PreTrainedConfig) -> bool:
    """Whether a model of fewer layers can be had: not of Gemma 3n and 4."""
    return not getattr(model_config, "hidden_size_per_layer_input", 0)


def _keep_layers(model_config: PreTrainedConfig, count: int) -> None:
    """Makes it the config of a model of the first `count` layers. UserError where it has fewer."""
    there = model_config.num_hidden_layers
    if count > there:
        raise UserError(f"backbone.layers is {count}, but the backbone has {there} layers: set {there} or fewer")
    if count < there and not can_be_cut(model_config):
        raise UserError(
            f"backbone.layers is {count}, but {model_config.model_type} has one table of embeddings for all of "
            f"its layers: set null, or a list that ends with {there}"
        )
    for name, value in vars(model_config).items():
        if "layer" in name and isinstance(value, list) and len(value) == there:  # one entry per layer: its attention
            setattr(model_config, name, value[:count])
    model_config.num_hidden_layers = count


def _check_sizes(values: Any, key: str = "") -> None:
    """ValueError where config.json declares sizes of which memory would be taken before any weight is looked at."""
    if isinstance(values, dict):
        for name, value in values.items():
            _check_sizes(value, str(name))
    elif isinstance(values, int) and abs(values) > (most := _most(key)):
        raise ValueError(f"{key} is {values:.3g}, at most {most:,} are read")
    elif isinstance(values, int) and key in AT_LEAST_ONE and values < 1:
        raise ValueError(f"{key} is {values}")


def _most(key: str) -> int:
    if key == "n_positions":
        return MOST_SQUARE_POSITIONS
    if "position" in key:
        return MOST_POSITIONS
    # Gemma 3n and 4 have vocab_size_per_layer_input, which counts tokens.
    return MOST_LAYERS if "layer" in key and "vocab" not in key else MOST_WIDTH
