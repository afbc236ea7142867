"""Stage 3: trains the tuning method on the frozen backbone."""

import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from pipeline.adapter import save_adapter
from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.pooling import resolve_pooling
from pipeline.config import RunConfig
from pipeline.data.splits import load_split
from pipeline.data.tokenizer import load_tokenizer, pad_token_id
from pipeline.engine.inference import load_frozen
from pipeline.engine.metrics_log import MetricsLog
from pipeline.engine.startup import on_main_process, start
from pipeline.engine.training import Trainer
from pipeline.errors import UserError
from pipeline.label_states import LabelStates
from pipeline.methods import build_method, trainable_count
from pipeline.metrics import split_metrics
from pipeline.model import LTuningModel
from pipeline.rundir import differences, read_json, sha256_of, write_json
from pipeline.scoring import score
from pipeline.stages.encode_labels import current_label_states

log = logging.getLogger(__name__)


def train(config: RunConfig) -> dict[str, Any]:
    """Writes adapter/ (best on validation) and adapter-final/ (last step), or finds them current; gives a summary.

    Every rank must call it. Raises UserError where an earlier stage has not run or does not fit, where label tokens and
    text exceed the backbone's positions, and where the loss is not finite.
    """
    accelerator = start(config)
    labels = current_label_states(config)
    wanted = training_fingerprint(config, labels, accelerator.num_processes)
    summary_file = config.run_dir.adapter_final / "summary.json"
    if summary_file.is_file() and config.run_dir.adapter.is_dir():
        summary: dict[str, Any] = read_json(summary_file)
        changed = differences(summary["fingerprint"], wanted)
        if not changed:
            log.info("train: %s is current", config.run_dir.adapter)
            return summary
        log.info("train: %s is stale (%s), trained again", config.run_dir.adapter, "; ".join(changed))
    run = TrainingRun(build_trainer(accelerator, config, labels), config, labels)
    run.to_end()
    summary = run.finish(wanted)
    accelerator.free_memory()
    return summary


def build_trainer(accelerator: Accelerator, config: RunConfig, labels: LabelStates) -> Trainer:
    """Loads the backbone and puts the untrained method on it."""
    tokenizer = load_tokenizer(config.backbone)
    split = load_split(config.run_dir.data / "train")
    backbone = load_frozen(accelerator, config.backbone)
    check_positions(config, backbone.facts, labels.prompt_tokens)
    # The initial weights depend on the seed alone, not on what loading the backbone drew.
    torch.manual_seed(config.run.seed)
    method = build_method(config.method, backbone.facts, labels.prompt_tokens)
    count = sum(parameter.numel() for parameter in method.parameters())
    assert count == trainable_count(config.method, backbone.facts, labels.prompt_tokens)
    log.info(
        "train: %s, %s trainable parameters, %d rank(s)", config.method.name, f"{count:,}", accelerator.num_processes
    )
    pooling = resolve_pooling(config.backbone.pooling, backbone.facts)
    model = LTuningModel(backbone, method, labels.states, labels.mask, pooling)
    return Trainer(accelerator, config, model, split, pad_token_id(tokenizer))


def check_positions(config: RunConfig, facts: BackboneFacts, prompt_tokens: int) -> None:
    """Raises UserError where injection and text together do not fit the backbone."""
    if facts.max_positions is None or prompt_tokens + config.data.max_length <= facts.max_positions:
        return
    room = facts.max_positions - prompt_tokens
    raise UserError(
        f"{prompt_tokens} label tokens and data.max_length={config.data.max_length} exceed the backbone's "
        f"{facts.max_positions} positions: set data.max_length to {room} or less"
    )


def training_fingerprint(config: RunConfig, labels: LabelStates, world_size: int) -> dict[str, str]:
    """Everything the adapter depends on, part by part."""
    data = read_json(config.run_dir.manifest_file)["fingerprint"]
    settings = config.train.model_dump(exclude={"log_every"})
    return {
        **{f"method.{key}": str(value) for key, value in config.method.model_dump().items()},
        **{f"train.{key}": str(value) for key, value in settings.items()},
        "run.seed": str(config.run.seed),
        "backbone.pooling": config.backbone.pooling,
        "data": sha256_of(*(f"{key}={value}" for key, value in sorted(data.items()))),
        "labels": sha256_of(*(f"{key}={value}" for key, value in sorted(labels.fingerprint.items()))),
        "ranks": str(world_size),
    }


@dataclass
class Best:
    """The best validation figures so far, and how many evaluations ago they were reached."""

    metric: str
    value: float = -math.inf
    step: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    evaluations_since: int = 0

    def update(self, step: int, figures: dict[str, Any]) -> bool:
        """Takes an evaluation in; True if it is the best."""
        value = -figures["log_loss"] if self.metric == "log_loss" else figures[self.metric]
        if value <= self.value:
            self.evaluations_since += 1
            return False
        self.value, self.step, self.figures, self.evaluations_since = value, step, figures, 0
        return True


