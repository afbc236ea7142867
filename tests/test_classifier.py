"""The Python API: lazy import, pairs, open label sets, and clear errors."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from pipeline import LTuningClassifier
from pipeline.classifier import encode_texts
from pipeline.config import RunConfig
from pipeline.data.tokenising import tokenise
from pipeline.errors import UserError
from pipeline.label_states import LabelStates
from tests.tiny import save_tiny, tiny_tokenizer
from tests.tiny_run import TEXTS, tiny_run

LABELS = sorted(TEXTS)


@pytest.fixture(scope="module", params=[None, 2], ids=["every_label", "shortlist"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    method = {"name": "lt_prefix", "init_std": 0.5, "shortlist": request.param}
    return tiny_run(tmp_path_factory.mktemp("classifier"), method=method)


@pytest.fixture(scope="module")
def classifier(config: RunConfig) -> LTuningClassifier:
    return LTuningClassifier.from_pretrained(config.run_dir.adapter, "cpu")


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, pipeline; assert 'torch' not in sys.modules; assert 'LTuningClassifier' in pipeline.__all__"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_a_prediction_is_the_best_score_and_its_softmax(classifier: LTuningClassifier) -> None:
    predictions = classifier.predict(["a goal", "shares fell", "stars are born in clouds of dust"])
    for prediction in predictions:
        assert list(prediction.scores) == list(prediction.probabilities) == LABELS
        assert prediction.label == max(prediction.scores, key=prediction.scores.__getitem__)
        odds = np.exp(list(prediction.scores.values()))
        np.testing.assert_allclose(list(prediction.probabilities.values()), odds / odds.sum(), rtol=1e-6)
    alone = classifier.predict(["shares fell"])[0]
    assert alone.scores == pytest.approx(predictions[1].scores, abs=1e-5)
    assert classifier.predict([]) == []


def test_a_long_text_is_cut_and_says_so(classifier: LTuningClassifier) -> None:
    short, long = classifier.predict(["word", "word " * 200])
    assert not short.truncated and long.truncated


@pytest.mark.parametrize("pair", [False, True])
def test_tokens_are_those_of_preprocess(pair: bool, tmp_path: Path) -> None:
    texts = ["a goal", "the bank raised its rate " * 3, "stars"]
    columns = [texts, [text[::-1] for text in texts]] if pair else [texts]
    names = ["text", "text_pair"][: len(columns)]
    rows = Dataset.from_dict({"row": [1, 2, 3], **dict(zip(names, columns, strict=True)), "label": ["a", "b", "a"]})
    stored = tokenise(rows, tiny_tokenizer(), {"a": 0, "b": 1}, 24, 1, tmp_path / "x.arrow", "test")
    encoded = encode_texts(tiny_tokenizer(), columns, 24)
    for mine, theirs in zip(encoded, stored, strict=True):
        assert mine == {name: theirs[name] for name in mine}
    assert [row["truncated"] for row in encoded] == [False, True, False]
    assert ("token_type_ids" in encoded[0]) == ("token_type_ids" in stored.column_names)


def test_labels_of_training_by_their_wording_score_as_in_training(classifier: LTuningClassifier) -> None:
    """In another order; without a shortlist also a subset, padded to the length the parameters are bound to."""
    texts = ["a goal", "shares fell"]
    expected = classifier.predict(texts)
    chosen = LABELS[::-1] if classifier.adapter.config.method.joint_readings(3) else ["science", "business"]
    again = classifier.with_labels(chosen)
    assert again.labels == chosen and classifier.labels == LABELS
    for mine, theirs in zip(again.predict(texts), expected, strict=True):
        assert mine.scores == pytest.approx({name: theirs.scores[name] for name in again.labels}, abs=1e-5)
    assert classifier.predict(texts) == expected, "the original is untouched"


def test_new_labels_are_scored_from_their_wording(classifier: LTuningClassifier) -> None:
    first = classifier.with_labels(["war", "art"]).predict(["a goal"])[0]
    worded = classifier.with_labels(["war", "art"], {"war": "A text on peace."}).predict(["a goal"])[0]
    assert set(first.scores) == {"war", "art"}
    assert worded.scores["war"] != first.scores["war"]
    assert worded.scores["art"] == pytest.approx(first.scores["art"], abs=1e-5)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["one"], "at least two different names"),
        (["one", "one"], "at least two different names"),
        (["one", " "], "at least two different names"),
        (["one", "a very long name of a label that has many tokens"], "takes at most the 16 of its training"),
    ],
)
def test_labels_that_cannot_be_scored(classifier: LTuningClassifier, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        classifier.with_labels(names)


def test_texts_that_cannot_be_scored(classifier: LTuningClassifier) -> None:
    with pytest.raises(UserError, match="text 2 is empty"):
        classifier.predict(["a goal", " "])
    with pytest.raises(UserError, match=r"text 1 has 2 part\(s\), this adapter was trained on 1"):
        classifier.predict([("a", "b")])


def test_pairs_and_prompts(tmp_path: Path) -> None:
    """LT-prompt is not bound to a number of label tokens: longer wordings pass."""
    config = tiny_run(tmp_path, pairs=True, method={"name": "lt_prompt", "init_std": 0.5})
    classifier = LTuningClassifier.from_pretrained(config.run.dir, "cpu")
    swapped = classifier.predict([("a goal", "so a loss"), ("so a loss", "a goal")])
    assert swapped[0].scores != swapped[1].scores
    with pytest.raises(UserError, match="text 1 has 1 part"):
        classifier.predict(["a goal"])
    longer = classifier.with_labels(["one", "a very long name of a label"]).predict([("a", "b")])
    assert np.isfinite(list(longer[0].scores.values())).all()


def test_another_backbone_is_refused(config: RunConfig, tmp_path: Path) -> None:
    moved = save_tiny(tmp_path / "same", "llama_gqa")
    LTuningClassifier.from_pretrained(config.run.dir, "cpu", backbone=str(moved))
    other = save_tiny(tmp_path / "other", "llama_gqa", intermediate_size=48)
    with pytest.raises(UserError, match=r"made for another backbone than .*: config\.json was"):
        LTuningClassifier.from_pretrained(config.run.dir, "cpu", backbone=str(other))
    with pytest.raises(UserError, match="not an adapter directory"):
        LTuningClassifier.from_pretrained(tmp_path)
    assert len(LabelStates.load(config.run_dir.labels).names) == 3
