"""Cuts validation and test rows from the training rows, where a data set comes as one table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import UserError
from pipeline.data.doubts import label_codes
from pipeline.data.sources import CheckedSplit

SEED = 0
"""Of the draw: the splits of a data set are the same for every run.seed."""


def cut(found: CheckedSplit, shares: Mapping[str, float], folder: Path) -> dict[str, CheckedSplit]:
    """train, and every split of `shares` with about its share of the rows, written to `folder` and memory-mapped.

    Labels are those of the whole source, so that a label means the same in all parts. UserError where a part is empty.
    """
    parts = parts_of_rows(label_codes(found.rows), found.text_hashes, list(shares.values()))
    splits = {}
    for part, name in enumerate(["train", *shares]):
        places = np.flatnonzero(parts == part)
        if not len(places):
            raise UserError(
                f"data.split: {shares[name]} of {len(parts)} texts leaves none for {name}: take a larger share"
            )
        file = str(folder / f"{name}-share.arrow")
        rows = found.rows.select(places).flatten_indices(cache_file_name=file, new_fingerprint=f"{name}-share")
        splits[name] = replace(found, rows=rows, text_hashes=found.text_hashes[places], warnings=[])
    splits["train"].warnings = found.warnings
    return splits


def parts_of_rows(labels: NDArray[np.integer], texts: NDArray[np.uint64], shares: Sequence[float]) -> NDArray[np.int64]:
    """The part [rows] that each row goes to: 0 for the rest, 1 for the first share, and so on.

    Rows of equal text stay together, with the label of the first of them. Each label keeps its share of the rows as
    near as whole texts allow, and at least one text in the rest.

    Args:
        labels: label index of each row [rows].
        texts: hash of each row's text [rows].
    """
    _, first, group, sizes = np.unique(texts, return_index=True, return_inverse=True, return_counts=True)
    of_group = labels[first]
    values = np.unique(of_group)
    counts = np.array([sizes[of_group == value].sum() for value in values])
    wanted = [_shared_out(counts, share) for share in shares]
    parts, generator = np.zeros(len(first), dtype=np.int64), np.random.default_rng(SEED)
    for index, value in enumerate(values):
        drawn = generator.permutation(np.flatnonzero(of_group == value))[:-1]
        for part, count in enumerate(wanted, 1):
            drawn = _take(drawn, sizes, count[index], parts, part)
    return parts[group]


def _shared_out(counts: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """`share` of the rows of each label, in whole rows, by largest remainder."""
    exact = counts * share
    rows = np.floor(exact).astype(np.int64)
    missing = round(float(exact.sum())) - int(rows.sum())
    rows[np.argsort(rows - exact, kind="stable")[:missing]] += 1
    return rows


def _take(
    groups: NDArray[np.int64], sizes: NDArray[np.int64], room: int, parts: NDArray[np.int64], part: int
) -> NDArray[np.int64]:
    """Puts groups into a part while they fit; returns those that are left."""
    left = []
    for group in groups:
        if sizes[group] <= room:
            parts[group] = part
            room -= sizes[group]
        else:
            left.append(group)
    return np.array(left, dtype=np.int64)
