"""Texts are text: special tokens that are written in them are read as characters, in every stage alike.

covers data/tokenizer, data/tokens
"""

import json
from pathlib import Path

import pytest
from datasets import load_from_disk
from transformers import PreTrainedTokenizerBase

from pipeline.adapter.directory import CONFIG
from pipeline.backbone.config import BackboneConfig
from pipeline.config import RunConfig
from pipeline.core.checksums import write_sums
from pipeline.core.files import read_json, write_json
from pipeline.data.tokenizer import encode, load_tokenizer, special_texts
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.preprocess import preprocess
from tests.support.kinds import KINDS, build
from tests.support.tiny import tiny_tokenizer
from tests.support.tiny_run import fingerprint_of_training, label_states_of, tiny_config, tiny_run

PLAIN = ["a gripping film", "1 < 2 > 0, [sic] </b> | im_start", "ein “Text” mit Ümlaut", "  two  spaces ", "s > / <"]


@pytest.fixture(scope="module", params=[*KINDS, "tiny"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    (tiny_tokenizer() if request.param == "tiny" else build(request.param)).save_pretrained(path)
    return path


def loaded(folder: Path, *, special_tokens: bool) -> PreTrainedTokenizerBase:
    return load_tokenizer(BackboneConfig(name_or_path=str(folder)), special_tokens=special_tokens)


def test_a_special_token_in_a_text_is_read_as_written(folder: Path) -> None:
    tokenizer = loaded(folder, special_tokens=False)
    unknown = {tokenizer.unk_token}  # what is written like it may be a word that the vocabulary lacks
    for token in set(special_texts(tokenizer)) - unknown:
        for text in (f"film{token}", f"a {token} film", token, f"{token}{token} and {token}"):
            inner = encode(tokenizer, [text], add_special_tokens=False)["input_ids"][0]
            assert inner and tokenizer.convert_tokens_to_ids(token) not in inner, (text, inner)
            pair = encode(tokenizer, [text], ["film"])["input_ids"][0]
            assert pair.count(tokenizer.convert_tokens_to_ids(token)) <= 2, "those between and around texts alone"


def test_by_option_it_is_that_token(folder: Path) -> None:
    tokenizer = loaded(folder, special_tokens=True)
    for token in special_texts(tokenizer):
        ids = encode(tokenizer, [f"film{token} it"], add_special_tokens=False)["input_ids"][0]
        assert ids.count(tokenizer.convert_tokens_to_ids(token)) == 1


def test_other_texts_are_the_same_either_way(folder: Path) -> None:
    split, parsed = (loaded(folder, special_tokens=special) for special in (False, True))
    for columns in ([PLAIN], [PLAIN, PLAIN[::-1]]):
        assert dict(encode(split, *columns)) == dict(encode(parsed, *columns))
        assert encode(split, *columns)["input_ids"] == parsed(*columns)["input_ids"]


TEXT = "a goal</s> in the <s>last minute"


def with_special_text(config: RunConfig) -> RunConfig:
    with open(config.data.train, "a") as file:
        file.write(f"{TEXT}\tsport\n")
    return config


@pytest.mark.parametrize("special_tokens", [False, True])
def test_training_and_prediction_read_a_text_alike(special_tokens: bool, tmp_path: Path) -> None:
    config = with_special_text(tiny_config(tmp_path, data={"special_tokens": special_tokens}))
    preprocess(config)
    stored = load_from_disk(str(config.run_dir.data / "train"))["input_ids"][-1]
    assert (stored.count(2), stored.count(0)) == ((2, 2) if special_tokens else (1, 1))
    config = tiny_run(tmp_path, data={"special_tokens": special_tokens}, labels={"template": "<s>{label}</s> it is."})
    classifier = LoadedAdapter.load(config.run_dir.adapter, "cpu")
    assert encode(classifier.tokenizer, [TEXT])["input_ids"][0] == stored
    wanted = encode(tiny_tokenizer() if special_tokens else classifier.tokenizer, ["<s>sport</s> it is."])
    row = [index for index, name in enumerate(classifier.labels) if name == "sport"]
    states = classifier.adapter.labels
    assert int(states.mask[row].sum()) == len(wanted["input_ids"][0])
    again = classifier.with_labels(classifier.labels).predict(["a goal"])[0]
    assert again.scores == pytest.approx(classifier.predict(["a goal"])[0].scores, abs=1e-5)


def test_an_older_adapter_reads_texts_as_in_its_training(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    before = LoadedAdapter.load(config.run_dir.adapter, "cpu")
    values = read_json(config.run_dir.adapter / CONFIG)
    assert values["data"].pop("special_tokens") is False
    write_json(config.run_dir.adapter / CONFIG, values)
    (config.run_dir.adapter / "SHA256SUMS").unlink()
    write_sums(config.run_dir.adapter)
    after = LoadedAdapter.load(config.run_dir.adapter, "cpu")
    assert after.predict(["a goal"])[0].scores == before.predict(["a goal"])[0].scores
    assert after.predict([TEXT])[0].scores != before.predict([TEXT])[0].scores
    assert encode(after.tokenizer, [TEXT])["input_ids"] == tiny_tokenizer()([TEXT])["input_ids"]


def as_older(config: RunConfig) -> None:
    """Gives data/ the manifest that versions wrote which read special tokens in texts as such."""
    manifest = read_json(config.run_dir.manifest_file)
    del manifest["special_tokens"]
    manifest["fingerprint"] = {
        key: value for key, value in manifest["fingerprint"].items() if not key.endswith("special_tokens")
    }
    write_json(config.run_dir.manifest_file, manifest)
    (config.run_dir.data / "SHA256SUMS").unlink()
    write_sums(config.run_dir.data)


def test_older_runs_are_trained_again_only_where_a_text_holds_one(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    preprocess(config)
    labels = encode_labels(config)
    as_older(config)
    before = fingerprint_of_training(config, labels)
    written = config.run_dir.manifest_file.stat().st_mtime_ns
    preprocess(config)
    assert config.run_dir.manifest_file.stat().st_mtime_ns == written, "current"
    assert fingerprint_of_training(config, label_states_of(config)) == before

    with_special_text(config)
    preprocess(config)
    as_older(config)
    before = fingerprint_of_training(config, labels)
    manifest = preprocess(config)
    assert manifest["special_tokens"]["train"] == 1
    after = fingerprint_of_training(config, label_states_of(config))
    assert after == before | {"data: data.train.special_tokens": "text"}
    assert preprocess(config) == manifest, "current"
    other = config.model_copy(update={"data": config.data.model_copy(update={"special_tokens": True})})
    assert preprocess(other)["fingerprint"]["data.train.special_tokens"] == "special"


def test_a_label_that_holds_one_makes_older_states_stale(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, labels={"texts": {"sport": "About </s> sport."}})
    preprocess(config)
    states = encode_labels(config)
    assert json.loads(json.dumps(states.fingerprint))["data.special_tokens"] == "False"
    assert "data.special_tokens" not in encode_labels(tiny_config(tmp_path)).fingerprint
