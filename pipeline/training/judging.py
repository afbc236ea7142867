"""Fits the judge of label tuning, before the first step, to texts as they are read with the untrained injections."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.adapter.label_states import LabelStates
from pipeline.data.batches import Ints, PassSize, sampled_candidates
from pipeline.data.splits import Split
from pipeline.distributed.ranks import Ranks
from pipeline.evaluation.scoring import read_with_labels, score
from pipeline.methods.conditional_logit import JudgedTexts, choose_judge
from pipeline.methods.heads import FittedJudge
from pipeline.methods.hypothesis_mean import labels_of
from pipeline.methods.label_tuning import JudgedLabelTuning
from pipeline.methods.logistic import quality
from pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)

MOST_TEXTS = 2_000
"""Texts of a split that are read for the judge, which has only M numbers to find."""
MOST_LABELS = 8
"""Labels that a training text is read with: the true one, and others drawn at random. Those that the probe takes for
true would be chosen by its errors, which on the texts that it was fitted to are others than elsewhere."""


@dataclass(frozen=True)
class Judging:
    """What a judge is fitted to: texts of training, and of validation, which choose its penalty."""

    trainer: Trainer
    labels: LabelStates
    validation: Split | None
    ranks: Ranks
    size: PassSize
    shortlist: int
    """Labels that a text is read with when it is scored."""

    @property
    def readings(self) -> int:
        """Texts that the backbone reads for the judge, each as often as it is read."""
        validation = 0 if self.validation is None else len(self.validation)
        train = len(self.trainer.texts.true_labels)
        rows = judge_readings(train, validation, self.trainer.label_count, self.shortlist)
        return rows * self.trainer.model.most_hypotheses

    def fit(self, before_batch: Callable[[], None]) -> float:
        """Fits it, and lets tuning begin where it does better than the probe alone; gives the seconds. Collective.

        `before_batch` is called before each forward of all ranks, and may raise to end the work.
        """
        started, trainer, method = time.perf_counter(), self.trainer, self.trainer.model.method
        assert isinstance(method, JudgedLabelTuning)
        rows, split = self._train_rows, trainer.texts
        candidates, _ = sampled_candidates(
            rows, split.labels[rows], trainer.seed, 0, trainer.label_count, min(trainer.label_count, MOST_LABELS)
        )
        train = self._read(split, rows, torch.from_numpy(candidates), before_batch)
        validation, alone = self._of_validation(before_batch)
        found = self.ranks.on_main(lambda: choose_judge(train, trainer.label_count, validation, alone))
        labels = self.labels
        of = torch.arange(len(labels.mask)) if labels.weights is None else labels_of(labels.weights)
        method.judge.load_state_dict(FittedJudge.state_of(found, labels.states, labels.mask, of))
        is_better = found.is_better and self._is_better_as_scored(method, alone, before_batch)
        if is_better:
            method.begin_tuning()
        log.info("train: the judge of texts read with labels is fitted, %s", _said(is_better, validation))
        return time.perf_counter() - started

    def _is_better_as_scored(
        self, method: JudgedLabelTuning, alone: Tensor | None, before_batch: Callable[[], None]
    ) -> bool:
        """Whether the judge beats the probe (scores `alone` [N, K]) also where labels have several hypotheses.

        It was chosen on texts read with all hypotheses of the nearest labels. Scoring takes the nearest hypotheses.
        """
        split, rows = self.validation, self._validation_rows
        if split is None or alone is None or self.trainer.model.most_hypotheses == 1:
            return True
        count = self.trainer.label_count
        method.is_tuned.fill_(1)
        scores = self._scores(split, self.shortlist if self.shortlist < count else None, before_batch)
        method.is_tuned.fill_(0)
        labels = torch.from_numpy(split.labels[rows])
        return quality(torch.from_numpy(scores[rows]).double(), labels) > quality(alone.double(), labels)

    def _of_validation(self, before_batch: Callable[[], None]) -> tuple[JudgedTexts | None, Tensor | None]:
        """Validation texts with the labels that are likeliest by the probe, and its scores of them [N, K]."""
        split, rows, trainer = self.validation, self._validation_rows, self.trainer
        if split is None:
            return None, None
        alone = torch.from_numpy(self._scores(split, 1, before_batch)[rows])
        nearest = alone.topk(min(trainer.label_count, self.shortlist), dim=1).indices
        return self._read(split, rows, nearest, before_batch), alone

    def _scores(self, split: Split, readings: int | None, before_batch: Callable[[], None]) -> NDArray[np.float32]:
        """[N, K], as validation in training scores them; with one reading, by the probe."""
        trainer = self.trainer
        return score(
            trainer.engine,
            split,
            trainer.label_count,
            self.size,
            ranks=self.ranks,
            pad_token_id=trainer.pad_token_id,
            device=trainer.accelerator.device,
            readings=readings,
            hypotheses=trainer.model.most_hypotheses,
            before_batch=before_batch,
        )

    def _read(self, split: Split, rows: Ints, candidates: Tensor, before_batch: Callable[[], None]) -> JudgedTexts:
        trainer = self.trainer
        states = read_with_labels(
            trainer.engine,
            split,
            rows,
            candidates,
            self.size,
            ranks=self.ranks,
            pad_token_id=trainer.pad_token_id,
            device=trainer.accelerator.device,
            before_batch=before_batch,
        )
        return JudgedTexts(states, candidates, torch.from_numpy(split.labels[rows]))

    @cached_property
    def _train_rows(self) -> Ints:
        return _drawn(len(self.trainer.texts.true_labels), self.trainer.seed)

    @cached_property
    def _validation_rows(self) -> Ints:
        return _drawn(0 if self.validation is None else len(self.validation), self.trainer.seed)


def judge_readings(train: int, validation: int, label_count: int, shortlist: int) -> int:
    """How many readings of a text with a label a judge needs, of so many texts; `shortlist`: as `Judging.shortlist`."""
    return min(train, MOST_TEXTS) * min(label_count, MOST_LABELS) + min(validation, MOST_TEXTS) * min(
        label_count, shortlist
    )


def _drawn(count: int, seed: int) -> Ints:
    """Rows of as many texts as are read, in order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:MOST_TEXTS])


def _said(is_better: bool, validation: JudgedTexts | None) -> str:
    if validation is None:
        return "and tuning begins with it"
    return "and better than the probe alone" if is_better else "but no better than the probe: tuning has to make it so"
