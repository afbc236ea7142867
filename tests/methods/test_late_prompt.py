"""A prompt that enters at a layer further up: where it is static, what makes it of the text, and what is not run.

covers methods/prompt, methods/generated, methods/prompt_generators
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel

from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.backbone.pooling import pool
from pipeline.backbone.trunk import layers_of
from pipeline.core.errors import UserError
from pipeline.data.batches import collate
from pipeline.methods.generated import GeneratedTuning, SentenceTuning
from pipeline.methods.model import LTuningModel
from pipeline.methods.prompt_generators import adaptive_parts
from tests.methods.test_baselines import K, P, config_of, label, model_of
from tests.support.tiny import PAD_ID, tiny_model

H, RANK, TOKENS, FIRST = 16, 3, 4, 1
ALL = torch.arange(K).expand(3, K)
LATE = {"tokens": TOKENS, "first_layer": FIRST}
MADE = LATE | {"name": "generated", "rank": RANK, "activation": "relu", "layers": [FIRST]}
KINDS: list[dict[str, Any]] = [  # the three generators of Late Prompt Tuning, and one in every layer above
    MADE | {"source": "sentence"},
    MADE | {"pooling": "adaptive_max"},
    MADE | {"pooling": "adaptive_mean"},
    MADE | {"layers": None},
]


@pytest.fixture
def texts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(4, 300, (length,), generator=generator).tolist()} for length in (5, 9, 2)]
    return collate(rows, PAD_ID)


every_kind = pytest.mark.parametrize("keys", KINDS, ids=label)
families = pytest.mark.parametrize("family", ["llama_gqa", "bert", "deberta_v2", "gpt2"])


@every_kind
def test_sizes_are_those_of_the_papers_formula_and_all_is_trained(
    keys: dict[str, Any], texts: dict[str, Tensor]
) -> None:
    model = model_of("llama_gqa", **keys)
    bottleneck = {
        "sentence": H * RANK + RANK + RANK * TOKENS * H,  # with the prompt, PH: db + b + bmd + md
        "adaptive_max": 2 * H * RANK + RANK,  # 2db + b, and a table in the place of one bias
        "adaptive_mean": 2 * H * RANK + RANK,
        "tokens": 2 * H * RANK + RANK * TOKENS,
    }[keys.get("pooling", keys.get("source", "tokens"))]
    found = sum(parameter.numel() for parameter in model.method.parameters())
    assert found == TOKENS * H + bottleneck + K * (H + 1)
    assert found == config_of(**keys).trainable_count(model.backbone.facts, P, K)
    model(**texts, candidates=ALL).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.method.parameters())


@every_kind
@families
def test_it_starts_as_the_static_prompt_of_that_layer(
    keys: dict[str, Any], family: str, texts: dict[str, Tensor]
) -> None:
    model, static = model_of(family, **keys), model_of(family, name="prompt", **LATE)
    first = model_of(family, name="prompt", tokens=TOKENS)
    fresh = config_of(**keys).build(model.backbone.facts, P, K).double()
    model.method.load_state_dict(fresh.state_dict() | static.method.state_dict())
    first.method.load_state_dict(static.method.state_dict())
    model.label_states = static.label_states
    found = static(**texts, candidates=ALL)
    assert torch.equal(model(**texts, candidates=ALL), found)
    assert (first(**texts, candidates=ALL) - found).abs().max() > 1e-3  # the layer matters


def added(model: LTuningModel, keys: dict[str, Any], text: Tensor) -> Tensor:
    """What one text [T, H], as it is before a layer, adds to the slots: the formulas, place by place -> [P, H]."""
    method = model.method
    if isinstance(method, SentenceTuning):
        maps = dict(method.bottleneck.named_parameters())
        inner = torch.relu(maps["down.weight"] @ text[-1 if model.backbone.facts.is_decoder else 0] + maps["bias"])
        return (maps["up.weight"] @ inner).view(TOKENS, H)
    assert isinstance(method, GeneratedTuning)
    [maps] = [dict(generator.named_parameters()) for generator in method.generators]
    inner = (text @ maps["down.weight"].T + maps["down.bias"]).T[None]
    chosen = nn.AdaptiveMaxPool1d if keys["pooling"] == "adaptive_max" else nn.AdaptiveAvgPool1d
    return torch.relu(chosen(TOKENS)(inner)[0].T) @ maps["up.weight"].T


@pytest.mark.parametrize("keys", KINDS[:3], ids=label)
@pytest.mark.parametrize("family", ["llama_gqa", "bert"])
def test_the_prompt_is_made_of_the_text_as_it_is_there(
    keys: dict[str, Any], family: str, texts: dict[str, Tensor]
) -> None:
    model = model_of(family, **keys)
    backbone, method = model.backbone, model.method
    ids, mask = texts["input_ids"], texts["attention_mask"].bool()
    with torch.no_grad():
        expected = []
        for row in range(3):
            alone, all_real = ids[row : row + 1][:, mask[row]], torch.ones(1, int(mask[row].sum()), dtype=torch.long)
            trunk = backbone.trunk(alone, all_real, FIRST)
            prompt = method.injector().prompt + added(model, keys, trunk.states[0])
            given = Injection(torch.ones(1, TOKENS, dtype=torch.bool), prompt=prompt)
            hidden = backbone(alone, all_real, given, trunk=trunk)
            expected.append(method.head(pool(hidden, all_real, model.pooling), model.label_states, model.label_mask))
        found = model(**texts, candidates=ALL)
    torch.testing.assert_close(found, torch.cat(expected).float(), rtol=1e-5, atol=1e-6)
    padding_first = texts["attention_mask"].argsort(dim=1, stable=True)
    left = {name: values.gather(1, padding_first) for name, values in texts.items()}
    torch.testing.assert_close(model(**left, candidates=ALL), found)


def test_parts_of_a_text_are_those_of_adaptive_pooling() -> None:
    for length in range(1, 12):
        mask, values = torch.arange(13)[None] < length, torch.randn(length)
        parts = adaptive_parts(mask, TOKENS)[0]
        assert not parts[:, length:].any()
        means = torch.stack([values[part[:length]].mean() for part in parts])
        torch.testing.assert_close(means, nn.AdaptiveAvgPool1d(TOKENS)(values[None])[0])


@contextmanager
def watched(backbone: FrozenBackbone) -> Iterator[tuple[list[tuple[int, tuple[int, ...]]], list[int]]]:
    """Layers that run, with the shape of their states, and those that a gradient comes back to."""
    ran: list[tuple[int, tuple[int, ...]]] = []
    reached: list[int] = []

    def see(index: int, hidden: Tensor) -> None:
        ran.append((index, tuple(hidden.shape)))
        if hidden.requires_grad:
            hidden.register_hook(lambda _: reached.append(index))

    norms = [
        [part for part in layer.modules() if getattr(part, "weight", torch.zeros(1, 1)).ndim == 1][-1]
        for layer in layers_of(backbone.model)[1]
    ]
    hooks = [
        norm.register_forward_hook(lambda _, __, output, index=index: see(index, output))
        for index, norm in enumerate(norms)
    ]
    yield ran, reached
    for hook in hooks:
        hook.remove()


@every_kind
@families
def test_layers_below_run_on_the_text_alone_and_no_gradient_comes_to_them(
    keys: dict[str, Any],
    family: str,
    texts: dict[str, Tensor],
) -> None:
    model, (rows, length) = model_of(family, **keys), texts["input_ids"].shape
    with watched(model.backbone) as (ran, reached):
        model(**texts, candidates=ALL).square().sum().backward()
    assert [(index, shape[:2]) for index, shape in ran] == [(0, (rows, length)), (1, (rows, TOKENS + length))]
    assert set(reached) == {1}


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        (MADE | {"layers": [0, 1]}, ValueError, "before layer 0 there is no prompt to add to, which enters at method"),
        (MADE | {"first_layer": 7, "layers": None}, UserError, "first_layer=7: the backbone has only layers 0 to 1"),
        ({"name": "prompt", "first_layer": 2}, UserError, "first_layer=2: the backbone has only layers 0 to 1"),
    ],
)
def test_layers_that_do_not_fit_are_refused(keys: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        config_of(**keys).trainable_count(facts_of(tiny_model("llama_gqa").config), P, K)


def test_a_backbone_that_cannot_be_split_is_refused_when_the_model_is_built() -> None:
    albert = AlbertModel(AlbertConfig(vocab_size=50, embedding_size=H, hidden_size=H, num_attention_heads=2))
    for model, reason in ((tiny_model("opt_projected"), "are wider"), (albert, "do not stand in one list")):
        backbone = FrozenBackbone(model.eval(), facts_of(model.config))
        method = config_of(name="prompt", first_layer=1).build(backbone.facts, P, K)
        with pytest.raises(UserError, match=rf"method\.first_layer: \w+ cannot be split \(.*{reason}"):
            LTuningModel(backbone, method, torch.zeros(K, P, H), torch.ones(K, P), "mean")
