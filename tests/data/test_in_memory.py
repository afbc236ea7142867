"""Texts and labels as Python hands them over; more on single texts in engine/test_loaded_adapter."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import UserError
from pipeline.data.config import DataConfig
from pipeline.data.in_memory import are_pairs, classes_of, holds, label_array, labelled, text_columns
from pipeline.data.sources import read_split


def test_pairs() -> None:
    """A tuple of two strings is one pair where there are pairs, else two texts."""
    assert text_columns(("a", "b"), pairs=True) == [["a"], ["b"]]
    assert text_columns(("a", "b"), pairs=False) == [["a", "b"]]
    assert text_columns([("a", "b"), ["c", "d"]], pairs=True) == [["a", "c"], ["b", "d"]]
    assert text_columns(np.array([["a", "b"], ["c", "d"]]), pairs=True) == [["a", "c"], ["b", "d"]]
    for texts in (["a", "b"], "ab", ("a", "b", "c")):
        with pytest.raises(UserError, match=r"text 1 has 1 part\(s\), those of training have 2"):
            text_columns(texts, pairs=True)
    with pytest.raises(UserError, match="text 1 is not a string, but of type NoneType"):
        text_columns([("a", None)], pairs=True)  # type: ignore[list-item]


def test_the_first_text_says_whether_there_are_pairs() -> None:
    assert are_pairs([("a", "b")]) and are_pairs(np.array([["a", "b"]]))
    assert not are_pairs(["ab"]) and not are_pairs("ab") and not are_pairs([["ab"]]) and not are_pairs([])


@pytest.mark.parametrize(
    ("labels", "kind"),
    [(["b", "a"], str), (np.array([2, 1]), int), (pd.Series([True, False], index=[3, 3]), bool)],
)
def test_labels_keep_their_kind(labels: Any, kind: type) -> None:
    found = label_array(labels)
    assert found.tolist() == list(labels) and {type(value) for value in found.tolist()} == {kind}


@pytest.mark.parametrize(
    ("texts", "labels", "message"),
    [
        (["x", "y"], ["a"], "there are 2 texts and 1 labels"),
        ([], ["a"], "there are 0 texts and 1 labels"),
        (["x", "y"], ["a", 1], "some labels are strings and some are numbers"),
        (["x", "y", "z"], [True, 1, 2], "some labels are truth values and some are numbers"),
        (["x", "y"], ["a", None], "label 2 is not a string or a whole number, but of type NoneType"),
        (["x", "y"], [0.5, 1.0], "label 1 is not a string or a whole number, but of type float"),
        (["x", " "], ["a", "b"], "text 2 is empty"),
        (pd.DataFrame({"text": ["x"]}), ["a"], "expected a list of texts, got DataFrame"),
        (["x"], {"a": 1}, "expected a list of labels, got dict"),
        (np.array("x"), ["a"], "expected a list of texts, got ndarray"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(texts: Any, labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        labelled(texts, labels, pairs=False)


@pytest.mark.parametrize("classes", [["10", "9", "x y"], [-3, 7, 10]])
def test_a_table_is_read_back_by_the_reader_of_files(classes: list[Any], tmp_path: Path) -> None:
    """Numbers are names: neither ids nor indices."""
    given = labelled([("a", "b"), ("c", "\td"), ("e", 'f"')], [classes[2], classes[0], classes[1]], pairs=True)
    table, file = given.table(np.unique(classes)), tmp_path / "train.parquet"
    assert not holds(file, table)
    pq.write_table(table, file)
    assert holds(file, table) and not holds(file, table.slice(1))
    renamed = labelled([("a", "b"), ("c", "\td"), ("e", 'f"')], ["o", "m", "n"], pairs=True).table(
        np.array(["m", "n", "o"])
    )
    assert renamed["label"] == table["label"] and not holds(file, renamed), "other labels by the same ids"
    config = DataConfig(train=str(file), text_pair="text_pair")
    found = read_split(str(file), "train", config, tmp_path / "train.arrow")
    rows = found.rows.to_list()
    assert [(row["text"], row["text_pair"]) for row in rows] == [("a", "b"), ("c", "\td"), ("e", 'f"')]
    assert found.labels.own_names == [str(value) for value in np.unique(classes).tolist()]
    assert [row["label"] for row in rows] == [str(classes[n]) for n in (2, 0, 1)]


def test_a_strange_label_is_named() -> None:
    with pytest.raises(UserError, match="validation texts have labels that no training text has: 'c'"):
        labelled(["x", "y"], ["a", "c"], pairs=False).indices(np.array(["a", "b"]))


@pytest.mark.parametrize("labels", [["good", "good "], ["caf\u00e9", "cafe\u0301"], ["a  b", "a b"], ["1.0", "1"]])
def test_labels_that_would_be_one_in_a_file_are_refused(labels: list[str]) -> None:
    with pytest.raises(UserError, match=r"the labels .* and .* of y read alike: write them in one way"):
        classes_of(label_array([*labels, "other"]))


def test_classes_are_the_distinct_labels() -> None:
    assert classes_of(label_array(["b", "a", "b"])).tolist() == ["a", "b"]
    assert classes_of(label_array([10, 9, 10])).tolist() == [9, 10]
    large = [2**63 + 1, 2**63, -1]  # as floats, the first two are one
    assert classes_of(label_array(large)).tolist() == sorted(large)
    with pytest.raises(UserError, match="y has a blank label, ' ': leave its texts out"):
        classes_of(label_array(["a", " "]))
