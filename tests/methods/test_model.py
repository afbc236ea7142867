"""The model that joins backbone, method and label states."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.data.batches import collate
from pipeline.methods import AnyMethodConfig
from pipeline.methods.label_tuning import LabelTuning
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
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()


def model_of(method: str, family: str = "llama_gqa") -> LTuningModel:
    network = tiny_model(family).double()
    facts = facts_of(network.config)
    torch.manual_seed(3)
    tuning = METHODS[method].build(facts, P, K).double()
    for parameter in tuning.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    states = torch.randn(K, P, H, dtype=torch.float64) * MASK[..., None]
    return LTuningModel(FrozenBackbone(network, facts), tuning, states, MASK, "last" if facts.is_decoder else "mean")


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
    assert_same(model(**texts, candidates=candidates, sizes=[1, 2]), scores.gather(1, candidates))


def behind_model(start: Tensor | None, states: Tensor, head: Literal["fitted", "label_aware"]) -> LTuningModel:
    network = tiny_model("llama_gqa").double()
    facts = facts_of(network.config)
    begins: Literal["hypothesis", "random"] = "random" if start is None else "hypothesis"
    tuning = LTPromptConfig(head=head, start=begins, position="after").build(facts, P, K).double().eval()
    for parameter in tuning.parameters():
        nn.init.normal_(parameter, std=0.3)
    return LTuningModel(FrozenBackbone(network, facts), tuning, states, MASK, "mean", label_start=start)


@pytest.mark.parametrize("common", [None, 0, 1])
def test_behind_a_text_a_label_is_judged_by_its_own_tokens(common: int | None, texts: Any) -> None:
    """By definition: each text and each label's prompt in one, and the states of the prompt are pooled.

    The start is random, or a hypothesis of which all labels have so many first tokens in common.
    """
    start, states = (torch.randn(K, P, H, dtype=torch.float64) * MASK[..., None] for _ in range(2))
    for values in (start, states) if common else ():
        values[:, :common] = values[:1, :common]
    begin = None if common is None else start
    model = behind_model(begin, states, "label_aware")
    with torch.no_grad():
        found = model(**texts, candidates=ALL.expand(3, K))
    tuning, network = model.method, model.backbone.model
    assert isinstance(tuning, LabelTuning)
    prompts = tuning.inject(states, MASK, begin).content
    embedded, seen = network.get_input_embeddings()(texts["input_ids"]), texts["attention_mask"].bool()
    for row in range(3):
        for label in range(K):
            tokens = torch.cat([embedded[row][seen[row]], prompts[label][MASK[label]]])
            hidden = network(inputs_embeds=tokens[None], use_cache=False).last_hidden_state[0]
            pooled = hidden[seen[row].sum() :].mean(0, keepdim=True)
            expected = tuning.score(pooled, states[label : label + 1], MASK[label : label + 1])
            assert_same(found[row, label], expected[0])


def test_what_all_hypotheses_begin_with_is_read_once_per_text(texts: dict[str, Tensor]) -> None:
    start, states = (torch.randn(K, P, H, dtype=torch.float64) for _ in range(2))
    start[:, :1], states[:, :1] = start[:1, :1], states[:1, :1]
    model, read = behind_model(start, states, "fitted"), list[tuple[int, ...]]()
    first = next(part for part in model.backbone.modules() if isinstance(part, nn.Linear))
    first.register_forward_hook(lambda _module, given, _found: read.append(tuple(given[0].shape[:2])))

    def shapes(**options: Any) -> list[tuple[int, ...]]:
        read.clear()
        model(**texts, candidates=ALL.expand(3, K), **options)
        return read.copy()

    texts.pop("token_type_ids")
    rows, length = texts["input_ids"].shape
    once, each_time = [(rows, length + 1), (rows * K, P - 1)], [(rows, length), (rows * K, P)]
    with torch.no_grad():
        assert shapes() == [(rows, length)], "the probe alone reads no more than the text"
        assert shapes(unscored=True) == once, "what a judge is fitted to"
        model.method.begin_tuning()
        assert shapes() == once
        assert shapes(sizes=[1, K - 1]) == [once[0], (rows, P - 1), (rows * (K - 1), P - 1)], "also of labels in parts"
        model.train()
        assert shapes() == each_time, "dropout would make the prompts differ"
    model.eval()
    assert shapes() == each_time, "gradients go through all of a prompt, and not through the text"


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
