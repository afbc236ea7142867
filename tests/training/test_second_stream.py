"""Labelled texts and texts with pseudo labels in one step: the weighted loss by its definition.

covers data/splits
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.config import UNLABELLED
from pipeline.data.pseudo_labels import PseudoLabels
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import backbone_of
from pipeline.engine.startup import start
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.encode_texts import encode_texts
from pipeline.stages.preprocess import preprocess
from pipeline.stages.single_training import Training
from pipeline.training.trainer import Trainer
from tests.support.self_trained import UNREAD, self_training_config
from tests.support.tiny_run import label_states_of

BATCH, K = 6, 3
LATE = {"name": "lt_prefix", "head": "label_aware", "shortlist": 2, "first_layer": 1}
BEHIND = {"name": "lt_prompt", "position": "after"}


def trainer_of(folder: Path, method: dict[str, Any], kind: str, **train: Any) -> Trainer:
    settings = {"max_steps": 4, "batch_size": BATCH, "learning_rate": 1e-2} | train
    config = self_training_config(folder, method=method, train=settings)
    accelerator, ranks = start(config)
    preprocess(config)
    encode_labels(config)
    encode_texts(config)
    probabilities = np.random.default_rng(0).dirichlet([1] * K, size=len(UNREAD)).astype(np.float32)
    pseudo = PseudoLabels(probabilities, kind, "confidence")
    task = Training(config, backbone_of(config.backbone, config.data), config.run_dir, pseudo).task
    splits = task.splits(Ranks.alone())
    trainer = task.build_trainer(accelerator, ranks, label_states_of(config), splits)
    assert len(trainer.texts) == len(splits["train"]) + len(UNREAD)
    for name, part in (("train", slice(0, 13)), (UNLABELLED, slice(13, None))):
        assert trainer.texts.lengths[part].tolist() == splits[name].lengths.tolist()
    return trainer


@pytest.mark.parametrize(
    ("method", "train"),
    [
        (LATE, {"keep_token_states": True}),
        (BEHIND, {"keep_token_states": True}),
        ({"name": "lt_prompt", "head": "label_aware"}, {"candidates": 2}),
        ({"name": "prompt", "tokens": 2, "head": "label_aware"}, {"objective": "batch"}),
    ],
    ids=["late prefix", "behind", "sampled", "batch"],
)
def test_a_step_has_the_weighted_mean_of_the_texts_losses(method: dict, train: dict, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, method, "soft", **train)
    targets, seen = trainer.texts.targets, set()
    assert targets is not None
    trainer.model.method.begin_tuning()
    for step in range(4):
        rows = trainer._rows(step)
        seen |= set(rows.tolist())
        candidates, _, offsets = trainer._candidates(rows, step)
        with torch.no_grad():
            batch = trainer.texts.batch(rows, trainer.pad_token_id)
            scores = trainer.engine(**batch, candidates=torch.from_numpy(candidates)).double()
        if offsets is not None:
            scores = scores + torch.from_numpy(offsets)
        losses = []
        for row, chosen, log_shares in zip(rows, candidates, scores.log_softmax(1), strict=True):
            shares = targets.shares[row, chosen] / targets.shares[row, chosen].sum()
            losses.append(-targets.weights[row] * float((torch.from_numpy(shares) * log_shares).sum()))
        assert trainer.step(step) == pytest.approx(np.mean(losses), rel=1e-4)
    assert min(seen) < 13 <= max(seen)
