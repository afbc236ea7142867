"""The adapter directory: round trip, model card, and every kind of damage."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.adapter import adapter_fingerprint, adapter_folder, load_adapter, save_adapter, write_card
from pipeline.backbone.facts import BackboneFacts
from pipeline.config import RunConfig, parse_config
from pipeline.errors import UserError
from pipeline.label_states import LabelStates
from pipeline.metrics import split_metrics
from pipeline.yaml12 import load_yaml

FACTS = BackboneFacts("llama", 16, 2, 4, 2, 4, 128, True)
LABELS = LabelStates(
    names=["sport", "a|b <x>"],
    hypotheses=["This text is about sport.", "This text is about `a|b`."],
    states=torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)),
    mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
    fingerprint={"backbone": "x", "model.safetensors": "10 bytes, abc", "tokenizer": "tokens"},
)


def some_config(**backbone: str) -> RunConfig:
    return parse_config(
        {
            "run": {"dir": "runs/x"},
            "backbone": {"name_or_path": "somebody/some-model", "dtype": "float32"} | backbone,
            "data": {"train": "train.tsv", "text": "sentence", "max_length": 64},
            "method": {"name": "lt_prefix"},
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    method = some_config().method.build(FACTS, 5, 3)
    save_adapter(tmp_path / "adapter", method.state_dict(), some_config(), LABELS)
    return tmp_path / "adapter"


def test_round_trip(folder: Path) -> None:
    assert {file.name for file in folder.iterdir()} == {
        "SHA256SUMS",
        "adapter.safetensors",
        "adapter_config.json",
        "label_states.safetensors",
        "labels.json",
        "README.md",
    }
    torch.manual_seed(0)
    original = some_config().method.build(FACTS, 5, 3)
    adapter = load_adapter(folder)
    loaded = adapter.build_method(FACTS)
    for name, tensor in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert adapter.labels.names == LABELS.names and torch.equal(adapter.labels.states, LABELS.states)
    assert adapter.config.data.text == "sentence" and adapter.config.data.max_length == 64


def test_saving_again_replaces_and_the_fingerprint_follows_the_content_not_the_card(folder: Path) -> None:
    before = adapter_fingerprint(folder)
    adapter = load_adapter(folder)
    write_card(folder, adapter, {})
    assert adapter_fingerprint(folder) == before
    save_adapter(folder, adapter.method_state, some_config(), LABELS)
    assert adapter_fingerprint(folder) == before
    changed = {name: tensor + 1 for name, tensor in adapter.method_state.items()}
    save_adapter(folder, changed, some_config(), LABELS)
    assert adapter_fingerprint(folder) != before
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_model_card_tells_results_beside_the_baseline_and_escapes_labels(folder: Path) -> None:
    scores = torch.eye(2)[[0, 1, 1]].numpy()
    figures = split_metrics(scores, torch.tensor([0, 1, 0]).numpy(), LABELS.names, majority=0)
    write_card(folder, load_adapter(folder), {"test": figures})
    card = (folder / "README.md").read_text()
    head = load_yaml(card.split("---\n")[1])
    assert head["base_model"] == "somebody/some-model"
    assert "| test | 3 | 0.6667 |" in card and "| test, majority baseline (sport) | 3 | 0.6667 |" in card
    assert r"| a\|b &lt;x> | This text is about \`a\|b\`. |" in card
    # P = 5, L = 2, G * D = 8, H = 16: H + P^2 * 2 * L * G * D for the prefix, 2H + H^2 + 1 for the head.
    assert f"{16 + 25 * 2 * 2 * 8 + 32 + 256 + 1:,} parameters" in card


def test_a_backbone_of_other_sizes_is_refused_by_name(folder: Path) -> None:
    adapter = load_adapter(folder)
    with pytest.raises(UserError, match=r"do not fit lt_prefix on 'somebody/some-model', first 'head.logits.weight'"):
        adapter.build_method(BackboneFacts("llama", 32, 2, 4, 2, 8, 128, True))


@pytest.mark.parametrize("name", ["adapter.safetensors", "label_states.safetensors"])
def test_a_truncated_or_missing_file_is_named(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name):
        load_adapter(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        load_adapter(folder)


def test_a_wrong_or_newer_config_is_refused(folder: Path) -> None:
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"version": 2, "something": "new"}))
    with pytest.raises(UserError, match="format version 2, this program reads up to 1"):
        load_adapter(folder)
    file.write_text(json.dumps(values | {"method": {"name": "unheard_of"}}))
    with pytest.raises(UserError, match="is damaged: method"):
        load_adapter(folder)
    file.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_adapter(folder)
    file.unlink()
    with pytest.raises(UserError, match="no adapter directory"):
        load_adapter(folder)


def test_another_backbone_is_refused_by_part(folder: Path) -> None:
    adapter = load_adapter(folder)
    adapter.check_backbone({"model.safetensors": "10 bytes, abc"}, "tokens")
    with pytest.raises(
        UserError, match=r"another backbone than 'somebody/some-model' is now: model.safetensors was '10 b"
    ):
        adapter.check_backbone({"model.safetensors": "11 bytes, abd"}, "tokens")
    with pytest.raises(UserError, match="tokenizer was 'tokens', now 'others'"):
        adapter.check_backbone({"model.safetensors": "10 bytes, abc"}, "others")
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors was absent"):
        adapter.check_backbone({"model-00001-of-00002.safetensors": "5 bytes, a"}, "tokens")


def test_the_adapter_of_a_run_directory_is_found(folder: Path) -> None:
    assert adapter_folder(folder.parent) == adapter_folder(folder) == folder
