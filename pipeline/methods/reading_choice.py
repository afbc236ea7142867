"""Which layer's states, pooled how, a probe does best with."""

from dataclasses import dataclass

from pipeline.backbone.config import Pooling
from pipeline.methods.base import Reading
from pipeline.methods.logistic import best_without_prior

CS = (3e-3, 1e-2, 3e-2)
"""Strengths of the penalty that each probe may choose from: enough to tell readings apart."""


@dataclass(frozen=True)
class Probed:
    """How a probe of one reading does on validation texts."""

    layers: int
    """The first so many are read with."""
    pooling: Pooling
    accuracy: float
    log_loss: float
    c: float
    """Of the penalty that was chosen."""

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
        return max(self.probed, key=lambda one: (*one.quality, -one.layers))

    @property
    def standard_error(self) -> float:
        """Of the best accuracy, as a share of so many validation texts."""
        share = self.best.accuracy
        return float((share * (1 - share) / self.validation_texts) ** 0.5)

    @property
    def cheapest(self) -> Probed:
        """Of the accuracies within one standard error of the best, that of the fewest layers."""
        near = [one for one in self.probed if one.accuracy >= self.best.accuracy - self.standard_error]
        return min(near, key=lambda one: (one.layers, *(-figure for figure in one.quality)))

    def unread(self, one: Probed) -> float:
        """The share of the layers that this reading does without."""
        return 1 - one.layers / self.layers


def probe_reading(layers: int, pooling: Pooling, train: Reading, validation: Reading, label_count: int) -> Probed:
    """Fits a probe of K = `label_count` labels to the texts of `train`."""
    found = best_without_prior(train, validation, label_count, CS)
    accuracy, log_probability = found.quality
    return Probed(layers, pooling, accuracy, -log_probability, found.c)
