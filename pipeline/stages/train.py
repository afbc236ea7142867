"""Stage 4: trains the tuning method on the frozen backbone."""

import logging
from collections.abc import Iterator
from typing import Any

from pipeline.backbone.config import BackboneConfig
from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.settings import Settings, defaults
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.engine.config import LoggingConfig
from pipeline.engine.memory_limit import in_smaller_passes
from pipeline.engine.startup import start
from pipeline.methods import MethodConfig
from pipeline.stages.self_training import SelfTraining
from pipeline.stages.single_training import Training
from pipeline.training.config import TrainConfig
from pipeline.training.preemption import Preemption

log = logging.getLogger(__name__)

WITHOUT_STEPS = {"best_metric", "keep_token_states", "preemption_signals", "pseudo_labels", "pseudo_weights"}
WITHOUT_STEPS |= {"resume", "self_training"}
"""Keys of `train` that are about methods without steps too, or of which something is said elsewhere."""


@in_smaller_passes
def train(config: RunConfig, backbone: Backbone | None = None, *, overwrite: bool = False) -> dict[str, Any]:
    """Writes adapter/ (best on validation) and adapter-final/ (last step), or finds them current; gives a summary.

    `backbone`: the command's; None: one of its own.
    An interrupted run goes on from its newest whole checkpoint; with `overwrite` it starts afresh, as a finished one
    does, over what is there. config.yaml is written when training begins. With train.self_training they are those of
    the best session, each of which is kept in sessions/. Every rank must call it. Raises UserError where an earlier
    stage has not run or was given something else, where label tokens and text exceed the backbone's positions, where a
    checkpoint or a finished run does not fit the config, and where the loss is not finite; Preempted after a signal and
    a checkpoint. Where memory is too short, the same steps are taken in smaller passes.
    """
    start(config)
    if overwrite and config.train.resume not in ("auto", "never"):
        raise UserError(
            "--overwrite trains afresh, but train.resume names a checkpoint to go on from: give one of them"
        )
    if config.data.unlabelled is not None and not config.train.self_training:
        log.info("train: the texts of data.unlabelled are not used: train.self_training is 0")
    for keys, reason in _without_effect(config.method, config.train, config.backbone, config.logging):
        log.info("train: without effect: %s (%s)", ", ".join(keys), reason)
    backbone = backbone or backbone_of(config.backbone, config.data)
    with Preemption(config.train.preemption_signals) as preemption:
        work = SelfTraining if config.train.self_training else Training
        return work(config, backbone, config.run_dir).to_end(preemption, overwrite=overwrite)


def _without_effect(
    method: MethodConfig, train: TrainConfig, backbone: BackboneConfig, logs: LoggingConfig
) -> Iterator[tuple[list[str], str]]:
    """Keys that are set to no purpose, and why. A recipe, and the base of a comparison, set them for many methods."""
    steps = sorted(_changed("train", train) - {f"train.{key}" for key in WITHOUT_STEPS})
    if steps and not method.takes_steps:
        yield steps, f"method {method.name} takes no steps"
    threshold = _changed("backbone", backbone) & {"backbone.int8_threshold"}
    if threshold and backbone.quantization != "int8":
        yield sorted(threshold), "backbone.quantization is not int8"
    names = _changed("logging", logs) & {"logging.project", "logging.name"}
    if names and not {"wandb", "mlflow"} & set(logs.trackers):
        yield sorted(names), "logging.trackers names neither wandb nor mlflow"


def _changed(section: str, settings: Settings) -> set[str]:
    """Keys of a section that are not at their default."""
    usual = defaults(type(settings))
    return {f"{section}.{key}" for key, value in settings if key in usual and value != usual[key]}
