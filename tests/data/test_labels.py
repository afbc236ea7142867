"""Label identity: for whatever three files say, every row gets the label that was meant, or the files are refused."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import UserError
from pipeline.data.labels import (
    FileLabels,
    doubt,
    known_labels,
    label_indices,
    label_name,
    look_alikes,
    value_name,
)
from pipeline.data.rows import Occurrences

SPLITS = ("train", "validation", "test")


def file_labels(*names, own=None):
    return FileLabels("a file", {name: Occurrences(1, ["row 1"]) for name in names}, own)


def names_of(train, configured=None, own=None):
    return known_labels(file_labels(*train, own=own), configured).names


# Names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling",
    [
        "café noir",
        "cafe\u0301 noir",
        " café\u00a0noir\t",
        "café \u2003\u3000noir",
        "\ufeffcafé no\u00adir\u200b",
        "\u200fcafé\nnoir",
    ],
)
def test_one_label_in_many_spellings(spelling):
    assert label_name(spelling) == "café noir"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("m²", "m2"),
        ("US", "us"),
        ("ab", "a b"),
        ("01", "1"),
        ("1.5", "1"),
        ("क्\u200dष", "क्ष"),
        ("1.0.0", "1"),
        ("+1", "1"),
    ],
)
def test_names_that_stay_two(one, other):
    assert label_name(one) != label_name(other)


@given(st.text())
def test_a_name_is_its_own_name(text):
    assert label_name(label_name(text)) == label_name(text) == label_name(f"\u00a0{text}\n")


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (1, "1"), (1.0, "1"), ("1.0", "1"), ("1.000", "1"), (" 1", "1"), (Decimal("1.00"), "1"), (-0.0, "0"),
        ("-0.0", "0"),
        (-3.0, "-3"), (2**64 - 1, str(2**64 - 1)), (True, "True"), ("true", "true"), (1e300, str(int(1e300))),
        ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_names_of_values(value, name):
    assert value_name(value, None) == name


@pytest.mark.parametrize(
    ("value", "own", "complaint"),
    [
        (None, None, "no label"),
        (float("nan"), None, "no label"),
        (" \u200b", None, "no label"),
        (-1, ["a", "b"], "no label"),
        (1, ["a", ""], "no label"),
        (2, ["a", "b"], "the label 2 is not one of the 2 ids"),
        (1.5, None, "neither a string nor an integer"),
        (float("inf"), None, "neither a string nor an integer"),
        (b"a", None, "neither a string nor an integer"),
        (["a"], None, "neither a string nor an integer"),
    ],
)
def test_values_that_are_not_labels(value, own, complaint):
    with pytest.raises(ValueError, match=complaint):
        value_name(value, own)


def test_labels_in_index_order():
    assert names_of(["b", "a"]) == ["a", "b"]
    assert names_of(["10", "9"]) == ["9", "10"] and names_of(["10", "9", "x"]) == ["10", "9", "x"]
    assert names_of(["c", "a"], own=["c", "b", "a"]) == ["c", "b", "a"]
    assert names_of(["c", "a"], configured=["a ", "c"], own=["c", "a"]) == ["a", "c"]
    with pytest.raises(UserError, match="all training texts have the label 'x'"):
        names_of(["x"], configured=["x", "y"])


def test_what_is_doubtful_about_numbers():
    labels = known_labels(file_labels("a", "b"), ["a", "b", "c"])
    assert "test has no label 0" in doubt("test", file_labels("1", "2"), labels)
    assert doubt("test", file_labels("0", "2"), labels) is doubt("test", file_labels("a"), labels) is None
    labels = known_labels(file_labels("1", "0"), ["1", "0"])
    assert "are taken as the names in labels.names" in doubt("test", file_labels("1", "0"), labels)
    assert doubt("test", file_labels("1"), known_labels(file_labels("1", "0"), None)) is None


def test_look_alikes_are_found():
    assert look_alikes(["Sport", "sport", "m²", "m2", "other"]) == [["Sport", "sport"], ["m²", "m2"]]


# What a file's labels mean, by the training file (names, own names), labels.names and the file (names, own names) -----


@pytest.mark.parametrize(
    ("train", "configured", "file", "indices"),
    [
        ((["a", "b"], None), None, (["b"], None), {"b": 1}),
        ((["a", "b"], ["b", "a"]), None, (["a", "b"], ["a", "b"]), {"a": 1, "b": 0}),
        ((["a", "b"], ["b", "a"]), None, (["0", "1"], None), {"0": 0, "1": 1}),
        (
            (["a", "b"], ["b", "a"]),
            None,
            (["0", "1"], ["0", "1", "2"]),
            {"0": 0, "1": 1},
        ),  # a ClassLabel(num_classes=3)
        ((["a", "b"], None), ["b", "a"], (["1"], None), {"1": 1}),
        ((["0", "1"], None), ["b", "a"], (["a"], ["a"]), {"a": 1}),
        ((["0", "1"], ["0", "1"]), ["b", "a"], (["1"], None), {"1": 1}),
        ((["0", "1"], ["0", "1", "2"]), None, (["2"], None), {"2": 2}),
        ((["1", "0"], None), ["1", "0"], (["1", "0"], None), {"1": 0, "0": 1}),
        ((["1", "2", "3"], ["1", "2", "3"]), None, (["1", "2", "3"], None), {"1": 0, "2": 1, "3": 2}),
        ((["a", "b"], ["a", "", "b"]), None, (["2"], None), {"2": 1}),
        ((["a", "b"], ["a", "b"]), ["a", "b", "c"], (["2"], None), {"2": 2}),
    ],
)
def test_meanings(train, configured, file, indices):
    labels = known_labels(file_labels(*train[0], own=train[1]), configured)
    assert label_indices("test", file_labels(*file[0], own=file[1]), labels) == indices


@pytest.mark.parametrize(
    ("train", "configured", "file", "complaint"),
    [
        (
            (["good", "bad"], None),
            None,
            (["godo"], None),
            r"'godo' \(nearest: 'good'\) in 1 rows, first row 1; known are 'bad'",
        ),
        ((["good", "bad"], None), None, (["0", "1"], None), "a number is an index only into labels.names, or where"),
        ((["1", "2"], None), None, (["0", "1"], None), "'0' in 1 rows, first row 1; known are '1', '2'; a number is"),
        ((["1", "2"], None), ["1", "2"], (["0", "1"], None), "a number is not an index where the names are numbers"),
        ((["0", "1"], None), ["a", "b"], (["1", "2"], None), "; indices go from 0 to 1"),
        (
            (["0", "1"], None),
            ["a", "b"],
            (["a", "1"], None),
            "'1' in 1 rows, first row 1; .* only where all labels of its",
        ),
        ((["a", "b"], None), ["a", "b"], (["-1"], None), "'-1' in 1 rows"),
        ((["a", "b"], None), ["a", "b"], (["True"], None), "'True' in 1 rows"),
        (
            (["a", "b"], None),
            ["a", "b"],
            (["a"], ["a", "c"]),
            "own label names .* not all in labels.names: 'c'.*; add them",
        ),
        ((["a", "b"], ["a", "b"]), None, (["c"], ["c", "a"]), "'c'"),
        (
            (["1", "0"], ["1", "0"]),
            None,
            (["0", "1"], None),
            "mean one thing by the names themselves and another by the t",
        ),
        (
            (["a", "b"], ["a", "b"]),
            ["b", "a"],
            (["0"], None),
            "one thing by labels.names and another by the training file",
        ),
    ],
)
def test_refusals(train, configured, file, complaint):
    train_file = file_labels(*train[0], own=train[1])
    labels = known_labels(train_file, configured)
    with pytest.raises(UserError, match=complaint) as fault:
        label_indices("test", file_labels(*file[0], own=file[1]), labels)
    assert "\n" not in str(fault.value)


def test_names_of_the_training_file_that_are_not_listed_are_refused():
    train = file_labels("b", own=["a", "b"])
    with pytest.raises(UserError, match=r"label names .* not all in labels.names: 'a'; add them there"):
        label_indices("train", train, known_labels(file_labels("a", "b", own=["a", "b"]), ["b", "c"]))


# Three files of any kind ------------------------------------------------------------------------------------------
