"""How good a split's scores are: one dictionary per split, always beside the majority baseline."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from pipeline.core.errors import DivergedError

CALIBRATION_BINS = 15


def split_metrics(scores: NDArray, truth: NDArray, names: list[str], majority: int, where: str = "the scores") -> dict:
    """All metrics of one split, ready for JSON.

    `scores` [N, K], `truth` [N] (label indices), `names` [K], `majority`: index of the label most frequent in *train*.
    The prediction is the argmax; equal best scores are counted in `ties` and go to the lowest index. Averages over
    classes are over the labels that occur in the truth or the predictions, as in scikit-learn. `log_loss` and `ece`
    read the softmax over the K scores as probabilities. What is not defined in the ordinary way is in `notes`.

    Raises DivergedError when a score is NaN or infinite; `where` names the scores in that message.
    """
    assert scores.shape == (len(truth), len(names)) and len(truth) > 0
    prediction = predictions(scores, where)
    probabilities = tempered_softmax(scores)
    ties = int(tied(scores).sum())
    return {
        **_label_metrics(truth, prediction),
        "log_loss": log_loss(probabilities, truth),
        "ece": expected_calibration_error(probabilities, truth),
        "n": len(truth),
        "ties": ties,
        "majority": {"label": names[majority], **_label_metrics(truth, np.full_like(prediction, majority))},
        "per_class": _per_class(truth, prediction, names),
        "labels": list(names),
        "confusion_matrix": _metrics().confusion_matrix(truth, prediction, labels=np.arange(len(names))).tolist(),
        "notes": _notes(truth, prediction, names, ties),
    }


def predictions(scores: NDArray, where: str = "the scores") -> NDArray[np.int64]:
    """Argmax of `scores` [N, K] -> [N]; of equal scores the lowest index. DivergedError if any score is not finite."""
    broken = int((~np.isfinite(scores)).any(axis=1).sum())
    if broken:
        raise DivergedError(
            f"{where}: {broken} of {len(scores)} rows have NaN or infinite scores; the training diverged or the "
            "compute dtype is too small: lower train.learning_rate, or set backbone.dtype to bfloat16 or float32"
        )
    return scores.argmax(axis=1).astype(np.int64)


def tied(scores: NDArray) -> NDArray[np.bool_]:
    """[N], True where the best of `scores` [N, K] is reached by more than one label."""
    return (scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1


def tempered_softmax(scores: NDArray, temperature: float = 1.0) -> NDArray[np.float64]:
    """Softmax of scores [N, K] / temperature."""
    shares: NDArray[np.float64] = softmax(scores.astype(np.float64) / temperature, axis=1)
    return shares


def log_loss(probabilities: NDArray, truth: NDArray) -> float:
    """Mean of -log of the true label's probability: probabilities [N, K], truth [N]."""
    return float(_metrics().log_loss(truth, probabilities, labels=np.arange(probabilities.shape[1])))


def confidence_bins(confidence: NDArray, bins: int = CALIBRATION_BINS) -> NDArray[np.int64]:
    """The bin [N], from 0, of each row's largest probability [N].

    The `bins` bins have equal width over [0, 1], closed on the right: bin m holds (m / bins, (m + 1) / bins].
    """
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def expected_calibration_error(probabilities: NDArray, truth: NDArray, bins: int = CALIBRATION_BINS) -> float:
    """Mean over rows of |accuracy - confidence| of the row's bin, in [0, 1] (Guo et al. 2017, Eq. 3).

    `probabilities` [N, K], `truth` [N]. Confidence is the largest probability; for the bins see `confidence_bins`.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == truth
    gaps = np.bincount(confidence_bins(confidence, bins), weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def _metrics() -> Any:
    """scikit-learn's, late: they take half a second, and most commands measure nothing."""
    from sklearn import metrics

    return metrics


def _label_metrics(truth: NDArray, prediction: NDArray) -> dict[str, float]:
    return {
        "accuracy": float(_metrics().accuracy_score(truth, prediction)),
        "macro_f1": float(_metrics().f1_score(truth, prediction, average="macro", zero_division=0)),
        "weighted_f1": float(_metrics().f1_score(truth, prediction, average="weighted", zero_division=0)),
        "mcc": _matthews(truth, prediction),
    }


def _matthews(truth: NDArray, prediction: NDArray) -> float:
    """0 where truth or prediction has one class only: the coefficient's limit, and no better than chance."""
    if len(np.unique(truth)) < 2 or len(np.unique(prediction)) < 2:
        return 0.0
    return float(_metrics().matthews_corrcoef(truth, prediction))


def _per_class(truth: NDArray, prediction: NDArray, names: list[str]) -> dict[str, dict[str, float | int]]:
    labels = np.arange(len(names))
    columns = _metrics().precision_recall_fscore_support(truth, prediction, labels=labels, zero_division=0)
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for name, p, r, f, s in zip(names, *columns, strict=True)
    }


def _notes(truth: NDArray, prediction: NDArray, names: list[str], ties: int) -> list[str]:
    notes = []
    if ties:
        notes.append(f"{ties} of {len(truth)} texts have tied best scores; the label listed first is predicted")
    present = np.unique(truth)
    if len(present) == 1:
        notes.append(f"the split has one class only ({names[present[0]]}): mcc is 0 by definition")
    elif len(present) < len(names):
        absent = [name for index, name in enumerate(names) if index not in present]
        notes.append(f"labels without a text in this split: {', '.join(absent)}")
    predicted = np.unique(prediction)
    if len(predicted) == 1:
        notes.append(f"every text is predicted {names[predicted[0]]}: mcc is 0 by definition")
    return notes
