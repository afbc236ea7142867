"""Activation checkpointing of the frozen model."""

from functools import partial

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Makes every transformer layer forget its activations and recompute them in backward.

    transformers' own switch works in training mode only and drops `past_key_values`, and with it the prefix, from each
    layer's call (its PR #38913; from 5.x the private `_can_checkpoint_with_cache` prevents that, except in GPT-2, whose
    model drops it by itself). Non-reentrant, since the reentrant kind loses the gradient of tensors that are not
    positional arguments (its PR #46572); with ZeRO-3 this needs DeepSpeed 0.19.3 (its issue #8148).
    """
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            # No dropout inside: random state need not be kept.
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
