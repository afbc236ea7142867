"""encode-labels on a tiny run: current, stale, damaged and refused."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.adapter.label_states import STATES_FILE, LabelStates
from pipeline.config import RunConfig
from pipeline.core.checksums import SUMS
from pipeline.core.errors import UserError
from pipeline.data.tokenizer import load_tokenizer
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.preprocess import preprocess
from tests.support.tiny import save_tiny, tiny_model
from tests.support.tiny_run import label_states_of, tiny_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    config = tiny_config(tmp_path_factory.mktemp("encode"))
    preprocess(config)
    encode_labels(config)
    return config


def changed(config: RunConfig, section: str, **keys: object) -> RunConfig:
    part = getattr(config, section).model_copy(update=keys)
    return config.model_copy(update={section: part})


def test_states_are_the_backbones(config: RunConfig) -> None:
    states = LabelStates.load(config.run_dir.labels)
    assert states.names == ["business", "science", "sport"]
    assert states.hypotheses == [f"This text is about {name}." for name in states.names]
    network, tokenizer = tiny_model("llama_gqa"), load_tokenizer(config.backbone)
    for row, hypothesis in enumerate(states.hypotheses):
        with torch.no_grad():
            alone = network(**tokenizer(hypothesis, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(states.states[row, states.mask[row]], alone, rtol=1e-4, atol=1e-5)
    # Partitioned by ZeRO-3 or whole on the rank: the same states.
    whole = changed(config, "engine", deepspeed="ds_configs/zero2_int8.json")
    whole = changed(whole, "run", dir=config.run.dir + "-whole")
    preprocess(whole)
    made = encode_labels(whole)
    torch.testing.assert_close(made.states, states.states, rtol=1e-5, atol=1e-6)
    assert made.start is not None and states.start is not None
    torch.testing.assert_close(made.start, states.start, rtol=1e-5, atol=1e-6)


def test_behind_a_text_hypotheses_are_read_with_the_tokens_they_have_there(config: RunConfig, tmp_path: Path) -> None:
    keys = config.model_dump() | {"method": {"name": "lt_prompt", "position": "after"}}
    run = changed(RunConfig.model_validate(keys), "run", dir=str(tmp_path / "run"))
    preprocess(run)
    behind = encode_labels(run)
    network, tokenizer = tiny_model("llama_gqa"), load_tokenizer(config.backbone)
    for row, hypothesis in enumerate(behind.hypotheses):
        ids = torch.tensor([[0, *tokenizer(f" {hypothesis}", add_special_tokens=False)["input_ids"]]])  # 0: <s>
        with torch.no_grad():
            alone = network(ids).last_hidden_state[0, 1:]
        torch.testing.assert_close(behind.states[row, behind.mask[row]], alone, rtol=1e-4, atol=1e-5)
        assert behind.start is not None
        torch.testing.assert_close(behind.start[row, behind.mask[row]], network.get_input_embeddings()(ids)[0, 1:])
    with pytest.raises(UserError, match="start was 'prompt behind the text', now 'prompt behind the text, without a s"):
        label_states_of(changed(run, "data", template="{text}\n"))
    before = RunConfig.model_validate(run.model_dump() | {"method": {"name": "lt_prompt"}})
    with pytest.raises(UserError, match="start was 'prompt behind the text', now 'prompt'"):
        label_states_of(before)


def test_what_one_method_starts_from_is_in_the_way_of_none_that_needs_nothing(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = changed(config, "run", dir=str(tmp_path / "run"))
    preprocess(run)
    assert encode_labels(run).start is not None
    probe, late = (
        RunConfig.model_validate(run.model_dump() | {"method": method})
        for method in ({"name": "probe"}, {"name": "lt_prefix", "first_layer": 1})
    )
    with caplog.at_level(logging.INFO, "pipeline"):
        found = encode_labels(probe)
    assert "is current" in caplog.text and found.start is None and label_states_of(probe).start is None
    with pytest.raises(UserError, match="start was 'prefix', now 'prefix from layer 1'; run encode-labels again"):
        label_states_of(late)
    assert encode_labels(late).start is not None and label_states_of(probe).start is None


def test_current_states_are_left_alone_and_damaged_ones_made_again(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    path = config.run_dir.labels / STATES_FILE
    before = path.read_bytes(), path.stat().st_mtime_ns
    with caplog.at_level(logging.INFO, "pipeline"):
        encode_labels(config)
    assert "is current" in caplog.text and path.stat().st_mtime_ns == before[1]
    path.write_bytes(before[0][:-5])
    with pytest.raises(UserError, match=r"label_states\.safetensors' is missing or damaged .* run encode-labels again"):
        label_states_of(config)
    encode_labels(config)  # as the message says
    assert path.read_bytes() == before[0]
    label_states_of(config)


@pytest.mark.parametrize(
    ("section", "keys", "part"),
    [
        ("labels", {"template": "About {label}."}, "hypotheses was"),
        ("backbone", {"dtype": "bfloat16"}, "backbone.dtype was 'float32', now 'bfloat16'"),
        ("backbone", {"quantization": "int8"}, "backbone.quantization was 'none', now 'int8'"),
        ("backbone", {"revision": "abc"}, "backbone.revision was 'None', now 'abc'"),
    ],
)
def test_training_refuses_states_made_otherwise_by_part(
    config: RunConfig, section: str, keys: dict[str, str], part: str
) -> None:
    with pytest.raises(UserError) as fault:
        label_states_of(changed(config, section, **keys))
    assert part in str(fault.value) and str(fault.value).endswith("run encode-labels again")


def test_another_backbone_at_the_same_place_is_noticed(config: RunConfig, tmp_path: Path) -> None:
    other = tiny_config(tmp_path)
    other = changed(other, "run", dir=config.run.dir)
    other = changed(other, "backbone", name_or_path=str(save_tiny(tmp_path / "other", "llama")))
    with pytest.raises(UserError, match=r"backbone was .*config\.json was .*model\.safetensors was"):
        label_states_of(other)
    weights = Path(config.backbone.name_or_path) / "model.safetensors"
    original = weights.read_bytes()
    try:
        save_tiny(tmp_path / "again", "llama_gqa", initializer_range=0.1)
        weights.write_bytes((tmp_path / "again" / "model.safetensors").read_bytes())
        with pytest.raises(UserError, match=r"was made otherwise: model\.safetensors was"):
            label_states_of(config)
    finally:
        weights.write_bytes(original)


def test_stale_states_say_what_changed_and_are_made_again(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    reworded = changed(config, "labels", texts={"sport": "Some people play."})
    try:
        with caplog.at_level(logging.INFO, "pipeline"):
            states = encode_labels(reworded)
        assert "is stale (hypotheses was" in caplog.text and states.hypotheses[2] == "Some people play."
        assert label_states_of(reworded).hypotheses == states.hypotheses
    finally:
        encode_labels(config)


def test_a_field_in_a_labels_own_text_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only templates are filled; braces that are no field of one are nobody's mistake."""
    texts = {"sport": "{label} and games", "science": ["a {{label}}", "{finding}"]}
    config = tiny_config(tmp_path, labels={"texts": texts})
    preprocess(config)
    assert encode_labels(config).by_label["sport"] == {"{label} and games": 1}
    [said] = [message for message in caplog.messages if "labels.texts" in message]
    assert "what is said of 'sport' is read as it stands" in said


