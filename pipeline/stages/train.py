"""Stage 3: trains the tuning method on the frozen backbone."""

import logging
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from pipeline.adapter.label_states import LabelStates
from pipeline.config import RunConfig
from pipeline.core.artefact import differences
from pipeline.core.checksums import check_sums
from pipeline.core.errors import UserError, about
from pipeline.core.files import read_json, remove
from pipeline.data.splits import load_split
from pipeline.data.tokenizer import load_tokenizer, pad_token_id
from pipeline.distributed.ranks import Ranks
from pipeline.distributed.zero import element_count
from pipeline.engine.models import build_model, load_frozen, release, vocabulary_of
from pipeline.engine.provenance import current_data, training_fingerprint, with_defaults
from pipeline.engine.startup import on_main_process, start
from pipeline.methods.limits import check_positions, check_size, window_warning
from pipeline.stages.encode_labels import current_label_states
from pipeline.training.loop import TrainingRun, write_untrained
from pipeline.training.preemption import Preemption
from pipeline.training.resume import checkpoint_to_resume, load_state, resumed_config
from pipeline.training.run_state import RunState
from pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


def train(config: RunConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """Writes adapter/ (best on validation) and adapter-final/ (last step), or finds them current; gives a summary.

    An interrupted run goes on from its newest whole checkpoint; with `overwrite` it starts afresh, as a finished one
    does, over what is there. config.yaml is written when training begins. Every rank must call it. Raises UserError
    where an earlier stage has not run or was given something else, where label tokens and text exceed the backbone's
    positions, where a checkpoint or a finished run does not fit the config, and where the loss is not finite; Preempted
    after a signal and a checkpoint.
    """
    accelerator = start(config)
    if overwrite and config.train.resume not in ("auto", "never"):
        raise UserError(
            "--overwrite trains afresh, but train.resume names a checkpoint to go on from: give one of them"
        )
    with Preemption(config.train.preemption_signals) as preemption:
        on_main_process(accelerator, lambda: check_sums(config.run_dir.data))
        on_main_process(accelerator, lambda: current_data(config))
        labels = current_label_states(config)
        fingerprint = training_fingerprint(config, labels)
        if not overwrite:
            summary = on_main_process(accelerator, lambda: finished_summary(config, fingerprint))
            if summary is not None:
                return summary
        begin = partial(_begin, config, overwrite)
        if not config.method.is_trained:
            on_main_process(accelerator, begin)
            return on_main_process(accelerator, lambda: write_untrained(config, labels, fingerprint))
        state = None if overwrite else state_to_resume(accelerator, config)
        if state is not None:
            config = resumed_config(config, state, fingerprint, accelerator.num_processes)
            accelerator = start(config)
        trainer = build_trainer(accelerator, config, labels, state)
        try:
            on_main_process(accelerator, begin)
            run = TrainingRun(trainer, config, labels, fingerprint, state)
            with run.writer:
                run.to_end(preemption)
                return run.finish()
        finally:
            release(accelerator, trainer.model)


def finished_summary(config: RunConfig, fingerprint: dict[str, str]) -> dict[str, Any] | None:
    """The summary of a finished run; None where there is none, or where it is damaged and must be written again.

    Raises UserError, naming what changed, where it was trained from something else: what is finished is kept.
    """
    run = config.run_dir
    if not run.is_finished:
        return None
    try:
        check_sums(run.adapter_final)
        check_sums(run.adapter)
    except UserError as error:
        log.warning("train: %s; written again from the last checkpoint", error)
        remove(run.evaluation)  # it brings the figures into the model card
        return None
    summary: dict[str, Any] = read_json(run.summary_file)
    check_unchanged(config, summary["fingerprint"], fingerprint)
    log.info("train: %s is current", run.adapter)
    return summary


def check_unchanged(config: RunConfig, old: dict[str, str], new: dict[str, str]) -> None:
    """UserError, naming what changed, where a finished run was trained from something else than it would be now."""
    if changed := differences(with_defaults(config, old, new), new):
        raise UserError(
            f"'{config.run_dir.path}' holds a finished run, and {'; '.join(changed)}: set that back, choose another "
            "run directory, or give --overwrite to train afresh"
        )


def _begin(config: RunConfig, overwrite: bool) -> None:
    """Makes room, as late as can be: until here every fault leaves the earlier run as it was. Rank 0 calls it."""
    if overwrite:
        config.run_dir.remove_training()
    config.run_dir.write_config(config.to_kept_yaml())


def state_to_resume(accelerator: Accelerator, config: RunConfig) -> RunState | None:
    """What an interrupted run left, read by every rank; None to start afresh."""
    path = on_main_process(accelerator, lambda: checkpoint_to_resume(config))
    if path is None:
        return None
    with about(f"checkpoint '{path}'"):
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
    check_positions(config.method, backbone.facts, labels.prompt_tokens, config.data.max_length)
    hidden = window_warning(backbone.facts, config.method.injected_tokens(labels.prompt_tokens), config.data.max_length)
    if hidden and accelerator.is_main_process:
        log.warning("train: %s", hidden)
    # The initial weights depend on the seed alone, not on what loading the backbone drew.
    torch.manual_seed(config.run.seed)
    sizes = (backbone.facts, labels.prompt_tokens, len(labels.names))
    check_size(config.method, *sizes)
    method = config.method.build(*sizes)
    method.initialise(vocabulary_of(backbone, tokenizer), labels.names)
    assert sum(parameter.numel() for parameter in method.parameters()) == config.method.trainable_count(*sizes)
    model = build_model(accelerator, config.backbone, backbone, method, labels)
    count = sum(map(element_count, model.trainable().values()))
    log.info(
        "train: %s, %s trainable parameters, %d rank(s)", config.method.name, f"{count:,}", accelerator.num_processes
    )
    return Trainer(accelerator, config, model, split, pad_token_id(tokenizer), state.optimizer if state else None)
