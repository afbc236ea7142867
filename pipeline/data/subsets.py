"""Some rows of a split, drawn by a seed: so many of each label, or so many in all with each label's share kept."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


def rows_per_label(labels: NDArray[np.integer], count: int, seed: int) -> NDArray[np.int64]:
    """`count` row indices of every label, all of a label that has fewer, in ascending order, without replacement.

    Args:
        labels: label index of each row [rows].
    """
    kept = {value: min(count, rows) for value, rows in zip(*np.unique(labels, return_counts=True), strict=True)}
    return _drawn(labels, kept, seed)


def balanced_subset(labels: NDArray[np.integer], limit: int, seed: int) -> NDArray[np.int64]:
    """`limit` row indices in ascending order, drawn without replacement, with each label's share kept.

    Shares are rounded by largest remainder (ties to the smaller label), with at least one row of every label.

    Args:
        labels: label index of each row [rows]; at least as many rows, and at most as many labels, as `limit`.
    """
    values, counts = np.unique(labels, return_counts=True)
    assert len(values) <= limit <= len(labels)
    exact = counts * limit / len(labels)
    kept = np.maximum(np.floor(exact).astype(np.int64), 1)
    while kept.sum() < limit:
        kept[np.argmax(exact - kept)] += 1
    while kept.sum() > limit:  # rare labels were lifted to one row: the most over-represented others make room
        kept[np.argmax(np.where(kept > 1, kept - exact, -np.inf))] -= 1
    return _drawn(labels, dict(zip(values, kept, strict=True)), seed)


def _drawn(labels: NDArray[np.integer], kept: Mapping[int, int], seed: int) -> NDArray[np.int64]:
    """So many rows of each label, in ascending order."""
    generator = np.random.default_rng(seed)
    return np.sort(np.concatenate([generator.permutation(np.flatnonzero(labels == v))[:n] for v, n in kept.items()]))
