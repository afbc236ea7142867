"""Label tuning: sizes by the paper's formulas, values by its text, and where gradients go.

covers methods/lt_prefix, methods/lt_prompt
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor, nn

from pipeline.backbone.facts import BackboneFacts
from pipeline.backbone.injection import Injection, split_prefix
from pipeline.backbone.probe import KeyValueShape
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
        prefix, prompt = config_of(name="lt_prefix", head="linear"), config_of(name="lt_prompt", head="linear")
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


TEXTS = torch.linspace(-1, 1, 2 * FACTS.hidden_size, dtype=torch.float64).view(2, -1)


@dataclass
class TinyReader:
    """A backbone before two texts, for which an injection is one number per row."""

    begin: Tensor | None = None
    """[K, P, W], what injections start from"""
    alone_only: bool = False

    def __call__(self, injection: Injection | None, copies: int, /) -> Tensor:
        rows = TEXTS.repeat_interleave(copies, 0)
        if injection is not None:
            assert not self.alone_only
            whole = injection.prompt if injection.prefix is None else injection.prefix
            rows = rows + whole.flatten(1).mean(1, keepdim=True).sin()
        return rows.tanh()

    def start(self, labels: Tensor, /) -> Tensor | None:
        return None if self.begin is None else self.begin[labels]

    def likelihood(self, labels: Tensor, /) -> Tensor:
        raise NotImplementedError


read = TinyReader()


def shortlisted(shortlist: int | None, name: str = "lt_prompt") -> LabelTuning:
    """With random parameters, all of which matter."""
    method = method_of(name=name, head="label_aware", shortlist=shortlist)
    torch.manual_seed(2)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    return method


@pytest.mark.parametrize("name", LABEL_TUNING)
@pytest.mark.parametrize("shortlist", [1, 2])
def test_a_shortlist_by_definition(name: str, shortlist: int) -> None:
    """The labels nearest to the text alone are scored by the mean of both readings, the rest by that one."""
    method = shortlisted(shortlist, name)
    # Not all labels, and in another order for each text.
    candidates = torch.tensor([[2, 0, 1], [1, 2, 0]])
    found = method.scores(read, candidates, states(), MASK)
    for text, row in enumerate(candidates):
        texts = TEXTS[text : text + 1].tanh()
        alone = {k: method.score(texts, states()[k : k + 1], MASK[k : k + 1]) for k in row.tolist()}
        nearest = sorted(alone, key=lambda k: -alone[k].item())[:shortlist]
        for place, label in enumerate(row.tolist()):
            part = slice(label, label + 1)
            injected = method.inject(states()[part], MASK[part])
            both = method.score(read(injected.expand(2), 1)[text : text + 1], states()[part], MASK[part])
            expected = (alone[label] + both) / 2 if label in nearest else alone[label]
            torch.testing.assert_close(found[text, place], expected[0])


def test_without_a_shortlist_every_label_is_read_into_the_text() -> None:
    candidates = torch.tensor([[0, 1, 2], [2, 1, 0]])
    method = shortlisted(None)
    found = method.scores(read, candidates, states(), MASK)
    for place in range(K):
        injected = method.inject(states(), MASK).select(candidates[:, place])
        rows = states()[candidates[:, place]], MASK[candidates[:, place]]
        torch.testing.assert_close(found[:, place], method.score(read(injected, 1), *rows))
    # As many labels as the shortlist is long are no choice.
    assert torch.equal(shortlisted(K).scores(read, candidates, states(), MASK), found)


def test_a_score_does_not_depend_on_the_other_candidates_of_a_shortlist() -> None:
    """Pairs in training, and other labels in prediction, are scored as all labels are."""
    method = shortlisted(2)
    pair = method.scores(read, torch.tensor([[0, 1], [0, 1]]), states(), MASK)
    for label in (0, 1):
        alone = method.scores(read, torch.tensor([[label], [label]]), states(), MASK)
        torch.testing.assert_close(alone[:, 0], pair[:, label])


def values_of(injection: Injection) -> Tensor:
    """[K, P, W]"""
    if injection.prompt is not None:
        return injection.prompt
    assert injection.prefix is not None
    return injection.prefix


@pytest.mark.parametrize("keys", [{"pooling": "scores"}, {"pooling": "tokens", "rank": 2}, {"name": "lt_prompt"}])
def test_an_injection_starts_as_the_hypothesis_and_training_adds_to_it(keys: dict[str, Any]) -> None:
    keys = {"name": "lt_prefix", **keys}
    method, form = method_of(start="hypothesis", **keys), config_of(**keys).starts_from
    assert form is not None and form.kind == config_of(**keys).injects
    assert config_of(start="random", **keys).starts_from is None
    start = torch.randn(K, P, form.width(FACTS), dtype=torch.float64)
    injection = method.inject(states(), MASK, start)
    assert torch.equal(values_of(injection), start) and torch.equal(injection.mask, MASK)
    for parameter in method.producer.parameters():
        nn.init.normal_(parameter)
    nothing = torch.zeros_like(start)
    moved = values_of(method.inject(states(), MASK, start))
    assert not torch.allclose(moved, start)
    torch.testing.assert_close(moved, start + values_of(method.inject(states(), MASK, nothing)))


def test_each_label_starts_from_its_own_hypothesis() -> None:
    method = method_of(name="lt_prompt", start="hypothesis", head="label_aware", shortlist=None)
    start = torch.randn(K, P, FACTS.hidden_size, dtype=torch.float64)
    found = method.scores(TinyReader(start), torch.tensor([[2, 0], [2, 0]]), states(), MASK)
    for place, label in enumerate((2, 0)):
        rows = [label, label]
        pooled = read(Injection(mask=MASK[rows], prompt=start[rows]), 1)
        torch.testing.assert_close(found[:, place], method.score(pooled, states()[rows], MASK[rows]))


def test_rows_that_a_text_takes() -> None:
    assert config_of(name="lt_prefix", shortlist=3).joint_readings(4) == 3
    for keys, labels in (({"shortlist": 3}, 3), ({"shortlist": None}, 99), ({"head": "linear"}, 99)):
        assert config_of(name="lt_prompt", **keys).joint_readings(labels) is None
    assert method_of(name="lt_prefix", head="linear", shortlist=1).shortlist is None
    assert config_of(name="prompt").joint_readings(99) == 1


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
