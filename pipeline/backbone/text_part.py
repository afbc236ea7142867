"""The language model of one that also sees or hears (Gemma 3, Llama 4, Qwen 3.5): of its config and its weights."""

import re

from transformers import PreTrainedConfig

from pipeline.backbone.weights import Checkpoint

WITHIN = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?")
"""What the names of its tensors begin with, where a model has other parts; transformers' two ways to write it."""
OUTPUT_LAYER = "lm_head."
INHERITED = ("_name_or_path", "quantization_config")
"""Keys of the whole config that hold for the part as well."""


def text_config(model_config: PreTrainedConfig) -> PreTrainedConfig:
    """Its part for texts; itself where it has no other."""
    if "text_config" not in model_config.sub_configs:
        return model_config
    part: PreTrainedConfig = model_config.get_text_config()
    for key in INHERITED:
        if getattr(model_config, key, None) is not None:
            setattr(part, key, getattr(model_config, key))
    return part


def text_part(checkpoint: Checkpoint) -> Checkpoint:
    """Its tensors by the names that the language model alone would have; itself where it has no other parts.

    Tensors of the other parts are not in it, so they are neither read nor part of its fingerprint.
    """
    if any(WITHIN.match(name) for name in checkpoint.tensors):
        checkpoint.tensors = {
            WITHIN.sub("", name): stored
            for name, stored in checkpoint.tensors.items()
            if WITHIN.match(name) or name.startswith(OUTPUT_LAYER)
        }
    return checkpoint
