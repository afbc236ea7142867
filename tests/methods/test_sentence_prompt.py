"""A prompt that a text's sentence state adds to: sizes by formula, where it starts, and IDPG's maps by definition.

covers methods/generated, methods/prompt_generators
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.backbone.pooling import pool
from pipeline.core.errors import UserError
from pipeline.methods.generated import SentenceTuning
from pipeline.methods.limits import readings_per_text
from pipeline.methods.model import LTuningModel
from pipeline.methods.prompt_generators import Bottleneck, HypercomplexLinear
from tests.methods.test_baselines import K, P, config_of, label, model_of
from tests.methods.test_edit import texts  # noqa: F401  # a fixture
from tests.support.tiny import tiny_model

H, RANK, TOKENS, LAYERS = 16, 6, 4, 2
ALL = torch.arange(K).expand(3, K)
KINDS: list[dict[str, Any]] = [{"layers": [0]}, {}, {"hypercomplex": 2}, {"layers": [0], "hypercomplex": 2}]
every_kind = pytest.mark.parametrize("keys", KINDS, ids=label)


def keys_of(keys: dict[str, Any]) -> dict[str, Any]:
    return {"name": "generated", "source": "sentence", "rank": RANK, "tokens": TOKENS} | keys


@every_kind
@pytest.mark.parametrize("family", ["llama_gqa", "bert"])
def test_sizes_and_gradients(keys: dict[str, Any], family: str, texts: dict[str, Tensor]) -> None:  # noqa: F811
    model, config = model_of(family, **keys_of(keys)), config_of(**keys_of(keys))
    n, layers = keys.get("hypercomplex"), len(keys.get("layers", (0, 1)))
    maps = RANK * H + RANK * TOKENS * H
    expected = (maps if n is None else 2 * n**3 + maps // n) + RANK + layers * TOKENS * H
    assert sum(parameter.numel() for parameter in model.method.parameters()) == expected + K * (H + 1)
    assert config.trainable_count(model.backbone.facts, P, K) == expected + K * (H + 1)
    assert config.reads_alone and readings_per_text(config, K, K) == 2
    model(**texts, candidates=ALL).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.method.parameters())
    assert len(model.method.state_dict()) == len(list(model.method.parameters()))  # the map of all layers once


@every_kind
def test_it_starts_as_prompt_tuning(keys: dict[str, Any], texts: dict[str, Tensor]) -> None:  # noqa: F811
    model, plain = model_of(**keys_of(keys)), model_of(name="prompt", tokens=TOKENS)
    fresh = config_of(**keys_of(keys)).build(model.backbone.facts, P, K).double()
    model.method.load_state_dict(fresh.state_dict() | plain.method.state_dict())
    model.label_states = plain.label_states
    assert torch.equal(model(**texts, candidates=ALL), plain(**texts, candidates=ALL))


def as_they_go_in(model: LTuningModel, texts: dict[str, Tensor]) -> list[Tensor]:  # noqa: F811
    """What the layers get when texts are scored: of each text's last reading."""
    got: list[Tensor] = []
    layers = next(part for part in model.backbone.modules() if isinstance(part, nn.ModuleList))
    # After the edits, which come with each call.
    hooks = [layer.input_layernorm.register_forward_pre_hook(lambda _, args: got.append(args[0])) for layer in layers]
    model(**texts, candidates=ALL)
    for hook in hooks:
        hook.remove()
    return got[-LAYERS:]


