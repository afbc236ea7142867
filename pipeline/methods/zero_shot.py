"""No training: the frozen backbone's own idea of which hypothesis goes with the text."""

from typing import ClassVar, Literal

from torch import Tensor

from pipeline.backbone.facts import BackboneFacts
from pipeline.methods.base import MethodConfig, Reader, TuningMethod
from pipeline.methods.heads import state_similarity


class ZeroShotConfig(MethodConfig):
    """Decoders: how likely the hypothesis is behind the text. Encoders: similarity of text and label states."""

    is_baseline: ClassVar[bool] = True
    is_trained: ClassVar[bool] = False
    open_labels: ClassVar[bool] = True
    reads_hypotheses: ClassVar[bool] = True

    name: Literal["zero_shot"] = "zero_shot"

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> TuningMethod:
        return HypothesisLikelihood() if facts.is_decoder else StateSimilarity()

    def trainable_count(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> int:
        return 0


class HypothesisLikelihood(TuningMethod):
    """Mean log-probability per token of the hypothesis, read right behind the text.

    Per token, so that long hypotheses are not punished (GPT-3, arXiv 2005.14165, Sec. 2.4).
    """

    judges_hypotheses: ClassVar[bool] = True

    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return read.likelihood(candidates)


class StateSimilarity(TuningMethod):
    """Scaled cosine between the text's pooled state and the mean of each label's states."""

    judges_hypotheses: ClassVar[bool] = True

    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return state_similarity(read(None, 1), states, mask).gather(1, candidates).float()
