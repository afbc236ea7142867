"""The label most frequent in training, for every text. The backbone is not asked."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pipeline.backbone.facts import BackboneFacts
from pipeline.methods.base import MethodConfig, Reader, TuningMethod


class MajorityConfig(MethodConfig):
    """The labels' shares of the training texts, and nothing else."""

    is_trained: ClassVar[bool] = False

    name: Literal["majority"] = "majority"

    def build(self, facts: BackboneFacts, prompt_tokens: int, label_count: int) -> "Majority":
        return Majority(label_count)

    def trainable_count(self, facts: BackboneFacts, prompt_tokens: int, label_count: int) -> int:
        return 0

    def untrained_state(self, label_counts: Sequence[int]) -> dict[str, Tensor]:
        """Log shares; one text more per label keeps them finite."""
        counts = torch.tensor(label_counts, dtype=torch.float32) + 1
        return {"log_shares": (counts / counts.sum()).log()}


class Majority(TuningMethod):
    """Scores are the labels' log shares."""

    log_shares: Tensor

    def __init__(self, label_count: int) -> None:
        super().__init__()
        self.register_buffer("log_shares", torch.zeros(label_count))

    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        return self.log_shares.float()[candidates]
