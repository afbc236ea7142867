"""All stages in order."""

import logging
from typing import Any

from pipeline.config import RunConfig
from pipeline.engine.backbone import backbone_of
from pipeline.engine.checks import check_all
from pipeline.engine.rewordings import reworded_hypotheses
from pipeline.engine.startup import join
from pipeline.stages.earlier_run import check_earlier_run
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.encode_texts import encode_texts
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.single_training import Training
from pipeline.stages.train import train
from pipeline.training.start import check_start

log = logging.getLogger(__name__)


def run(config: RunConfig, *, overwrite: bool = False) -> dict[str, Any]:
    """preprocess, encode-labels, encode-texts, train and evaluate, where not current.

    Gives the metrics. `overwrite`: train afresh, over what an earlier run left. What is refused because of an
    earlier run leaves that as it was, its data and states too.
    """
    backbone = backbone_of(config.backbone, config.data)
    ranks = join(config)
    ranks.on_main(lambda: check_all([(config, backbone)], config.run_dir.path))
    ranks.on_main(lambda: check_start(config.train.start_from, config.method, config.run_dir, overwrite=overwrite))
    if not overwrite:
        check_earlier_run(Training(config, backbone, config.run_dir).task, ranks)
    preprocess(config, backbone)
    labels = encode_labels(config, backbone)
    reworded_hypotheses(labels, config.evaluate.rewordings)  # what does not fit is refused before the long work
    encode_texts(config, backbone)
    train(config, backbone, overwrite=overwrite)
    metrics = evaluate(config, backbone)
    log.info("adapter: %s", config.run_dir.adapter)
    log.info("metrics: %s", config.run_dir.metrics_file)
    return metrics
