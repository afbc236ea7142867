"""Statistics against scikit-learn, against definitions, and on data whose answer is known.

covers comparison/curve
"""

import numpy as np
import pytest
from scipy.stats import binom
from sklearn import metrics as sk

from pipeline.comparison import statistics
from pipeline.comparison.curve import seconds_to_step, steps_to_share, value_within
from pipeline.comparison.statistics import Metric, compare_predictions, mcnemar

FUNCTIONS = {
    "accuracy": sk.accuracy_score,
    "macro_f1": lambda truth, found: sk.f1_score(truth, found, average="macro", zero_division=0),
    "mcc": sk.matthews_corrcoef,
}


def noisy(truth: np.ndarray, accuracy: float, seeds: int, seed: int) -> np.ndarray:
    """[S, N]: predictions that are right with this probability."""
    generator = np.random.default_rng(seed)
    right = generator.random((seeds, len(truth))) < accuracy
    return np.where(right, truth, (truth + generator.integers(1, 4, right.shape)) % 4)


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_figures_are_scikit_learns(metric: Metric) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 4, 50)
    for found in (noisy(truth, 0.6, 1, 1)[0], np.zeros(50, dtype=int), truth):
        ones = np.ones(50, dtype=int)
        assert statistics._value(truth, found, 5, metric, ones) == pytest.approx(FUNCTIONS[metric](truth, found))
        # A text that counts twice is a text that is there twice.
        weights = generator.integers(0, 3, 50)
        twice = FUNCTIONS[metric](truth.repeat(weights), found.repeat(weights))
        assert statistics._value(truth, found, 5, metric, weights) == pytest.approx(twice)


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_the_difference_is_of_means_and_its_interval_holds_it(metric: Metric) -> None:
    truth = np.random.default_rng(0).integers(0, 4, 200)
    good, bad = noisy(truth, 0.9, 3, 1), noisy(truth, 0.6, 2, 2)
    found = compare_predictions(truth, good, bad, 4, metric)
    means = [np.mean([FUNCTIONS[metric](truth, row) for row in part]) for part in (good, bad)]
    assert found.mean == pytest.approx(means[0] - means[1])
    assert found.low < found.mean < found.high and found.verdict == "better" and found.mcnemar_p < 1e-6
    turned = compare_predictions(truth, bad, good, 4, metric)
    assert turned.mean == pytest.approx(-found.mean) and turned.verdict == "worse"


def test_equals_are_not_told_apart() -> None:
    truth = np.random.default_rng(0).integers(0, 4, 200)
    same = noisy(truth, 0.8, 2, 1)
    found = compare_predictions(truth, same, same[::-1], 4, "accuracy")
    assert found.verdict == "not told apart" and found.low <= 0 <= found.high


def test_intervals_cover_the_true_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """95 % intervals of 60 repetitions, each with new texts: 50 or more must cover (a one in a thousand test)."""
    monkeypatch.setattr(statistics, "RESAMPLES", 300)
    generator = np.random.default_rng(0)
    covered = 0
    for repetition in range(60):
        truth = generator.integers(0, 4, 150)
        first, second = noisy(truth, 0.8, 1, 2 * repetition), noisy(truth, 0.7, 1, 2 * repetition + 1)
        found = compare_predictions(truth, first, second, 4, "accuracy", seed=repetition)
        covered += found.low <= 0.1 <= found.high
    assert covered >= 50


def test_the_interval_has_the_variance_of_a_mean_over_seeds() -> None:
    truth, accuracies = np.zeros(4000, dtype=int), np.linspace(0, 1, 5)
    spread = (np.arange(4000) >= 4000 * accuracies[:, None]).astype(int)
    found = compare_predictions(truth, spread, spread[2:3], 2, "accuracy")
    assert found.high - found.low == pytest.approx(2 * 1.96 * accuracies.std(ddof=1) / 5**0.5, rel=0.1)


def test_what_a_seed_does_to_both_is_no_difference() -> None:
    """Draws of training texts that differ by 0.2 in accuracy, and a classifier that is 0.05 better on each."""
    generator = np.random.default_rng(0)
    truth, places = np.zeros(2000, dtype=int), generator.permuted(np.tile(np.arange(2000), (5, 1)), axis=1)
    draws = np.linspace(0.5, 0.7, 5)[:, None]
    second, first = ((places >= 2000 * (draws + better)).astype(int) for better in (0, 0.05))
    apart = compare_predictions(truth, first, second, 2, "accuracy")
    paired = compare_predictions(truth, first, second, 2, "accuracy", same_seeds=True)
    assert paired.mean == apart.mean == pytest.approx(0.05, abs=1e-3) and apart.verdict == "not told apart"
    assert paired.verdict == "better" and paired.high - paired.low < (apart.high - apart.low) / 4


def test_mcnemar_by_definition() -> None:
    truth = np.zeros(20, dtype=int)
    first, second = np.zeros((1, 20), dtype=int), np.zeros((1, 20), dtype=int)
    second[0, :9] = 1  # 9 texts only the first gets right,
    first[0, 9:11] = 1  # 2 only the second
    assert mcnemar(truth, first, second) == pytest.approx(2 * binom.cdf(2, 11, 0.5))
    assert mcnemar(truth, first, first) == 1.0
    # Only as many seeds as both have.
    assert mcnemar(truth, np.repeat(first, 2, axis=0), second) == pytest.approx(2 * binom.cdf(2, 11, 0.5))


def test_curves() -> None:
    values = [(2, 1.0, 0.5), (4, 2.0, 0.79), (6, 3.0, 0.7), (8, 4.0, 0.8)]
    curve = [{"step": step, "seconds": seconds, "value": value} for step, seconds, value in values]
    assert steps_to_share(curve) == 4 and steps_to_share(curve, 1.0) == 8 and steps_to_share([]) is None
    assert steps_to_share([{"step": 2, "seconds": 1.0, "value": -0.1}]) is None
    assert value_within(curve, 3.5) == 0.79 and value_within(curve, 0.5) is None
    assert seconds_to_step(curve, 8) == 4.0 and seconds_to_step(curve, 3) is None
