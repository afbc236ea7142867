"""Exported folders as plain transformers and PEFT load them, and as this program reads them back: the same scores.

covers export/folder, export/model, export/linear_head, export/card, export/label_injections, stages/export
covers methods/label_injections
"""

import re
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForTokenClassification, AutoTokenizer

from pipeline import LTuningClassifier
from pipeline.adapter.directory import load_adapter
from pipeline.core.errors import UserError
from pipeline.data.words import ONE_DAY
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.engine.startup import leave
from pipeline.methods.label_injections import LabelPrefixesConfig, LabelPromptsConfig
from pipeline.methods.lt_prefix import LTPrefixConfig
from pipeline.methods.lt_prompt import LTPromptConfig
from pipeline.stages.export import export
from tests.families.models import tiny_model as family_model
from tests.support.tiny import save_tiny, tiny_tokenizer
from tests.support.tiny_run import TEXTS

SENTENCES = [text for texts in TEXTS.values() for text in texts]
LABELS = [label for label, texts in TEXTS.items() for _ in texts]
ASKED = ["a goal", "the bank raised its rate, and then shares fell on monday", "stars"]
CHAT = "{{ bos_token }}user on {{ strftime_now('%d') }}: {{ messages[0].content }}</s>\nassistant:"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "probe last": ("llama_gqa", {"method.name": "probe", "method.prior": "never"}),
    "probe first": ("bert", {"method.name": "probe", "method.prior": "never", "backbone.pooling": "first"}),
    "full mean": ("bert", {"method.name": "full", "train.learning_rate": 1e-3}),
    "full last": ("gpt2", {"method.name": "full", "backbone.layers": 1}),
    "lora last": (
        "llama_gqa",
        {"method.name": "lora", "method.rank": 4, "method.targets": "all", "method.rank_stabilized": True},
    ),
    "lora mean": ("bert", {"method.name": "lora", "method.targets": ["query", "dense"]}),
    "prompt last": ("llama_gqa", {"method.name": "prompt", "method.tokens": 3}),
    "prompt mean": ("bert", {"method.name": "prompt", "method.tokens": 3}),
    "p_tuning last": ("gpt2", {"method.name": "p_tuning", "method.tokens": 3, "method.encoder": "lstm"}),
    "prefix last": ("llama_gqa", {"method.name": "prefix", "method.tokens": 3, "method.reparametrisation": True}),
    "lt_prompt": ("llama_gqa", {"method.name": "lt_prompt"}),
    "lt_prefix": ("llama_gqa", {"method.name": "lt_prefix", "method.head": "label_aware", "method.shortlist": 2}),
    "lt_prefix random": (
        "gpt2",
        {"method.name": "lt_prefix", "method.start": "random", "method.head": "linear", "method.init_std": 0.2},
    ),
    "lt_prompt after": ("llama_gqa", {"method.name": "lt_prompt", "method.position": "after"}),
    "lt_prompt layer": ("llama_gqa", {"method.name": "lt_prompt", "method.first_layer": 1, "method.head": "linear"}),
}


@pytest.fixture(autouse=True)
def _no_group() -> None:
    """What a test before has left in this process."""
    leave()


def trained(folder: Path, family: str, overrides: dict[str, Any], texts: list[Any] = SENTENCES) -> LoadedAdapter:
    """An adapter of three real training steps."""
    save_tiny(folder / "backbone", family, vocab_size=len(tiny_tokenizer()))
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "backbone")
    chosen = {"backbone.dtype": "float32", "train.learning_rate": 0.05, "engine.threads": 1, **overrides}
    classifier = LTuningClassifier(
        str(folder / "backbone"), max_steps=3, batch_size=6, max_length=64, validation_split=0, overrides=chosen
    )
    classifier.fit(texts, LABELS).save(folder / "adapter")
    return LoadedAdapter.load(folder / "adapter", "cpu")


def scores_of(loaded: LoadedAdapter) -> Tensor:
    return torch.tensor([list(found.scores.values()) for found in loaded.predict(ASKED)])


