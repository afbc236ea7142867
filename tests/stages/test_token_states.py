"""Token states: kept once, and then training and its evaluations begin where the labels come.

covers engine/kept_states
"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.trunk import layers_of
from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.data.splits import load_split
from pipeline.data.text_states import load_token_states
from pipeline.stages import encode_texts as stage
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.encode_texts import encode_texts
from pipeline.stages.preprocess import preprocess
from pipeline.stages.run import run
from pipeline.stages.train import train
from tests.support.tiny_run import tiny_config

LATE = {"name": "lt_prefix", "head": "label_aware", "shortlist": 2, "first_layer": 1}
MADE = {"name": "generated", "first_layer": 1, "rank": 2, "source": "sentence"}
BEHIND = {"name": "lt_prompt", "position": "after"}


def config_of(folder: Path, method: dict[str, Any], *, keep: bool = True, **other: Any) -> RunConfig:
    settings = {"max_steps": 4, "batch_size": 4, "eval_every": 2, "save_every": 2, "learning_rate": 1e-2}
    train = settings | {"keep_token_states": keep}
    return tiny_config(folder, run={"dir": str(folder / f"keep-{keep}")}, method=method, train=train, **other)


@pytest.fixture
def texts_through_layer_0(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts that the lowest layer reads, call by call."""
    read: list[int] = []
    original = FrozenBackbone.__init__

    def observed(self: FrozenBackbone, *rest: Any, **named: Any) -> None:
        original(self, *rest, **named)
        projection = next(part for part in layers_of(self.model)[1][0].modules() if isinstance(part, nn.Linear))
        projection.register_forward_hook(lambda _, inputs, __: read.append(len(inputs[0])))

    monkeypatch.setattr(FrozenBackbone, "__init__", observed)
    return read


@pytest.mark.parametrize(
    ("method", "layers"),
    [(LATE, None), (LATE | {"head": "fitted"}, [1, 2]), (MADE, None), (BEHIND, None), (BEHIND, [1, 2])],
    # joined: no label changes what layer 1 leaves. A linear head has no gradient there, and Adam steps by its rounding.
    ids=["prefix", "prefix of joined", "prompt", "behind", "behind of joined"],
)
def test_training_is_the_same_and_reads_no_text_below_the_labels(
    tmp_path: Path, method: dict[str, Any], layers: list[int] | None, texts_through_layer_0: list[int]
) -> None:
    plain = config_of(tmp_path, method).backbone.model_dump(exclude_unset=True)
    read = {"backbone": plain | {"layers": layers}}
    configs = [config_of(tmp_path, method, keep=keep, **read) for keep in (False, True)]
    metrics = [run(config) for config in configs]
    plain, kept = (load_file(config.run_dir.adapter_final / "adapter.safetensors") for config in configs)
    for name, tensor in plain.items():
        torch.testing.assert_close(kept[name], tensor, rtol=1e-4, atol=1e-5)
    assert metrics[0]["test"]["log_loss"] == pytest.approx(metrics[1]["test"]["log_loss"], rel=1e-4)
    logs = [config.run_dir.metrics_log.read_text().splitlines() for config in configs]
    losses = [[found["loss"] for found in map(json.loads, log) if "loss" in found] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)

    again = config_of(tmp_path, method, **read)
    texts_through_layer_0.clear()
    train(again, overwrite=True)
    labels = len(read_json(again.run_dir.manifest_file)["labels"])
    if method is not BEHIND:
        assert not texts_through_layer_0, "the layer below the injection ran"
    else:  # prompts alone, never as many rows as there are texts in a batch, but for each its labels
        assert texts_through_layer_0 and all(rows % labels == 0 for rows in texts_through_layer_0)


def test_states_are_kept_text_behind_text_and_made_again_where_they_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forwards: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, LATE)
    preprocess(config)
    encode_labels(config)
    split = load_split(config.run_dir.data / "train")
    itemsize, hidden = 4, 16
    per_text = int(split.lengths.max()) * hidden * itemsize
    monkeypatch.setattr(stage, "CHUNK_BYTES", 5 * per_text)
    forwards.clear()
    encode_texts(config)
    folder, name = config.run_dir.texts, "train-tokens-from-1"
    assert not (folder / "train-00000.safetensors").exists(), "the label-aware head wants no text states"
    states = load_token_states(folder, name, split.lengths)
    assert [chunk.shape[1] for chunk in states.chunks] == [hidden] * len(states.chunks) and len(states.chunks) > 1
    assert sum(map(len, states.chunks)) == split.lengths.sum()
    batch = states.take(torch.tensor([12, 0]).numpy(), 40)
    assert batch.shape == (2, 40, hidden) and not batch[0, split.lengths[12] :].any()
    assert batch[0, : split.lengths[12]].abs().sum(dim=-1).min() > 0

    (folder / f"{name}-00001.safetensors").unlink()
    with pytest.raises(UserError, match="is not what was written"):
        train(config)
    with caplog.at_level(logging.WARNING):
        encode_texts(config)
    assert "made again by this command" in caplog.text
    train(config)
    with pytest.raises(UserError, match=r"the backbone has only layers 0 to 1"):
        encode_texts(config_of(tmp_path, {**LATE, "first_layer": 2}))


def test_methods_without_such_layers_keep_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(tmp_path, {**LATE, "first_layer": 0})
    with caplog.at_level(logging.INFO):
        encode_texts(config)
    assert "no layer reads the tokens before what lt_prefix injects" in caplog.text
    assert not config.run_dir.texts.exists()


def test_too_many_are_refused_by_their_tokens(tmp_path: Path) -> None:
    config = config_of(tmp_path, LATE, engine={"states_gib": 1e-5})
    preprocess(config)
    with pytest.raises(UserError, match=r"take .* GiB, at most 1e-05 are written: raise engine\.states_gib"):
        encode_texts(config)
    assert not config.run_dir.texts.exists()
