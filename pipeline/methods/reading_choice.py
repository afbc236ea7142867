"""Which layer's states, pooled how, a probe does best with."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.backbone.config import Pooling
from pipeline.methods.base import Reading
from pipeline.methods.logistic import best_without_prior

CS = (3e-3, 1e-2, 3e-2)
"""Strengths of the penalty that each probe may choose from: enough to tell readings apart."""


@dataclass(frozen=True)
class Probed:
    """How a probe of one reading does on validation texts."""

    layers: int | list[int]
    """As in `backbone.layers`: the first so many are read with, or those whose states are joined."""
    pooling: Pooling
    accuracy: float
    log_loss: float
    c: float
    """Of the penalty that was chosen."""

    @property
    def depth(self) -> int:
        """How many layers are read with."""
        return self.layers if isinstance(self.layers, int) else self.layers[-1]

    @property
    def quality(self) -> tuple[float, float]:
        """Accuracy, then mean log-probability of the truth."""
        return self.accuracy, -self.log_loss


@dataclass(frozen=True)
class ReadingChoice:
    """All that was probed, and what follows from it."""

    probed: list[Probed]
    layers: int
    """L of the whole backbone"""
    train_texts: int
    validation_texts: int
    now: Probed
    """What the config says."""

    @property
    def best(self) -> Probed:
        return max(self.probed, key=lambda one: (*one.quality, -one.depth))

    @property
    def standard_error(self) -> float:
        """Of the best accuracy, as a share of so many validation texts."""
        share = self.best.accuracy
        return float((share * (1 - share) / self.validation_texts) ** 0.5)

    @property
    def cheapest(self) -> Probed:
        """Of the accuracies within one standard error of the best, the best with the fewest layers."""
        near = [one for one in self.probed if one.accuracy >= self.best.accuracy - self.standard_error]
        return min(near, key=lambda one: (one.depth, *(-figure for figure in one.quality)))

    def unread(self, one: Probed) -> float:
        """The share of the layers that this reading does without."""
        return 1 - one.depth / self.layers


def worth_joining(probed: Sequence[Probed], layers: int) -> list[tuple[list[int], Pooling]]:
    """Layers to join and their pooling, worth a probe once each of L = `layers` has been probed by itself.

    They are spread over half, three quarters and all of the layers, and over those up to the best, and pooled as the
    best and by statistics.
    """
    best = max(probed, key=lambda one: one.quality)
    depths = {-(-layers // 2), -(-3 * layers // 4), layers, best.depth}
    poolings: list[Pooling] = list(dict.fromkeys([best.pooling, "statistics"]))
    return [(joined, pooling) for depth in sorted(depths) for joined in _spread(depth) for pooling in poolings]


def _spread(depth: int) -> list[list[int]]:
    """The last of so many layers with the one half-way; and the first and the last with two between them."""
    two = {-(-depth // 2), depth}
    four = {1, max(1, round(depth / 3)), round(2 * depth / 3), depth}
    return [sorted(joined) for joined in dict.fromkeys(map(frozenset, (two, four))) if len(joined) > 1]


def probe_reading(
    layers: int | list[int], pooling: Pooling, train: Reading, validation: Reading, label_count: int
) -> Probed:
    """Fits a probe of K = `label_count` labels to the texts of `train`."""
    found = best_without_prior(train, validation, label_count, CS)
    accuracy, log_probability = found.quality
    return Probed(layers, pooling, accuracy, -log_probability, found.c)
