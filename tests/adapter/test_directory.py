"""The adapter directory: round trip, model card, and every kind of damage.

covers adapter/card
"""

import json
import os
import re
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.adapter.directory import adapter_fingerprint, adapter_folder, load_adapter, save_adapter, write_card
from pipeline.backbone.facts import Form
from pipeline.core.checksums import SUMS
from pipeline.core.errors import UserError
from pipeline.core.yaml import load_yaml
from pipeline.evaluation.calibration import Calibration, keep_calibration
from pipeline.evaluation.metrics import split_metrics
from tests.support.tiny_adapter import FACTS, LABELS, some_config


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
    save_adapter(folder, adapter.method_state, some_config().adapter_config(), LABELS)
    assert adapter_fingerprint(folder) == before
    changed = {name: tensor + 1 for name, tensor in adapter.method_state.items()}
    save_adapter(folder, changed, some_config().adapter_config(), LABELS)
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
    first = "first 'producer.expand.weight': floats [160, 5], expected floats [240, 5]"
    with pytest.raises(UserError, match=re.escape(f"do not fit lt_prefix on 'somebody/some-model', {first}")):
        adapter.build_method(replace(FACTS, layers=3, prefix_layers=FACTS.prefix_layers[:1] * 3))
    with pytest.raises(UserError, match="label states are 16 wide, 'somebody/some-model' 32"):
        adapter.build_method(replace(FACTS, hidden_size=32))


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
    file.write_text(json.dumps(values | {"version": 3, "something": "new"}))
    with pytest.raises(UserError, match="format version 3, this program reads up to 2"):
        load_adapter(folder)
    for wrong in ({"version": 0}, {"version": None}, {"version": 2.5}, {"version": [1]}, {"version": "one"}):
        file.write_text(json.dumps(values | wrong))
        with pytest.raises(UserError, match="is damaged: version"):
            load_adapter(folder)
    file.write_text(json.dumps({key: value for key, value in values.items() if key != "version"}))
    with pytest.raises(UserError, match="is damaged: version: Field required"):
        load_adapter(folder)
    for nothing in ("[]", "null", "3"):
        file.write_text(nothing)
        with pytest.raises(UserError, match="is damaged"):
            load_adapter(folder)
    file.write_text('{"a":' * 100_000)
    with pytest.raises(UserError, match="cannot be read"):
        load_adapter(folder)
    file.write_text(json.dumps(values | {"method": {"name": "unheard_of"}}))
    with pytest.raises(UserError, match="is damaged: method"):
        load_adapter(folder)
    file.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_adapter(folder)
    file.unlink()
    with pytest.raises(UserError, match=r"is not an adapter directory \(adapter_config.json is missing\)"):
        load_adapter(folder)
    with pytest.raises(UserError, match=r"\(there is no such folder\): give a finished run, or the adapter/ folder"):
        load_adapter(folder / "nowhere")


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


@pytest.mark.parametrize("name", ["no\0where", "nowhere" * 1000])
def test_a_name_that_no_folder_can_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"^adapter '.* cannot be read"):
        adapter_folder(name)


def test_every_file_can_be_read_by_those_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_adapter(tmp_path / "adapter", {"weight": torch.zeros(2)}, some_config().adapter_config(), LABELS)
    finally:
        os.umask(before)
    modes = {file.name: stat.filemode(file.stat().st_mode) for file in (tmp_path / "adapter").iterdir()}
    assert set(modes.values()) == {"-rw-r-----"}, modes


NOT_FINITE = {name: torch.tensor([1.0, value]) for name, value in (("nan", torch.nan), ("inf", torch.inf))}


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        *[("head.logits.weight", value) for value in NOT_FINITE.values()],
        ("head.logits.weight", torch.ones(2, 16, dtype=torch.int64)),
        ("head.logits.weight", torch.ones(2, 16, dtype=torch.bool)),
        ("head.logits.weight", torch.ones(2, 16).to(torch.float8_e4m3fn)),
        ("head.logits.weight", torch.ones(2, 17)),
        ("head.logits.weight", torch.tensor(1.0)),
        ("head.logits.weight", None),
        ("something.else", torch.ones(1)),
    ],
    ids=repr,
)
def test_tensors_that_no_training_leaves_are_refused(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    state = load_file(folder / "adapter.safetensors")
    state.pop(name, None)
    save_file(state | ({} if tensor is None else {name: tensor}), folder / "adapter.safetensors")
    (folder / SUMS).unlink()
    with pytest.raises(UserError, match=rf"^[^\n]*adapter\.safetensors[^\n]*{name}[^\n]*$"):
        load_adapter(folder).build_method(FACTS)


@pytest.mark.parametrize("size", [10**9, 10**30])
def test_a_config_that_asks_for_more_than_there_is_takes_no_memory(folder: Path, size: int) -> None:
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text())
    (folder / SUMS).unlink()
    for method in ({"name": "lt_prefix", "pooling": "tokens", "rank": size}, {"name": "prefix", "tokens": size}):
        file.write_text(json.dumps(values | {"method": method}))
        with pytest.raises(UserError, match=r"do not fit|impossible sizes|less than or equal"):
            load_adapter(folder).build_method(FACTS)


