"""What a classifier is given: texts, labels and settings of every kind.

covers classifier/__init__
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import LTuningClassifier
from pipeline.core.errors import UserError
from tests.support.tiny_classifier import X, Y, tiny


@pytest.mark.parametrize("labels", [[7, -1, 10], [True, False]])
def test_labels_that_are_not_strings(backbone: str, labels: list[Any], tmp_path: Path) -> None:
    y = np.resize(labels, len(X))
    worded = {label: f"Number {label}." for label in labels}
    classifier = tiny(backbone, method="probe", hypotheses=worded, overrides=None).fit(X, y)
    assert classifier.classes_.tolist() == sorted(labels)
    assert set(classifier.predict(X).tolist()) <= set(labels)
    adapter = classifier.adapter_.loaded.adapter
    assert adapter.labels.hypotheses == [f"Number {label}." for label in sorted(labels)]
    classifier.save(tmp_path / "adapter")
    loaded = LTuningClassifier.from_pretrained(tmp_path / "adapter")
    assert loaded.predict(X).tolist() == list(map(str, classifier.predict(X).tolist()))
    with pytest.raises(UserError, match="no label of y is one of the classifier's"):
        loaded.score(X, y)


def test_many_labels_that_are_not_strings(backbone: str, tmp_path: Path) -> None:
    y = np.arange(24)
    texts = [f"text {number}" for number in y]
    classifier = tiny(backbone, method="majority", overrides=None, validation_split=0.0).fit(texts, y)
    assert classifier.score(texts, y) == 1 / 24
    classifier.save(tmp_path / "adapter")
    with pytest.raises(UserError, match="no label of y is one of the classifier's"):
        LTuningClassifier.from_pretrained(tmp_path / "adapter").score(texts, y)


def test_pairs_and_validation_texts(backbone: str) -> None:
    pairs = [(text, text[::-1]) for text in X]
    classifier = tiny(backbone).fit(pairs, Y, validation=(pairs[::5], Y[::5]))
    assert classifier.predict(pairs[:3]).shape == (3,)
    with pytest.raises(UserError, match=r"text 1 has 1 part\(s\), those of training have 2"):
        classifier.predict(X)
    with pytest.raises(UserError, match=r"text 2 has 1 part\(s\)"):
        tiny(backbone).fit([pairs[0], "single"], ["a", "b"])
    with pytest.raises(UserError, match="labels that no training text has: 'other'"):
        tiny(backbone).fit(pairs, Y, validation=(pairs[:1], ["other"]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"method": "lt_prefx"}, "'method.name' must be one of lt_prefix"),
        ({"template": "no field"}, "labels.template"),
        ({"epochs": 0, "max_steps": None}, "train.epochs"),
        ({"batch_size": 0}, "train.batch_size"),
        ({"batch_size": "x", "epochs": 0, "max_steps": None}, "train.epochs.*train.batch_size"),
        ({"overrides": ["train.epochs=2"]}, "overrides is a dict of config keys and values, got list"),
        ({"overrides": {"train.learning_rat": 1}}, "did you mean 'train.learning_rate'"),
        ({"overrides": {"data.train": "x"}}, "'data.train' is what fit itself gives"),
        ({"validation_split": 1.5}, "data.split"),
        ({"hypotheses": {"sports": "On sports."}}, "sports"),
        ({"backbone": "nowhere/at-all"}, "nowhere/at-all"),
    ],
)
def test_settings_that_do_not_fit(backbone: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny(backbone).set_params(**parameters).fit(X, Y)


def test_texts_that_can_be_read_once(backbone: str) -> None:
    classifier = tiny(backbone, method="majority", overrides=None)
    classifier.fit(iter(X), iter(Y), validation=(iter(X[::5]), iter(Y[::5])))
    assert classifier.predict(iter(X[:3])).shape == (3,)


def test_one_class_is_refused(backbone: str) -> None:
    with pytest.raises(UserError, match=r"y has 1 class\(es\)"):
        tiny(backbone).fit(X, ["a"] * len(X))
    with pytest.raises(UserError, match="'a' and 'a ' of y read alike"):
        tiny(backbone).fit(X, (["a", "a "] * len(X))[: len(X)])
