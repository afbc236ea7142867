"""Label tuning: sizes by the paper's formulas, values by its text, and where gradients go.

covers methods/lt_prefix, methods/lt_prompt, methods/label_tuning_config
"""

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import Injection, KeyValueShape, split_prefix
from pipeline.methods import AnyMethodConfig
from pipeline.methods.base import MethodConfig
from pipeline.methods.label_tuning import LabelTuning

K, P = 3, 4
LABEL_TUNING = ("lt_prefix", "lt_prompt")
FACTS = BackboneFacts(
    family="llama",
    hidden_size=12,
    layers=3,
    prefix_layers=(KeyValueShape(2, 5, 5),) * 3,
    max_positions=None,
    is_decoder=True,
)
[SHAPE] = set(FACTS.prefix_layers)
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()


def config_of(**keys: Any) -> MethodConfig:
    config: MethodConfig = TypeAdapter(AnyMethodConfig).validate_python(keys)
    return config


def method_of(facts: BackboneFacts = FACTS, *, start: str = "random", **keys: Any) -> LabelTuning:
    torch.manual_seed(0)
    method = config_of(start=start, **keys).build(facts, P, K).double().eval()
    assert isinstance(method, LabelTuning)
    return method


def states() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(K, P, FACTS.hidden_size, dtype=torch.float64) * MASK[..., None]


