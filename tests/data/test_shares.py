"""Validation and test rows cut from one table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import parse_config
from pipeline.core.errors import UserError
from pipeline.data.config import DataConfig
from pipeline.data.shares import cut, parts_of_rows
from pipeline.data.sources import read_split

tables = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60)), min_size=1, max_size=400)
pairs_of_shares = st.tuples(st.floats(0.01, 0.4), st.floats(0.01, 0.4))


def arrays(table):
    labels, texts = np.array(table).T
    return labels, texts.astype(np.uint64)


@given(tables, pairs_of_shares)
def test_equal_texts_stay_together_and_every_label_stays_in_training(table, shares):
    labels, texts = arrays(table)
    parts = parts_of_rows(labels, texts, shares)
    for text in np.unique(texts):
        assert len(set(parts[texts == text])) == 1
    of_text = {int(text): int(labels[texts == text][0]) for text in np.unique(texts)}
    training = {of_text[int(text)] for text in texts[parts == 0]}
    assert training == set(of_text.values())
    for part, share in enumerate(shares, 1):
        assert (parts == part).sum() <= round(len(texts) * share) + 1


@given(st.lists(st.integers(10, 300), min_size=1, max_size=5), pairs_of_shares)
def test_each_label_keeps_its_share(counts, shares):
    labels = np.repeat(np.arange(len(counts)), counts)
    texts = np.random.default_rng(1).permutation(len(labels)).astype(np.uint64)
    parts = parts_of_rows(labels, texts, shares)
    for part, share in enumerate(shares, 1):
        assert abs((parts == part).sum() - len(labels) * share) < 0.5 + 1e-9
        for label, count in enumerate(counts):
            assert abs(((parts == part) & (labels == label)).sum() - count * share) < 1 + 1e-9


@given(tables, pairs_of_shares, st.randoms())
def test_the_order_of_the_rows_makes_no_difference(table, shares, random):
    table = list({text: (label, text) for label, text in table}.values())
    shuffled = random.sample(table, len(table))
    first, second = (parts_of_rows(*arrays(rows), shares) for rows in (table, shuffled))
    assert dict(zip(table, first, strict=True)) == dict(zip(shuffled, second, strict=True))


def test_rows_keep_their_numbers_and_labels_their_meaning(tmp_path):
    texts = [f"text {number} {'x' * number}" for number in range(40)]
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{len(text) % 2}\n" for text in texts))
    config = DataConfig(train=str(tmp_path / "a.tsv"), split=[0.2, 0.1])
    found = read_split(config.train, "train", config, tmp_path / "rows.arrow")
    splits = cut(found, config.shares, tmp_path)
    assert {name: len(split.rows) for name, split in splits.items()} == {"train": 28, "validation": 8, "test": 4}
    rows = [row for split in splits.values() for row in split.rows]
    assert sorted(row["row"] for row in rows) == list(range(1, 41))
    assert all(row["text"] == texts[row["row"] - 1] for row in rows)
    for split in splits.values():
        assert split.rows.data.column("text").to_pylist() == split.rows["text"][:]  # no indices stand between
        assert split.labels is found.labels and len(split.text_hashes) == len(split.rows)


@pytest.mark.parametrize("given", ["0.6,0.5", "half", [0.5, 0.5], [0.1, 0.1, 0.1], 1, -0.1, [], ["x"]])
def test_shares_of_another_kind_are_refused_in_one_sentence(given):
    values = {"run": {"dir": "x"}, "backbone": {"name_or_path": "x"}, "method": {"name": "lt_prefix"}}
    words = r"^config: 'data.split': must be a share such as 0.1, or two such as \[0.1, 0.1\], of less than 1 in all \("
    with pytest.raises(UserError, match=words):
        parse_config(values | {"data": {"train": "a.csv", "split": given}})


def test_a_share_of_nothing_is_refused(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\na\tx\nb\ty\nc\ty\n")
    config = DataConfig(train=str(tmp_path / "a.tsv"), split=0.1)
    found = read_split(config.train, "train", config, tmp_path / "rows.arrow")
    with pytest.raises(UserError, match=r"data.split: 0.1 of 3 texts leaves none for validation"):
        cut(found, config.shares, tmp_path)