@pytest.mark.parametrize("n", [None, 2])
def test_before_each_layer_the_slots_are_those_of_the_formula(n: int | None, texts: dict[str, Tensor]) -> None:  # noqa: F811
    model = model_of(**keys_of({"hypercomplex": n}))
    method, still = model.method, model_of(name="prompt", tokens=TOKENS)
    assert isinstance(method, SentenceTuning) and method.injector is not None
    maps = {name: value.detach() for name, value in method.bottleneck.named_parameters()}

    def matrix(name: str) -> Tensor:
        if n is None:
            return maps[f"{name}.weight"]
        pairs = zip(maps[f"{name}.rules"], maps[f"{name}.parts"], strict=True)
        return sum((torch.kron(rule, part) for rule, part in pairs), torch.zeros((), dtype=torch.double))

    def added(sentence: Tensor) -> Tensor:
        return (matrix("up") @ functional.gelu(matrix("down") @ sentence + maps["bias"])).view(TOKENS, H)

    with torch.no_grad():
        alone = pool(model.backbone(texts["input_ids"], texts["attention_mask"]), texts["attention_mask"], "last")
        first, second = as_they_go_in(model, texts)
        prompt = method.injector().prompt[0]
        for row, length in enumerate(texts["attention_mask"].sum(1).tolist()):
            torch.testing.assert_close(first[row, :TOKENS], prompt + added(alone[row]))
            # As it would be without an edit there, with the same prompt.
            given = Injection(torch.ones(1, TOKENS, dtype=torch.bool), prompt=first[row : row + 1, :TOKENS])
            got: list[Tensor] = []
            layers = next(part for part in still.backbone.modules() if isinstance(part, nn.ModuleList))
            hook = layers[1].input_layernorm.register_forward_pre_hook(lambda _, args, got=got: got.append(args[0]))
            real = texts["attention_mask"][row].bool()
            ids = texts["input_ids"][row][real][None]
            still.backbone(ids, torch.ones_like(ids), given)
            hook.remove()
            [[unedited]] = got
            last = unedited[TOKENS + length - 1]
            expected = unedited[:TOKENS] + added(last) + method.shifts[0].bias
            torch.testing.assert_close(second[row, :TOKENS], expected)
            torch.testing.assert_close(second[row, TOKENS : TOKENS + length], unedited[TOKENS:])


def test_of_joined_layers_and_statistics_the_last_layers_mean_makes_the_prompt(texts: dict[str, Tensor]) -> None:  # noqa: F811
    network, config = tiny_model("llama_gqa").double(), config_of(**keys_of({"layers": [0]}))
    facts = replace(facts_of(network.config), joined=(1, 2), pooled=2)
    method = config.build(facts, P, K).double()
    assert isinstance(method, SentenceTuning)
    nn.init.normal_(method.bottleneck.get_parameter("up.weight"))
    states, mask = torch.zeros(K, P, H, dtype=torch.double), torch.ones(K, P, dtype=torch.bool)
    model = LTuningModel(FrozenBackbone(network, facts), method, states, mask, "statistics")
    with torch.no_grad():
        first = as_they_go_in(model, texts)[0]
        last = FrozenBackbone(network, facts_of(network.config))(texts["input_ids"], texts["attention_mask"])
        sentences = pool(last, texts["attention_mask"], "mean")
        expected = method.inject(len(sentences)).prompt + method.bottleneck(sentences)
    torch.testing.assert_close(first[:, :TOKENS], expected)


def test_one_product_is_a_plain_map() -> None:
    torch.manual_seed(0)
    one, plain = (Bottleneck(TOKENS, H, RANK, count, "gelu") for count in (1, None))
    for found, other in ((one.down, plain.down), (one.up, plain.up)):
        assert isinstance(found, HypercomplexLinear) and isinstance(other, nn.Linear)
        nn.init.normal_(other.weight)
        found.rules.data.fill_(1.0)
        found.parts.data.copy_(other.weight[None])
    sentences = torch.randn(3, H)
    torch.testing.assert_close(one(sentences), plain(sentences))


@pytest.mark.parametrize("family", ["llama_gqa", "bert"])
def test_a_texts_scores_do_not_depend_on_its_neighbours(family: str, texts: dict[str, Tensor]) -> None:  # noqa: F811
    model = model_of(family, **keys_of({}))
    together = model(**texts, candidates=ALL)
    short = {name: values[2:, :4] for name, values in texts.items()}
    torch.testing.assert_close(together[2:], model(**short, candidates=ALL[2:]))
    first = "last" if family == "llama_gqa" else "mean"
    read = model.backbone(texts["input_ids"], texts["attention_mask"])
    stored = pool(read, texts["attention_mask"], first)
    torch.testing.assert_close(together, model(**texts, candidates=ALL, alone=stored))


def test_what_does_not_fit_is_refused() -> None:
    facts = facts_of(tiny_model("llama_gqa").config)
    with pytest.raises(UserError, match=r"method\.hypercomplex=5: a map from 16 to 6 cannot be made of it"):
        config_of(**keys_of({"hypercomplex": 5})).build(facts, P, K)
    with pytest.raises(ValueError, match=r"method\.hypercomplex has a meaning only with method\.source=sentence"):
        config_of(name="generated", hypercomplex=2)
    with pytest.raises(ValueError, match=r"method\.pooling has a meaning only with method\.source=tokens"):
        config_of(**keys_of({"pooling": "mean"}))
