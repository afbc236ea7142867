"""Hypotheses by template and by text, as words and as tokens."""

import pytest
from tokenizers import normalizers, processors

from pipeline.core.errors import UserError
from pipeline.data.config import LabelsConfig
from pipeline.data.hypotheses import encode_behind, encode_hypotheses, hypotheses
from tests.support.tiny import tiny_tokenizer


def test_hypotheses_by_template_and_by_text():
    config = LabelsConfig(template="It is {label} {{really}}.", texts={"b": "Quite another."})
    assert hypotheses(["a", "b"], config).texts == ["It is a {really}.", "Quite another."]


def test_texts_go_to_their_label_however_it_is_spelled():
    config = LabelsConfig(texts={"cafe\u0301 \u00a0noir": "Coffee.", "1.0": "One."})
    assert hypotheses(["1", "café noir"], config).texts == ["One.", "Coffee."]
    # The labels of a run that an older version made keep the hypotheses that they have.
    assert hypotheses(["a  b", "c"], LabelsConfig(template="{label}!", texts={"c": "C."})).texts == ["a  b!", "C."]


def test_hypotheses_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"'sport', which is not a label \(nearest: 'sports'\)"):
        hypotheses(["sports", "news"], LabelsConfig(texts={"sport": "x"}))
    with pytest.raises(UserError, match="the labels 'a' and 'b' have the same hypothesis"):
        hypotheses(["a", "b"], LabelsConfig(texts={"a": "same", "b": "same"}))


def test_encoded_hypotheses_are_padded_on_the_right():
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    texts = ["The text has positive sentiment.", "negative", "a b"]
    input_ids, mask, opening = encode_hypotheses(tokenizer, texts, 64)
    assert opening == 0
    assert mask.dtype.is_floating_point is False and mask.shape == input_ids.shape
    for row, (text, kept) in enumerate(zip(texts, mask, strict=True)):
        assert input_ids[row][kept].tolist() == tokenizer(text)["input_ids"]
        assert kept.tolist() == sorted(kept.tolist(), reverse=True)
    assert not input_ids[~mask].any()


@pytest.mark.parametrize("starts", [True, False])
@pytest.mark.parametrize("space", [True, False])
def test_behind_a_text_hypotheses_have_the_tokens_they_have_there(starts: bool, space: bool) -> None:
    tokenizer = tiny_tokenizer()
    opened = processors.TemplateProcessing("<s> $0" if starts else "$0", special_tokens=[("<s>", 0)] if starts else [])
    tokenizer.backend_tokenizer.post_processor = opened
    texts = ["The text has positive sentiment.", "negative"]
    tokens = encode_behind(tokenizer, texts, 64, space=space)
    assert tokens.opening == starts and tokens.kept.shape[1] == tokens.input_ids.shape[1] - starts
    for row, kept, text in zip(tokens.input_ids, tokens.mask, texts, strict=True):
        alone = tokenizer(f" {text}" if space else text, add_special_tokens=False)["input_ids"]
        assert row[kept].tolist() == [0] * starts + alone
    with pytest.raises(UserError, match="it must have 1 to 2"):
        encode_behind(tokenizer, texts, 2, space=space)


def test_hypotheses_alike_to_the_tokenizer_or_too_long_are_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match=r"'About US' and 'About us' become the same tokens: .* alike in the data if"):
        encode_hypotheses(tokenizer, ["About US", "About us"], 64)
    with pytest.raises(UserError, match="it must have 1 to 8"):
        encode_hypotheses(tokenizer, ["no", "a very long hypothesis indeed"], 8)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{label}", "{0.x} %s \\1"),
        ("{{{label}}}", "{{0.x} %s \\1}"),
        ("{{label}} {label}", "{label} {0.x} %s \\1"),
        ("{label} and {label}}}", "{0.x} %s \\1 and {0.x} %s \\1}"),
    ],
)
def test_a_label_is_put_in_as_it_is(template, text):
    assert hypotheses(["{0.x} %s \\1"], LabelsConfig(template=template)).texts == [text]
