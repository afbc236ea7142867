"""Stage 3: trains the tuning method on the frozen backbone."""

import logging
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from pipeline.adapter.label_states import LabelStates
from pipeline.config import RunConfig
from pipeline.core.artefact import Artefact
from pipeline.core.checksums import check_sums
from pipeline.core.errors import UserError
from pipeline.core.files import read_json, remove
from pipeline.core.run_dir import RunDir
from pipeline.data.splits import load_split
from pipeline.data.tokenizer import pad_token_id
from pipeline.distributed.ranks import Ranks
from pipeline.distributed.zero import element_count
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.engine.models import build_model, load_frozen, release, vocabulary_of
from pipeline.engine.provenance import current_data
from pipeline.engine.startup import start
from pipeline.methods import AnyMethodConfig
from pipeline.methods.limits import check_positions, window_warning
from pipeline.stages.encode_labels import current_label_states
from pipeline.training.adapter_writer import AdapterWriter
from pipeline.training.loop import TrainingRun
from pipeline.training.preemption import Preemption
from pipeline.training.provenance import check_training, training_absent, training_fingerprint
from pipeline.training.resume import checkpoint_to_resume, load_state, resumed_settings
from pipeline.training.run_state import RunState
from pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


def train(config: RunConfig, backbone: Backbone | None = None, *, overwrite: bool = False) -> dict[str, Any]:
    """Writes adapter/ (best on validation) and adapter-final/ (last step), or finds them current; gives a summary.

    `backbone`: the command's; None: one of its own.
    An interrupted run goes on from its newest whole checkpoint; with `overwrite` it starts afresh, as a finished one
    does, over what is there. config.yaml is written when training begins. Every rank must call it. Raises UserError
    where an earlier stage has not run or was given something else, where label tokens and text exceed the backbone's
    positions, where a checkpoint or a finished run does not fit the config, and where the loss is not finite; Preempted
    after a signal and a checkpoint.
    """
    accelerator, ranks = start(config)
    if overwrite and config.train.resume not in ("auto", "never"):
        raise UserError(
            "--overwrite trains afresh, but train.resume names a checkpoint to go on from: give one of them"
        )
    backbone = backbone or backbone_of(config.backbone, config.data)
    with Preemption(config.train.preemption_signals) as preemption:
        labels, fingerprint = _given(ranks, config, backbone)
        if not overwrite:
            summary = ranks.on_main(lambda: finished_summary(config.run_dir, config.method, fingerprint))
            if summary is not None:
                return summary
        begin = partial(_begin, config, overwrite)
        adapters = AdapterWriter(config.run_dir, config.adapter_config(), labels, fingerprint)
        if not config.method.is_trained:
            ranks.on_main(begin)
            return ranks.on_main(adapters.write_untrained)
        state = None if overwrite else state_to_resume(ranks, config.train.resume, config.run_dir)
        if state is not None:
            absent = training_absent(config.method)
            settings = resumed_settings(config.train, state, fingerprint, absent, ranks.size)
            config = config.model_copy(update={"train": settings})
            accelerator, ranks = start(config)
        trainer = build_trainer(accelerator, ranks, config, backbone, labels, state)
        try:
            ranks.on_main(begin)
            validation = load_split(config.run_dir.data / "validation") if config.data.validation else None
            rows = config.evaluate.batch_size
            run = TrainingRun(trainer, ranks, adapters, validation=validation, rows_per_forward=rows, state=state)
            with run.writer:
                run.to_end(preemption)
                return run.finish()
        finally:
            release(accelerator, trainer.model)


def _given(ranks: Ranks, config: RunConfig, backbone: Backbone) -> tuple[LabelStates, dict[str, str]]:
    """The label states, and the fingerprint of the training that follows from them, the data and the config."""
    run, data, labels, seed = config.run_dir, config.data, config.labels, config.run.seed

    def manifest_of_data() -> dict[str, Any]:
        check_sums(run.data)
        return current_data(run, data, labels, seed, backbone)

    manifest = ranks.on_main(manifest_of_data)
    states = current_label_states(run, labels, data.max_length, manifest["labels"], backbone, ranks)
    return states, training_fingerprint(config.method, config.train, config.backbone, seed, manifest, states)


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
        remove(run.evaluation)  # it brings the figures into the model card
        return None
    check_training(run, method, fingerprint)
    log.info("train: %s is current", run.adapter)
    return summary


def _begin(config: RunConfig, overwrite: bool) -> None:
    """Makes room, as late as can be: until here every fault leaves the earlier run as it was. Rank 0 calls it."""
    if overwrite:
        config.run_dir.remove_training()
    config.run_dir.write_config(config.to_kept_yaml())


def state_to_resume(ranks: Ranks, resume: str, run_dir: RunDir) -> RunState | None:
    """What an interrupted run left, read by every rank; None to start afresh. Collective."""
    path = ranks.on_main(lambda: checkpoint_to_resume(resume, run_dir))
    if path is None:
        return None
    state = ranks.on_every(lambda: load_state(path))
    log.info("train: goes on after step %d, from %s", state.step, path)
    return state


def build_trainer(
    accelerator: Accelerator,
    ranks: Ranks,
    config: RunConfig,
    known: Backbone,
    labels: LabelStates,
    state: RunState | None = None,
) -> Trainer:
    """Loads the backbone and puts the method on it: untrained, or as `state` left it."""
    tokenizer = known.tokenizer
    split = load_split(config.run_dir.data / "train")
    backbone = load_frozen(accelerator, ranks, known)
    check_positions(config.method, backbone.facts, labels.prompt_tokens, config.data.max_length)
    hidden = window_warning(backbone.facts, config.method.injected_tokens(labels.prompt_tokens), config.data.max_length)
    if hidden and ranks.is_main:
        log.warning("train: %s", hidden)
    # The initial weights depend on the seed alone, not on what loading the backbone drew.
    torch.manual_seed(config.run.seed)
    sizes = (backbone.facts, labels.prompt_tokens, len(labels.names))
    method = config.method.build(*sizes)
    method.initialise(vocabulary_of(backbone, tokenizer), labels.names)
    assert sum(parameter.numel() for parameter in method.parameters()) == config.method.trainable_count(*sizes)
    model = build_model(accelerator, config.backbone, backbone, method, labels)
    count = sum(map(element_count, model.trainable().values()))
    log.info("train: %s, %s trainable parameters, %d rank(s)", config.method.name, f"{count:,}", ranks.size)
    return Trainer(
        accelerator,
        config.train,
        model,
        split,
        method=config.method,
        seed=config.run.seed,
        pad_token_id=pad_token_id(tokenizer),
        state=state.optimizer if state else None,
    )
