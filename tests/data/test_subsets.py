"""Subsets of rows: as many as were asked for, each label with its share, the same for the same seed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.subsets import balanced_subset, rows_per_label


@given(st.lists(st.integers(0, 6), min_size=1, max_size=300), st.integers(0, 2**31 - 1), st.data())
def test_subset_keeps_shares(labels, seed, data):
    labels = np.array(labels)
    kinds = len(set(labels.tolist()))
    limit = data.draw(st.integers(kinds, len(labels)))
    chosen = balanced_subset(labels, limit, seed)
    assert len(chosen) == limit and np.all(np.diff(chosen) > 0)
    for value in set(labels.tolist()):
        exact = np.sum(labels == value) * limit / len(labels)
        kept = np.sum(labels[chosen] == value)
        assert kept >= 1 and kept <= np.sum(labels == value)
        assert -kinds < kept - exact <= 1
    assert np.array_equal(chosen, balanced_subset(labels, limit, seed))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=300), st.integers(1, 50), st.integers(0, 2**31 - 1))
def test_rows_per_label(labels, count, seed):
    labels = np.array(labels)
    chosen = rows_per_label(labels, count, seed)
    assert np.all(np.diff(chosen) > 0)
    for value in set(labels.tolist()):
        assert np.sum(labels[chosen] == value) == min(count, np.sum(labels == value))
    assert np.array_equal(chosen, rows_per_label(labels, count, seed))


def test_subset_changes_with_the_seed():
    labels = np.arange(1000) % 4
    assert not np.array_equal(balanced_subset(labels, 100, 0), balanced_subset(labels, 100, 1))