def test_labels_that_cannot_be_told_apart_or_do_not_fit_leave_the_old_states(config: RunConfig) -> None:
    before = {name: (config.run_dir.labels / name).read_bytes() for name in os.listdir(config.run_dir.labels)}
    same = changed(config, "labels", texts={"sport": "One thing.", "science": "One thing."})
    with pytest.raises(UserError, match=r"the labels 'science' and 'sport' have the same hypothesis"):
        encode_labels(same)
    long = changed(config, "labels", texts={"sport": "very " * 60 + "long"})
    with pytest.raises(UserError, match=r"tokens; it must have 1 to 64"):
        encode_labels(long)
    assert before == {name: (config.run_dir.labels / name).read_bytes() for name in os.listdir(config.run_dir.labels)}


def test_preprocess_comes_first(config: RunConfig) -> None:
    elsewhere = changed(config, "run", dir=config.run.dir + "-none")
    with pytest.raises(UserError, match=r"manifest\.json' does not exist: run preprocess first"):
        encode_labels(elsewhere)
    with pytest.raises(UserError, match=r"manifest\.json' does not exist"):
        label_states_of(elsewhere)


def test_states_of_an_older_version_stay_current(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(tmp_path)
    preprocess(config)
    states = encode_labels(config)
    older = {part: value for part, value in states.fingerprint.items() if part != "weights"}
    (config.run_dir.labels / SUMS).unlink()
    replace(states, fingerprint=older).save(config.run_dir.labels)
    assert encode_labels(config).fingerprint == label_states_of(config).fingerprint == older
    assert "made by an older version" in caplog.text

    weights = load_file(tmp_path / "backbone" / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, tmp_path / "backbone" / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors was .*run encode-labels again"):
        label_states_of(config)
