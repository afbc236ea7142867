"""The classifier: a frozen backbone, a tuning method and the label states it judges texts against."""

from torch import Tensor, nn

from pipeline.backbone.config import Pooling
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.backbone.pooling import pool
from pipeline.methods.base import TuningMethod


class LTuningModel(nn.Module):
    """Scores (text, label) candidates."""

    label_states: Tensor
    label_mask: Tensor

    def __init__(
        self, backbone: FrozenBackbone, method: TuningMethod, label_states: Tensor, label_mask: Tensor, pooling: Pooling
    ) -> None:
        """label_states [K, P, H], label_mask [K, P]: what `candidates` index; pooling: last, first or mean."""
        super().__init__()
        self.backbone = backbone
        self.method = method
        self.pooling = pooling
        self.register_buffer("label_states", label_states, persistent=False)
        self.register_buffer("label_mask", label_mask.bool(), persistent=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        candidates: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """How true each candidate label is of its text.

        input_ids, attention_mask, token_type_ids [B, T]; candidates [B, C], label indices -> scores [B, C] float32.
        """

        def read(injection: Injection | None, copies: int) -> Tensor:
            ids, mask = input_ids.repeat_interleave(copies, 0), attention_mask.repeat_interleave(copies, 0)
            types = None if token_type_ids is None else token_type_ids.repeat_interleave(copies, 0)
            return pool(self.backbone(ids, mask, injection, types), mask, self.pooling)

        return self.method.scores(read, candidates, self.label_states, self.label_mask)

    def set_labels(self, states: Tensor, mask: Tensor) -> None:
        """Replaces the label set: states [K, P, H], mask [K, P] (open label sets)."""
        self.label_states = states.to(self.label_states)
        self.label_mask = mask.to(self.label_mask)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training may change, by name. Optimizer, saving, loading and counting all ask here."""
        return dict(self.method.named_parameters())
