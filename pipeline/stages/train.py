"""Stage 3: trains the tuning method on the frozen backbone."""

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from pipeline.adapter import save_adapter
from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.pooling import resolve_pooling
from pipeline.config import RunConfig
from pipeline.data.splits import Split, load_split
from pipeline.data.tokenizer import load_tokenizer, pad_token_id
from pipeline.engine.inference import load_frozen
from pipeline.engine.metrics_log import MetricsLog
from pipeline.engine.startup import on_main_process, start
from pipeline.engine.training import Trainer, gradient_norm
from pipeline.errors import UserError
from pipeline.label_states import LabelStates
from pipeline.methods import build_method, trainable_count
from pipeline.metrics import split_metrics
from pipeline.model import LTuningModel
from pipeline.rundir import differences, read_json, sha256_of, write_json
from pipeline.scoring import score
from pipeline.stages.encode_labels import current_label_states

log = logging.getLogger(__name__)


@dataclass
class Best:
    """The best validation figure so far, and how long ago it was."""

    metric: str
    value: float | None = None
    step: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    evaluations_since: int = 0

    def update(self, step: int, metrics: dict[str, Any]) -> bool:
        """Takes a new evaluation in; True if it is the best."""
        value = -metrics["log_loss"] if self.metric == "log_loss" else metrics[self.metric]
        if self.value is not None and value <= self.value:
            self.evaluations_since += 1
            return False
        self.value, self.step, self.metrics, self.evaluations_since = value, step, metrics, 0
        return True


def train(config: RunConfig) -> dict[str, Any]:
    """Writes adapter/ (best on validation) and adapter-final/ (last step), and gives a summary."""
    accelerator = start(config)
    labels = current_label_states(config)
    wanted = training_fingerprint(config, labels, accelerator.num_processes)
    finished = config.run_dir.checkpoints / "finished.json"
    if finished.is_file() and config.run_dir.adapter.is_dir():
        summary = read_json(finished)
        changed = differences(summary["fingerprint"], wanted)
        if not changed:
            log.info("train: %s is current", config.run_dir.adapter)
            return summary
        log.info("train: %s is stale (%s), trained again", config.run_dir.adapter, "; ".join(changed))
    trainer = build_trainer(accelerator, config, labels)
    best = _run(trainer, config, labels)
    final = trainer.trained_state()
    summary = {"fingerprint": wanted, "steps": trainer.total_steps, "best_step": best.step, "validation": best.metrics}
    on_main_process(accelerator, lambda: _finish(config, labels, final, best, summary))
    accelerator.end_training()
    accelerator.free_memory()
    return summary


def build_trainer(accelerator: Accelerator, config: RunConfig, labels: LabelStates) -> Trainer:
    """Loads the backbone and puts the untrained method on it."""
    tokenizer = load_tokenizer(config.backbone)
    split = load_split(config.run_dir.data / "train")
    backbone = load_frozen(accelerator, config.backbone)
    check_positions(config, backbone.facts, labels)
    # The initial weights depend on the seed alone, not on what loading the backbone drew.
    torch.manual_seed(config.run.seed)
    method = build_method(config.method, backbone.facts, labels.prompt_tokens)
    count = sum(parameter.numel() for parameter in method.parameters())
    assert count == trainable_count(config.method, backbone.facts, labels.prompt_tokens)
    log.info("train: %s with %s trainable parameters on %d rank(s)", config.method.name, f"{count:,}", accelerator.num_processes)
    pooling = resolve_pooling(config.backbone.pooling, backbone.facts)
    model = LTuningModel(backbone, method, labels.states, labels.mask, pooling)
    return Trainer(accelerator, config, model, split, pad_token_id(tokenizer))


