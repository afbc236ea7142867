"""Several threads of one program train, load and ask classifiers: each gets what it would get alone.

covers engine/kept_adapter
covers engine/loaded_adapter
"""

import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from pipeline import LTuningClassifier
from tests.support.tiny_classifier import X, Y, tiny

THREADS = 2


@pytest.fixture(scope="module")
def fitted(backbone: str) -> LTuningClassifier:
    return tiny(backbone).fit(X, Y)


def at_once(work: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(work, range(THREADS)))


def test_a_fit_waits_for_that_of_another_thread(backbone: str) -> None:
    classifiers = at_once(lambda _: tiny(backbone, method="probe", overrides=None).fit(X, Y))
    np.testing.assert_array_equal(*(found.predict_proba(X) for found in classifiers))


def test_threads_that_ask_first_load_one_backbone(fitted: LTuningClassifier) -> None:
    asleep = pickle.loads(pickle.dumps(fitted))
    for found in at_once(lambda _: asleep.predict_proba(X)):
        np.testing.assert_array_equal(found, fitted.predict_proba(X))


def test_texts_are_not_cut_as_those_of_another_thread(
    fitted: LTuningClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer, which keeps the length to cut to, is slow to read: another thread would change that meanwhile."""
    texts = [X[:1], [" ".join(X[:4])]]
    expected = list(map(fitted.details, texts))
    assert [found.truncated for [found] in expected] == [False, True]
    tokenizer = fitted.adapter_.loaded.tokenizer
    told = tokenizer.set_truncation_and_padding
    monkeypatch.setattr(tokenizer, "set_truncation_and_padding", lambda **keys: (told(**keys), time.sleep(0.02)))
    for each, found in zip(expected, at_once(lambda n: [fitted.details(texts[n]) for _ in range(5)]), strict=True):
        assert found == [each] * 5
