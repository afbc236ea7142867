"""The labels of a step's texts as one another's wrong ones, as in FastFit.

covers training/trainer, training/config, stages/training_task
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.data.batches import batch_candidates
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import backbone_of
from pipeline.engine.startup import start
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.preprocess import preprocess
from pipeline.stages.training_task import TrainingTask
from pipeline.training.trainer import Trainer
from tests.support.tiny_run import label_states_of, tiny_config

BATCH = 5


def trainer_of(config: RunConfig) -> Trainer:
    accelerator, ranks = start(config)
    parts = (config.run_dir, 0, backbone_of(config.backbone, config.data), config.data, config.labels)
    task = TrainingTask(*parts, config.method, config.train)
    return task.build_trainer(accelerator, ranks, label_states_of(config), task.splits(Ranks.alone()))


@pytest.mark.parametrize(
    "method",
    [
        {"name": "lt_prefix", "head": "label_aware", "start": "random", "init_std": 0.5},
        {"name": "prompt", "tokens": 2, "head": "label_aware"},
    ],
    ids=lambda keys: keys["name"],
)
def test_the_loss_contrasts_each_text_with_the_label_of_every_text(method: dict, tmp_path: Path) -> None:
    """By the definition: an N x N table of text i against the label of text j."""
    train = {"objective": "batch", "batch_size": BATCH, "max_steps": 4, "learning_rate": 1e-3}
    config = tiny_config(tmp_path, method=method, train=train)
    preprocess(config)
    encode_labels(config)
    trainer = trainer_of(config)
    texts, expected_readings = trainer.texts, 0
    for step in range(4):
        rows = trainer._rows(step)
        labels = texts.labels[rows]
        batch = texts.batch(rows, trainer.pad_token_id)
        with torch.no_grad():
            every = trainer.engine(**batch, candidates=torch.arange(3).expand(BATCH, 3)).double()
        table = every[:, torch.from_numpy(labels)].softmax(1)
        same = torch.from_numpy(labels[:, None] == labels[None, :])
        loss = -(table * same).sum(1).log().mean()
        assert trainer.step(step) == pytest.approx(float(loss), rel=1e-4)
        expected_readings += BATCH * (len(set(labels)) if method["name"] == "lt_prefix" else 1)
    assert trainer.readings(4) == expected_readings


def test_the_candidates_are_the_labels_of_the_batch() -> None:
    candidates, true, offsets = batch_candidates(np.array([7, 2, 7, 9, 7]))
    assert candidates.tolist() == [[2, 7, 9]] * 5 and true.tolist() == [1, 0, 1, 2, 1]
    assert np.exp(offsets) == pytest.approx([1, 3, 1])


REFUSED = [({"candidates": 4}, "train.candidates has no meaning"), ({"batch_size": 1}, "two texts or more")]


@pytest.mark.parametrize(("keys", "fault"), REFUSED)
def test_settings_that_do_not_go_with_it_are_refused(keys: dict, fault: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=fault):
        tiny_config(tmp_path, train={"objective": "batch"} | keys)


def test_pairs_of_one_text_per_step_have_wrong_labels_too(tmp_path: Path) -> None:
    """The first text of each step would get its true label, and there is no second."""
    train = {"objective": "pairs", "batch_size": 1, "max_steps": 4}
    config = tiny_config(tmp_path, method={"name": "prompt", "tokens": 2}, train=train)
    preprocess(config)
    encode_labels(config)
    trainer = trainer_of(config)
    targets = [float(trainer._candidates(trainer._rows(step), step)[1][0]) for step in range(4)]
    assert targets == [1, 0, 1, 0]