def test_sizes_are_the_papers() -> None:
    """App. A.5: 2 P^2 L H + 3H for LT-prefix, H^2 + 2H for LT-prompt; G D in the place of H with grouped queries."""
    for hidden, layers, tokens in itertools.product((12, 64), (1, 5), (1, 7)):
        four, two = (KeyValueShape(heads, hidden // 4, hidden // 4) for heads in (4, 2))
        full = replace(FACTS, hidden_size=hidden, layers=layers, prefix_layers=layers * (four,))
        grouped = replace(full, prefix_layers=layers * (two,))
        prefix = config_of(name="lt_prefix", pooling="scores", head="linear")
        prompt = config_of(name="lt_prompt", head="linear")
        assert prefix.trainable_count(full, tokens, K) == 2 * tokens**2 * layers * hidden + 3 * hidden
        assert prefix.trainable_count(grouped, tokens, K) == 2 * tokens**2 * layers * (hidden // 2) + 3 * hidden
        assert prompt.trainable_count(full, tokens, K) == hidden**2 + 2 * hidden


OPTIONS = st.fixed_dictionaries(
    {"name": st.sampled_from(LABEL_TUNING), "head": st.sampled_from(["linear", "label_aware"])}
)
SIZES = st.builds(
    BackboneFacts,
    family=st.just("llama"),
    hidden_size=st.integers(1, 9),
    layers=st.integers(1, 3),
    prefix_layers=st.lists(
        st.builds(KeyValueShape, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3
    ).map(tuple),
    max_positions=st.none(),
    is_decoder=st.booleans(),
    joined=st.sampled_from([(), (1, 2, 3)]),
    pooled=st.sampled_from([1, 2]),
)


@settings(deadline=None)
@given(
    OPTIONS, st.sampled_from(["scores", "softmax", "tokens"]), st.none() | st.integers(1, 5), SIZES, st.integers(1, 5)
)
def test_the_formula_is_the_count(
    options: dict[str, Any], pooling: str, rank: int | None, facts: BackboneFacts, tokens: int
) -> None:
    if options["name"] == "lt_prefix":
        options = options | {"pooling": pooling, "rank": rank if pooling == "tokens" else None}
    config = config_of(**options)
    with torch.device("meta"):
        method = config.build(facts, tokens, K)
    assert sum(parameter.numel() for parameter in method.parameters()) == config.trainable_count(facts, tokens, K)
    assert all(parameter.requires_grad for parameter in method.parameters()) and not list(method.buffers())


def prefix_by_hand(method: LabelTuning, pooling: str, label: int, states: Tensor) -> Tensor:
    """One label's keys and values [L, 2, G, P, D], element by element, from the paper's text.

    A linear map H -> 1 without bias gives one number per hypothesis token (softmax normalizes them over the
    hypothesis), and a linear map P -> 2 P L G D every key and value; with `tokens` each token makes its own.
    """
    weights = {name: parameter.detach() for name, parameter in method.producer.named_parameters()}
    real = int(MASK[label].sum())
    result = torch.zeros(FACTS.layers, 2, SHAPE.heads, P, SHAPE.key_dim, dtype=torch.float64)
    scores = (
        [
            sum(weights["token_score.weight"][0] * states[label, token]) / math.sqrt(FACTS.hidden_size)
            for token in range(real)
        ]
        if (pooling != "tokens")
        else []
    )
    if pooling == "softmax":
        total = sum(math.exp(score) for score in scores)
        scores = [math.exp(score) / total for score in scores]
    sizes = (P, FACTS.layers, 2, SHAPE.heads, SHAPE.key_dim)
    for token, layer, which, head, place in itertools.product(*map(range, sizes)):
        row = ((layer * 2 + which) * SHAPE.heads + head) * SHAPE.key_dim + place
        if pooling == "tokens":
            state = states[label, token]
            if "down.weight" in weights:
                state = weights["down.weight"] @ state
            value = weights["expand.weight"][row] @ state
        else:
            row += token * FACTS.layers * 2 * SHAPE.heads * SHAPE.key_dim
            value = sum(weights["expand.weight"][row, t] * scores[t] for t in range(real))
        result[layer, which, head, token, place] = value
    return result


@pytest.mark.parametrize(("pooling", "rank"), [("scores", None), ("softmax", None), ("tokens", None), ("tokens", 2)])
def test_prefix_by_definition(pooling: str, rank: int | None) -> None:
    method = method_of(name="lt_prefix", pooling=pooling, rank=rank, init_std=0.5)
    injection = method.inject(states(), MASK)
    assert injection.prompt is None and injection.prefix is not None
    assert injection.prefix.shape == (K, P, FACTS.prefix_width())
    by_layer = split_prefix(injection.prefix, FACTS.prefix_layers)
    for label in range(K):
        found = torch.stack([torch.stack((keys[label], values[label])) for keys, values in by_layer])
        torch.testing.assert_close(found, prefix_by_hand(method, pooling, label, states()))
    # The map from scores fills all P positions; tokens have their own, and only where there is a token.
    assert torch.equal(injection.mask, MASK if pooling == "tokens" else torch.ones_like(MASK))


def test_prompt_by_definition() -> None:
    method = method_of(name="lt_prompt")
    injection = method.inject(states(), MASK)
    assert injection.prefix is None and injection.prompt is not None and torch.equal(injection.mask, MASK)
    weight = method.producer.map.weight
    for label, token in itertools.product(range(K), range(P)):
        expected = weight @ states()[label, token]
        torch.testing.assert_close(injection.prompt[label, token], expected)


METHODS: list[dict[str, Any]] = [
    {"name": "lt_prompt"},
    *({"name": "lt_prefix", "pooling": pooling} for pooling in ("scores", "softmax", "tokens")),
    {"name": "lt_prefix", "pooling": "tokens", "rank": 2},
]


@pytest.mark.parametrize("head", ["linear", "label_aware"])
@pytest.mark.parametrize("keys", METHODS, ids=lambda keys: "-".join(map(str, keys.values())))
def test_masked_tokens_have_no_influence(keys: dict[str, Any], head: str) -> None:
    method = method_of(**keys, head=head)
    pooled = torch.randn(K, FACTS.hidden_size, dtype=torch.float64)
    other = torch.where(MASK[..., None], states(), 1e3)
    assert torch.equal(method.score(pooled, states(), MASK), method.score(pooled, other, MASK))
    first, second = method.inject(states(), MASK), method.inject(other, MASK)
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(seen(first), seen(second))


def seen(injection: Injection) -> Tensor:
    """What the backbone attends to: masked positions are zeroed."""
    if injection.prompt is not None:
        return injection.prompt * injection.mask[:, :, None]
    assert injection.prefix is not None
    return injection.prefix * injection.mask[:, :, None]


@pytest.mark.parametrize("head", ["linear", "label_aware"])
@pytest.mark.parametrize("keys", METHODS, ids=lambda keys: "-".join(map(str, keys.values())))
def test_gradients_reach_every_parameter(keys: dict[str, Any], head: str) -> None:
    method = method_of(**keys, head=head).train()
    injection = method.inject(states(), MASK)
    injected = injection.prompt if injection.prefix is None else injection.prefix
    pooled = torch.randn(K, FACTS.hidden_size, dtype=torch.float64) + injected.mean()
    (method.score(pooled, states(), MASK).square().sum() + injected.square().sum()).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_scores_are_float32_in_a_bfloat16_method() -> None:
    method = method_of(name="lt_prefix").bfloat16()
    pooled, label = torch.randn(K, FACTS.hidden_size).bfloat16(), states().bfloat16()
    assert method.score(pooled, label, MASK).dtype == torch.float32
    assert method.inject(label, MASK).prefix.dtype == torch.bfloat16


def test_dropout_is_on_in_training_only() -> None:
    label = states()
    for name in LABEL_TUNING:
        method = method_of(name=name, dropout=0.5)
        assert torch.equal(seen(method.inject(label, MASK)), seen(method.inject(label, MASK)))
        method.train()
        assert not torch.equal(seen(method.inject(label, MASK)), seen(method.inject(label, MASK)))


def test_initial_scale_follows_the_option() -> None:
    for name, weight in (("lt_prefix", "expand"), ("lt_prompt", "map")):
        for std in (0.0, 0.3):
            producer = method_of(name=name, init_std=std).producer
            assert getattr(producer, weight).weight.std().item() == pytest.approx(std, rel=0.2)
    assert method_of(name="lt_prompt").producer.map.weight.std().item() == pytest.approx(12**-0.5, rel=0.2)
