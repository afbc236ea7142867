"""All that `backbone.layers` and `backbone.pooling` offer to choose from, in one pass of the whole model."""

import torch
from torch import Tensor, nn

from pipeline.backbone.config import Pooling
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.layer_outputs import check_layers_are_seen, seen
from pipeline.backbone.pooling import pool

PARTS: dict[Pooling, tuple[int, ...]] = {"mean": (1,), "last": (2,), "first": (3,), "statistics": (0, 1)}
"""What each pooling puts side by side of the four states that are kept: deviation, mean, last and first."""


class EveryLayer(nn.Module):
    """A frozen backbone whose texts are read as the models of its first 1, 2, ... L layers would read them."""

    def __init__(self, backbone: FrozenBackbone) -> None:
        """Raises UserError for families whose layers cannot be looked at one by one."""
        super().__init__()
        check_layers_are_seen(backbone.model)
        self.backbone = backbone

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Texts [B, T], as `FrozenBackbone` takes them -> states [L, 4, B, H], by layer: see `PARTS`.

        A layer's states [B, T, H] are pooled, and forgotten, before the next layer runs.
        """
        real_first = attention_mask.int().sort(dim=1, descending=True).values  # as the backbone runs its layers
        pooled: list[Tensor] = []
        below = range(1, self.backbone.facts.layers)
        with seen(self.backbone.model, below, lambda hidden: pooled.append(_all_pooled(hidden, real_first))):
            last = self.backbone(input_ids, attention_mask, token_type_ids=token_type_ids)
        return torch.stack([*pooled, _all_pooled(last, attention_mask)])


def _all_pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """States [B, T, H] -> [4, B, H]"""
    deviation, mean = pool(hidden, mask, "statistics").chunk(2, dim=-1)
    return torch.stack([deviation, mean, pool(hidden, mask, "last"), pool(hidden, mask, "first")])
