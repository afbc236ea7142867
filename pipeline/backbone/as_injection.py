"""A hypothesis as the backbone reads it, in the form of an injection: what an injection can start from."""

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import KeysValues

Form = Literal["prompt", "prefix"]


def width_of(form: Form, facts: BackboneFacts) -> int:
    """W: numbers per token."""
    return facts.hidden_size if form == "prompt" else 2 * facts.layers * facts.kv_heads * facts.head_dim


class AsInjection(nn.Module):
    """A frozen backbone that also tells what would stand in the place of a text it has read.

    A text behind that is read as one behind the hypothesis: as the backbone's own prompt (its input embeddings), or as
    the prefix (its keys and values in all layers).
    """

    def __init__(self, backbone: FrozenBackbone, form: Form | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.form = form

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Texts [B, T], padded on the right -> last hidden states [B, T, H]; what they are as an injection [B, T, W].

        W is `width_of` the form; a prefix has its numbers in the order [L, 2, G, D].
        """
        if self.form == "prompt":
            return self.backbone(input_ids, attention_mask), self.backbone.model.get_input_embeddings()(input_ids)
        if self.form is None:
            return self.backbone(input_ids, attention_mask), None
        layers: KeysValues = []
        hidden = self.backbone(input_ids, attention_mask, keep=layers)
        both = torch.stack([torch.stack(layer) for layer in layers])  # [L, 2, B, G, T, D]
        return hidden, both.permute(2, 4, 0, 1, 3, 5).flatten(2)
