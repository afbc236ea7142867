"""YAML by the core schema of version 1.2: round trips, and the values that version 1.1 misreads."""

import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ruamel.yaml import YAMLError

from pipeline.core.yaml import dump_yaml, load_yaml

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=20), inner), max_leaves=8
)


@given(VALUES)
@example({"\x85": None})
@example(["a\u2028b", "\u2029", "\x85c: d"])
def test_round_trip(value: Any) -> None:
    again = load_yaml(dump_yaml(value))
    assert again == value and repr(again) == repr(value)  # 1, 1.0 and True are equal


@given(st.text("0123456789.+-eE_:xobnyYNasdfrtiulTrF~", max_size=8))
def test_words_like_numbers_survive(word: str) -> None:
    assert load_yaml(dump_yaml([word])) == [word]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("2E5", 2e5),
        ("-.5", -0.5),
        (".inf", math.inf),
        ("010", 10),
        ("-3", -3),
        ("no", "no"),
        ("[yes, On, off, y]", ["yes", "On", "off", "y"]),
        ("true", True),
        ("12:30", "12:30"),
        ("", None),
        ("a: ~", {"a": None}),
        ("'1'", "1"),
    ],
)
def test_plain_scalars(text: str, value: Any) -> None:
    found = load_yaml(text)
    assert found == value and type(found) is type(value)


def test_a_key_that_is_there_twice_is_refused() -> None:
    with pytest.raises(YAMLError, match='found duplicate key "train"'):
        load_yaml("train: {epochs: 1}\nrun: {}\ntrain: {seed: 1}")


def test_no_object_is_made() -> None:
    with pytest.raises(YAMLError):
        load_yaml("!!python/object/apply:os.getcwd []")
