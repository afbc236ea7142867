"""Is one classifier better than another? Paired comparisons on the same test texts, over several seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from pipeline.evaluation.metrics import accuracy, confusion_matrix, macro_f1, mcc

Metric = Literal["accuracy", "macro_f1", "mcc"]
Predictions = NDArray[np.integer]
"""[S, N]: predicted label indices of S seeds on N texts."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """How much better the first of two classifiers is, with a 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    mcnemar_p: float
    """Two-sided exact McNemar test on the predictions of all seeds together: of accuracy, whatever the metric."""

    @property
    def verdict(self) -> Literal["better", "worse", "not told apart"]:
        """better or worse only where the interval excludes zero."""
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "not told apart"


def compare_predictions(
    truth: NDArray[np.integer],
    first: Predictions,
    second: Predictions,
    label_count: int,
    metric: Metric,
    seed: int = 0,
    *,
    same_seeds: bool = False,
) -> Difference:
    """Paired bootstrap of metric(first) - metric(second), each the mean over its seeds.

    Every resample draws texts, the same for both, and seeds, so that the interval covers the choice of the test texts
    and the randomness of training. Of S seeds S - 1 are drawn: the mean of S draws would vary too little (Rao and Wu,
    JASA 1988). With one seed the randomness of training is left out. With `same_seeds`, in the same order, both have
    the same ones drawn: what a seed's training texts do to both says nothing about the difference.

    Args:
        truth: [N]. first, second: [S, N] and [S', N].
    """
    generator = np.random.default_rng(seed)
    differences = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        weights = np.bincount(generator.integers(0, len(truth), len(truth)), minlength=len(truth))
        drawn = _drawn(generator, first)
        rows = (drawn, drawn if same_seeds else _drawn(generator, second))
        sides = [
            np.mean([_value(truth, part[row], label_count, metric, weights) for row in chosen])
            for part, chosen in zip((first, second), rows, strict=True)
        ]
        differences[index] = sides[0] - sides[1]
    ones = np.ones(len(truth), dtype=np.int64)
    means = [np.mean([_value(truth, row, label_count, metric, ones) for row in part]) for part in (first, second)]
    low, high = np.quantile(differences, (0.025, 0.975))
    return Difference(float(means[0] - means[1]), float(low), float(high), mcnemar(truth, first, second))


def mcnemar(truth: NDArray[np.integer], first: Predictions, second: Predictions) -> float:
    """Exact two-sided p-value of McNemar's test: are texts that only one of two gets right split evenly?

    Seeds are paired in order, as many as both have, and their texts pooled. Texts of several seeds are not independent,
    so the value is too small rather than too large.
    """
    pairs = min(len(first), len(second))
    right, other = first[:pairs] == truth, second[:pairs] == truth
    only_first, only_second = int((right & ~other).sum()), int((~right & other).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def _drawn(generator: np.random.Generator, predictions: Predictions) -> NDArray[np.int64]:
    """Seeds of a resample."""
    count = len(predictions)
    return generator.integers(0, count, max(1, count - 1))


def _value(
    truth: NDArray[np.integer], prediction: NDArray, label_count: int, metric: Metric, weights: NDArray
) -> float:
    """The metric where each text counts as often as its weight says."""
    return _METRICS[metric](confusion_matrix(truth, prediction, label_count, weights))


_METRICS: dict[Metric, Callable[[NDArray], float]] = {"accuracy": accuracy, "macro_f1": macro_f1, "mcc": mcc}
