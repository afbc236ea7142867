"""Whether a finished run would be another one, asked before anything that it was made from is replaced."""

from collections.abc import Mapping
from dataclasses import replace

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
from pipeline.training.provenance import check_training, training_fingerprint


def check_finished(task: TrainingTask, ranks: Ranks) -> None:
    """UserError, as `train` raises it, where its run is finished and was trained from something else. Collective.

    What cannot be known before the stages have run, `train` still refuses.
    """
    run = task.run
    trained = ranks.on_main(lambda: _labels_of(run))
    if trained is None:
        return
    labels = _as_wanted(trained, task, ranks)

    def check() -> None:
        manifest = {"fingerprint": _data(task, read_json(run.summary_file)["fingerprint"])}
        given = (task.method, task.settings, task.backbone.config, task.seed)
        check_training(run, task.method, training_fingerprint(*given, manifest, labels))

    ranks.on_main(check)


def _labels_of(run: RunDir) -> LabelStates | None:
    """Those of a finished run, without their injections; None where it is damaged, and `train` makes it again."""
    if not run.is_finished:
        return None
    try:
        check_sums(run.adapter_final)
        read_json(run.summary_file)
        return replace(LabelStates.load(run.adapter), start=None)
    except UserError:
        return None


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
