"""Labels with several hypotheses: a label's score is the weighted mean of its hypotheses' scores.

The mean is of scores, not of states: each hypothesis is a sentence that the backbone reads whole, as a prefix, behind a
text or as a state to compare with, and a mean of unlike sentences' states is the reading of none. Where the score is
linear in the states (a dot product), both are the same. Idea: SciPrompt (arXiv 2410.01946), which scores several label
words, with weights.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from pipeline.methods.base import Reader, TuningMethod


class HypothesisMean(nn.Module):
    """K labels, of which each has 1 to M of the J hypotheses."""

    places: Tensor
    bits: Tensor

    def __init__(self, weights: Sequence[Sequence[float]]) -> None:
        """weights: of each label's hypotheses, which follow each other in the order of the labels; the sum is 1."""
        super().__init__()
        counts = [len(own) for own in weights]
        starts, most = [0, *accumulate(counts[:-1])], max(counts)
        # A label with fewer has its last once more, right behind, with weight zero.
        rows = [[first + min(place, n - 1) for place in range(most)] for first, n in zip(starts, counts, strict=True)]
        padded = torch.tensor([[*own, *[0.0] * (most - len(own))] for own in weights], dtype=torch.float64)
        self.register_buffer("places", torch.tensor(rows), persistent=False)
        # As integers, which no cast to bfloat16 rounds.
        self.register_buffer("bits", padded.view(torch.int64), persistent=False)

    @property
    def most(self) -> int:
        """M"""
        return self.places.shape[1]

    @property
    def weights(self) -> Tensor:
        """[K, M] float64, zero where a label has fewer"""
        return self.bits.view(torch.float64)

    def forward(self, scores: Tensor, candidates: Tensor) -> Tensor:
        """Scores [B, C * M, ...] of the hypotheses of candidates [B, C], label by label -> [B, C, ...]"""
        own, rest = self.weights[candidates], scores.shape[2:]
        weights = own.view(*own.shape, *[1] * len(rest))
        return (scores.view(*own.shape, *rest) * weights).sum(2).to(scores.dtype)

    def of_all(self, scores: Tensor) -> Tensor:
        """Scores of all hypotheses [B, J] -> of all labels [B, K]"""
        return (scores[:, self.places] * self.weights).sum(-1).to(scores.dtype)


def labels_of(weights: Sequence[Sequence[float]]) -> Tensor:
    """[J] the label of each hypothesis"""
    return torch.tensor([label for label, own in enumerate(weights) for _ in own])


def label_scores(
    method: TuningMethod, read: Reader, candidates: Tensor, states: Tensor, mask: Tensor, mean: HypothesisMean | None
) -> Tensor:
    """The method's scores of candidates [B, C], labels: [B, C] float32.

    States [J, P, H] and mask [J, P] are the hypotheses'; without `mean` each label has one.
    """
    if mean is None:
        return method.scores(read, candidates, states, mask)
    if not method.judges_hypotheses:
        return method.scores(read, candidates, states[:0], mask[:0])
    found: Tensor = mean(method.scores(read, mean.places[candidates].flatten(1), states, mask), candidates)
    return found
