"""Stage 4: trains the tuning method on the frozen backbone."""

import logging
from typing import Any

from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.engine.memory_limit import in_smaller_passes
from pipeline.engine.startup import start
from pipeline.stages.self_training import SelfTraining
from pipeline.stages.single_training import Training
from pipeline.training.preemption import Preemption

log = logging.getLogger(__name__)


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
    backbone = backbone or backbone_of(config.backbone, config.data)
    with Preemption(config.train.preemption_signals) as preemption:
        work = SelfTraining if config.train.self_training else Training
        return work(config, backbone, config.run_dir).to_end(preemption, overwrite=overwrite)
