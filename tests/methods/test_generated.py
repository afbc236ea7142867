"""A prompt that the text adds to: where it starts, its generator in a loop, and what it does not depend on."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.backbone.facts import facts_of
from pipeline.core.errors import UserError
from pipeline.methods.generated import GeneratedTuning
from pipeline.methods.prompt_generators import Generator, TokenPooling
from tests.methods.test_baselines import K, P, config_of, label, model_of
from tests.methods.test_edit import texts  # noqa: F401  # a fixture
from tests.support.tiny import tiny_model

H, RANK, TOKENS = 16, 3, 4
KINDS: list[dict[str, Any]] = [{}, {"layers": [0]}, {"layers": [1], "pooling": "mean"}]
every_kind = pytest.mark.parametrize("keys", [{"rank": RANK, "tokens": TOKENS} | keys for keys in KINDS], ids=label)
ALL = torch.arange(K).expand(3, K)


@every_kind
@pytest.mark.parametrize("family", ["llama_gqa", "bert", "deberta_v2"])
def test_sizes_and_gradients(keys: dict[str, Any], family: str, texts: dict[str, Tensor]) -> None:  # noqa: F811
    model, config = model_of(family, name="generated", **keys), config_of(name="generated", **keys)
    one = 2 * H * RANK + (0 if keys.get("pooling") == "mean" else RANK * TOKENS)
    layers = len(keys.get("layers", (0, 1)))
    found = sum(parameter.numel() for parameter in model.method.parameters())
    facts = facts_of(tiny_model(family).config)
    assert found == TOKENS * H + layers * one + K * (H + 1) == config.trainable_count(facts, P, K)
    assert config.injected_tokens(P) == TOKENS
    model(**texts, candidates=ALL).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.method.parameters())


@every_kind
def test_it_starts_as_prompt_tuning(keys: dict[str, Any], texts: dict[str, Tensor]) -> None:  # noqa: F811
    model, plain = model_of("llama_gqa", name="generated", **keys), model_of(name="prompt", tokens=TOKENS)
    fresh = config_of(name="generated", **keys).build(model.backbone.facts, P, K).double()
    assert isinstance(model.method, GeneratedTuning) and isinstance(fresh, GeneratedTuning)
    model.method.generators.load_state_dict(fresh.generators.state_dict())
    model.method.load_state_dict(plain.method.state_dict(), strict=False)
    model.label_states = plain.label_states
    assert torch.equal(model(**texts, candidates=ALL), plain(**texts, candidates=ALL))


@pytest.mark.parametrize("pooling", ["attention", "mean"])
def test_a_generator_is_that_of_a_loop_and_padding_counts_for_nothing(pooling: TokenPooling) -> None:
    torch.manual_seed(0)
    generator = Generator(TOKENS, H, RANK, pooling, "gelu").double()
    for parameter in generator.parameters():
        parameter.data.normal_()
    hidden, mask = torch.randn(2, TOKENS + 5, H, dtype=torch.double), torch.ones(2, TOKENS + 5, dtype=torch.bool)
    mask[1, TOKENS + 2 :] = False
    hidden[1, TOKENS + 2 :] = 1e3
    found = generator(hidden, mask)
    assert torch.equal(found[:, TOKENS:], hidden[:, TOKENS:])
    for row in range(2):
        text = [generator.down.weight @ hidden[row, TOKENS + place] for place in range(5 if row == 0 else 2)]
        for slot in range(TOKENS):
            scores = [z.new_zeros(()) if generator.score is None else generator.score.weight[slot] @ z for z in text]
            weights = torch.stack(scores).softmax(0)
            pooled = sum(weight * z for weight, z in zip(weights, text, strict=True))
            added = generator.up.weight @ functional.gelu(pooled)
            torch.testing.assert_close(found[row, slot], hidden[row, slot] + added)


def test_a_texts_scores_do_not_depend_on_its_neighbours(texts: dict[str, Tensor]) -> None:  # noqa: F811
    model = model_of("llama_gqa", name="generated", rank=RANK, tokens=TOKENS)
    together = model(**texts, candidates=ALL)
    short = {name: values[2:, :4] for name, values in texts.items()}
    torch.testing.assert_close(together[2:], model(**short, candidates=ALL[2:]))
    padding_first = texts["attention_mask"].argsort(dim=1, stable=True)
    left = {name: values.gather(1, padding_first) for name, values in texts.items()}
    torch.testing.assert_close(together, model(**left, candidates=ALL))


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"method.layers: 7 is none of the backbone's layers 0 to 1"):
        config_of(name="generated", layers=[7]).build(facts_of(tiny_model("llama_gqa").config), P, K)
