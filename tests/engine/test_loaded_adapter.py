"""A loaded adapter: pairs, open label sets, and clear errors.

covers engine/loaded_adapter
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch.distributed as dist
from datasets import Dataset

from pipeline.adapter.label_states import LabelStates
from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.data.texts import TextEncoder
from pipeline.data.tokens import tokenize
from pipeline.distributed.zero import end_process_group
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.stages.run import run
from tests.support.tiny import save_tiny, tiny_tokenizer
from tests.support.tiny_run import TEXTS, tiny_config, tiny_run
from tests.support.worlds import run_worlds

LABELS = sorted(TEXTS)


@pytest.fixture(scope="module", params=[None, 2], ids=["every_label", "shortlist"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    method = {"name": "lt_prefix", "pooling": "scores", "head": "label_aware", "shortlist": request.param}
    return tiny_run(tmp_path_factory.mktemp("classifier"), method=method)


@pytest.fixture(scope="module")
def classifier(config: RunConfig) -> LoadedAdapter:
    return LoadedAdapter.load(config.run_dir.adapter, "cpu")


def test_a_prediction_is_the_best_score_and_its_softmax(classifier: LoadedAdapter) -> None:
    predictions = classifier.predict(["a goal", "shares fell", "stars are born in clouds of dust"])
    for prediction in predictions:
        assert list(prediction.scores) == list(prediction.probabilities) == LABELS
        assert prediction.label == max(prediction.scores, key=prediction.scores.__getitem__)
        odds = np.exp(list(prediction.scores.values()))
        np.testing.assert_allclose(list(prediction.probabilities.values()), odds / odds.sum(), rtol=1e-6)
    alone = classifier.predict(["shares fell"])[0]
    assert alone.scores == pytest.approx(predictions[1].scores, abs=1e-5)
    assert classifier.predict([]) == []


def test_a_long_text_is_cut_and_says_so(classifier: LoadedAdapter) -> None:
    short, long = classifier.predict(["word", "word " * 200])
    assert not short.truncated and long.truncated


@pytest.mark.parametrize("pair", [False, True])
def test_tokens_are_those_of_preprocess(pair: bool, tmp_path: Path) -> None:
    texts = ["a goal", "the bank raised its rate " * 3, "stars"]
    columns = [texts, [text[::-1] for text in texts]] if pair else [texts]
    names = ["text", "text_pair"][: len(columns)]
    rows = Dataset.from_dict({"row": [1, 2, 3], **dict(zip(names, columns, strict=True)), "label": ["a", "b", "a"]})
    texts_as_tokens = TextEncoder(tiny_tokenizer(), 24)
    stored = tokenize(rows, texts_as_tokens, {"a": 0, "b": 1}, 1, tmp_path / "x.arrow", "test")
    encoded = texts_as_tokens.rows(columns)
    for mine, theirs in zip(encoded, stored, strict=True):
        assert mine == {name: theirs[name] for name in mine}
    assert [row["truncated"] for row in encoded] == [False, True, False]
    assert ("token_type_ids" in encoded[0]) == ("token_type_ids" in stored.column_names)


def test_labels_of_training_by_their_hypotheses_score_as_in_training(classifier: LoadedAdapter) -> None:
    """In another order; without a shortlist also a subset, padded to the length the parameters are bound to."""
    texts = ["a goal", "shares fell"]
    expected = classifier.predict(texts)
    chosen = LABELS[::-1] if classifier.adapter.config.method.joint_readings(3) else ["science", "business"]
    again = classifier.with_labels(chosen)
    assert again.labels == chosen and classifier.labels == LABELS
    for mine, theirs in zip(again.predict(texts), expected, strict=True):
        assert mine.scores == pytest.approx({name: theirs.scores[name] for name in again.labels}, abs=1e-5)
    assert classifier.predict(texts) == expected, "the original is untouched"
    spelled = classifier.with_labels([f" {name}\u200b" for name in LABELS])
    assert spelled.labels == LABELS and spelled.predict(texts) == expected


def test_new_labels_are_scored_from_their_hypotheses(classifier: LoadedAdapter) -> None:
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
        (["one two", " one\u00a0two"], "at least two different names"),
        (["one", "a very long name of a label that has many tokens"], "takes at most the 16 of its training"),
    ],
)
def test_labels_that_cannot_be_scored(classifier: LoadedAdapter, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        classifier.with_labels(names)


def test_texts_that_cannot_be_scored(classifier: LoadedAdapter) -> None:
    with pytest.raises(UserError, match="text 2 is empty"):
        classifier.predict(["a goal", " "])
    with pytest.raises(UserError, match=r"text 1 has 2 part\(s\), those of training have 1"):
        classifier.predict([("a", "b")])


def test_a_string_is_one_text_and_a_column_its_values(classifier: LoadedAdapter) -> None:
    texts = ["refund", "a goal"]
    expected = classifier.predict(texts)
    assert classifier.predict("refund") == classifier.predict(["refund"])
    assert len(classifier.predict("refund")) == 1
    for column in (tuple(texts), np.array(texts), np.array(texts, dtype=object), pd.Series(texts, index=[7, 7])):
        assert classifier.predict(column) == expected
    assert classifier.predict(Dataset.from_dict({"x": texts})["x"]) == expected
    assert classifier.predict(text for text in texts) == expected
    for nothing in ([], (), np.array([]), pd.Series([], dtype=object)):
        assert classifier.predict(nothing) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a goal", None], "text 2 is not a string, but of type NoneType: None"),
        (["a goal", 3], "text 2 is not a string, but of type int: 3"),
        ([float("nan")], "text 1 is not a string, but of type float: nan"),
        (np.array([1.5]), "text 1 is not a string, but of type float64"),
        ([b"a goal"], "text 1 is not a string, but of type bytes"),
        (pd.Series(["a", None], dtype=object), "text 2 is not a string"),
        ([{"text": "a"}], "text 1 is not a string, but of type dict"),
        (["a", "half \ud83d"], "text 2 is not Unicode text .surrogates not allowed.: 'half"),
        (None, "expected a list of texts, got NoneType"),
        (7, "expected a list of texts, got int"),
        (b"a goal", "expected a list of texts, got bytes"),
        ({"a goal": 1}, "expected a list of texts, got dict"),
        ({"a goal"}, "expected a list of texts, got set"),
        (pd.DataFrame({"text": ["a goal"]}), "expected a list of texts, got DataFrame"),
        ([["a", "b"]], r"text 1 has 2 part\(s\)"),
        ("  ", "text 1 is empty"),
    ],
)
def test_what_is_no_text_is_refused_by_its_place(classifier: LoadedAdapter, texts: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        classifier.predict(texts)


def test_labels_are_strings(classifier: LoadedAdapter) -> None:
    with pytest.raises(UserError, match="at least two different names, got: abc"):
        classifier.with_labels("abc")
    with pytest.raises(UserError, match="label 2 is not a string, but of type int: 1"):
        classifier.with_labels(["art", 1])  # type: ignore[list-item]
    with pytest.raises(UserError, match="hypothesis 1 is not a string, but of type NoneType"):
        classifier.with_labels(["art", "war"], {"art": None})  # type: ignore[dict-item]
    with pytest.raises(UserError, match="hypotheses: 'art' is named twice"):
        classifier.with_labels(["art", "war"], {"art": "A text on art.", " art": "A text on paint."})
    assert classifier.with_labels(np.array(["art", "war"])).labels == ["art", "war"]


def test_pairs_and_prompts(tmp_path: Path) -> None:
    """LT-prompt is not bound to a number of label tokens: longer hypotheses pass."""
    config = tiny_run(tmp_path, pairs=True, method={"name": "lt_prompt", "head": "label_aware"})
    classifier = LoadedAdapter.load(config.run.dir, "cpu")
    swapped = classifier.predict([("a goal", "so a loss"), ("so a loss", "a goal")])
    assert swapped[0].scores != swapped[1].scores
    with pytest.raises(UserError, match="text 1 has 1 part"):
        classifier.predict(["a goal"])
    longer = classifier.with_labels(["one", "a very long name of a label"]).predict([("a", "b")])
    assert np.isfinite(list(longer[0].scores.values())).all()


def test_a_score_does_not_depend_on_the_neighbours_length(tmp_path: Path) -> None:
    """longrope has other factors for texts beyond its original positions."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 2, "long_factor": [5.0] * 2}
    rope |= {"factor": 8.0, "original_max_position_embeddings": 32}
    save_tiny(tmp_path / "backbone", "llama_gqa", rope_parameters=rope)
    tiny_run(tmp_path)
    classifier = LoadedAdapter.load(tmp_path / "run", "cpu")
    texts = ["a goal", "shares fell " * 3, "stars are born in clouds of dust " * 6, "light"]
    for text, together in zip(texts, classifier.predict(texts), strict=True):
        alone = classifier.predict([text])[0]
        assert alone.scores == pytest.approx(together.scores, abs=1e-5)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_lora_scores_as_evaluate_does(tmp_path: Path, quantization: str) -> None:
    """Beside weights in few bits too, whose codes do not say in which dtype to compute."""
    config = tiny_config(
        tmp_path,
        method={"name": "lora", "targets": "all"},
        backbone={"quantization": quantization, "dtype": "bfloat16"},
        train={"max_steps": 2, "batch_size": 4, "learning_rate": 0.05},
        evaluate={"splits": ["train"]},
    )
    run(config)
    expected = pq.read_table(config.run_dir.predictions_file).to_pandas()
    texts = pd.read_csv(tmp_path / "train.tsv", sep="\t").text.tolist()
    for score, row in zip(LoadedAdapter.load(config.run_dir.adapter).predict(texts), expected.iloc, strict=True):
        assert score.scores == {label: row[f"score/{label}"] for label in LABELS}


