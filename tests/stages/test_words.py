"""Words around a text are the same in every stage, and in the Python API; a change of them is seen by name.

covers data/words, data/texts
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM

from pipeline.adapter.directory import CONFIG
from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.core.checksums import write_sums
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.stages.predict import predict
from pipeline.stages.preprocess import preprocess
from pipeline.stages.run import run
from pipeline.stages.train import train
from tests.support.tiny import save_tiny, tiny_model, tiny_tokenizer
from tests.support.tiny_run import TEXTS, tiny_config, tiny_run

CHAT = (
    "{{ bos_token }}{% for m in messages %}<pad>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}{{ '<pad>assistant\n' }}"
)
WORDS: dict[str, dict[str, Any]] = {
    "template": {"template": "Review: {text}\nSentiment:"},
    "line": {"template": "Review: {text}\nSentiment:\n"},
    "chat": {"chat": True},
    "both": {"chat": True, "template": "Of {text}?"},
}


def config_in(folder: Path, words: dict[str, Any], **sections: Any) -> RunConfig:
    """Of a run with these words, on a causal language model with a chat template."""
    if not (folder / "backbone").is_dir():
        save_tiny(folder / "backbone", "llama_gqa", AutoModelForCausalLM)
        set_chat_template(folder, CHAT)
    return tiny_config(folder, data=words | sections.pop("data", {}), logging={"trackers": ["jsonl"]}, **sections)


def set_chat_template(folder: Path, template: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder / "backbone")


def formatted(words: dict[str, Any], text: str) -> list[int]:
    """The tokens that anybody gets of it."""
    tokenizer = tiny_tokenizer()
    said = words.get("template", "{text}").format(text=text)
    if not words.get("chat"):
        ids: list[int] = tokenizer(said)["input_ids"]
        return ids
    message = [{"role": "user", "content": said}]
    return list(tokenizer.apply_chat_template(message, chat_template=CHAT, return_dict=False))


@pytest.mark.parametrize("name", WORDS)
def test_zero_shot_reads_a_hypothesis_behind_the_words(tmp_path: Path, name: str) -> None:
    """Scores of evaluate, predict and the Python API are what transformers' own model gives."""
    words = WORDS[name]
    config = config_in(tmp_path, words, method={"name": "zero_shot"}, labels={"template": "{label} it is"})
    run(config)
    stored = load_from_disk(str(config.run_dir.data / "test"))
    assert stored["input_ids"][:] == [formatted(words, text) for text in stored["text"]]
    model, tokenizer = tiny_model("llama_gqa", AutoModelForCausalLM).double(), tiny_tokenizer()

    def likelihood(text: str, hypothesis: str) -> float:
        space = " " if name == "template" else ""
        behind = tokenizer(f"{space}{hypothesis}", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([formatted(words, text) + behind])
        logs = model(ids).logits[0, -len(behind) - 1 : -1].log_softmax(-1)
        return float(logs.gather(1, ids[0, -len(behind) :, None]).mean())

    scored = pd.read_parquet(config.run_dir.predictions_file).query("split == 'test'")
    for label in TEXTS:
        expected = [likelihood(text, f"{label} it is") for text in stored["text"]]
        np.testing.assert_allclose(scored[f"score/{label}"], expected, rtol=1e-5)
    classifier = LoadedAdapter.load(config.run_dir.adapter, "cpu")
    found = classifier.with_labels(["sea", "sport"]).predict(["a goal"])[0].scores
    expected = {label: likelihood("a goal", f"{label} it is") for label in ("sea", "sport")}
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("words", [{}, *WORDS.values()], ids=["plain", *WORDS])
def test_evaluation_and_prediction_agree(tmp_path: Path, words: dict[str, Any]) -> None:
    """Long texts and written special tokens too."""
    longest = {"max_length": 60}
    texts = ["a goal", "a merger of two firms was agreed " * 5, "a </s> goal <pad>assistant\n"]
    config_in(tmp_path, {})
    config = tiny_run(tmp_path, data=words | longest, logging={"trackers": ["jsonl"]})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text, "label": "sport"}) + "\n" for text in texts))
    test = config.model_copy(update={"data": config.data.model_copy(update={"test": str(tmp_path / "in.jsonl")})})
    preprocess(test)
    stored = load_from_disk(str(config.run_dir.data / "test"))
    assert stored["truncated"][:] == [False, True, False] and stored["length"][1] in (59, 60)
    classifier = LoadedAdapter.load(config.run_dir.adapter, "cpu")
    encoded = classifier.adapter.texts(classifier.tokenizer).rows([texts])
    assert [row["input_ids"] for row in encoded] == stored["input_ids"][:]
    answers = tmp_path / "out.jsonl"
    assert predict(config.run_dir.adapter, str(tmp_path / "in.jsonl"), str(answers), device="cpu") == 3
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    for line, prediction in zip(lines, classifier.predict(texts), strict=True):
        assert line["scores"] == pytest.approx(prediction.scores, rel=1e-4, abs=1e-5)
        assert line.get("truncated", False) == prediction.truncated


