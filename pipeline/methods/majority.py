"""The label most frequent in training, for every text. The backbone reads nothing."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from pipeline.backbone.facts import BackboneFacts
from pipeline.methods.base import MethodConfig, Reader, TuningMethod


class MajorityConfig(MethodConfig):
    """The labels' shares of the training texts, and nothing else."""

    is_baseline: ClassVar[bool] = True
    is_trained: ClassVar[bool] = False

    name: Literal["majority"] = "majority"

    def build(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> "Majority":
        return Majority(label_count)

    def trainable_count(self, facts: BackboneFacts, hypothesis_tokens: int, label_count: int) -> int:
        return 0

    def untrained_state(self, label_counts: Sequence[int]) -> dict[str, Tensor]:
        return {"counts": torch.tensor(label_counts, dtype=torch.int64)}


class Majority(TuningMethod):
    """Scores are the logarithms of the labels' counts, below that of the largest."""

    counts: Tensor

    def __init__(self, label_count: int) -> None:
        super().__init__()
        # Integers, which no cast of the model to bfloat16 rounds: its three digits would make ties.
        self.register_buffer("counts", torch.zeros(label_count, dtype=torch.int64))

    def scores(self, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        # One text more per label keeps them finite; near 0, float32 tells even counts of 10^9 apart.
        counts = self.counts.double() + 1
        return (counts / counts.max()).log().float()[candidates]
