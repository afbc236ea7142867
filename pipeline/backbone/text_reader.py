"""The frozen backbone's reading of texts alone, as numbers to keep: a state of each text, or of each of its tokens."""

import torch
from torch import Tensor, nn

from pipeline.backbone.config import Pooling
from pipeline.backbone.facts import BackboneFacts, Form
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import KeptTexts, join_prefix, split_prefix
from pipeline.backbone.pooling import pool


class TextReader(nn.Module):
    """A frozen backbone that gives text states or token states.

    Token states are all that is needed to read on from a text once an injection of this form comes: what the layer
    `first_layer` gets, or, for what is read behind texts, their last hidden states, keys and values.
    """

    def __init__(self, backbone: FrozenBackbone, pooling: Pooling, form: Form | None = None) -> None:
        """`form`: of the injections before which tokens are kept; None: a state per text."""
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.form = form

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Texts [B, T], padded on the right -> text states [B, M], or token states [B, T, W]."""
        if self.form is None:
            hidden = self.backbone(input_ids, attention_mask, token_type_ids=token_type_ids)
            return pool(hidden, attention_mask, self.pooling)
        if self.form.is_behind:
            return of_kept_texts(self.backbone.keep(input_ids, attention_mask))
        return self.backbone.trunk(input_ids, attention_mask, self.form.first_layer, token_type_ids).states


def keeps_tokens(form: Form | None) -> bool:
    """Whether layers read a text's tokens before any injection of this form comes."""
    return form is not None and (form.is_behind or form.first_layer > 0)


def token_width(form: Form, facts: BackboneFacts) -> int:
    """W of the token states before injections of this form."""
    return facts.state_width + facts.prefix_width() if form.is_behind else facts.hidden_size


def of_kept_texts(texts: KeptTexts) -> Tensor:
    """The token states [B, T, W] of texts to read behind."""
    return torch.cat([texts.hidden, join_prefix(texts.layers)], dim=-1)


def as_kept_texts(states: Tensor, mask: Tensor, facts: BackboneFacts, begun: int = 0) -> KeptTexts:
    """The texts to read behind that token states [B, T, W] are; mask [B, T], padding on the right.

    `begun`: see `KeptTexts`.
    """
    hidden, layers = states.tensor_split([facts.state_width], dim=-1)
    return KeptTexts(hidden, mask.bool(), split_prefix(layers, facts.prefix_layers), begun)
