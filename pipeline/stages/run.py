"""All stages in order."""

import logging
from typing import Any

from pipeline.config import RunConfig
from pipeline.distributed.launcher import world_size
from pipeline.engine.checks import check_all
from pipeline.engine.startup import on_main_process, start
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import train

log = logging.getLogger(__name__)


def run(config: RunConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """preprocess, encode-labels, train, evaluate, where their artefacts are not current; gives the figures.

    `overwrite`: train afresh, over what an earlier run left.
    """

    def check() -> None:
        check_all([config], config.run_dir.path)

    check() if world_size() == 1 else on_main_process(start(config), check)
    preprocess(config)
    encode_labels(config)
    train(config, overwrite=overwrite)
    metrics = evaluate(config)
    log.info("adapter: %s", config.run_dir.adapter)
    log.info("metrics: %s", config.run_dir.metrics_file)
    return metrics
