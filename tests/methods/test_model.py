"""The model that joins backbone, method and label states."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.data.batches import collate
from pipeline.methods import AnyMethodConfig
from pipeline.methods.lt_prefix import LTPrefixConfig
from pipeline.methods.lt_prompt import LTPromptConfig
from pipeline.methods.majority import MajorityConfig
from pipeline.methods.model import LTuningModel, parameter_count
from pipeline.methods.zero_shot import ZeroShotConfig
from tests.support.tiny import PAD_ID, tiny_model

K, P, H = 4, 3, 16
METHODS = {
    "prefix": LTPrefixConfig(head="label_aware", start="random", init_std=0.5),
    "tokens": LTPrefixConfig(head="label_aware", pooling="tokens", start="random", init_std=0.5),
    "prompt": LTPromptConfig(head="label_aware", start="random"),
}
ALL = torch.arange(K)


def model_of(method: str, family: str = "llama_gqa") -> LTuningModel:
    network = tiny_model(family).double()
    facts = facts_of(network.config)
    torch.manual_seed(3)
    tuning = METHODS[method].build(facts, P, K).double()
    for parameter in tuning.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    states = torch.randn(K, P, H, dtype=torch.float64) * mask[..., None]
    return LTuningModel(FrozenBackbone(network, facts), tuning, states, mask, "last" if facts.is_decoder else "mean")


@pytest.fixture
def texts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": torch.randint(4, 300, (length,), generator=generator).tolist()} | {"token_type_ids": [0] * length}
        for length in (5, 9, 2)
    ]
    return collate(rows, PAD_ID)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama_gqa", "bert"])
@pytest.mark.parametrize("method", METHODS)
def test_candidates_together_equal_one_by_one(method: str, family: str, texts: dict[str, Tensor]) -> None:
    model = model_of(method, family)
    scores = model(**texts, candidates=ALL.expand(3, K))
    assert scores.shape == (3, K) and scores.dtype == torch.float32
    assert len(scores.unique()) == 3 * K, "every text and every label counts"
    for row in range(3):
        single = {name: value[row : row + 1] for name, value in texts.items()}
        for label in range(K):
            assert_same(model(**single, candidates=torch.tensor([[label]])), scores[row : row + 1, label : label + 1])
    # In any order, with repetition, different for each text.
    candidates = torch.tensor([[3, 0, 0], [1, 1, 1], [2, 3, 1]])
    assert_same(model(**texts, candidates=candidates), scores.gather(1, candidates))


@pytest.mark.parametrize("start", ["hypothesis", "random"])
def test_behind_a_text_a_label_is_judged_by_its_own_tokens(start: Literal["hypothesis", "random"], texts: Any) -> None:
    """By definition: each text and each label's prompt in one, and the states of the prompt are pooled."""
    network = tiny_model("llama_gqa").double()
    tuning = LTPromptConfig(head="label_aware", start=start, position="after").build(facts_of(network.config), P, K)
    for parameter in tuning.double().parameters():
        nn.init.normal_(parameter, std=0.3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    states, begun = (torch.randn(K, P, H, dtype=torch.float64) * mask[..., None] for _ in range(2))
    backbone, begin = FrozenBackbone(network, facts_of(network.config)), begun if start == "hypothesis" else None
    model = LTuningModel(backbone, tuning, states, mask, "mean", label_start=begin)
    scores = model(**texts, candidates=ALL.expand(3, K))
    prompts = tuning.inject(states, mask, begin).prompt
    embedded, seen = network.get_input_embeddings()(texts["input_ids"]), texts["attention_mask"].bool()
    for row in range(3):
        for label in range(K):
            tokens = torch.cat([embedded[row][seen[row]], prompts[label][mask[label]]])
            hidden = network(inputs_embeds=tokens[None], use_cache=False).last_hidden_state[0]
            pooled = hidden[seen[row].sum() :].mean(0, keepdim=True)
            expected = tuning.score(pooled, states[label : label + 1], mask[label : label + 1])
            assert_same(scores[row, label], expected[0])


def test_only_the_method_is_trained_and_kept(texts: dict[str, Tensor]) -> None:
    model = model_of("prefix").train()
    model(**texts, candidates=ALL.expand(3, K)).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f"method.{name}" for name in model.trainable()}
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert not {"label_states", "label_mask"} & set(model.state_dict()), "they have a file of their own"


def test_gradients_of_repeated_labels_add_up(texts: dict[str, Tensor]) -> None:
    """A batch with one label twice has the gradient of its parts together."""

    def gradient(candidates: Tensor, rows: slice) -> Tensor:
        model = model_of("prefix")
        model(**{name: value[rows] for name, value in texts.items()}, candidates=candidates[rows]).sum().backward()
        parameter = model.trainable()["producer.expand.weight"]
        assert parameter.grad is not None
        return parameter.grad

    candidates = torch.tensor([[1], [1], [0]])
    parts = [gradient(candidates, slice(row, row + 1)) for row in range(3)]
    torch.testing.assert_close(gradient(candidates, slice(0, 3)), sum(parts), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("config", "fitted"),
    [
        (LTPromptConfig(head="fitted"), 3 * 16 + 3 + 1),  # the probe's weights, biases and the prior's weight
        (LTPromptConfig(head="label_aware"), 0),
        (MajorityConfig(), 0),  # counts of texts
        (ZeroShotConfig(), 0),
    ],
)
def test_what_steps_have_trained_and_a_fit_has_found_is_counted(config: AnyMethodConfig, fitted: int) -> None:
    """By formula, and without what is no parameter: whether a label tuning has begun."""
    facts = facts_of(tiny_model("llama_gqa").config)
    method = config.build(facts, hypothesis_tokens=5, label_count=3)
    assert parameter_count(method.state_dict()) == config.trainable_count(facts, 5, 3) + fitted
