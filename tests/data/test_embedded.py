"""The data set that ships with the program: whole, balanced, and without leaks between its splits.

covers data/sources
"""

import re
from collections import Counter
from itertools import combinations

import pytest

from pipeline.data.config import DataConfig
from pipeline.data.sources import overlap, read_split

PER_LABEL = {"train": 40, "validation": 10, "test": 20}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    config = DataConfig(train="embedded")
    return {split: read_split("embedded", split, config, folder / split) for split in PER_LABEL}


def test_every_split_is_balanced_over_eight_labels(splits):
    labels = set(splits["train"].labels.seen)
    assert len(labels) == 8
    for split, count in PER_LABEL.items():
        assert {label: seen.count for label, seen in splits[split].labels.seen.items()} == dict.fromkeys(labels, count)


def test_no_line_occurs_twice_and_none_nearly(splits):
    texts = [text for split in splits.values() for text in split.rows["text"]]
    normalized = Counter(re.sub(r"\W+", "", text.lower()) for text in texts)
    assert len(texts) == 560 and max(normalized.values()) == 1
    assert not any(overlap(splits[a], splits[b]) for a, b in combinations(splits, 2))
    words = [set(re.findall(r"\w+", text.lower())) for text in texts]
    assert max(len(a & b) / len(a | b) for a, b in combinations(words, 2)) < 0.5
