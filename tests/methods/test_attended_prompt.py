"""A prompt made of tokens that attend to one another, and a learned activation.

covers methods/generated, methods/prompt_generators
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.backbone.pooling import pool
from pipeline.data.batches import collate
from pipeline.methods.generated import SentenceTuning
from pipeline.methods.limits import readings_per_text
from pipeline.methods.prompt_generators import ACTIVATION_PACE, Bottleneck, Rational, SelfAttention, Shift
from tests.methods.test_baselines import K, P, config_of, label, model_of
from tests.support.tiny import PAD_ID

H, RANK, TOKENS = 16, 6, 4
ALL = torch.arange(K).expand(3, K)
ATTENDED = {"name": "generated", "source": "attended", "rank": RANK, "tokens": TOKENS}
KINDS: list[dict[str, Any]] = [
    {"layers": [0]},
    {"first_layer": 1, "activation": "rational", "hypercomplex": 2},
    {"source": "tokens", "activation": "rational"},
    {},
]
every_kind = pytest.mark.parametrize("keys", [ATTENDED | keys for keys in KINDS], ids=label)


@pytest.fixture
def texts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(4, 300, (length,), generator=generator).tolist()} for length in (5, 9, 2)]
    return collate(rows, PAD_ID)


@every_kind
@pytest.mark.parametrize("family", ["llama_gqa", "bert"])
def test_sizes_gradients_start_and_padding(keys: dict[str, Any], family: str, texts: dict[str, Tensor]) -> None:
    model, plain = model_of(family, **keys), model_of(family, name="prompt", tokens=TOKENS)
    config, n = config_of(**keys), keys.get("hypercomplex")
    layers = 1 if "layers" in keys or "first_layer" in keys else 2
    maps = RANK * H + RANK * TOKENS * H
    expected = (maps if n is None else 2 * n**3 + maps // n) + RANK + 2 * H * RANK + layers * TOKENS * H
    if keys["source"] == "tokens":
        expected = TOKENS * H + layers * (2 * H * RANK + RANK * TOKENS)
    if keys.get("activation") == "rational":
        expected += 12 * (layers if keys["source"] == "tokens" else 1)
    assert sum(parameter.numel() for parameter in model.method.parameters()) == expected + K * (H + 1)
    assert config.trainable_count(model.backbone.facts, P, K) == expected + K * (H + 1)
    assert readings_per_text(config, K, K) == 1
    found = model(**texts, candidates=ALL)
    found.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.method.parameters())
    padding_first = texts["attention_mask"].argsort(dim=1, stable=True)
    left = {name: values.gather(1, padding_first) for name, values in texts.items()}
    torch.testing.assert_close(model(**left, candidates=ALL), found)
    if keys.get("first_layer", 0) == 0:
        fresh = config.build(model.backbone.facts, P, K).double()
        model.method.load_state_dict(fresh.state_dict() | plain.method.state_dict())
        model.label_states = plain.label_states
        assert torch.equal(model(**texts, candidates=ALL), plain(**texts, candidates=ALL))


def test_tokens_attend_as_in_the_formula_and_with_no_queries_alike() -> None:
    torch.manual_seed(0)
    attention = SelfAttention(H, RANK).double()
    mask = torch.arange(7) < torch.tensor([7, 3])[:, None]
    text = torch.randn(2, 7, H, dtype=torch.double).masked_fill(~mask.unsqueeze(-1), 1e3)
    found = attention(text, mask)
    for row, length in enumerate((7, 3)):
        own = text[row, :length]
        scores = (own @ attention.query.weight.T) @ (own @ attention.key.weight.T).T / RANK**0.5
        torch.testing.assert_close(found[row], (scores.softmax(dim=1) @ own).mean(0))
    attention.query.weight.data.zero_()
    bottleneck = Bottleneck(TOKENS, H, RANK, None, "relu").double()
    bottleneck.up.weight.data.normal_()
    hidden = torch.cat([torch.zeros(2, TOKENS, H, dtype=torch.double), text], dim=1)
    seen = functional.pad(mask, (TOKENS, 0), value=True)
    means = Shift(bottleneck, lambda text, mask: pool(text, mask, "mean"), biased=False)
    torch.testing.assert_close(Shift(bottleneck, attention, biased=False)(hidden, seen), means(hidden, seen))


def test_the_attention_is_the_methods_own_once() -> None:
    method = model_of(**ATTENDED).method
    assert isinstance(method, SentenceTuning)
    assert len(method.state_dict()) == len(list(method.parameters()))


def test_the_learned_activation_starts_as_gelu_and_moves_slower() -> None:
    activation, values = Rational().double(), torch.linspace(-8, 8, 1601, dtype=torch.double)
    assert (activation(values) - functional.gelu(values)).abs().max() < 0.011
    numerator, denominator = (
        part.detach() * ACTIVATION_PACE for part in (activation.numerator, activation.denominator)
    )
    above = sum(factor * values**power for power, factor in enumerate(numerator))
    below = sum(factor * values ** (power + 1) for power, factor in enumerate(denominator))
    torch.testing.assert_close(activation(values), above / (1 + torch.as_tensor(below).abs()))
    before = numerator.clone()
    optimizer = torch.optim.Adam(activation.parameters(), lr=1e-3)
    activation(values).square().sum().backward()
    optimizer.step()
    moved = activation.numerator.detach() * ACTIVATION_PACE - before
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-3 * ACTIVATION_PACE), rtol=1e-3, atol=0)
    assert activation(values.to(torch.bfloat16)).dtype == torch.bfloat16
