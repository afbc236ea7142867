"""Templates of texts: which fields they must and may have."""

import pytest
from pydantic import ValidationError

from pipeline.adapter.config import TextSettings
from pipeline.core.templates import filled, has_field
from pipeline.data.config import DataConfig


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"template": "no field"}, r"must contain \{text\}, once"),
        ({"template": "{{text}}"}, r"must contain \{text\}, once"),
        ({"template": "{text} {label}"}, r"may contain \{text_pair\}, and no other field, such as \{label\}"),
        ({"template": "{text!r}"}, "no other field"),
        ({"template": "{text"}, "is not a template"),
        ({"template": "{text}" + "x" * 1000}, "at most 1000"),
        ({"template": "{text} {text_pair}"}, "data.text_pair names no column"),
        ({"template": "{text}", "text_pair": "other"}, r"must contain \{text_pair\} too"),
        ({"template": "{text_pair}", "text_pair": "other"}, r"must contain \{text\}, once"),
        ({"chat": True, "text_pair": "other"}, "put together with data.template"),
    ],
)
def test_faults_are_named(keys: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        DataConfig.model_validate({"train": "a.csv", **keys})
    with pytest.raises(ValidationError, match=complaint):
        TextSettings.model_validate({"text": "text", "text_pair": None, "max_length": 64, **keys})


def test_a_pair_has_both_fields() -> None:
    config = DataConfig(train="a.csv", text_pair="other", template="{text_pair}, so {text}", chat=True)
    assert config.template is not None and has_field(config.template, "text_pair")
    assert filled(config.template, {"text": "{text_pair}", "text_pair": "{text}"}) == "{text}, so {text_pair}"
    assert not has_field("{{text_pair}} {text}", "text_pair")
