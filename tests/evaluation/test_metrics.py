"""Figures against hand-computed values, and the cases where the ordinary definitions fail."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from pipeline.core.errors import UserError
from pipeline.evaluation.metrics import expected_calibration_error, predictions, split_metrics, tempered_softmax, tied

NAMES = ["a", "b", "c"]


def one_hot(labels: list[int], scale: float = 5.0) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[labels] * scale


def test_figures_of_a_small_split_by_hand() -> None:
    # Truth a a b c, predicted a b b c: F1 a = 2/3, b = 2/3, c = 1.
    figures = split_metrics(one_hot([0, 1, 1, 2]), np.array([0, 0, 1, 2]), NAMES, majority=0)
    assert figures["accuracy"] == 0.75 and figures["n"] == 4 and figures["ties"] == 0
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert figures["weighted_f1"] == pytest.approx((2 * 2 / 3 + 2 / 3 + 1) / 4)
    # Gorodkin's formula: (c s - sum p t) / sqrt((s^2 - sum p^2)(s^2 - sum t^2)) with c = 3, s = 4.
    assert figures["mcc"] == pytest.approx((3 * 4 - (1 * 2 + 2 * 1 + 1)) / np.sqrt((16 - 6) * (16 - 6)))
    assert figures["per_class"]["a"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert figures["confusion_matrix"] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    right = np.exp(5) / (np.exp(5) + 2)
    assert figures["log_loss"] == pytest.approx(-(3 * np.log(right) + np.log((1 - right) / 2)) / 4)
    assert figures["ece"] == pytest.approx(right - 0.75)
    assert figures["majority"]["label"] == "a" and figures["majority"]["accuracy"] == 0.5
    assert figures["majority"]["mcc"] == 0.0
    assert figures["notes"] == []
    json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize("truth", [range(4), (0, 1, 3), (2,)], ids=["all", "three", "one"])
@pytest.mark.parametrize("scale", [1, 100])
def test_figures_are_scikit_learns(truth: tuple[int, ...], scale: float) -> None:
    """Also where labels lack texts or predictions, and where the true label's probability is 0."""
    generator = np.random.default_rng(0)
    labels = generator.choice(np.array(truth), 60)
    scores = scale * generator.normal(size=(60, 5)) - 1000 * np.eye(5)[4]
    found, names = split_metrics(scores, labels, list("abcde"), majority=0), np.arange(5)
    predicted = scores.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted), rel=1e-12)
    for average in ("macro", "weighted"):
        f1 = sk.f1_score(labels, predicted, average=average, zero_division=0)
        assert found[f"{average}_f1"] == pytest.approx(f1, rel=1e-12)
    correlation = sk.matthews_corrcoef(labels, predicted) if len(truth) > 1 else 0
    assert found["mcc"] == pytest.approx(correlation, rel=1e-12)
    shares = tempered_softmax(scores)
    assert found["log_loss"] == pytest.approx(sk.log_loss(labels, shares, labels=names), rel=1e-12)
    assert found["confusion_matrix"] == sk.confusion_matrix(labels, predicted, labels=names).tolist()
    columns = sk.precision_recall_fscore_support(labels, predicted, labels=names, zero_division=0)
    for name, figures in zip("abcde", zip(*columns, strict=True), strict=True):
        assert list(found["per_class"][name].values()) == pytest.approx(list(map(float, figures)), rel=1e-12)


def test_ties_are_counted_and_go_to_the_lowest_index() -> None:
    scores = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [0.0, 0.0, 3.0]])
    assert predictions(scores).tolist() == [0, 1, 2]
    assert tied(scores).tolist() == [True, True, False]
    figures = split_metrics(scores, np.array([0, 1, 2]), NAMES, majority=0)
    assert figures["ties"] == 2
    assert any("2 of 3 texts have tied" in note for note in figures["notes"])


def test_one_class_split_is_defined_and_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = split_metrics(one_hot([1, 1, 1]), np.array([1, 1, 1]), NAMES, majority=0)
    assert figures["mcc"] == 0.0 and figures["accuracy"] == 1.0 and figures["macro_f1"] == 1.0
    assert np.isfinite(figures["log_loss"])
    assert any("one class only (b)" in note for note in figures["notes"])
    assert any("every text is predicted b" in note for note in figures["notes"])


def test_labels_missing_from_the_split_are_said() -> None:
    figures = split_metrics(one_hot([0, 1]), np.array([0, 1]), NAMES, majority=0)
    assert figures["macro_f1"] == 1.0 and figures["per_class"]["c"]["support"] == 0
    assert figures["notes"] == ["labels without a text in this split: c"]


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_an_error_with_the_count(broken: float) -> None:
    scores = one_hot([0, 1, 2])
    scores[1, 2] = scores[2, 0] = scores[2, 1] = broken
    with pytest.raises(UserError, match=r"test split: 2 of 3 rows have NaN or infinite scores"):
        split_metrics(scores, np.array([0, 1, 2]), NAMES, majority=0, where="test split")


def test_calibration_error_by_hand() -> None:
    # Two bins are filled: confidence 0.9 (one right, one wrong) and 0.6 (both right).
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.6, 0.4]])
    ece = expected_calibration_error(probabilities, np.array([0, 1, 1, 0]))
    assert ece == pytest.approx((2 * abs(0.5 - 0.9) + 2 * abs(1 - 0.6)) / 4)


def test_calibration_bins_are_closed_on_the_right() -> None:
    # 0.5 and 0.75 lie in different bins of width 0.25, so their gaps (+0.5, -0.75) do not cancel.
    probabilities = np.array([[0.5, 0.5], [0.75, 0.25]])
    assert expected_calibration_error(probabilities, np.array([0, 1]), bins=4) == pytest.approx((0.5 + 0.75) / 2)


@settings(max_examples=50, deadline=None)
@given(
    scores=hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.just(3)), elements=st.floats(-30, 30, width=32)),
    data=st.data(),
)
def test_ranges_and_shift_invariance(scores: np.ndarray, data: st.DataObject) -> None:
    truth = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(scores), max_size=len(scores))))
    figures = split_metrics(scores, truth, NAMES, majority=1)
    for key in ("accuracy", "macro_f1", "weighted_f1", "ece"):
        assert 0 <= figures[key] <= 1
    assert -1 <= figures["mcc"] <= 1 and figures["log_loss"] >= 0
    assert np.array(figures["confusion_matrix"]).sum() == len(truth)
    shifted = split_metrics(scores.astype(np.float64) + 3, truth, NAMES, majority=1)
    assert shifted["log_loss"] == pytest.approx(figures["log_loss"], abs=1e-6)
