"""How good a split's scores are: one dictionary per split, always beside the majority baseline."""

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
    confusion = confusion_matrix(truth, prediction, len(names))
    probabilities = tempered_softmax(scores)
    ties = int(tied(scores).sum())
    always = confusion_matrix(truth, np.full_like(prediction, majority), len(names))
    return {
        **_label_metrics(confusion),
        "log_loss": log_loss(probabilities, truth),
        "ece": expected_calibration_error(probabilities, truth),
        "n": len(truth),
        "ties": ties,
        "majority": {"label": names[majority], **_label_metrics(always)},
        "per_class": _per_class(confusion, names),
        "labels": list(names),
        "confusion_matrix": confusion.tolist(),
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
    """Mean of -log of the true label's probability: probabilities [N, K], truth [N].

    A probability counts as no closer to 0 and 1 than its type can tell from 1, as in scikit-learn.
    """
    closest = np.finfo(probabilities.dtype).eps
    given = np.clip(probabilities[np.arange(len(truth)), truth], closest, 1 - closest)
    return float(-np.log(given).mean())


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


def confusion_matrix(truth: NDArray, prediction: NDArray, label_count: int, weights: NDArray | None = None) -> NDArray:
    """[K, K]: rows truth, columns prediction; how many texts each has, or what their `weights` [N] add up to."""
    cells = np.bincount(truth * label_count + prediction, weights=weights, minlength=label_count**2)
    return cells.reshape(label_count, label_count)


def accuracy(confusion: NDArray) -> float:
    """Share of the texts on the diagonal of a confusion matrix [K, K]."""
    return float(np.trace(confusion) / confusion.sum())


def macro_f1(confusion: NDArray) -> float:
    """Mean F1 of the labels that occur in the truth or the predictions, as in scikit-learn."""
    occurring = confusion.sum(0) + confusion.sum(1) > 0
    return float(_f1(confusion)[occurring].mean())


def weighted_f1(confusion: NDArray) -> float:
    """Mean F1 of the labels, each counted as often as it occurs in the truth."""
    return float(np.average(_f1(confusion), weights=confusion.sum(1)))


def mcc(confusion: NDArray) -> float:
    """Matthews correlation for K labels (Gorodkin 2004).

    0 where truth or prediction has one class only: the coefficient's limit, and no better than chance.
    """
    cells = confusion.astype(np.float64)
    predicted, true, total = cells.sum(0), cells.sum(1), cells.sum()
    spread = (total**2 - (predicted**2).sum()) * (total**2 - (true**2).sum())
    return float((np.trace(cells) * total - (predicted * true).sum()) / np.sqrt(spread)) if spread > 0 else 0.0


def _f1(confusion: NDArray) -> NDArray[np.float64]:
    """[K]: of each label; 0 of one that does not occur."""
    return _share(2 * np.diag(confusion), confusion.sum(0) + confusion.sum(1))


def _share(part: NDArray, whole: NDArray) -> NDArray[np.float64]:
    """part / whole, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def _label_metrics(confusion: NDArray) -> dict[str, float]:
    return {
        "accuracy": accuracy(confusion),
        "macro_f1": macro_f1(confusion),
        "weighted_f1": weighted_f1(confusion),
        "mcc": mcc(confusion),
    }


def _per_class(confusion: NDArray, names: list[str]) -> dict[str, dict[str, float | int]]:
    right, predicted, true = np.diag(confusion), confusion.sum(0), confusion.sum(1)
    columns = (_share(right, predicted), _share(right, true), _f1(confusion), true)
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
