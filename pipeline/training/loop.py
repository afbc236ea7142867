"""The run loop of training: steps, metrics, evaluations, checkpoints, early stopping, and how it all ends."""

import logging
import math
import time
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError

from pipeline.core.errors import DivergedError, Preempted, UserError
from pipeline.core.files import write_json
from pipeline.data.batches import PassSize
from pipeline.data.splits import Split
from pipeline.distributed.ranks import Ranks
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.metrics import split_metrics
from pipeline.evaluation.scoring import score
from pipeline.training.adapter_writer import AdapterWriter
from pipeline.training.checkpoint_writer import CheckpointWriter
from pipeline.training.judging import Judging
from pipeline.training.metrics_log import MetricsLog
from pipeline.training.peak_memory import peak_memory
from pipeline.training.preemption import Preemption, leave_sign
from pipeline.training.progress import Progress
from pipeline.training.run_state import Best, RunState
from pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


class TrainingRun:
    """The loop around a trainer: metrics, evaluations, checkpoints, early stopping. The same on every rank."""

    def __init__(
        self,
        trainer: Trainer,
        ranks: Ranks,
        adapters: AdapterWriter,
        metrics_log: MetricsLog,
        *,
        validation: Split | None,
        evaluation: EvaluateConfig,
        judging: Judging | None = None,
        state: RunState | None = None,
    ) -> None:
        """`evaluation`: how validation texts are scored; `judging`: what a judge is fitted to, if the method has one;
        `state`: what to go on from, None at the beginning."""
        self.trainer, self.settings, self.ranks = trainer, trainer.settings, ranks
        self.adapters, self.run_dir, self.names = adapters, adapters.run_dir, adapters.labels.names
        self.validation, self.evaluation, self.judging = validation, evaluation, judging
        self.step = state.step if state else 0
        self.step_saved = self.step_logged = self.step
        self.best = state.best if state else Best()
        self.evaluation_due = state is not None and state.evaluation_due
        self.metrics_log = metrics_log
        stop, keep = self.settings.on_write_error == "stop", self.settings.keep_checkpoints
        self.writer = CheckpointWriter(self.run_dir.checkpoints, keep, stop_on_error=stop)
        self.clock = time.perf_counter()
        self.progress = Progress(self.step, trainer.total_steps, trainer.global_batch, shown=ranks.is_main)

    def to_end(self, preemption: Preemption) -> None:
        """Trains until the last step, or until patience is over. Raises Preempted after a signal to stop."""
        settings = self.settings
        starts_fitted = self.adapters.config.method.wants_states and self.step == 0
        if self.judging is not None and self.step == 0:
            seconds = self.judging.fit(lambda: self._stop_if_signalled(preemption))
            self.metrics_log.write(0, {"seconds": seconds})
            self.clock = time.perf_counter()
        if self.evaluation_due or (starts_fitted and self.validation is not None):
            self._evaluate(preemption)  # the start too, where it is fitted: tuning has to do better
        while not self._is_over():
            self._stop_if_signalled(preemption)
            loss = self.trainer.step(self.step)
            self.step += 1
            if not math.isfinite(loss):
                raise DivergedError(f"the loss is {loss} at step {self.step}: lower train.learning_rate")
            self.progress.update(self.step, loss)
            evaluate = self.validation is not None and self._is_due(settings.eval_every)
            # Before an evaluation too, so that its place in time is known.
            if self._is_due(settings.log_every) or evaluate:
                self._log_step(loss)
            if evaluate:
                self._evaluate(preemption)
            if self._is_due(settings.save_every):
                self._save()
        self.progress.close()

    def finish(self) -> dict[str, Any]:
        """Writes adapter-final/, and adapter/ from the parameters that did best on validation, or from the last."""
        state = self.trainer.trained_state()
        stored = len(self.trainer.texts) if self.adapters.config.method.wants_states else 0
        judged = self.judging.readings if self.judging is not None else 0
        summary = self.adapters.summary(
            self.step,
            self.best.step if self.best.parameters else self.step,
            self.best.figures,
            converged=self._is_out_of_patience() or self.trainer.total_steps == 0,
            readings=stored + judged + self.trainer.readings(self.step),
        )

        def write() -> None:
            self.writer.wait()
            self.adapters.write_best(self.best.parameters or state, self.best.figures)
            write_json(self.run_dir.cost_file, {**peak_memory(), "ranks": self.ranks.size})
            self.adapters.write_final(state, summary)

        self.ranks.on_main(write)
        self.metrics_log.close()
        return summary

    def _is_over(self) -> bool:
        if self._is_out_of_patience():
            since, metric = self.best.evaluations_since, self.settings.best_metric
            if self.best.is_perfect(metric):
                log.info("train: no %s on validation can be better, stopped", metric)
            else:
                log.info("train: %d evaluations without a better %s, stopped", since, metric)
            return True
        return self.step >= self.trainer.total_steps

    def _is_out_of_patience(self) -> bool:
        """Has it converged: have so many evaluations in a row brought nothing better, or can none?"""
        patience = self.settings.early_stopping_patience
        if patience is None:
            return False
        return self.best.evaluations_since >= patience or self.best.is_perfect(self.settings.best_metric)

    def _stop_if_signalled(self, preemption: Preemption) -> None:
        """Every rank must call this at the same point of the loop."""
        if signal := preemption.requested(self.trainer.accelerator):
            self._stop(signal)

    def _stop(self, signal: str) -> NoReturn:
        if self.step > self.step_saved:
            self._save()
        self.ranks.on_main(self.writer.wait)
        self.progress.close()
        self.metrics_log.close()
        self.ranks.on_main(lambda: leave_sign(self.run_dir, {"step": self.step, "signal": signal}))
        raise Preempted(f"train: {signal}: stopped after step {self.step}; the same command goes on from there")

    def _save(self) -> None:
        """Lets a checkpoint be written. Raises UserError on every rank where the one before could not, by option."""
        state = RunState(
            step=self.step,
            optimizer=self.trainer.optimizer_state(),
            best=replace(self.best),
            global_batch=self.trainer.global_batch,
            metrics_log=self.metrics_log.position(),
            evaluation_due=self.evaluation_due,
            fingerprint=self.adapters.fingerprint,
        )
        self.ranks.on_main(lambda: self.writer.submit(state, self.metrics_log.sync))
        self.step_saved = self.step

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.trainer.total_steps

    def _log_step(self, loss: float) -> None:
        seconds = time.perf_counter() - self.clock
        speed = (self.step - self.step_logged) * self.trainer.global_batch / seconds
        metrics = {
            "loss": loss,
            "learning_rate": self.trainer.learning_rate,
            "gradient_norm": self.trainer.gradient_norm(),
            "examples_per_second": speed,
            "seconds": seconds,
        }
        self.metrics_log.write(self.step, metrics)
        self.progress.tell(loss, speed)
        self.step_logged, self.clock = self.step, time.perf_counter()

    def _evaluate(self, preemption: Preemption) -> None:
        """Metrics of the validation split; the adapter is saved at once if it is the best so far.

        A signal interrupts it between two batches; the resumed run begins it anew.
        """
        started, validation = time.perf_counter(), self.validation
        assert validation is not None
        self.evaluation_due = True
        scores = score(
            self.trainer.engine,
            validation,
            len(self.names),
            PassSize(self.evaluation.batch_size, self.evaluation.tokens_per_batch),
            ranks=self.ranks,
            pad_token_id=self.trainer.pad_token_id,
            device=self.trainer.accelerator.device,
            readings=self.adapters.config.method.joint_readings(len(self.names)),
            hypotheses=self.adapters.labels.most_hypotheses,
            before_batch=lambda: self._stop_if_signalled(preemption),
        )
        self.evaluation_due = False
        majority = int(np.bincount(self.trainer.texts.true_labels).argmax())
        metrics = split_metrics(scores, validation.labels, self.names, majority, "validation split")
        shown = {key: metrics[key] for key in ("accuracy", "macro_f1", "mcc", "log_loss")}
        self.metrics_log.write(self.step, {f"validation/{key}": value for key, value in shown.items()})
        accuracy, log_loss = shown["accuracy"], shown["log_loss"]
        log.info("train: step %d, validation accuracy %.4f, log-loss %.4f", self.step, accuracy, log_loss)
        if self.ranks.is_main and len(np.unique(scores.argmax(axis=1))) == 1:
            log.warning("train: every validation text gets the same label; train longer or change train.learning_rate")
        self._keep_if_best(metrics)
        self.clock += time.perf_counter() - started

    def _keep_if_best(self, metrics: dict[str, Any]) -> None:
        metric = self.settings.best_metric
        if not self.best.count(metric, self.step, metrics):
            return
        self.best.replace(metric, self.step, metrics, self.trainer.trained_state())

        def write() -> None:
            try:
                self.adapters.write_best(self.best.parameters, self.best.figures)
            except (OSError, SafetensorError, UserError) as error:
                log.warning("BEST ADAPTER NOT WRITTEN: %s. Training goes on and writes it at the end", error)

        self.ranks.on_main(write)
