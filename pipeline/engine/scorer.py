"""A trained adapter on its backbone, as a model that scores the splits of a run."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from pipeline.adapter.directory import Adapter
from pipeline.data.batches import PassSize
from pipeline.data.splits import ReadTexts, Split
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone
from pipeline.engine.models import build_model, load_frozen, load_inside, prepare_inference
from pipeline.engine.rewordings import judged
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.scoring import score
from pipeline.methods.limits import window_warning
from pipeline.methods.model import StateModel

log = logging.getLogger(__name__)


def load_scorer(accelerator: Accelerator, ranks: Ranks, known: Backbone, adapter: Adapter, stage: str) -> nn.Module:
    """The trained model on its backbone, or for methods with `from_states` without one. Collective.

    `stage`: in whose name it warns.
    """
    method = adapter.config.method
    if method.from_states:
        labels = adapter.labels
        judge = labels.judged_by(adapter.build_method(known.facts), accelerator.device)
        return StateModel(judge, labels.states, labels.mask, labels.mean).to(accelerator.device)
    backbone = load_frozen(
        accelerator, ranks, known, output_layer=method.reads_hypotheses, written=method.trains_backbone
    )
    injected = method.injected_tokens(adapter.labels.hypothesis_tokens)
    hidden = window_warning(method, backbone.facts, injected, adapter.config.data.max_length)
    if hidden and ranks.is_main:
        log.warning("%s: %s", stage, hidden)
    continuations = adapter.continuations(known.tokenizer, backbone.facts, adapter.labels.hypotheses)
    built = adapter.build_method(backbone.facts)
    whole = build_model(accelerator, known.config, backbone, built, adapter.labels, continuations)
    load_inside(whole, adapter.method_state)
    return prepare_inference(accelerator, whole, known.config.dtype)


def scores_of_split(
    model: nn.Module, split: Split, adapter: Adapter, settings: EvaluateConfig, what: str, how: Mapping[str, Any]
) -> NDArray[np.float32]:
    """Scores [N, K] of a split, under the hypotheses that `model` judges by now. Collective.

    `what`: labels the progress; `how`: arguments of `score` that are the same for all splits.
    """
    method, count = adapter.config.method, len(adapter.labels.names)
    return score(
        model,
        ReadTexts(split.states) if method.from_states and split.states else split,
        count,
        PassSize(settings.batch_size, settings.tokens_per_batch),
        readings=method.joint_readings(count),
        hypotheses=judged(model).most_hypotheses,
        description=what,
        **how,
    )
