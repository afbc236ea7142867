"""No training: the label whose wording is nearest to the text, by the frozen backbone's own states."""

from typing import ClassVar, Literal

from torch import Tensor
from torch.nn import functional

from pipeline.backbone.facts import BackboneFacts
from pipeline.methods.base import MethodConfig, Reader, TuningMethod

SCALE = 10.0
"""Of the cosine, where LabelAwareHead starts. Probabilities depend on it, the order of the labels does not."""


class ZeroShotConfig(MethodConfig):
    """Similarity of text and label states."""

    is_trained: ClassVar[bool] = False
    open_labels: ClassVar[bool] = True

    name: Literal["zero_shot"] = "zero_shot"

    def build(self, facts: BackboneFacts, prompt_tokens: int, label_count: int) -> "ZeroShot":
        return ZeroShot()

    def trainable_count(self, facts: BackboneFacts, prompt_tokens: int, label_count: int) -> int:
        return 0


class ZeroShot(TuningMethod):
    """Scaled cosine between the text's pooled state and the mean of each label's states."""

    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        weights = mask.unsqueeze(-1).float()
        labels = (states.float() * weights).sum(1) / weights.sum(1)
        texts = functional.normalize(read(None, 1).float(), dim=-1)
        return (SCALE * texts @ functional.normalize(labels, dim=-1).T).gather(1, candidates)