class TrainingRun:
    """The loop around a trainer: figures, evaluations, the best adapter, early stopping. The same on every rank."""

    def __init__(self, trainer: Trainer, config: RunConfig, labels: LabelStates) -> None:
        self.trainer, self.config, self.labels = trainer, config, labels
        self.accelerator = trainer.accelerator
        self.validation = load_split(config.run_dir.data / "validation") if config.data.validation else None
        self.metrics_log = MetricsLog(self.accelerator, config.run_dir)
        self.best = Best(config.train.best_metric)
        self.steps_done = self.steps_logged = 0
        self.clock = time.perf_counter()
        # None: off without a terminal, where metrics.jsonl tells the same.
        hidden = None if self.accelerator.is_main_process else True
        self.bar = tqdm(total=trainer.total_steps, desc="train", unit="step", disable=hidden)

    def to_end(self) -> None:
        """Trains until the last step, or until patience is over."""
        settings = self.config.train
        for loss in self.trainer.steps():
            self.steps_done += 1
            if not math.isfinite(loss):
                raise UserError(f"the loss is {loss} at step {self.steps_done}: lower train.learning_rate")
            self.bar.update()
            if self._is_due(settings.log_every):
                self._log_step(loss)
            if self.validation is not None and self._is_due(settings.eval_every):
                self._evaluate()
                if self.best.evaluations_since == settings.early_stopping_patience:
                    log.info(
                        "train: %d evaluations without a better %s, stopped",
                        self.best.evaluations_since,
                        self.best.metric,
                    )
                    break
        self.bar.close()

    def finish(self, fingerprint: dict[str, str]) -> dict[str, Any]:
        """Writes adapter-final/, and adapter/ too where no validation split has chosen one."""
        state = self.trainer.trained_state()
        summary = {
            "fingerprint": fingerprint,
            "steps": self.steps_done,
            "best_step": self.best.step or self.steps_done,
            "validation": self.best.figures,
        }

        def write() -> None:
            final = self.config.run_dir.adapter_final
            if not self.best.figures:
                save_adapter(self.config.run_dir.adapter, state, self.config, self.labels)
            save_adapter(final, state, self.config, self.labels)
            write_json(final / "summary.json", summary)

        on_main_process(self.accelerator, write)
        self.metrics_log.close()
        return summary

    def _is_due(self, every: int) -> bool:
        return self.steps_done % every == 0 or self.steps_done == self.trainer.total_steps

    def _log_step(self, loss: float) -> None:
        seconds = time.perf_counter() - self.clock
        speed = (self.steps_done - self.steps_logged) * self.trainer.global_batch / seconds
        figures = {
            "loss": loss,
            "learning_rate": self.trainer.learning_rate,
            "gradient_norm": self.trainer.gradient_norm(),
            "examples_per_second": speed,
        }
        self.metrics_log.write(self.steps_done, figures)
        self.bar.set_postfix(loss=f"{loss:.4f}", examples_per_second=f"{speed:.0f}")
        self.steps_logged, self.clock = self.steps_done, time.perf_counter()

    def _evaluate(self) -> None:
        """Figures of the validation split; the adapter is saved at once if it is the best so far."""
        started = time.perf_counter()
        assert self.validation is not None
        scores = score(
            self.trainer.engine,
            self.validation.rows,
            len(self.labels.names),
            self.config.evaluate.batch_size,
            pad_token_id=self.trainer.pad_token_id,
            device=self.accelerator.device,
        )
        majority = int(np.bincount(self.trainer.train.labels).argmax())
        figures = split_metrics(scores, self.validation.labels, self.labels.names, majority, "validation split")
        shown = {key: figures[key] for key in ("accuracy", "macro_f1", "mcc", "log_loss")}
        self.metrics_log.write(self.steps_done, {f"validation/{key}": value for key, value in shown.items()})
        log.info(
            "train: step %d, validation accuracy %.4f, log-loss %.4f",
            self.steps_done,
            shown["accuracy"],
            shown["log_loss"],
        )
        if len(np.unique(scores.argmax(axis=1))) == 1:
            log.warning("train: every validation text gets the same label; train longer or change train.learning_rate")
        if self.best.update(self.steps_done, figures):
            state = self.trainer.trained_state()
            folder = self.config.run_dir.adapter
            on_main_process(
                self.accelerator, lambda: save_adapter(folder, state, self.config, self.labels, {"validation": figures})
            )
        self.clock += time.perf_counter() - started
