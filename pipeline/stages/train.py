"""Stage 3: trains the tuning method on the frozen backbone."""

import logging
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.adapter.label_states import LabelStates
from pipeline.backbone.facts import BackboneFacts
from pipeline.config import RunConfig
from pipeline.core.artefact import Artefact
from pipeline.core.checksums import check_sums
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, remove
from pipeline.core.run_dir import RunDir
from pipeline.core.settings import flat
from pipeline.data.batches import PassSize
from pipeline.data.config import DataConfig, LabelsConfig
from pipeline.data.splits import Split, load_split
from pipeline.data.tokenizer import pad_token_id
from pipeline.distributed.ranks import Ranks
from pipeline.distributed.zero import element_count
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.engine.config import LoggingConfig
from pipeline.engine.kept_states import kept_form, readings_of, with_states
from pipeline.engine.memory_limit import in_smaller_passes, within_memory
from pipeline.engine.models import build_model, load_frozen, release, vocabulary_of
from pipeline.engine.provenance import current_data
from pipeline.engine.startup import start
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.metrics import split_metrics
from pipeline.evaluation.scoring import scores_of_states
from pipeline.methods import AnyMethodConfig
from pipeline.methods.limits import check_positions, check_size, check_verdict, window_warning
from pipeline.stages.encode_labels import current_label_states
from pipeline.training.adapter_writer import AdapterWriter, Fit
from pipeline.training.config import TrainConfig
from pipeline.training.judging import Judging
from pipeline.training.loop import TrainingRun
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.preemption import Preemption
from pipeline.training.provenance import check_training, training_absent, training_fingerprint
from pipeline.training.resume import resumed_settings, state_to_resume
from pipeline.training.run_state import LogPosition, RunState
from pipeline.training.start import start_values
from pipeline.training.step_trace import traced
from pipeline.training.trackers import Trackers
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
        return states, training_fingerprint(self.method, self.settings, config, self.seed, manifest, states)

    def fitted(self, ranks: Ranks, labels: LabelStates) -> Fit:
        """A method that takes no steps. Collective."""
        splits = self.splits(ranks)
        counts = np.bincount(splits["train"].labels, minlength=len(labels.names))
        if not self.method.from_states:
            return Fit(self.method.untrained_state(counts.tolist()))
        readings = readings_of(splits, labels)

        def fit() -> Fit:
            started = time.perf_counter()
            state = self.method.fitted_state(readings)
            found = Fit(state, readings=len(readings.train.labels), seconds=time.perf_counter() - started)
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
        """Training and validation texts by name, with the stored states that training wants of them. Collective.

        Raises UserError where encode-texts has not run, or was given something else.
        """
        names = {"train", "validation"} & set(self.data.splits)
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
        start: dict[str, Tensor] = {}
        if state is None and self.method.wants_states:
            log.info("train: fitting the probe that training starts from")
            start = ranks.on_main(lambda: self.method.fitted_state(readings_of(splits, labels)))
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
            self.as_read(splits["train"]),
            method=self.method,
            seed=self.seed,
            pad_token_id=pad_token_id(self.backbone.tokenizer, backbone.facts.vocab_size),
            state=state.optimizer if state else None,
        )

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


