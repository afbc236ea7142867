"""Every layer's states of drawn texts: each text's own, in the order of the texts, whatever the batches.

covers engine/layer_states
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.backbone.every_layer import PARTS, EveryLayer
from pipeline.core.errors import UserError
from pipeline.data.splits import load_split
from pipeline.engine import layer_states
from pipeline.engine.backbone import backbone_of
from pipeline.engine.layer_states import LayerReader, LayerStates, bytes_of_states
from pipeline.engine.models import load_frozen, prepare_inference, release
from pipeline.engine.startup import start
from pipeline.stages.preprocess import preprocess
from tests.support.tiny import tiny_model
from tests.support.tiny_run import tiny_config

ROWS = np.array([11, 0, 5, 7, 2])


def read(folder: Path, batch_size: int) -> tuple[LayerStates, torch.Tensor]:
    """Those of some training texts, and all of them as one tensor [L, N, 5H]."""
    config = tiny_config(folder)
    preprocess(config)
    accelerator, ranks = start(config)
    backbone = backbone_of(config.backbone, config.data)
    model = prepare_inference(accelerator, EveryLayer(load_frozen(accelerator, ranks, backbone)), torch.float32)
    states = LayerReader(accelerator, ranks, model, backbone, batch_size).read(
        load_split(config.run_dir.data / "train"), ROWS, "train"
    )
    release(accelerator, model)
    assert bytes_of_states(backbone, len(ROWS)) == states.share.nbytes
    whole = [torch.cat([states.of(layers, how, ranks) for how in PARTS], dim=-1) for layers in (1, 2)]
    return states, torch.stack(whole)


def test_they_are_each_texts_own(tmp_path: Path) -> None:
    _, found = read(tmp_path, batch_size=2)
    split, network = load_split(tmp_path / "run" / "data" / "train"), tiny_model("llama_gqa")
    layers = network.layers
    for count in (1, 2):
        network.layers = layers[:count]
        for place, row in enumerate(ROWS):
            with torch.no_grad():
                [hidden] = network(torch.tensor([split.rows[int(row)]["input_ids"]])).last_hidden_state
            mean, deviation = hidden.mean(0), hidden.std(0, correction=0)
            expected = torch.cat([mean, hidden[-1], hidden[0], deviation, mean])
            torch.testing.assert_close(found[count - 1, place], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read(tmp_path, batch_size=16)[1], found, rtol=1e-4, atol=1e-5)


def test_states_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_states.LayerReader, "_states", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(UserError, match=r"states of the texts are not finite: .* set backbone\.dtype=float32"):
        read(tmp_path, batch_size=2)
