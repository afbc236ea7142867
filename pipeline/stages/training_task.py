"""What a training is given: data, label states, stored states of texts, and the trainer that is made of them."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.adapter.label_states import LabelStates
from pipeline.backbone.facts import BackboneFacts
from pipeline.core.checksums import check_sums
from pipeline.core.run_dir import RunDir
from pipeline.data.batches import PassSize
from pipeline.data.config import UNLABELLED, DataConfig, LabelsConfig
from pipeline.data.pseudo_labels import PseudoLabels, joined
from pipeline.data.splits import Split, load_split
from pipeline.distributed.ranks import Ranks
from pipeline.distributed.zero import element_count
from pipeline.engine.backbone import Backbone
from pipeline.engine.kept_states import kept_form, readings_of, with_states
from pipeline.engine.models import build_model, load_frozen, vocabulary_of
from pipeline.engine.provenance import current_data
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.metrics import split_metrics
from pipeline.evaluation.scoring import scores_of_states
from pipeline.methods import AnyMethodConfig
from pipeline.methods.base import Readings
from pipeline.methods.limits import check_positions, check_shortlist, check_size, check_verdict, window_warning
from pipeline.stages.encode_labels import current_label_states
from pipeline.training.adapter_writer import FittedMethod
from pipeline.training.config import TrainConfig
from pipeline.training.judging import Judging
from pipeline.training.provenance import training_fingerprint
from pipeline.training.run_state import RunState
from pipeline.training.start import start_values
from pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingTask:
    """What is trained, on what, and where."""

    run: RunDir
    seed: int
    backbone: Backbone
    data: DataConfig
    labels: LabelsConfig
    method: AnyMethodConfig
    settings: TrainConfig
    pseudo: PseudoLabels | None = None
    """Labels of the unlabelled texts, which are then trained on too."""

    def given(self, ranks: Ranks) -> tuple[LabelStates, dict[str, str]]:
        """The label states, and the fingerprint of the training that follows from them and the data. Collective.

        Raises UserError where an earlier stage has not run, or was given something else.
        """

        def manifest_of_data() -> dict[str, Any]:
            check_sums(self.run.data)
            return current_data(self.run, self.data, self.labels, self.seed, self.backbone)

        manifest = ranks.on_main(manifest_of_data)
        names, method = manifest["labels"], self.method
        states = current_label_states(self.run, self.labels, self.data, names, self.backbone, ranks, method)
        check_verdict(self.method, states.fingerprint)
        config = self.backbone.config
        return states, training_fingerprint(
            self.method, self.settings, config, self.seed, manifest, states, self.pseudo
        )

    def fitted(self, ranks: Ranks, labels: LabelStates) -> FittedMethod:
        """A method that takes no steps. Collective."""
        splits = self.splits(ranks)
        counts = np.bincount(splits["train"].labels, minlength=len(labels.names))
        if not self.method.from_states:
            return FittedMethod(self.method.untrained_state(counts.tolist()))
        readings = self._readings(splits, labels)

        def fit() -> FittedMethod:
            started = time.perf_counter()
            state = self.method.fitted_state(readings)
            found = FittedMethod(state, readings=len(readings.train.labels), seconds=time.perf_counter() - started)
            if readings.validation is None:
                return found
            method = self.method.build(self.backbone.facts, labels.hypothesis_tokens, len(labels.names))
            method.load_state_dict(state)
            judge, states = labels.judged_by(method, torch.device("cpu")), readings.validation.states
            scores = scores_of_states(judge, states, readings.label_states, labels.mask, readings.mean)
            truth, majority = readings.validation.labels, int(counts.argmax())
            return replace(found, figures=split_metrics(scores, truth, labels.names, majority, "validation split"))

        return ranks.on_main(fit)

    def splits(self, ranks: Ranks) -> dict[str, Split]:
        """Training and validation texts by name, and those of `pseudo`, with the stored states that training wants.

        Collective.
        Raises UserError where encode-texts has not run, or was given something else.
        """
        names = {"train", "validation"} & set(self.data.splits)
        if self.pseudo is not None:
            names.add(UNLABELLED)
        found: dict[str, Split] = {name: load_split(self.run.data / name) for name in sorted(names)}
        form, pooled = kept_form(self.method, self.settings.keep_token_states), self.method.wants_states
        return with_states(self.run, self.backbone, ranks, found, form, pooled=pooled)

    def build_trainer(
        self,
        accelerator: Accelerator,
        ranks: Ranks,
        labels: LabelStates,
        splits: Mapping[str, Split],
        state: RunState | None = None,
    ) -> Trainer:
        """Loads the backbone and puts the method on it: untrained, or as `state` left it. Collective."""
        check_shortlist(self.method, len(labels.names), self.settings.objective)
        start: dict[str, Tensor] = {}
        if state is None and self.method.wants_states:
            log.info("train: fitting the probe that training starts from")
            start = ranks.on_main(lambda: self.method.fitted_state(self._readings(splits, labels)))
        backbone = load_frozen(accelerator, ranks, self.backbone, written=self.method.trains_backbone)
        check_positions(self.method, backbone.facts, labels.hypothesis_tokens, self.data.max_length)
        self._warn_of_window(ranks, backbone.facts, labels)
        # The initial weights depend on the seed alone, not on what loading the backbone drew.
        torch.manual_seed(self.seed)
        sizes = (backbone.facts, labels.hypothesis_tokens, len(labels.names))
        check_size(self.method, *sizes)
        method = self.method.build(*sizes)
        method.initialize(vocabulary_of(backbone, self.backbone.tokenizer, labels), labels.names)
        if state is None and self.settings.start_from:
            start |= start_values(self.settings.start_from, self.method, method, self.backbone, ranks)
        method.load_state_dict(method.state_dict() | start)
        assert sum(parameter.numel() for parameter in method.parameters()) == self.method.trainable_count(*sizes)
        model = build_model(accelerator, self.backbone.config, backbone, method, labels)
        count = sum(map(element_count, model.trainable().values()))
        log.info("train: %s, %s trainable parameters, %d rank(s)", self.method.name, f"{count:,}", ranks.size)
        return Trainer(
            accelerator,
            self.settings,
            model,
            self.as_read(self._texts(splits)),
            method=self.method,
            seed=self.seed,
            pad_token_id=self.backbone.pad_token_id,
            state=state.optimizer if state else None,
        )

    def _texts(self, splits: Mapping[str, Split]) -> Split:
        """What is trained on."""
        return splits["train"] if self.pseudo is None else joined(splits["train"], splits[UNLABELLED], self.pseudo)

    def _readings(self, splits: Mapping[str, Split], labels: LabelStates) -> Readings:
        """What a method is fitted to before any step; the head of label tuning too, which no step changes."""
        return readings_of({**splits, "train": self._texts(splits)}, labels)

    def _warn_of_window(self, ranks: Ranks, facts: BackboneFacts, labels: LabelStates) -> None:
        injected = self.method.injected_tokens(labels.hypothesis_tokens)
        hidden = window_warning(self.method, facts, injected, self.data.max_length)
        if hidden and ranks.is_main:
            log.warning("train: %s", hidden)

    def as_read(self, split: Split) -> Split:
        """Without the states, where the method reads no text alone."""
        return split if self.method.reads_alone else replace(split, states=None)

    def judging(
        self, trainer: Trainer, ranks: Ranks, labels: LabelStates, validation: Split | None, evaluation: EvaluateConfig
    ) -> Judging | None:
        """What the method's judge is fitted to; None where it has none."""
        if not self.method.wants_judge:
            return None
        count = len(labels.names)
        size = PassSize(evaluation.batch_size, evaluation.tokens_per_batch)
        return Judging(trainer, labels, validation, ranks, size, self.method.joint_readings(count) or count)