@in_smaller_passes
def train(config: RunConfig, backbone: Backbone | None = None, *, overwrite: bool = False) -> dict[str, Any]:
    """Writes adapter/ (best on validation) and adapter-final/ (last step), or finds them current; gives a summary.

    `backbone`: the command's; None: one of its own.
    An interrupted run goes on from its newest whole checkpoint; with `overwrite` it starts afresh, as a finished one
    does, over what is there. config.yaml is written when training begins. Every rank must call it. Raises UserError
    where an earlier stage has not run or was given something else, where label tokens and text exceed the backbone's
    positions, where a checkpoint or a finished run does not fit the config, and where the loss is not finite; Preempted
    after a signal and a checkpoint. Where memory is too short, the same steps are taken in smaller passes.
    """
    accelerator, ranks = start(config)
    if overwrite and config.train.resume not in ("auto", "never"):
        raise UserError(
            "--overwrite trains afresh, but train.resume names a checkpoint to go on from: give one of them"
        )
    backbone, run, seed = backbone or backbone_of(config.backbone, config.data), config.run_dir, config.run.seed
    task = TrainingTask(run, seed, backbone, config.data, config.labels, config.method, config.train)
    with Preemption(config.train.preemption_signals) as preemption:
        labels, fingerprint = task.given(ranks)
        if not overwrite:
            summary = ranks.on_main(lambda: finished_summary(run, config.method, fingerprint))
            if summary is not None:
                return summary
        begin = partial(_begin, run, config.to_kept_yaml(), overwrite)
        adapters = AdapterWriter(run, config.adapter_config(), labels.of_adapter(), fingerprint)
        if not config.method.takes_steps:
            fitted = task.fitted(ranks, labels)
            ranks.on_main(begin)
            return ranks.on_main(lambda: adapters.write_fitted(fitted))
        state = None if overwrite else state_to_resume(ranks, config.train.resume, run)
        if state is not None:
            absent = training_absent(config.method)
            settings = resumed_settings(config.train, state, fingerprint, absent, ranks.size)
            config = config.model_copy(update={"train": settings})
            accelerator, ranks = start(config)
            task = replace(task, settings=settings)
        settings = ranks.on_every(lambda: within_memory(run, config.train, "train"))
        evaluation = ranks.on_every(lambda: within_memory(run, config.evaluate, "evaluate"))
        task = replace(task, settings=settings)
        splits = task.splits(ranks)
        trainer = task.build_trainer(accelerator, ranks, labels, splits, state)
        try:
            ranks.on_main(begin)
            values = config.model_dump(mode="json")
            metrics_log = ranks.on_every(lambda: _metrics_log(run, config.logging, values, state, ranks.is_main))
            validation = splits.get("validation")
            judging = task.judging(trainer, ranks, labels, validation, evaluation)
            loop = TrainingRun(
                trainer,
                ranks,
                adapters,
                metrics_log,
                validation=None if validation is None else task.as_read(validation),
                evaluation=evaluation,
                judging=judging,
                state=state,
            )
            traces = traced(trainer, run.trace_file, config.logging.trace_steps if ranks.is_main else None)
            with traces, loop.writer, closing(metrics_log):
                loop.to_end(preemption)
                return loop.finish()
        finally:
            release(accelerator, trainer.model)


def finished_summary(run: RunDir, method: AnyMethodConfig, fingerprint: dict[str, str]) -> dict[str, Any] | None:
    """The summary of a finished run; None where there is none, or where it is damaged and must be written again.

    Raises UserError, naming what changed, where it was trained from something else: what is finished is kept.
    """
    if not run.is_finished:
        return None

    def read() -> dict[str, Any]:
        check_sums(run.adapter)
        return dict(read_json(run.summary_file))

    summary = Artefact(run.adapter_final, "train").found(read)
    if summary is None:
        remove(run.evaluation)  # it brings the metrics into the model card
        return None
    check_training(run, method, fingerprint)
    log.info("train: %s is current", run.adapter)
    return summary


def _begin(run: RunDir, config: str, overwrite: bool) -> None:
    """Makes room, as late as can be: until here every fault leaves the earlier run as it was. Rank 0 calls it."""
    if overwrite:
        run.remove_training()
    run.write_config(config)


def _metrics_log(
    run: RunDir, settings: LoggingConfig, config: dict[str, Any], state: RunState | None, is_main: bool
) -> MetricsLog:
    """Goes on where `state` left it. Rank 0 alone writes."""
    step, position = (state.step, state.metrics_log) if state else (0, LogPosition())
    trackers = Trackers(settings, run, flat(config), step) if is_main else None
    return MetricsLog(run.metrics_log, trackers, step, position)
