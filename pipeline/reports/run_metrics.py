"""The numbers behind the report's pictures, from scores and label states."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from pipeline.evaluation.metrics import confidence_bins, tempered_softmax

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ScoredSplit:
    """A split's scores [N, K], its truth [N] (label indices) and the rows [N] of the source they came from."""

    name: str
    labels: list[str]
    scores: NDArray
    truth: NDArray[np.int64]
    source_rows: NDArray[np.int64]

    @property
    def predicted(self) -> NDArray[np.int64]:
        return self.scores.argmax(axis=1).astype(np.int64)


def confusion(split: ScoredSplit) -> Rows:
    """One row per (true, predicted) pair of labels: count, and share of the true label's texts."""
    count = len(split.labels)
    matrix = np.zeros((count, count), int)
    np.add.at(matrix, (split.truth, split.predicted), 1)
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return [
        {"true": true, "predicted": predicted, "count": int(matrix[i, j]), "share": float(matrix[i, j] / totals[i, 0])}
        for i, true in enumerate(split.labels)
        for j, predicted in enumerate(split.labels)
    ]


def most_confused(cells: Rows, count: int = 100) -> Rows:
    """The most frequent mistakes, with how many texts the true label has (`of`)."""
    of = Counter[str]()
    for cell in cells:
        of[cell["true"]] += cell["count"]
    wrong = [cell | {"of": of[cell["true"]]} for cell in cells if cell["true"] != cell["predicted"] and cell["count"]]
    return sorted(wrong, key=lambda cell: (-cell["count"], -cell["share"]))[:count]


def reliability(split: ScoredSplit, temperature: float) -> Rows:
    """Mean confidence and accuracy of each bin that holds texts."""
    probabilities = tempered_softmax(split.scores, temperature)
    confidence, correct = probabilities.max(axis=1), split.predicted == split.truth
    bins = confidence_bins(confidence)
    return [
        {
            "confidence": float(confidence[bins == index].mean()),
            "accuracy": float(correct[bins == index].mean()),
            "texts": int((bins == index).sum()),
        }
        for index in np.unique(bins)
    ]


def score_distributions(split: ScoredSplit, bins: int = 40) -> Rows:
    """Histograms of the true label's score and of the best wrong label's."""
    rows = np.arange(len(split.truth))
    true = split.scores[rows, split.truth]
    others = split.scores.copy()
    others[rows, split.truth] = -np.inf
    edges = np.histogram_bin_edges(np.concatenate([true, others.max(axis=1)]), bins=bins)
    return [
        {"label": name, "low": float(low), "high": float(high), "texts": int(count)}
        for name, values in (("true label", true), ("best wrong label", others.max(axis=1)))
        for count, low, high in zip(np.histogram(values, edges)[0], edges, edges[1:], strict=False)
    ]


def confident_mistakes(split: ScoredSplit, temperature: float, count: int = 20) -> Rows:
    """The wrong predictions with the highest probability, with their row in the source."""
    probabilities = tempered_softmax(split.scores, temperature)
    wrong = np.flatnonzero(split.predicted != split.truth)
    worst = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:count]
    return [
        {
            "row": int(split.source_rows[index]),
            "true": split.labels[split.truth[index]],
            "predicted": split.labels[split.predicted[index]],
            "probability": float(probabilities[index].max()),
            "true_probability": float(probabilities[index, split.truth[index]]),
        }
        for index in worst
    ]


def label_map(labels: list[str], before: NDArray, after: NDArray) -> Rows:
    """Both clouds [K, H'] in two dimensions: each by its own principal axes, the second turned to fit the first."""
    first, second = _plane(before), _plane(after)
    # Orthogonal Procrustes: turning and mirroring change no distance.
    left, _, right = np.linalg.svd(second.T @ first)
    second = second @ left @ right
    return [
        {"label": label, "when": when, "x": float(x), "y": float(y)}
        for when, points in (("before", first), ("after", second))
        for label, (x, y) in zip(labels, points, strict=True)
    ]


def _plane(points: NDArray) -> NDArray[np.float64]:
    """[K, H'] -> [K, 2], centred, with a mean distance of 1 from the middle."""
    points = points.astype(np.float64)
    count = min(2, *points.shape)
    flat = PCA(n_components=count, svd_solver="full").fit_transform(points)
    flat = np.pad(flat, ((0, 0), (0, 2 - count)))
    size = np.linalg.norm(flat, axis=1).mean()
    return flat / size if size > 0 else flat
