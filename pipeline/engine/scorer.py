"""A trained adapter on its backbone, which scores the splits of a run."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from pipeline.adapter.directory import Adapter
from pipeline.data.batches import PassSize
from pipeline.data.splits import ReadTexts, Split
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import Backbone
from pipeline.engine.models import release, trained_model
from pipeline.engine.rewordings import inner_model
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.scoring import score
from pipeline.methods.limits import window_warning
from pipeline.methods.model import StateModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scorer:
    """A model, and how it scores."""

    model: nn.Module
    adapter: Adapter
    settings: EvaluateConfig
    ranks: Ranks
    pad_token_id: int
    device: torch.device

    def scores(self, split: Split, what: str, before_batch: Callable[[], None] | None = None) -> NDArray[np.float32]:
        """Scores [N, K] of a split, under the hypotheses that the model judges by now. Collective.

        `what`: labels the progress; `before_batch`: as for `score`.
        """
        method, count = self.adapter.config.method, len(self.adapter.labels.names)
        return score(
            self.model,
            ReadTexts(split.states) if method.from_states and split.states else split,
            count,
            PassSize(self.settings.batch_size, self.settings.tokens_per_batch),
            ranks=self.ranks,
            pad_token_id=self.pad_token_id,
            device=self.device,
            readings=method.joint_readings(count),
            hypotheses=inner_model(self.model).most_hypotheses,
            description=what,
            before_batch=before_batch,
        )


@contextmanager
def loaded_scorer(
    accelerator: Accelerator, ranks: Ranks, known: Backbone, adapter: Adapter, settings: EvaluateConfig, stage: str
) -> Iterator[Scorer]:
    """The scorer of an adapter, whose memory is given back at the end. Collective.

    `stage`: in whose name it warns.
    """
    model = _load(accelerator, ranks, known, adapter, stage)
    try:
        yield Scorer(model, adapter, settings, ranks, known.pad_token_id, accelerator.device)
    finally:
        release(accelerator, model)


def _load(accelerator: Accelerator, ranks: Ranks, known: Backbone, adapter: Adapter, stage: str) -> nn.Module:
    """The trained model on its backbone, or for methods with `from_states` without one."""
    method, labels = adapter.config.method, adapter.labels
    if method.from_states:
        judge = labels.judged_by(adapter.build_method(known.facts), accelerator.device)
        return StateModel(judge, labels.states, labels.mask, labels.mean).to(accelerator.device)
    injected = method.injected_tokens(labels.hypothesis_tokens)
    hidden = window_warning(method, known.facts, injected, adapter.config.data.max_length)
    if hidden and ranks.is_main:
        log.warning("%s: %s", stage, hidden)
    return trained_model(accelerator, ranks, known, adapter)
