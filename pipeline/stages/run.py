"""All stages in order."""

from typing import Any

from pipeline.config import RunConfig
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import train


def run(config: RunConfig) -> dict[str, Any]:
    """preprocess, encode-labels, train, evaluate; each does nothing where its artefact is current."""
    preprocess(config)
    encode_labels(config)
    train(config)
    return evaluate(config)
