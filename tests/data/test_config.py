"""Config keys of data and labels: faults are named, every key has help."""

import pytest
from pydantic import ValidationError

from pipeline.data.config import DataConfig, LabelsConfig


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"template": "no field"}, "must contain {label}"),
        ({"template": "{label} of {other}"}, "no other field"),
        ({"template": "{label"}, "is not a template"),
        ({"template": "{label:>9999999999}"}, "no other field"),
        ({"template": "{label!x}"}, "no other field"),
        ({"template": "{{label}}"}, "must contain {label}"),
        ({"texts": {"a": " "}}, "the text of 'a' is empty"),
        ({"names": ["a"]}, "at least two labels"),
        ({"names": ["a", "b", "a"]}, "'a' is named twice"),
        ({"names": ["a", ""]}, "a label name is empty"),
        ({"names": ["a", "\u200b"]}, "a label name is empty"),
        ({"names": ["a b", "c", "a\u00a0 b"]}, "'a b' is named twice"),
        ({"texts": {"caf\u00e9": "x", "cafe\u0301": "y"}}, "'caf\u00e9' is named twice"),
    ],
)
def test_labels_faults_are_named(keys, complaint):
    with pytest.raises(ValidationError, match=complaint):
        LabelsConfig(**keys)


@pytest.mark.parametrize("name", [["sst2"], {"sst2": 1}, 5])
def test_a_public_set_has_a_name(name):
    with pytest.raises(ValidationError, match="there is no public set"):
        DataConfig(public=name)


@pytest.mark.parametrize("keys", [{"text": "label"}, {"text_pair": "text"}, {"text_pair": "label"}, {"label": "text"}])
def test_a_column_is_read_as_one_thing(keys):
    with pytest.raises(ValidationError, match=r"data\.\w+ and data\.\w+ are the same column, '(text|label)'"):
        DataConfig(train="a.csv", **keys)


def test_every_key_has_help():
    for config in (DataConfig, LabelsConfig):
        assert all(field.description for field in config.model_fields.values())


def test_one_limit_of_training_texts():
    with pytest.raises(ValidationError, match=r"train_limit and data\.train_per_label exclude each other"):
        DataConfig(train="a.csv", train_limit=8, train_per_label=2)


def test_unknown_and_impossible_values_are_refused():
    with pytest.raises(ValidationError) as fault:
        DataConfig(train="a.csv", max_length=1, train_limit=0, workers=0, texts="x")
    assert {error["loc"][0] for error in fault.value.errors()} == {"max_length", "train_limit", "workers", "texts"}
