"""A prompt with offsets of the text's embeddings: where it starts, its offsets in a loop, and the prompt's pace."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.backbone.facts import facts_of
from pipeline.methods.decomposed import ALPHA, DecomposedTuning, PlaceOffset, TokenOffset
from tests.methods.test_baselines import K, P, config_of, label, model_of
from tests.methods.test_edit import texts  # noqa: F401  # a fixture
from tests.support.tiny import tiny_model

H, RANK, TOKENS = 16, 3, 4
KINDS: list[dict[str, Any]] = [{"kind": "adept"}, {"kind": "dept", "length": 6}]
every_kind = pytest.mark.parametrize("keys", [{"rank": RANK, "tokens": TOKENS} | keys for keys in KINDS], ids=label)
ALL = torch.arange(K).expand(3, K)


@every_kind
@pytest.mark.parametrize("family", ["llama_gqa", "bert", "deberta_v2"])
def test_sizes_and_gradients(keys: dict[str, Any], family: str, texts: dict[str, Tensor]) -> None:  # noqa: F811
    model, config = model_of(family, name="decomposed", **keys), config_of(name="decomposed", **keys)
    offset = 2 * H * RANK + RANK + H if keys["kind"] == "adept" else RANK * (6 + H)
    found = sum(parameter.numel() for parameter in model.method.parameters())
    facts = facts_of(tiny_model(family).config)
    assert found == TOKENS * H + offset + K * (H + 1) == config.trainable_count(facts, P, K)
    assert config.injected_tokens(P) == TOKENS
    model(**texts, candidates=ALL).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.method.parameters())


@every_kind
def test_without_an_offset_it_is_prompt_tuning(keys: dict[str, Any], texts: dict[str, Tensor]) -> None:  # noqa: F811
    """As it starts: and its prompt is kept divided by the pace."""
    model, plain = model_of("llama_gqa", name="decomposed", pace=8.0, **keys), model_of(name="prompt", tokens=TOKENS)
    fresh = config_of(name="decomposed", pace=8.0, **keys).build(model.backbone.facts, P, K).double()
    assert isinstance(model.method, DecomposedTuning) and isinstance(fresh, DecomposedTuning)
    model.method.offset.load_state_dict(fresh.offset.state_dict())
    state = plain.method.state_dict()
    state["injector.embedding.weight"] = state["injector.embedding.weight"] / 8
    model.method.load_state_dict(state, strict=False)
    model.label_states = plain.label_states
    assert torch.equal(model(**texts, candidates=ALL), plain(**texts, candidates=ALL))


def test_adam_moves_the_prompt_so_many_times_as_fast() -> None:
    method = config_of(name="decomposed", tokens=TOKENS, pace=50.0).build(facts_of(tiny_model("bert").config), P, K)
    before = method.inject(1).prompt.detach()
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
    method.inject(1).prompt.sum().backward()
    optimizer.step()
    torch.testing.assert_close(before - method.inject(1).prompt, torch.full_like(before, 50 * 1e-3), rtol=1e-3, atol=0)


def test_offsets_are_those_of_a_loop_and_padding_counts_for_nothing() -> None:
    torch.manual_seed(0)
    dept, adept = PlaceOffset(H, RANK, 3).double(), TokenOffset(H, RANK).double()
    for parameter in (*dept.parameters(), *adept.parameters()):
        parameter.data.normal_()
    embeddings = torch.randn(2, 6, H, dtype=torch.double)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]).bool()
    for row in range(2):
        tokens = embeddings[row][mask[row]]
        for place, token in enumerate(tokens):
            moved = token + (ALPHA / RANK**0.5 * dept.places[place] @ dept.up if place < 3 else 0)
            torch.testing.assert_close(dept(embeddings, mask)[row][mask[row]][place], moved)
            inner = (adept.down.weight @ token + adept.down.bias).clamp(min=0)
            moved = token + adept.up.weight @ inner + adept.up.bias
            torch.testing.assert_close(adept(embeddings, mask)[row][mask[row]][place], moved)


def test_equal_rows_are_one_bias_for_every_token() -> None:
    """DePT with equal rows, and ADePT with its bias alone."""
    torch.manual_seed(0)
    dept, adept = PlaceOffset(H, RANK, 6), TokenOffset(H, RANK)
    dept.places.data[:] = dept.places.data[0].clone()
    dept.up.data.normal_()
    adept.up.bias.data.copy_(ALPHA / RANK**0.5 * dept.places[0] @ dept.up)
    embeddings, mask = torch.randn(2, 6, H), torch.ones(2, 6, dtype=torch.bool)
    torch.testing.assert_close(dept(embeddings, mask), adept(embeddings, mask))


def test_a_length_needs_places() -> None:
    with pytest.raises(ValueError, match=r"only with method\.kind=dept"):
        config_of(name="decomposed", length=3)
