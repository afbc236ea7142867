"""What training was made from, and whether that is what the config says now."""

from collections.abc import Mapping
from typing import Any

from pipeline.adapter.label_states import LabelStates, label_absent
from pipeline.backbone.config import BackboneConfig
from pipeline.core.artefact import FORMAT, Absent, defaults_of, differences, within
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.core.run_dir import RunDir
from pipeline.data.fingerprint import parts_of_data, parts_of_data_absent
from pipeline.data.pseudo_labels import PseudoLabels
from pipeline.methods import AnyMethodConfig
from pipeline.training.config import TrainConfig
from pipeline.training.start import START_PART, start_fingerprint

WITHOUT_EFFECT = {"log_every", "save_every", "keep_checkpoints", "on_write_error", "resume", "preemption_signals"}
"""Keys of `train` on which the adapter does not depend."""
PSEUDO_PART = "pseudo labels of data.unlabelled"
"""The part of a session's fingerprint that says what it was taught; absent: nothing."""
TRAINING_FORMAT = "1"
"""Of what training leaves: raised when the same settings come to train another adapter."""


def training_fingerprint(
    method: AnyMethodConfig,
    train: TrainConfig,
    backbone: BackboneConfig,
    seed: int,
    manifest: Mapping[str, Any],
    labels: LabelStates,
    pseudo: PseudoLabels | None = None,
) -> dict[str, str]:
    """Everything the adapter depends on, part by part. (Not the ranks: a run may move to another number of them.)

    Nor the test texts, which may come or change when training is over. `manifest`: of data/, which is current;
    `pseudo`: labels of the unlabelled texts, in a session of self-training.
    """
    uses_unlabelled = train.self_training > 0 or pseudo is not None
    unread = ("data.test",) if uses_unlabelled else ("data.test", "data.unlabelled")
    data = {part: value for part, value in manifest["fingerprint"].items() if not part.startswith(unread)}
    return {
        FORMAT: TRAINING_FORMAT,
        **{f"method.{key}": str(value) for key, value in method.model_dump().items()},
        **{f"train.{key}": str(value) for key, value in train.model_dump(exclude=WITHOUT_EFFECT).items()},
        **start_fingerprint(train.start_from),
        **({} if pseudo is None else {PSEUDO_PART: pseudo.digest()}),
        "run.seed": str(seed),
        "backbone.pooling": backbone.pooling,
        "backbone.int8_threshold": str(backbone.int8_threshold),
        **parts_of_data(data),
        # What only training starts from, method and hypotheses say already.
        **within("label states", labels.of_adapter().fingerprint),
    }


def training_absent(method: AnyMethodConfig) -> Absent:
    """What the lack of a part stands for in the fingerprint of training with this method."""
    return {
        **defaults_of(method=type(method), train=TrainConfig, backbone=BackboneConfig),
        **{f"method.{key}": value for key, value in method.came_later.items()},
        START_PART: None,
        **parts_of_data_absent(),
        **within("label states", {**label_absent(), FORMAT: "1"}),
    }


def check_training(run_dir: RunDir, method: AnyMethodConfig, wanted: Mapping[str, str]) -> None:
    """UserError, naming what changed, where a finished run was trained from something else than it would be now."""
    if changed := training_changes(run_dir, method, wanted):
        raise UserError(
            f"'{run_dir.path}' holds a finished run, and {'; '.join(changed)}: set that back, choose another "
            "run directory, or give --overwrite to train afresh"
        )


def training_changes(run_dir: RunDir, method: AnyMethodConfig, wanted: Mapping[str, str]) -> list[str]:
    """How what is wanted differs from what the finished training was made from; nothing where none has finished."""
    if not run_dir.summary_file.is_file():
        return []
    return differences(read_json(run_dir.summary_file)["fingerprint"], wanted, training_absent(method))