def pooled(logits: Tensor, mask: Tensor, how: str) -> Tensor:
    """By definition, text by text, of texts padded on the right."""
    rows = [row[: int(length)] for row, length in zip(logits[:, -mask.shape[1] :], mask.sum(1), strict=True)]
    return torch.stack([{"last": row[-1], "first": row[0], "mean": row.mean(0)}[how] for row in rows])


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("lt_")])
def test_others_compute_the_same_scores(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    family, overrides = CASES[name]
    loaded, out = trained(tmp_path, family, overrides), tmp_path / "out"
    export(tmp_path / "adapter", out, device="cpu")
    expected = scores_of(loaded)
    assert expected.std(0).min() > 1e-3, "texts must differ in their scores"
    if overrides["method.name"] in ("probe", "full"):
        model = AutoModelForTokenClassification.from_pretrained(out)
    else:
        shutil.rmtree(tmp_path / "adapter")  # the export stands alone
        model = peft.AutoPeftModelForTokenClassification.from_pretrained(out, num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(out, padding_side="right")
    batch = tokenizer(ASKED, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(**{key: batch[key] for key in ("input_ids", "attention_mask")}).logits
    how = loaded.model.pooling
    torch.testing.assert_close(pooled(logits, batch["attention_mask"], how), expected, rtol=1e-5, atol=1e-6)
    # What the folder's own README says to do comes to the same labels.
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    code = code.replace("path/to/this/folder", str(out)).replace('["a text", "another one"]', repr(ASKED))
    exec(code, {})
    assert capsys.readouterr().out.strip().splitlines()[-1] == str([each.label for each in loaded.predict(ASKED)])


def test_special_tokens_in_a_text_are_read_as_in_training(tmp_path: Path) -> None:
    loaded, out = trained(tmp_path, *CASES["probe first"]), tmp_path / "out"
    export(tmp_path / "adapter", out, device="cpu")
    text = "a goal </s> in the <s> last minute"
    expected = loaded.rows([text])[0]["input_ids"]
    assert AutoTokenizer.from_pretrained(out)(text)["input_ids"] == expected
    assert AutoTokenizer.from_pretrained(tmp_path / "backbone")(text)["input_ids"] != expected


def test_special_tokens_of_the_words_around_a_text_stay_tokens(tmp_path: Path) -> None:
    words = {"data.template": "{text}</s>answer:"}
    loaded, out = trained(tmp_path, "bert", CASES["probe first"][1] | words), tmp_path / "out"
    export(tmp_path / "adapter", out, device="cpu")
    expected = loaded.rows(["a goal"])[0]["input_ids"]
    assert AutoTokenizer.from_pretrained(out)("a goal</s>answer:")["input_ids"] == expected
    card = (out / "README.md").read_text()
    assert "read there as text" in card and "more than 64 tokens, the text was cut there and all words stayed" in card


WORDS = {
    "chat": ({"data.chat": True}, [f"<s>user on {ONE_DAY}: a goal</s>\nassistant:"]),
    "pairs": ({"data.template": "{text} or {text_pair}?"}, ["a goal or a cup?"]),
}


@pytest.mark.parametrize("name", WORDS)
def test_texts_in_their_words_are_read_by_the_folders_lines_as_in_training(tmp_path: Path, name: str) -> None:
    """A chat template writes the first token itself; and a template makes one text of a pair."""
    words, worded = WORDS[name]
    asked: list[Any] = ["a goal"] if name == "chat" else [("a goal", "a cup")]
    texts = SENTENCES if name == "chat" else [(text, "a cup") for text in SENTENCES]
    loaded, out = trained(tmp_path, "bert", CASES["probe first"][1] | words, texts), tmp_path / "out"
    export(tmp_path / "adapter", out, device="cpu")
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    found: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(out)).replace('["a text", "another one"]', repr(worded)), found)
    assert found["batch"]["input_ids"].tolist() == [row["input_ids"] for row in loaded.rows(asked)]
    scores = list(loaded.predict(asked)[0].scores.values())
    torch.testing.assert_close(found["logits"][0], torch.tensor(scores), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("lt_")])
def test_injections_of_labels_need_no_producer(tmp_path: Path, name: str) -> None:
    loaded, out = trained(tmp_path, *CASES[name]), tmp_path / "out"
    export(tmp_path / "adapter", out)
    adapter = load_adapter(out)
    assert not any("producer" in key for key in adapter.method_state)
    again = LoadedAdapter.load(out, "cpu")
    assert torch.equal(scores_of(again), scores_of(loaded))
    assert adapter.labels.start is not None and adapter.config.method.injects in adapter.config.method.name
    with pytest.raises(UserError, match="knows only the labels of its training"):
        again.with_labels(["art", "war"])
    with pytest.raises(UserError, match="has nothing to export"):
        export(out, tmp_path / "twice")


