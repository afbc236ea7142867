"""The numbers behind the report's pictures."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from pipeline.evaluation.metrics import expected_calibration_error, tempered_softmax
from pipeline.reports import run_metrics
from pipeline.reports.run_metrics import ScoredSplit


@pytest.fixture
def split() -> ScoredSplit:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(300, 3)).astype(np.float32) * 2
    return ScoredSplit("test", ["a", "b", "c"], scores, generator.integers(0, 3, 300), np.arange(1, 301))


def test_the_confusion_matrix_is_scikit_learns(split: ScoredSplit) -> None:
    cells = run_metrics.confusion(split)
    assert [cell["count"] for cell in cells] == confusion_matrix(split.truth, split.predicted).ravel().tolist()
    assert sum(cell["share"] for cell in cells) == pytest.approx(3)
    worst = run_metrics.most_confused(cells)
    assert worst[0]["count"] == max(cell["count"] for cell in cells if cell["true"] != cell["predicted"])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_reliability_bins_add_up_to_the_calibration_error(split: ScoredSplit, temperature: float) -> None:
    bins = run_metrics.reliability(split, temperature)
    assert sum(row["texts"] for row in bins) == 300
    error = sum(row["texts"] * abs(row["accuracy"] - row["confidence"]) for row in bins) / 300
    probabilities = tempered_softmax(split.scores, temperature)
    assert error == pytest.approx(expected_calibration_error(probabilities, split.truth))


def test_every_text_is_in_both_score_histograms(split: ScoredSplit) -> None:
    bars = run_metrics.score_distributions(split)
    for name in ("true label", "best wrong label"):
        assert sum(bar["texts"] for bar in bars if bar["label"] == name) == 300


def test_mistakes_come_in_order_of_confidence(split: ScoredSplit) -> None:
    rows = run_metrics.confident_mistakes(split, 1.0, count=10)
    assert [row["probability"] for row in rows] == sorted((row["probability"] for row in rows), reverse=True)
    for row in rows:
        assert row["true"] != row["predicted"] and row["true_probability"] <= row["probability"]
        assert split.labels[split.truth[row["row"] - 1]] == row["true"]


def test_a_turned_and_scaled_cloud_falls_on_the_first() -> None:
    generator = np.random.default_rng(0)
    before = generator.normal(size=(5, 8))
    turn, _ = np.linalg.qr(generator.normal(size=(8, 8)))
    points = run_metrics.label_map(list("abcde"), before, 3 * before @ turn + 1)
    first, second = points[:5], points[5:]
    for one, other in zip(first, second, strict=True):
        assert (one["label"], one["when"], other["when"]) == (other["label"], "before", "after")
        assert (one["x"], one["y"]) == pytest.approx((other["x"], other["y"]), abs=1e-6)


def test_confusions_say_of_how_many(split: ScoredSplit) -> None:
    worst = run_metrics.most_confused(run_metrics.confusion(split))
    assert [row["count"] for row in worst] == sorted((row["count"] for row in worst), reverse=True)
    for row in worst:
        assert row["of"] == int((split.truth == split.labels.index(row["true"])).sum())
        assert row["share"] == pytest.approx(row["count"] / row["of"])
