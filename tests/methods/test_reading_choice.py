"""The choice among readings: probes that tell good states from bad, the best, and the cheapest that is as good."""

import numpy as np
import pytest
import torch

from pipeline.backbone.config import Pooling
from pipeline.methods.base import Reading
from pipeline.methods.logistic import Scale, Texts, fit
from pipeline.methods.reading_choice import CS, Probed, ReadingChoice, probe_reading, worth_joining

N, H, K = 90, 6, 3


def reading(noise: float, seed: int) -> Reading:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(K, (N,), generator=generator)
    states = 5 * torch.eye(K, H)[labels] + noise * torch.randn(N, H, generator=generator) + 100
    return Reading(states, labels.numpy().astype(np.int64))


def test_a_probe_has_the_quality_of_its_fit() -> None:
    train, validation = reading(3.0, 0), reading(3.0, 1)
    found = probe_reading(4, "last", train, validation, K)
    scale = Scale.of(train.states)

    def texts(one: Reading) -> Texts:
        return Texts(scale.standardized(one.states), torch.from_numpy(one.labels), torch.zeros(N, K))

    qualities = {}
    for c in CS:
        scores = fit(texts(train), c, use_prior=False).scores(texts(validation)).log_softmax(1).numpy()
        right = (scores.argmax(1) == validation.labels).mean()
        qualities[c] = (right, scores[np.arange(N), validation.labels].mean())
    assert (found.layers, found.pooling, found.c) == (4, "last", max(qualities, key=qualities.__getitem__))
    assert found.quality == pytest.approx(qualities[found.c], abs=1e-3)
    assert found.accuracy > 0.6 and probe_reading(4, "last", reading(1.0, 0), reading(1.0, 1), K).accuracy == 1


def choice(*figures: tuple[int, Pooling, float, float]) -> ReadingChoice:
    probed = [Probed(*each, c=0.01) for each in figures]
    return ReadingChoice(probed, layers=4, train_texts=10, validation_texts=100, now=probed[-1])


def test_the_best_and_the_cheapest_within_one_standard_error() -> None:
    found = choice(
        (1, "mean", 0.74, 0.1),
        (2, "mean", 0.76, 0.5),
        (2, "last", 0.77, 0.9),
        (3, "mean", 0.80, 0.6),
        (3, "last", 0.80, 0.4),
        (4, "last", 0.80, 0.4),
    )
    assert found.standard_error == pytest.approx(0.04)
    assert (found.best.layers, found.best.pooling) == (3, "last"), "log-loss decides, then fewer layers"
    assert (found.cheapest.layers, found.cheapest.pooling) == (2, "last"), "0.74 is further off than 0.04"
    assert found.unread(found.cheapest) == 0.5
    perfect = choice((1, "mean", 1.0, 0.2), (2, "mean", 1.0, 0.1))
    assert perfect.standard_error == 0 and perfect.cheapest.layers == 1 and perfect.best.layers == 2


def test_layers_are_joined_up_to_where_single_ones_do_best() -> None:
    probed = [Probed(layers, "last", 0.9 - abs(layers - 7) / 100, 0.1, 0.01) for layers in range(1, 31)]
    expected = [[4, 7], [1, 2, 5, 7], [8, 15], [1, 5, 10, 15], [12, 23], [1, 8, 15, 23], [15, 30], [1, 10, 20, 30]]
    assert worth_joining(probed, 30) == [(layers, how) for layers in expected for how in ("last", "statistics")]
    assert worth_joining(probed[:1], 1) == []
    assert worth_joining(probed[:2], 2) == [([1, 2], "last"), ([1, 2], "statistics")]
    assert [layers for layers, _ in worth_joining(probed[:3], 3)][::2] == [[1, 2], [2, 3], [1, 2, 3]]
    statistics = [Probed(layers, "statistics", 0.9, 0.1, 0.01) for layers in (1, 2)]
    assert worth_joining(statistics, 2) == [([1, 2], "statistics")]