def test_all_keys_of_training_that_scores_depend_on_are_kept() -> None:
    """The others have done their part once the injections are made."""
    assert LTPromptConfig.model_fields.keys() - LabelPromptsConfig.model_fields.keys() == {
        "dropout",
        "init_std",
        "label_scale",
    }
    of_producer = {"dropout", "init_std", "pooling", "rank"}
    assert LTPrefixConfig.model_fields.keys() - LabelPrefixesConfig.model_fields.keys() == of_producer


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method.name": "prompt", "method.head": "label_aware"}, "head is label_aware"),
        ({"method.name": "probe", "method.prior": "always"}, "train with method.prior=never"),
        ({"method.name": "lora", "backbone.layers": 1}, "PEFT reads with all layers"),
        ({"method.name": "probe", "method.prior": "never", "backbone.layers": [1, 2]}, "the last layer alone: train"),
        ({"method.name": "prompt", "backbone.pooling": "statistics"}, "train with mean, last or first"),
        (
            {"method.name": "prompt", "backbone.quantization": "int8"},
            "of a backbone with quantization=none",
        ),
        ({"method.name": "prompt", "method.first_layer": 1}, "before the first layer: not with method.first_layer=1"),
        ({"method.name": "majority"}, "majority has nothing to export"),
    ],
)
def test_what_the_form_cannot_express_is_refused(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    trained(tmp_path, "llama_gqa", overrides)
    with pytest.raises(UserError, match=message):
        export(tmp_path / "adapter", tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_family_that_others_read_otherwise_is_refused(tmp_path: Path) -> None:
    """transformers' model of tokens has a layer of its own there; or none is there."""
    trained(tmp_path, "opt", {"method.name": "probe", "method.prior": "never"})
    with pytest.raises(UserError, match="transformers has no model of tokens for opt"):
        export(tmp_path / "adapter", tmp_path / "out", device="cpu")


def test_a_prefix_that_a_family_takes_from_this_program_alone_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, "deberta_v2", {"method.name": "prefix", "method.tokens": 3})
    with pytest.raises(UserError, match="deberta-v2 takes no keys and values from outside"):
        export(tmp_path / "adapter", tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_prefix_that_slides_out_of_sight_there_is_refused(tmp_path: Path) -> None:
    """The hypotheses, by which the scores are compared, are shorter than the window."""
    save_tiny(tmp_path / "backbone", "mistral", vocab_size=len(tiny_tokenizer()), sliding_window=48)
    overrides = {"backbone.dtype": "float32", "method.tokens": 3, "engine.threads": 1}
    backbone, rest = str(tmp_path / "backbone"), {"max_steps": 1, "batch_size": 6, "validation_split": 0}
    for length in (46, 45):
        classifier = LTuningClassifier(backbone, "prefix", max_length=length, overrides=overrides, **rest)
        classifier.fit(SENTENCES, LABELS).save(tmp_path / str(length))
    with pytest.raises(UserError, match=r"sliding window of 48 positions .* both together at most 48"):
        export(tmp_path / "46", tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    export(tmp_path / "45", tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    ("targets", "message"),
    [("all", "does not adapt .*layers.0.mlp.down_proj"), (["gate_proj"], "makes no such adapter")],
)
def test_layers_whose_names_mean_experts_to_others_are_refused(
    tmp_path: Path, targets: list[str] | str, message: str
) -> None:
    family_model("deepseek_v3").save_pretrained(tmp_path / "backbone")
    tiny_tokenizer().save_pretrained(tmp_path / "backbone")
    overrides = {"backbone.dtype": "float32", "method.targets": targets, "engine.threads": 1}
    rest = {"max_steps": 1, "batch_size": 6, "validation_split": 0, "max_length": 64}
    classifier = LTuningClassifier(str(tmp_path / "backbone"), "lora", overrides=overrides, **rest)
    classifier.fit(SENTENCES, LABELS).save(tmp_path / "adapter")
    with pytest.raises(UserError, match=message):
        export(tmp_path / "adapter", tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_scores_that_differ_are_found_before_anything_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path, "llama_gqa", {"method.name": "prompt"})
    monkeypatch.setattr("pipeline.export.folder._set_trained", lambda *_: None)  # the prompt gets lost
    with pytest.raises(UserError, match="computes other scores"):
        export(tmp_path / "adapter", tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(UserError, match="is there already"):
        export(tmp_path / "adapter", tmp_path / "out")
