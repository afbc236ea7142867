"""Classifiers of the Python API on a tiny backbone, and what they are fitted to."""

from typing import Any

import numpy as np

from pipeline import LTuningClassifier
from tests.support.tiny_run import TEXTS

X = [f"{text} {number}" for texts in TEXTS.values() for text in texts for number in range(3)]
Y = np.repeat(list(TEXTS), 12)


def tiny(backbone: str, **parameters: Any) -> LTuningClassifier:
    usual = {"max_steps": 2, "batch_size": 4, "max_length": 32, "overrides": {"method.head": "label_aware"}}
    return LTuningClassifier(backbone, **(usual | parameters))
