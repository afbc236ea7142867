import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from pipeline.data.config import LabelsConfig
from pipeline.data.labels import encode_hypotheses, hypotheses, label_indices, label_names
from pipeline.errors import UserError
from tests.tiny import tiny_tokenizer

names = st.lists(st.text(min_size=1, max_size=5), min_size=2, max_size=12, unique=True)


@given(names, st.randoms())
def test_names_do_not_depend_on_the_order_of_rows(values, random):
    shuffled = random.sample(values, len(values))
    assert label_names(values, None, None) == label_names(shuffled, None, None)
    assert sorted(label_names(values, None, None)) == sorted(values)


@given(names)
def test_every_name_has_its_own_index(values):
    indices = label_indices(values, values)
    assert [indices[name] for name in values] == list(range(len(values)))


def test_integers_are_indices_unless_they_are_names():
    assert label_indices(["0", "1", "yes", "2", "01", "-1"], ["no", "yes"]) == {"0": 0, "1": 1, "yes": 1}
    assert label_indices(["2", "1"], ["2", "1"]) == {"2": 0, "1": 1}


def test_numbers_are_sorted_as_numbers():
    assert label_names(["10", "9"], None, None) == ["9", "10"]
    assert label_names(["10", "9", "x"], None, None) == ["10", "9", "x"]


def test_configured_names_come_before_those_of_the_source():
    assert label_names(["0", "1"], None, ["neg", "pos"]) == ["neg", "pos"]
    assert label_names(["0", "1"], ["bad", "good"], ["neg", "pos"]) == ["bad", "good"]


def test_one_label_only_is_refused():
    with pytest.raises(UserError, match="all training texts have the label 'x'"):
        label_names(["x"], None, None)
    with pytest.raises(UserError, match="all training texts have the label 'x'"):
        label_names(["x"], ["x", "y"], None)


def test_hypotheses_by_template_and_by_text():
    config = LabelsConfig(template="It is {label} {{really}}.", texts={"b": "Quite another."})
    assert hypotheses(["a", "b"], config) == ["It is a {really}.", "Quite another."]


def test_hypotheses_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"'sport', which is no label \(nearest: 'sports'\)"):
        hypotheses(["sports", "news"], LabelsConfig(texts={"sport": "x"}))
    with pytest.raises(UserError, match="the labels 'a' and 'b' have the same hypothesis"):
        hypotheses(["a", "b"], LabelsConfig(texts={"a": "same", "b": "same"}))


def test_encoded_hypotheses_are_padded_on_the_right():
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    texts = ["The text has positive sentiment.", "negative", "a b"]
    input_ids, mask = encode_hypotheses(tokenizer, texts, 64)
    assert mask.dtype.is_floating_point is False and mask.shape == input_ids.shape
    for row, (text, kept) in enumerate(zip(texts, mask, strict=True)):
        assert input_ids[row][kept].tolist() == tokenizer(text)["input_ids"]
        assert kept.tolist() == sorted(kept.tolist(), reverse=True)
    assert not input_ids[~mask].any()


def test_hypotheses_alike_to_the_tokenizer_or_too_long_are_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(UserError, match="'About US' and 'About us' become the same tokens"):
        encode_hypotheses(tokenizer, ["About US", "About us"], 64)
    with pytest.raises(UserError, match="it must have 1 to 8"):
        encode_hypotheses(tokenizer, ["no", "a very long hypothesis indeed"], 8)
