"""A hypothesis as the backbone reads it, in the form of an injection: what an injection can start from."""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection, KeysValues, join_prefix
from pipeline.core.errors import UserError


class Form(NamedTuple):
    """How an injection enters the backbone."""

    kind: Literal["prompt", "prefix"]
    first_layer: int = 0
    """The lowest layer that reads it, from 0."""

    def width(self, facts: BackboneFacts) -> int:
        """W: numbers per token. Raises UserError where the backbone has no such layer."""
        if self.first_layer >= facts.layers:
            raise UserError(
                f"method.first_layer={self.first_layer}: the backbone has only layers 0 to {facts.layers - 1}, of "
                "those that it reads (backbone.layers)"
            )
        return facts.hidden_size if self.kind == "prompt" else facts.prefix_width(self.first_layer)

    def __str__(self) -> str:
        return self.kind if self.first_layer == 0 else f"{self.kind} from layer {self.first_layer}"


class AsInjection(nn.Module):
    """A frozen backbone that also tells what would stand in the place of a text it has read.

    A text behind that is read as one behind the hypothesis: as a prompt (the states that the first layer with an
    injection gets, which are its input embeddings where that is the lowest), or as a prefix (its keys and values).
    """

    def __init__(self, backbone: FrozenBackbone, form: Form | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.form = form

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, injection: Injection | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Texts [B, T], padded on the right -> last hidden states [B, T, H]; what they are as an injection [B, T, W].

        Behind an `injection` they are none themselves.
        """
        if self.form is None or injection is not None:
            return self.backbone(input_ids, attention_mask, injection), None
        first_layer = self.form.first_layer
        if self.form.kind == "prompt":
            embed = self.backbone.model.get_input_embeddings()
            states = self.backbone(input_ids, attention_mask)
            if first_layer == 0:
                return states, embed(input_ids)
            return states, self.backbone.trunk(input_ids, attention_mask, first_layer).states
        layers: KeysValues = []
        hidden = self.backbone(input_ids, attention_mask, keep=layers)
        above = [layer for layer in self.backbone.facts.prefix_layers[first_layer:] if layer is not None]
        return hidden, join_prefix(layers[len(layers) - len(above) :])
