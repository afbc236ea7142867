"""A hypothesis as the backbone reads it, in the form of an injection: what an injection can start from."""

from torch import Tensor, nn

from pipeline.backbone.facts import Form
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection, KeysValues, join_prefix


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
            return self._last_layer(self.backbone(input_ids, attention_mask, injection)), None
        first_layer = self.form.first_layer
        if self.form.kind == "prompt" and first_layer == 0:
            embed = self.backbone.model.get_input_embeddings()
            return self._last_layer(self.backbone(input_ids, attention_mask)), embed(input_ids)
        if self.form.kind == "prompt":
            trunk = self.backbone.trunk(input_ids, attention_mask, first_layer)
            return self._last_layer(self.backbone(input_ids, attention_mask, trunk=trunk)), trunk.states
        layers: KeysValues = []
        hidden = self.backbone(input_ids, attention_mask, keep=layers)
        above = [layer for layer in self.backbone.facts.prefix_layers[first_layer:] if layer is not None]
        return self._last_layer(hidden), join_prefix(layers[len(layers) - len(above) :])

    def _last_layer(self, hidden: Tensor) -> Tensor:
        """Of joined states [B, T, M], [B, T, H]: labels have no more."""
        return hidden[..., -self.backbone.facts.hidden_size :]