def test_another_backbone_is_refused(config: RunConfig, tmp_path: Path) -> None:
    moved = save_tiny(tmp_path / "same", "llama_gqa")
    LoadedAdapter.load(config.run.dir, "cpu", backbone=str(moved))
    other = save_tiny(tmp_path / "other", "llama_gqa", intermediate_size=48)
    with pytest.raises(UserError, match=r"made for another backbone than .*: config\.json was"):
        LoadedAdapter.load(config.run.dir, "cpu", backbone=str(other))
    with pytest.raises(UserError, match="not an adapter directory"):
        LoadedAdapter.load(tmp_path)
    assert len(LabelStates.load(config.run_dir.labels).names) == 3


ELSEWHERE = [
    ["a goal", "shares fell", "stars are born", "they won the cup", "the bank", "light"],
    ["profit", "a cup", "x"],
]
"""Texts of one rank and of the other."""


def in_a_process_group(folder: Path) -> list[list[dict[str, float]]]:
    """What each rank of a stranger's program gets for its own texts; then one of them goes on alone."""
    rank = dist.get_rank()
    end_process_group()  # DeepSpeed knows of it
    wait = timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=wait)
    found: list[list[dict[str, float]]] = []
    if rank == 0:  # loading and other labels too, while the other rank has not begun
        classifier = LoadedAdapter.load(folder / "run", "cpu")
        found.append([one.scores for one in classifier.with_labels(["war", "art"]).predict(ELSEWHERE[0])])
    dist.barrier()
    classifier = LoadedAdapter.load(folder / "run", "cpu")
    for texts in (ELSEWHERE[rank], ELSEWHERE[rank][: 2 * rank], ELSEWHERE[1 - rank]):
        found.append([one.scores for one in classifier.predict(texts)])
    if rank == 1:
        with pytest.raises(UserError, match="is not an adapter directory"):
            LoadedAdapter.load(folder / "none", "cpu")
    return found


def test_each_rank_of_a_process_group_classifies_its_own_texts(tmp_path: Path) -> None:
    tiny_run(tmp_path)
    found = run_worlds("tests.engine.test_loaded_adapter:in_a_process_group", [2], tmp_path, 300)[2]
    alone = LoadedAdapter.load(tmp_path / "run", "cpu")
    war = alone.with_labels(["war", "art"])
    for rank in range(2):
        texts = [ELSEWHERE[rank], ELSEWHERE[rank][: 2 * rank], ELSEWHERE[1 - rank]]
        expected = [[one.scores for one in alone.predict(part)] for part in texts]
        if rank == 0:
            expected.insert(0, [one.scores for one in war.predict(ELSEWHERE[0])])
        assert found[rank] == expected
