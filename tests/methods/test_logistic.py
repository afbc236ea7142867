"""The regression that the probe is: against scikit-learn's, against its own definition, and its choices.

covers methods/probe
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pipeline.methods import logistic
from pipeline.methods.base import Reading, Readings
from pipeline.methods.heads import state_similarity
from pipeline.methods.logistic import Fit, Texts, choose, fit, fit_to_readings

N, H, K = 60, 5, 3


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> Texts:
    monkeypatch.setattr(logistic, "TOLERANCE", 1e-9)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(K, (N,), generator=generator)
    centres = torch.randn(K, H, generator=generator, dtype=torch.float64)
    states = centres[labels] + 1.5 * torch.randn(N, H, generator=generator, dtype=torch.float64)
    prior = torch.nn.functional.one_hot(labels, K) + torch.randn(N, K, generator=generator, dtype=torch.float64)
    return Texts(states, labels, prior)


def loss(values: Tensor, texts: Texts, c: float, use_prior: bool) -> Tensor:
    """The definition, word by word."""
    weight, bias, prior_weight = values[: K * H].view(K, H), values[K * H :][:K], values[-1]
    scores = torch.stack([weight @ state + bias for state in texts.states])
    scores = scores + prior_weight * texts.prior if use_prior else scores
    return torch.nn.functional.cross_entropy(scores, texts.labels) + weight.square().sum() / (2 * c * N)


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_without_a_prior_it_is_scikit_learns(texts: Texts, c: float) -> None:
    theirs = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(texts.states, texts.labels)
    ours = fit(texts, c, use_prior=False)
    np.testing.assert_allclose(ours.weight, theirs.coef_, atol=1e-5)
    expected = theirs.predict_log_proba(texts.states)
    np.testing.assert_allclose(ours.scores(texts).log_softmax(1), expected, atol=1e-5)


@pytest.mark.parametrize("use_prior", [False, True])
def test_nothing_near_is_better(texts: Texts, use_prior: bool) -> None:
    found = fit(texts, 0.1, use_prior=use_prior)
    values = torch.cat([found.weight.flatten(), found.bias, torch.tensor([found.prior_weight])]).requires_grad_()
    value = loss(values, texts, 0.1, use_prior)
    value.backward()
    assert values.grad is not None and values.grad.abs().max() < 1e-6
    from_elsewhere = fit(texts, 0.1, use_prior=use_prior, start=Fit(torch.ones(K, H).double(), torch.ones(K).double()))
    torch.testing.assert_close(from_elsewhere.weight, found.weight, rtol=0, atol=1e-5)
    assert (found.prior_weight > 0.1) == use_prior


def test_the_best_on_validation_is_chosen(texts: Texts) -> None:
    train, validation = texts.part(np.arange(0, N, 2)), texts.part(np.arange(1, N, 2))
    found = choose(train, validation, [1e-6, 0.1], [False, True])
    alone = [fit(train, c, use_prior=use_prior) for use_prior in (False, True) for c in (1e-6, 0.1)]
    quality = [float((each.scores(validation).argmax(1) == validation.labels).float().mean()) for each in alone]
    assert found.prior_weight != 0 and max(quality) == max(quality[2:])
    assert choose(train, validation, [0.1], [False]).prior_weight == 0


def test_without_validation_texts_it_is_chosen_by_leaving_some_out(texts: Texts) -> None:
    found = choose(texts, None, [1e-7, 0.1], [False])
    torch.testing.assert_close(found.weight, fit(texts, 0.1, use_prior=False).weight)
    one_each = texts.part(np.array([int((texts.labels == label).nonzero()[0]) for label in range(K)]))
    first = choose(one_each, None, [1e-3, 0.1], [False])  # nothing can be left out
    torch.testing.assert_close(first.weight, fit(one_each, 1e-3, use_prior=False).weight)


def test_what_is_fitted_is_for_states_as_they_are(texts: Texts) -> None:
    states = texts.states * torch.tensor([1, 1000, 1e-3, 1, 0]).double() + torch.tensor([0, 50, 0, -3, 7]).double()
    label_states, mask = torch.randn(K, 2, H, dtype=torch.float64), torch.ones(K, 2, dtype=torch.bool)
    reading = Reading(states, texts.labels.numpy())
    found = fit_to_readings(Readings(reading, None, label_states, mask), [0.1], (True,))
    scores = states @ found.weight.T + found.bias
    scores = scores + found.prior_weight * state_similarity(states, label_states, mask)
    standardized = (states - states.mean(0)) / states.std(0, correction=0).where(states.std(0) > 0, 1)
    prior = state_similarity(states, label_states, mask)
    expected = fit(Texts(standardized, texts.labels, prior), 0.1, use_prior=True)
    torch.testing.assert_close(scores, expected.scores(Texts(standardized, texts.labels, prior)), rtol=1e-6, atol=1e-6)


def test_weaker_penalties_are_tried_while_they_help(texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def noted(texts: Texts, c: float, **how: Any) -> Fit:
        tried.append(c)
        return fit(texts, c, **how)

    monkeypatch.setattr(logistic, "fit", noted)
    train, validation = texts.part(np.arange(10)), texts.part(np.arange(10, N))
    choose(train, validation, [10.0**power for power in range(-3, 8)], [False])
    assert tried == sorted(tried) and len(tried) < 11


def test_weights_and_soft_labels_are_scikit_learns_sample_weights(texts: Texts) -> None:
    """Each text as K texts, one of each label, with the weight times the label's share."""
    generator = torch.Generator().manual_seed(1)
    shares = torch.rand(N, K, generator=generator, dtype=torch.float64).softmax(1)
    targets = shares * (0.5 + torch.rand(N, 1, generator=generator, dtype=torch.float64))
    theirs = LogisticRegression(C=0.3, tol=1e-10, max_iter=10_000)
    theirs.fit(texts.states.repeat(K, 1), torch.arange(K).repeat_interleave(N), sample_weight=targets.T.flatten())
    found = fit(replace(texts, targets=targets), 0.3, use_prior=False)
    np.testing.assert_allclose(found.weight, theirs.coef_, atol=1e-5)


@pytest.mark.parametrize("use_prior", [False, True])
def test_the_labels_as_shares_are_the_labels(texts: Texts, use_prior: bool) -> None:
    plain = fit(texts, 0.3, use_prior=use_prior)
    targets = torch.nn.functional.one_hot(texts.labels, K).double()
    same = fit(replace(texts, targets=targets), 0.3, use_prior=use_prior)
    torch.testing.assert_close(same.weight, plain.weight, atol=1e-6, rtol=0)
    assert same.prior_weight == pytest.approx(plain.prior_weight, abs=1e-6)
