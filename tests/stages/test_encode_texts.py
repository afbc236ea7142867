"""encode-texts: the backbone's own states, each text read once, resumed, shared, bounded; and what is fitted to them.

covers data/text_states
"""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, write_json
from pipeline.data.splits import load_split
from pipeline.data.text_states import load_text_states
from pipeline.data.tokenizer import load_tokenizer
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.stages import encode_texts as stage
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.encode_texts import encode_texts
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.run import run
from pipeline.stages.train import train
from tests.support.tiny import tiny_model
from tests.support.tiny_run import tiny_config

PROBE = {"name": "probe"}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    config = tiny_config(tmp_path, method=PROBE)
    preprocess(config)
    encode_labels(config)
    return config


@pytest.mark.parametrize("pooling", ["last", "first", "mean"])
def test_states_are_the_backbones(tmp_path: Path, pooling: str) -> None:
    config = tiny_config(tmp_path, method=PROBE, backbone={"pooling": pooling, "layers": 1})
    preprocess(config)
    encode_texts(config)
    states = load_text_states(config.run_dir.texts, "test")
    network, tokenizer = tiny_model("llama_gqa"), load_tokenizer(config.backbone)
    network.layers = network.layers[:1]
    split = load_split(config.run_dir.data / "test")
    for row, ids in enumerate(split.rows["input_ids"]):
        with torch.no_grad():
            hidden = network(torch.tensor([ids])).last_hidden_state[0]
        expected = {"last": hidden[-1], "first": hidden[0], "mean": hidden.mean(0)}[pooling]
        torch.testing.assert_close(states.take(np.array([row]))[0], expected, rtol=1e-4, atol=1e-5)
    assert tokenizer.decode(split.rows["input_ids"][0]).startswith("<s>")
    assert torch.equal(states.whole(), states.take(np.arange(len(split))))


