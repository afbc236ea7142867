"""One training, from its start or its newest checkpoint to its end."""

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipeline.adapter.label_states import LabelStates
from pipeline.config import RunConfig
from pipeline.core.artefact import Artefact
from pipeline.core.checksums import check_sums
from pipeline.core.files import read_json, remove
from pipeline.core.run_dir import RunDir
from pipeline.core.settings import flat
from pipeline.data.pseudo_labels import PseudoLabels
from pipeline.engine.backbone import Backbone
from pipeline.engine.config import LoggingConfig
from pipeline.engine.memory_limit import within_memory
from pipeline.engine.models import release
from pipeline.engine.startup import start
from pipeline.methods import AnyMethodConfig
from pipeline.stages.training_task import TrainingTask
from pipeline.training.adapter_writer import AdapterWriter
from pipeline.training.loop import TrainingRun
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.preemption import Preemption
from pipeline.training.provenance import check_training, training_absent
from pipeline.training.resume import resumed_settings, state_to_resume
from pipeline.training.run_state import LogPosition, RunState
from pipeline.training.step_trace import traced
from pipeline.training.trackers import Trackers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """One training: a config, and the run directory that it is for."""

    config: RunConfig
    backbone: Backbone
    run: RunDir
    pseudo: PseudoLabels | None = None
    """Labels of the unlabelled texts, which are then trained on too."""

    @property
    def task(self) -> TrainingTask:
        """What is trained, without how it goes."""
        run, config = self.run, self.config
        sections = (config.data, config.labels, config.method, config.train)
        return TrainingTask(run, config.run.seed, self.backbone, *sections, self.pseudo)

    def to_end(self, preemption: Preemption, *, overwrite: bool = False) -> dict[str, Any]:
        """Writes adapter/ and adapter-final/, or finds them current; gives a summary. Collective.

        Raises what `pipeline.stages.train` does.
        """
        config, run, task = self.config, self.run, self.task
        accelerator, ranks = start(config)
        labels, fingerprint = task.given(ranks)
        if not overwrite:
            summary = ranks.on_main(lambda: finished_summary(run, config.method, fingerprint))
            if summary is not None:
                return summary
        begin = partial(begin_training, run, config.to_kept_yaml(), overwrite)
        adapters = AdapterWriter(run, config.adapter_config(), labels.of_adapter(), fingerprint)
        if not config.method.takes_steps:
            fitted = task.fitted(ranks, labels)
            ranks.on_main(begin)
            summary = ranks.on_main(lambda: adapters.write_fitted(fitted))
            preemption.check(accelerator, ranks, run, "when the fit was over")
            return summary
        state = None if overwrite else state_to_resume(ranks, config.train.resume, run)
        if state is None:
            return self._steps(labels, adapters, begin, None, preemption)
        absent = training_absent(config.method)
        settings = resumed_settings(config.train, state, fingerprint, absent, ranks.size)
        resumed = replace(self, config=config.model_copy(update={"train": settings}))
        return resumed._steps(labels, adapters, begin, state, preemption)

    def _steps(
        self,
        labels: LabelStates,
        adapters: AdapterWriter,
        begin: Callable[[], None],
        state: RunState | None,
        preemption: Preemption,
    ) -> dict[str, Any]:
        """Trains by steps, from `state` or the start. `begin` is called when nothing can be refused any more."""
        config, run = self.config, self.run
        accelerator, ranks = start(config)
        settings = ranks.on_every(lambda: within_memory(run, config.train, "train"))
        evaluation = ranks.on_every(lambda: within_memory(run, config.evaluate, "evaluate"))
        task = replace(self.task, settings=settings)
        splits = task.splits(ranks)
        trainer = task.build_trainer(accelerator, ranks, labels, splits, state)
        try:
            ranks.on_main(begin)
            values = config.model_dump(mode="json")
            metrics_log = ranks.on_every(lambda: _metrics_log(run, config.logging, values, state, ranks.is_main))
            validation = splits.get("validation")
            loop = TrainingRun(
                trainer,
                ranks,
                adapters,
                metrics_log,
                validation=None if validation is None else task.as_read(validation),
                evaluation=evaluation,
                judging=task.judging(trainer, ranks, labels, validation, evaluation),
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


def begin_training(run: RunDir, config: str, overwrite: bool) -> None:
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
