"""Labels with several hypotheses: scores are the weighted mean of what each hypothesis alone would give.

covers methods/hypothesis_mean
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from pipeline.backbone.config import Pooling
from pipeline.backbone.facts import BackboneFacts, facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.data.batches import collate
from pipeline.methods.base import Reading, Readings, TuningMethod
from pipeline.methods.heads import FittedHead, state_similarity
from pipeline.methods.hypothesis_mean import HypothesisMean, labels_of
from pipeline.methods.logistic import Fit, Scale, Texts, fit, fit_to_readings
from pipeline.methods.model import LTuningModel, StateModel
from pipeline.methods.probe import Probe
from tests.methods.test_label_tuning import config_of
from tests.support.tiny import PAD_ID, tiny_model

WEIGHTS = [[0.5, 0.3, 0.2], [1.0], [0.25, 0.75]]
PARTS = [slice(0, 3), slice(3, 4), slice(4, 6)]
K, J, P, H = 3, 6, 3, 16
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]]).bool()
STATES = torch.randn(J, P, H, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * MASK[..., None]
WORDS = torch.arange(4, 4 + 2 * J).view(J, 2)
METHODS: dict[str, dict[str, Any]] = {
    "likelihood": {"name": "zero_shot"},
    "similarity": {"name": "zero_shot", "family": "bert"},
    "probe": {"name": "probe"},
    "fitted": {"name": "lt_prefix", "start": "random"},
    "label_aware": {"name": "lt_prefix", "start": "random", "head": "label_aware"},
    "lt_prompt": {"name": "lt_prompt", "start": "random", "head": "label_aware", "family": "bert"},
    "linear": {"name": "lt_prefix", "start": "random", "head": "linear"},
    "prompt": {"name": "prompt", "tokens": 2, "head": "label_aware"},
    "prefix": {"name": "prefix", "tokens": 2, "head": "linear"},
    "sentence": {"name": "generated", "source": "sentence", "tokens": 2, "head": "label_aware"},
    "majority": {"name": "majority"},
}


def method_of(keys: dict[str, Any], facts: BackboneFacts) -> TuningMethod:
    """With random parameters, all of which matter; the same at each call."""
    torch.manual_seed(3)
    method = config_of(**keys).build(facts, P, K).double()
    fit = Fit(torch.randn(K, H, dtype=torch.float64), torch.randn(K, dtype=torch.float64), 0.7)
    fitted = {f"head.{name}": value for name, value in FittedHead.state_of(fit).items()}
    found = {
        name: fitted.get(name, value + 0.3 * torch.randn_like(value) if value.is_floating_point() else value)
        for name, value in method.state_dict().items()
    }
    method.load_state_dict(found)
    method.begin_tuning()
    return method


def model_of(keys: dict[str, Any], rows: list[int], weights: list[list[float]] | None) -> LTuningModel:
    """Of these hypotheses: one for each label, or with weights several."""
    keys = dict(keys)
    family = keys.pop("family", "llama_gqa")
    reads = keys["name"] == "zero_shot" and family != "bert"
    network = tiny_model(family, AutoModelForCausalLM if reads else AutoModel).double()
    facts = facts_of(network.config)
    method = method_of(keys, facts)
    judge = method if weights is None else method.among(labels_of(weights))
    mean = None if weights is None else HypothesisMean(weights)
    backbone, words = FrozenBackbone(network, facts), WORDS[rows] if reads else None
    pooling: Pooling = "last" if facts.is_decoder else "mean"
    return LTuningModel(backbone, judge, STATES[rows], MASK[rows], pooling, words, None, mean).eval()


def texts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(4, 300, (length,), generator=generator).tolist()} for length in (5, 9, 2)]
    return collate(rows, PAD_ID)


def mean_by_definition(score: Callable[[list[int]], Tensor]) -> Tensor:
    """Of the scores [B, K] that `score` finds with one hypothesis for each label."""
    starts = [0, 3, 4]
    expected = torch.zeros_like(score(starts))
    for place in range(3):
        chosen = [start + min(place, len(own) - 1) for start, own in zip(starts, WEIGHTS, strict=True)]
        own = torch.tensor([one[place] if place < len(one) else 0.0 for one in WEIGHTS])
        expected += score(chosen) * own
    return expected


@pytest.mark.parametrize("name", METHODS)
def test_a_score_is_the_weighted_mean_over_the_hypotheses(name: str) -> None:
    keys, batch, candidates = METHODS[name], texts(), torch.tensor([[2, 0, 1], [0, 1, 2], [1, 0, 2]])

    def score(rows: list[int]) -> Tensor:
        with torch.no_grad():
            return model_of(keys, rows, None)(**batch, candidates=candidates.sort().values)

    with torch.no_grad():
        model = model_of(keys, list(range(J)), WEIGHTS)
        found = model(**batch, candidates=candidates)
    assert found.dtype == torch.float32 and model.label_count == K and model.most_hypotheses == 3
    expected = mean_by_definition(score)
    torch.testing.assert_close(found, expected.gather(1, candidates), rtol=1e-5, atol=1e-5)
    reads_states = name not in ("majority", "prefix", "linear")
    assert reads_states == ((score([0, 3, 4]) - score([1, 3, 5])).abs().max() > 1e-3) or name == "linear"


def test_training_reaches_what_judges_the_hypotheses() -> None:
    model = model_of(METHODS["label_aware"], list(range(J)), WEIGHTS)
    model(**texts(), candidates=torch.arange(K).expand(3, K)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.method.parameters())


def test_a_shortlist_is_of_hypotheses() -> None:
    """Each scores what it would, if every hypothesis were a label of its own."""
    keys = METHODS["label_aware"] | {"shortlist": 2}
    several = model_of(keys, list(range(J)), WEIGHTS)
    apart = model_of(keys, list(range(J)), None)
    rows: list[int] = []
    several.backbone.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    with torch.no_grad():
        found = several(**texts(), candidates=torch.arange(K).expand(3, K))
        alone = apart(**texts(), candidates=torch.arange(J).expand(3, J))
    assert rows == [3, 3 * 2]
    weights = torch.tensor([weight for own in WEIGHTS for weight in own])
    expected = torch.stack([part.sum(1) for part in (alone * weights).split([3, 1, 2], dim=1)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_read_with_a_label_is_the_mean_of_its_hypotheses() -> None:
    mean, candidates = HypothesisMean(WEIGHTS), torch.tensor([[2, 0], [1, 2]])
    own = torch.randn(2, J, H, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    padded = own[torch.arange(2).unsqueeze(1), mean.places[candidates].flatten(1)]
    found = mean(padded, candidates)
    for text, row in enumerate(candidates.tolist()):
        for place, label in enumerate(row):
            parts = zip(own[text, PARTS[label]], WEIGHTS[label], strict=True)
            expected = torch.stack([weight * part for part, weight in parts]).sum(0)
            torch.testing.assert_close(found[text, place], expected)


def test_weights_are_not_rounded_by_a_cast() -> None:
    mean = HypothesisMean(WEIGHTS).to(torch.bfloat16)
    assert mean.weights[0].tolist() == WEIGHTS[0]
    found = mean.of_all(torch.tensor([[1.0, 0, 0, 5, 0, 2]]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 5, 1.5]]))


def test_a_probe_is_fitted_to_the_mean_and_scores_with_it() -> None:
    """By an offset that was computed before, as if it were the similarity of one hypothesis."""
    generator = torch.Generator().manual_seed(1)
    pooled, labels = torch.randn(24, H, generator=generator), np.arange(24) % K
    mean, states = HypothesisMean(WEIGHTS), STATES.float()
    found = fit_to_readings(Readings(Reading(pooled, labels), None, states, MASK, mean), [0.1], (True,))
    similarity = state_similarity(pooled, states, MASK)
    prior = torch.stack(
        [(similarity[:, part] * torch.tensor(own)).sum(1) for part, own in zip(PARTS, WEIGHTS, strict=True)], 1
    )
    scale = Scale.of(pooled)
    plain = fit(Texts(scale.standardized(pooled), torch.from_numpy(labels), prior), 0.1, use_prior=True)
    assert found.prior_weight == pytest.approx(plain.prior_weight, rel=1e-5) and plain.prior_weight != 0

    probe = Probe(H, K)
    probe.load_state_dict(
        {
            "logits.weight": found.weight.float(),
            "logits.bias": found.bias.float(),
            "prior_weight": torch.tensor([found.prior_weight]),
        }
    )
    model = StateModel(probe.among(labels_of(WEIGHTS)), states, MASK, mean)
    scores = model(pooled, torch.arange(K).expand(24, K))
    expected = plain.scores(Texts(scale.standardized(pooled), torch.from_numpy(labels), prior))
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
