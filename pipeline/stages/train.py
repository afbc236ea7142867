"""Stage 3: trains the tuning method on the frozen backbone."""

import logging
import shutil
from typing import Any

import torch
from accelerate import Accelerator

from pipeline.adapter import SUMMARY
from pipeline.backbone.ranks import Ranks
from pipeline.config import RunConfig
from pipeline.data.splits import load_split
from pipeline.data.tokenizer import load_tokenizer, pad_token_id
from pipeline.engine.inference import build_model, load_frozen, release, vocabulary_of
from pipeline.engine.preemption import Preemption
from pipeline.engine.resume import checkpoint_to_resume, load_state, resumed_config
from pipeline.engine.run_state import RunState
from pipeline.engine.startup import on_main_process, start
from pipeline.engine.training import Trainer
from pipeline.engine.training_run import TrainingRun, write_untrained
from pipeline.errors import UserError
from pipeline.integrity import check_sums
from pipeline.label_states import LabelStates
from pipeline.limits import check_positions
from pipeline.rundir import differences, read_json
from pipeline.stages.encode_labels import current_label_states

log = logging.getLogger(__name__)

WITHOUT_EFFECT = {"log_every", "save_every", "keep_checkpoints", "on_write_error", "resume", "preemption_signals"}
"""Keys of `train` on which the adapter does not depend."""


def train(config: RunConfig) -> dict[str, Any]:
    """Writes adapter/ (best on validation) and adapter-final/ (last step), or finds them current; gives a summary.

    An interrupted run goes on from its newest whole checkpoint. Every rank must call it. Raises UserError where an
    earlier stage has not run or does not fit, where label tokens and text exceed the backbone's positions, where a
    checkpoint does not fit the config, and where the loss is not finite; Preempted after a signal and a checkpoint.
    """
    accelerator = start(config)
    with Preemption(config.train.preemption_signals) as preemption:
        on_main_process(accelerator, lambda: check_sums(config.run_dir.data))
        labels = current_label_states(config)
        fingerprint = training_fingerprint(config, labels)
        summary = on_main_process(accelerator, lambda: finished_summary(config, fingerprint))
        if summary is not None:
            return summary
        if not config.method.is_trained:
            return on_main_process(accelerator, lambda: write_untrained(config, labels, fingerprint))
        state = state_to_resume(accelerator, config)
        if state is not None:
            config = resumed_config(config, state, fingerprint, accelerator.num_processes)
            accelerator = start(config)
        trainer = build_trainer(accelerator, config, labels, state)
        try:
            run = TrainingRun(trainer, config, labels, fingerprint, state)
            with run.writer:
                run.to_end(preemption)
                return run.finish()
        finally:
            release(accelerator, trainer.model)


def finished_summary(config: RunConfig, fingerprint: dict[str, str]) -> dict[str, Any] | None:
    """The summary of a finished run with this fingerprint. A finished run with another one makes room for a new run."""
    final = config.run_dir.adapter_final
    if not ((final / SUMMARY).is_file() and config.run_dir.adapter.is_dir()):
        return None
    try:
        check_sums(final)
        check_sums(config.run_dir.adapter)
    except UserError as error:
        log.warning("train: %s; written again from the last checkpoint", error)
        shutil.rmtree(config.run_dir.evaluation, ignore_errors=True)  # it brings the figures into the model card
        return None
    summary: dict[str, Any] = read_json(final / SUMMARY)
    changed = differences(summary["fingerprint"], fingerprint)
    if not changed:
        log.info("train: %s is current", config.run_dir.adapter)
        return summary
    if config.train.resume == "auto":
        log.info("train: %s is stale (%s), trained again", config.run_dir.adapter, "; ".join(changed))
        config.run_dir.remove_training()
    return None


def state_to_resume(accelerator: Accelerator, config: RunConfig) -> RunState | None:
    """What an interrupted run left, read by every rank; None to start afresh."""
    path = on_main_process(accelerator, lambda: checkpoint_to_resume(config))
    if path is None:
        return None
    state = Ranks.joined().on_every(lambda: load_state(path))
    log.info("train: goes on after step %d, from %s", state.step, path)
    return state


def build_trainer(
    accelerator: Accelerator, config: RunConfig, labels: LabelStates, state: RunState | None = None
) -> Trainer:
    """Loads the backbone and puts the method on it: untrained, or as `state` left it."""
    tokenizer = load_tokenizer(config.backbone, special_tokens=config.data.special_tokens)
    split = load_split(config.run_dir.data / "train")
    backbone = load_frozen(accelerator, config.backbone)
    check_positions(config, backbone.facts, labels.prompt_tokens)
    # The initial weights depend on the seed alone, not on what loading the backbone drew.
    torch.manual_seed(config.run.seed)
    sizes = (backbone.facts, labels.prompt_tokens, len(labels.names))
    method = config.method.build(*sizes)
    method.initialise(vocabulary_of(backbone, tokenizer), labels.names)
    assert sum(parameter.numel() for parameter in method.parameters()) == config.method.trainable_count(*sizes)
    model = build_model(accelerator, config.backbone, backbone, method, labels)
    # ZeRO-3's count of elements, where it has taken them out of the parameter already.
    count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.trainable().values())
    log.info(
        "train: %s, %s trainable parameters, %d rank(s)", config.method.name, f"{count:,}", accelerator.num_processes
    )
    return Trainer(accelerator, config, model, split, pad_token_id(tokenizer), state.optimizer if state else None)


def training_fingerprint(config: RunConfig, labels: LabelStates) -> dict[str, str]:
    """Everything the adapter depends on, part by part. (Not the ranks: a run may move to another number of them.)

    Nor the test texts, which may come or change when training is over.
    """
    data = read_json(config.run_dir.manifest_file)["fingerprint"]
    settings = config.train.model_dump(exclude=WITHOUT_EFFECT)
    return {
        **{f"method.{key}": str(value) for key, value in config.method.model_dump().items()},
        **{f"train.{key}": str(value) for key, value in settings.items()},
        "run.seed": str(config.run.seed),
        "backbone.pooling": config.backbone.pooling,
        "backbone.int8_threshold": str(config.backbone.int8_threshold),
        **{f"data: {key}": value for key, value in data.items() if not key.startswith("data.test")},
        **{f"label states: {key}": value for key, value in labels.fingerprint.items()},
    }