def test_a_pair_in_a_template_is_one_text(tmp_path: Path) -> None:
    config_in(tmp_path, {})
    config = tiny_run(tmp_path, pairs=True, data={"text_pair": "other", "template": "{text}? {text_pair}!"})
    stored = load_from_disk(str(config.run_dir.data / "test"))
    pairs = zip(stored["text"], stored["text_pair"], strict=True)
    assert stored["input_ids"][:] == [tiny_tokenizer()(f"{text}? {other}!")["input_ids"] for text, other in pairs]
    assert "token_type_ids" not in stored.column_names
    classifier = LoadedAdapter.load(config.run_dir.adapter, "cpu")
    assert classifier.predict([("a goal", "so it is")])[0].label in TEXTS


def as_before(config: RunConfig) -> None:
    """Gives data/ and the adapter what versions wrote that knew no words."""
    manifest, adapter = read_json(config.run_dir.manifest_file), read_json(config.run_dir.adapter / CONFIG)
    for key in ("template", "chat"):
        del manifest["fingerprint"][f"data.{key}"], adapter["data"][key]
    write_json(config.run_dir.manifest_file, manifest)
    write_json(config.run_dir.adapter / CONFIG, adapter)
    for folder in (config.run_dir.data, config.run_dir.adapter):
        (folder / "SHA256SUMS").unlink()
        write_sums(folder)


def test_runs_and_adapters_without_words_stay_as_they_are(tmp_path: Path) -> None:
    config = tiny_run(tmp_path)
    before = LoadedAdapter.load(config.run_dir.adapter, "cpu").predict(["a goal"])
    as_before(config)
    written = config.run_dir.manifest_file.stat().st_mtime_ns
    preprocess(config)
    assert config.run_dir.manifest_file.stat().st_mtime_ns == written, "current"
    assert LoadedAdapter.load(config.run_dir.adapter, "cpu").predict(["a goal"]) == before


@pytest.mark.parametrize("words", [{"template": "So {text}"}, {"chat": True}])
def test_other_words_make_data_stale_by_name(tmp_path: Path, words: dict[str, Any]) -> None:
    preprocess(config_in(tmp_path, {}))
    other = config_in(tmp_path, words)
    [(key, value)] = words.items()
    with pytest.raises(UserError, match=rf"made otherwise: data\.{key} was '{'None' if key == 'template' else False}'"):
        train(other)
    assert preprocess(other)["fingerprint"][f"data.{key}"] == str(value)


def test_another_chat_template_is_another_tokenizer(tmp_path: Path) -> None:
    config = config_in(tmp_path, {"chat": True})
    run(config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 1})}))
    set_chat_template(tmp_path, f"{CHAT}Well, ")
    with pytest.raises(UserError, match="tokenizer was"):
        train(config)
    with pytest.raises(UserError, match=r"made for another backbone .* tokenizer was"):
        LoadedAdapter.load(config.run_dir.adapter, "cpu")


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["data.chat=true"], "tokenizer has no chat template"),
        (["data.template='The text has positive sentiment. {text}'", "data.max_length=6"], "leaves no room for a text"),
    ],
)
@pytest.mark.parametrize("command", [["run", "--dry-run"], ["preprocess"]])
def test_what_cannot_be_read_is_said_at_once(
    tmp_path: Path, command: list[str], words: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "given.yaml").write_text(tiny_config(tmp_path).to_yaml())
    assert main([*command, "--config", str(tmp_path / "given.yaml"), *words]) == 2
    assert capsys.readouterr().err.count(fault) == 1
