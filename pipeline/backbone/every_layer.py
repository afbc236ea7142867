"""All that `backbone.layers` and `backbone.pooling` offer to choose from, in one pass of the whole model."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbone.config import Pooling
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.pooling import pool
from pipeline.backbone.trunk import layers_of

POOLINGS: tuple[Pooling, ...] = ("mean", "last", "first")
BEHIND = ("norm", "ln_f", "final_layer_norm", "project_out")
"""What a family has behind its last layer, in this order, beside the list of layers: `norm` (Gemma, Llama, Mistral,
Qwen), `ln_f` (BLOOM, Falcon, GPT-2), `final_layer_norm` (GPT-NeoX, OPT), `project_out` (OPT-350m). Encoders: none."""


class EveryLayer(nn.Module):
    """A frozen backbone whose texts are read as the models of its first 1, 2, ... L layers would read them.

    Each of those has the family's final norm behind its last layer, so it is applied to every layer's states here. What
    a layer leaves is seen where the next one gets it: DeBERTa has a convolution between the first two.
    """

    def __init__(self, backbone: FrozenBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        owner, layers = layers_of(backbone.model)
        self._behind = [module for name in BEHIND if (module := getattr(owner, name, None)) is not None]
        self._following = list(layers)[1:]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Texts [B, T], as `FrozenBackbone` takes them -> pooled states [L, 3, B, H], by layer and by `POOLINGS`.

        A layer's states [B, T, H] are pooled, and forgotten, before the next layer runs.
        """
        real_first = attention_mask.int().sort(dim=1, descending=True).values  # as the backbone runs its layers
        pooled: list[Tensor] = []

        def keep(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = given[0] if given else named["hidden_states"]
            for module in self._behind:
                hidden = module(hidden)
            pooled.append(_all_pooled(hidden, real_first))

        hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in self._following]
        try:
            last = self.backbone(input_ids, attention_mask, token_type_ids=token_type_ids)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([*pooled, _all_pooled(last, attention_mask)])


def _all_pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """States [B, T, H] -> [3, B, H]"""
    return torch.stack([pool(hidden, mask, how) for how in POOLINGS])
