"""Whether what an earlier run left would be another one, asked before anything that it was made from is replaced."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.adapter.label_states import LabelStates
from pipeline.core.artefact import within
from pipeline.core.checksums import check_sums
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.run_dir import RunDir
from pipeline.data.config import SPLITS, UNLABELLED
from pipeline.data.hypotheses import hypotheses
from pipeline.data.tokens import with_special_tokens
from pipeline.distributed.ranks import Ranks
from pipeline.engine.backbone import text_encoder
from pipeline.stages.encode_labels import label_fingerprint, verdict_in
from pipeline.stages.preprocess import wanted_data
from pipeline.stages.training_task import TrainingTask
from pipeline.training.provenance import check_training, training_absent, training_fingerprint
from pipeline.training.resume import check_resumable, checkpoint_to_resume, load_state


def check_earlier_run(task: TrainingTask, ranks: Ranks) -> None:
    """UserError, as `train` raises it, where what its run directory holds was trained from something else. Collective.

    What cannot be known before the stages have run, `train` still refuses.
    """
    check_finished(task, ranks)
    path = ranks.on_main(lambda: _checkpoint(task))
    labels = path and ranks.on_main(lambda: _labels_in(task.run.labels))
    if not path or not labels:
        return
    state, absent = load_state(ranks, path), training_absent(task.method)
    wanted = _wanted(task, labels, state.fingerprint, ranks)
    ranks.on_every(lambda: check_resumable(task.settings, state, wanted, absent, ranks.size))


def check_finished(task: TrainingTask, ranks: Ranks) -> None:
    """The same, of a finished training alone. Collective."""
    run = task.run
    labels = ranks.on_main(lambda: _labels_of_finished(run))
    if labels is None:
        return
    trained = ranks.on_main(lambda: dict(read_json(run.summary_file)["fingerprint"]))
    wanted = _wanted(task, labels, trained, ranks)
    ranks.on_main(lambda: check_training(run, task.method, wanted))


def _checkpoint(task: TrainingTask) -> Path | None:
    """What `train` would go on from. (Self-training does so in its sessions.)"""
    if task.run.is_finished or task.settings.self_training or not task.method.takes_steps:
        return None
    return checkpoint_to_resume(task.settings.resume, task.run)


def _labels_of_finished(run: RunDir) -> LabelStates | None:
    """None where it is damaged, and `train` makes it again."""
    if not run.is_finished:
        return None
    try:
        check_sums(run.adapter_final)
        read_json(run.summary_file)
    except UserError:
        return None
    return _labels_in(run.adapter)


def _labels_in(folder: Path) -> LabelStates | None:
    """Without their injections; None where they are missing or damaged."""
    try:
        return replace(LabelStates.load(folder), start=None, all_in_one=None)
    except UserError:
        return None


def _wanted(task: TrainingTask, labels: LabelStates, trained: Mapping[str, str], ranks: Ranks) -> dict[str, str]:
    """The fingerprint that training would have now, of an earlier one's labels and fingerprint. Collective."""
    settings = (task.method, task.settings, task.backbone.config, task.seed)
    now = _as_wanted(labels, task, ranks)
    manifest = ranks.on_main(lambda: {"fingerprint": _data(task, trained)})
    return training_fingerprint(*settings, manifest, now)


def _as_wanted(trained: LabelStates, task: TrainingTask, ranks: Ranks) -> LabelStates:
    """With the fingerprint of the label states that these labels would have now. Collective."""
    try:
        words = hypotheses(trained.names, task.labels)
    except UserError:
        return trained  # there are words for other labels: the texts have changed too, or encode-labels refuses it
    texts = text_encoder(task.backbone, task.data)
    wanted = label_fingerprint(task.backbone, ranks, texts, trained.names, words, task.method)
    return replace(trained, fingerprint=wanted | verdict_in(trained))


def _data(task: TrainingTask, trained: Mapping[str, str]) -> dict[str, str]:
    """The fingerprint of data/. Which splits have special tokens is as it was, where the texts are."""
    parts = {split: within("data", {f"data.{split}.special_tokens": ""}) for split in (*SPLITS, UNLABELLED)}
    special = {split: len(part.keys() & trained.keys()) for split, part in parts.items()}
    wanted = wanted_data(task.data, task.labels, task.seed, task.backbone)
    return with_special_tokens(wanted, task.data, special)