def test_each_text_is_read_once_and_fitting_and_judging_read_none(
    config: RunConfig, forwards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_texts(config)
    texts = sum(part["rows"] for part in read_json(config.run_dir.manifest_file)["splits"].values())
    assert sum(forwards) == texts
    monkeypatch.setattr("pipeline.engine.models.load_backbone", lambda *_, **__: pytest.fail("the backbone is loaded"))
    encode_texts(config)
    summary = train(config)
    figures = evaluate(config)
    assert sum(forwards) == texts
    assert summary["steps"] == 0 and summary["validation"]["accuracy"] == figures["validation"]["accuracy"]


def test_a_text_read_again_has_the_same_scores(config: RunConfig) -> None:
    run(config)
    classifier = LoadedAdapter.load(config.run_dir.adapter)
    texts = [line.split("\t")[0] for line in Path(str(config.data.test)).read_text().splitlines()[1:]]
    found = classifier.predict(texts)
    stored = load_text_states(config.run_dir.texts, "test").whole()
    state = load_file(config.run_dir.adapter / "adapter.safetensors")
    plain = stored @ state["logits.weight"].T + state["logits.bias"]
    if not state["prior_weight"].any():
        scores = torch.tensor([list(each.scores.values()) for each in found])
        torch.testing.assert_close(scores, plain, rtol=1e-4, atol=1e-4)
    right = [each.label for each in found]
    assert (
        np.mean([a == b for a, b in zip(right, truth(config), strict=True)])
        == read_json(config.run_dir.metrics_file)["test"]["accuracy"]
    )


def truth(config: RunConfig) -> list[str]:
    return [line.split("\t")[-1] for line in Path(str(config.data.test)).read_text().splitlines()[1:]]


def test_an_interrupted_reading_goes_on(
    config: RunConfig, forwards: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "CHUNK_ROWS", 4)
    encode_texts(config)
    folder = config.run_dir.texts
    whole = {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
    states = read_json(folder / "states.json")
    states["splits"]["train"]["complete"] = False
    write_json(folder / "states.json", states)
    (folder / "SHA256SUMS").unlink()
    (folder / "train-00001.safetensors").unlink()
    forwards.clear()
    encode_texts(config)
    assert sum(forwards) == 4
    assert {file.name: file.read_bytes() for file in folder.glob("*.safetensors")} == whole


def test_damaged_stale_and_missing_states(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="does not hold the states of all train texts: run encode-texts first"):
        train(config)
    encode_texts(config)
    file = config.run_dir.texts / "train-00000.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-4])
    with pytest.raises(UserError, match="is not what was written"):
        train(config)
    with caplog.at_level(logging.WARNING):
        encode_texts(config)
    assert "encode-texts: made again" in caplog.text and file.read_bytes() == before
    other = config.model_copy(update={"backbone": config.backbone.model_copy(update={"pooling": "first"})})
    with pytest.raises(UserError, match=r"backbone\.pooling was 'last', now 'first'; run encode-texts again"):
        train(other)
    encode_texts(other)
    assert file.read_bytes() != before


def test_states_of_the_same_texts_are_shared(config: RunConfig, forwards: list[int], tmp_path: Path) -> None:
    encode_texts(config)
    few = config.model_copy(
        update={
            "run": config.run.model_copy(update={"dir": str(tmp_path / "few")}),
            "data": config.data.model_copy(update={"train_per_label": 1}),
        }
    )
    preprocess(few)
    encode_labels(few)
    forwards.clear()
    encode_texts(few, others=[config.run_dir.texts])
    assert sum(forwards) == 3, "the three training texts alone"
    assert torch.equal(
        load_text_states(few.run_dir.texts, "test").whole(), load_text_states(config.run_dir.texts, "test").whole()
    )
    train(few)
    evaluate(few)


def test_a_link_is_never_written_through(config: RunConfig, forwards: list[int], tmp_path: Path) -> None:
    """As the cells of a comparison have one: other cells read what it names."""
    shared, texts = tmp_path / "shared", config.run_dir.texts
    encode_texts(config)
    texts.rename(shared)
    texts.symlink_to(shared)
    before = {file.name: file.read_bytes() for file in shared.iterdir()}
    forwards.clear()
    encode_texts(config)
    assert texts.is_symlink() and not forwards, "what is whole is read where it is"
    other = config.model_copy(update={"data": config.data.model_copy(update={"train_limit": 9})})
    preprocess(other)
    encode_texts(other)
    assert {file.name: file.read_bytes() for file in shared.iterdir()} == before and not texts.is_symlink()
    assert sum(forwards) == 9, "the states of the other texts are taken from where the link led"
    train(other)
    evaluate(other)


def test_a_link_to_what_is_gone_is_replaced(config: RunConfig, tmp_path: Path) -> None:
    """As in a cell that was copied out of a comparison."""
    config.run_dir.texts.symlink_to(tmp_path / "gone")
    encode_texts(config)
    train(config)
    assert not config.run_dir.texts.is_symlink() and not (tmp_path / "gone").exists()


def test_test_texts_are_read_where_they_are_scored(config: RunConfig, forwards: list[int]) -> None:
    blind = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"splits": ["validation"]})})
    encode_texts(blind)
    assert sum(forwards) == 13 + 6, "training and validation texts"
    train(blind)
    evaluate(blind)
    with pytest.raises(UserError, match="does not hold the states of all test texts: run encode-texts first"):
        evaluate(config)
    forwards.clear()
    encode_texts(config)
    assert sum(forwards) == 9, "the test texts alone"
    assert set(evaluate(config)) == {"validation", "test"}


def test_a_method_that_reads_no_text_alone_scores_test_texts_without_their_states(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, method={"name": "prompt", "tokens": 4, "head": "fitted"}, train={"max_steps": 1})
    assert "test" in run(config)
    assert set(read_json(config.run_dir.texts / "states.json")["splits"]) == {"train", "validation"}


def test_too_many_are_refused_before_any_is_read(config: RunConfig) -> None:
    small = config.model_copy(update={"engine": config.engine.model_copy(update={"states_gib": 1e-6})})
    with pytest.raises(UserError, match=r"texts take .* GiB, at most 1e-06 are written: raise engine\.states_gib"):
        encode_texts(small)
    assert not config.run_dir.texts.exists()


def test_a_probe_of_a_bfloat16_backbone_keeps_its_digits(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, method=PROBE, backbone={"dtype": "bfloat16"})
    run(config)
    adapter = LoadedAdapter.load(config.run_dir.adapter)
    assert {parameter.dtype for parameter in adapter.model.method.parameters()} == {torch.float32}
    assert load_text_states(config.run_dir.texts, "train").chunks[0].dtype == torch.bfloat16


def test_methods_that_do_not_start_from_them_read_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = tiny_config(tmp_path, method={"name": "lt_prefix", "head": "linear"})
    with caplog.at_level(logging.INFO):
        encode_texts(config)
    assert "lt_prefix does not start from texts that are read alone" in caplog.text
    assert not config.run_dir.texts.exists()