def check_positions(config: RunConfig, facts: BackboneFacts, labels: LabelStates) -> None:
    """Raises UserError where injection and text together do not fit the backbone."""
    longest = labels.prompt_tokens + config.data.max_length
    if facts.max_positions is not None and longest > facts.max_positions:
        raise UserError(
            f"{labels.prompt_tokens} label tokens and data.max_length={config.data.max_length} exceed the backbone's "
            f"{facts.max_positions} positions: set data.max_length to {facts.max_positions - labels.prompt_tokens} or less"
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


def _run(trainer: Trainer, config: RunConfig, labels: LabelStates) -> Best:
    """The loop: steps, figures, evaluation, early stopping."""
    settings, accelerator = config.train, trainer.accelerator
    validation = load_split(config.run_dir.data / "validation") if config.data.validation else None
    metrics_log, best = MetricsLog(accelerator, config.run_dir), Best(settings.best_metric)
    # Without a terminal the lines of metrics.jsonl tell the same.
    bar = tqdm(total=trainer.total_steps, desc="train", unit="step", disable=None if accelerator.is_main_process else True)
    clock = time.perf_counter()
    for step, loss in enumerate(trainer.steps(), start=1):
        if not torch.isfinite(torch.tensor(loss)):
            raise UserError(f"the loss is {loss} at step {step}: lower train.learning_rate or raise train.warmup_ratio")
        last = step == trainer.total_steps
        if step % settings.log_every == 0 or last:
            steps = (step - 1) % settings.log_every + 1
            seconds, clock = time.perf_counter() - clock, time.perf_counter()
            speed = steps * trainer.global_batch / seconds
            metrics_log.write(step, _figures(trainer, loss, speed))
            bar.set_postfix(loss=f"{loss:.4f}", examples_per_second=f"{speed:.0f}")
        bar.update()
        if validation is not None and (step % settings.eval_every == 0 or last):
            metrics = evaluate_split(trainer, config, labels, validation)
            metrics_log.write(step, {f"validation/{key}": metrics[key] for key in ("accuracy", "macro_f1", "mcc", "log_loss")})
            if best.update(step, metrics):
                _keep_best(trainer, config, labels, metrics)
            if settings.early_stopping_patience and best.evaluations_since >= settings.early_stopping_patience:
                log.info("train: no better %s for %d evaluations, stopped", best.metric, best.evaluations_since)
                break
            clock = time.perf_counter()
    bar.close()
    return best


def evaluate_split(trainer: Trainer, config: RunConfig, labels: LabelStates, split: Split) -> dict[str, Any]:
    """Figures of one split with the parameters as they are now. Every rank must call this."""
    scores = score(
        trainer.engine,
        split.rows,
        len(labels.names),
        config.evaluate.batch_size,
        pad_token_id=trainer.pad_token_id,
        device=trainer.accelerator.device,
    )
    majority = int(np.bincount(trainer.train.labels).argmax())
    metrics = split_metrics(scores, split.labels, labels.names, majority, "validation")
    if len(set(scores.argmax(1).tolist())) == 1:
        log.warning("train: every validation text is given the same label; train longer or raise train.learning_rate")
    return metrics


def _figures(trainer: Trainer, loss: float, speed: float) -> dict[str, float]:
    return {
        "loss": loss,
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        "gradient_norm": gradient_norm(trainer.engine),
        "examples_per_second": speed,
    }


def _keep_best(trainer: Trainer, config: RunConfig, labels: LabelStates, metrics: dict[str, Any]) -> None:
    """Saves the adapter at once, so that whatever happens later the best is on disk."""
    state = trainer.trained_state()
    on_main_process(
        trainer.accelerator,
        lambda: save_adapter(config.run_dir.adapter, state, config, labels, {"validation": metrics}),
    )


def _finish(
    config: RunConfig, labels: LabelStates, final: dict[str, Tensor], best: Best, summary: dict[str, Any]
) -> None:
    """Writes the last adapter (also as the best one where there was no validation split) and the summary."""
    metrics = {"validation": best.metrics} if best.metrics else None
    save_adapter(config.run_dir.adapter_final, final, config, labels)
    if not best.metrics:
        save_adapter(config.run_dir.adapter, final, config, labels, metrics)
    write_json(config.run_dir.checkpoints / "finished.json", summary)