@pytest.mark.parametrize("value", [-5, 0, 1, 10**9, 10**30, 1.5, None])
def test_a_length_that_no_text_can_be_cut_to_is_refused(folder: Path, value: Any) -> None:
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"data": values["data"] | {"max_length": value}}))
    with pytest.raises(UserError, match=r"adapter_config\.json' is damaged: data\.max_length"):
        load_adapter(folder)


def test_a_checksum_of_a_file_elsewhere_is_damage_and_the_file_is_not_read(folder: Path) -> None:
    for name in ("/dev/zero", "../adapter/labels.json"):
        (folder / SUMS).write_text(f"{'0' * 64}  {name}\n# 1 files\n")
        with pytest.raises(UserError, match="is not what was written"):
            load_adapter(folder)


def test_a_start_that_the_method_does_not_take_is_refused(folder: Path) -> None:
    adapter = load_adapter(folder)
    prefix = torch.zeros(2, 5, Form("prefix").width(FACTS))
    for start, method in ((prefix, {"start": "random"}), (None, {"start": "hypothesis"}), (prefix[..., 1:], {})):
        config = adapter.config.model_copy(update={"method": adapter.config.method.model_copy(update=method)})
        labels = replace(adapter.labels, start=start)
        with pytest.raises(UserError, match=r"the labels' start has width .*, lt_prefix takes"):
            replace(adapter, config=config, labels=labels).build_method(FACTS)


def test_the_calibration_is_of_the_adapter_that_is_loaded(folder: Path) -> None:
    with pytest.raises(UserError, match="is not calibrated"):
        load_adapter(folder, calibrated=True)
    keep_calibration(folder, Calibration(temperature=1.5, texts=5))
    assert load_adapter(folder).temperature == 1.0 and load_adapter(folder, calibrated=True).temperature == 1.5
    for temperature in ("1e-320", "NaN", "Infinity", "-1", "0", "1e9", '"1"', "null"):
        (folder / "calibration.json").write_text(f'{{"temperature": {temperature}, "texts": 5}}')
        if temperature != '"1"':
            with pytest.raises(UserError, match=r"calibration\.json' is damaged"):
                load_adapter(folder, calibrated=True)
        load_adapter(folder)


def test_a_calibration_that_was_altered_or_is_anothers_is_refused(folder: Path, tmp_path: Path) -> None:
    keep_calibration(folder, Calibration(temperature=1.5, texts=5))
    file = folder / "calibration.json"
    written = file.read_text()
    other = shutil.copytree(folder, tmp_path / "other")
    adapter = load_adapter(folder)
    changed = {name: tensor + 1 for name, tensor in adapter.method_state.items()}
    save_adapter(other, changed, adapter.config, adapter.labels)
    (other / "calibration.json").write_text(written)
    file.write_text(written.replace("1.5", "1.7"))
    for place in (folder, other):
        with pytest.raises(UserError, match=r"calibration\.json' is not what was written for this adapter"):
            load_adapter(place, calibrated=True)
    save_file({name: tensor + 2 for name, tensor in changed.items()}, other / "adapter.safetensors")
    with pytest.raises(UserError, match=r"adapter\.safetensors' is not what was written \(SHA256SUMS\)"):
        load_adapter(other, calibrated=True)
    without = {key: value for key, value in json.loads(written).items() if key != "sha256"}
    file.write_text(json.dumps(without))
    assert load_adapter(folder, calibrated=True).temperature == 1.5, "an older version's"


def test_a_prefix_that_a_window_hid_in_training_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Adapters that do not name backbone.attention are of that time; nothing is said of texts within the window."""
    windowed = replace(FACTS, sliding_window=8, sliding_layers=2, carrier="attention")
    load_adapter(folder).build_method(windowed)
    assert not caplog.messages
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    del config["backbone"]["attention"]
    file.write_text(json.dumps(config))
    (folder / SUMS).unlink()
    old = load_adapter(folder)
    old.build_method(FACTS)
    old.build_method(replace(windowed, sliding_window=10**6))
    assert not caplog.messages
    old.build_method(windowed)
    assert "sliding window of 8 positions hid the prefix" in caplog.text
