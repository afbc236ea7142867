"""The baselines: sizes by formula, values equal to PEFT's own on the same weights, one reading per text.

covers methods/base, methods/majority, methods/p_tuning, methods/prefix, methods/prompt
covers methods/text_classifier, methods/zero_shot
"""

from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from pipeline.backbone.config import Pooling
from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.core.errors import UserError
from pipeline.data.batches import collate
from pipeline.methods import AnyMethodConfig
from pipeline.methods.base import MethodConfig, Vocabulary
from pipeline.methods.heads import ClassHead, build_head
from pipeline.methods.model import LTuningModel
from pipeline.methods.prompt import PromptTuning
from pipeline.methods.text_classifier import TextClassifier
from tests.support.tiny import PAD_ID, tiny_model, tiny_tokenizer

K, P, H = 5, 3, 16
CLASSIFIERS: list[dict[str, Any]] = [
    {"name": "prompt", "tokens": 4},
    {"name": "prompt", "tokens": 4, "head": "label_aware"},
    {"name": "prefix", "tokens": 4},
    {"name": "prefix", "tokens": 4, "reparametrisation": True},
    {"name": "prefix", "tokens": 4, "reparametrisation": True, "bottleneck": 6},
    {"name": "p_tuning", "tokens": 4},
    {"name": "p_tuning", "tokens": 4, "encoder": "lstm", "encoder_width": 6},
]
STEPLESS: list[dict[str, Any]] = [{"name": "probe"}, {"name": "zero_shot"}, {"name": "majority"}]


def label(keys: dict[str, Any]) -> str:
    return "-".join(map(str, keys.values()))


def config_of(**keys: Any) -> MethodConfig:
    config: MethodConfig = TypeAdapter(AnyMethodConfig).validate_python(keys)
    return config


def model_of(family: str = "llama_gqa", **keys: Any) -> LTuningModel:
    """In float64, with parameters that all matter, on label states that differ."""
    reads_hypotheses = keys["name"] == "zero_shot" and family != "bert"
    network = tiny_model(family, AutoModelForCausalLM if reads_hypotheses else AutoModel).double()
    facts = facts_of(network.config)
    torch.manual_seed(3)
    method = config_of(**keys).build(facts, P, K).double()
    for parameter in method.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    states = torch.randn(K, P, H, dtype=torch.float64)
    mask = torch.ones(K, P, dtype=torch.bool)
    pooling: Pooling = "last" if facts.is_decoder else "mean"
    continuations = torch.randint(4, 300, (K, P)) if reads_hypotheses else None
    return LTuningModel(FrozenBackbone(network, facts), method, states, mask, pooling, continuations)


@pytest.fixture
def texts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(4, 300, (length,), generator=generator).tolist()} for length in (5, 9, 2)]
    return collate(rows, PAD_ID)


@pytest.mark.parametrize("family", ["llama_gqa", "bert", "falcon", "gpt2"])
@pytest.mark.parametrize("keys", CLASSIFIERS + STEPLESS, ids=label)
@pytest.mark.parametrize(("joined", "pooled"), [((), 1), ((1, 2), 2)])
def test_the_formula_is_the_count(keys: dict[str, Any], family: str, joined: tuple[int, ...], pooled: int) -> None:
    facts = replace(facts_of(tiny_model(family).config), joined=joined, pooled=pooled)
    config = config_of(**keys)
    method = config.build(facts, P, K)
    assert sum(parameter.numel() for parameter in method.parameters()) == config.trainable_count(facts, P, K)
    assert config.is_trained == bool(list(method.parameters()))


@pytest.mark.parametrize("family", ["llama_gqa", "bert"])
@pytest.mark.parametrize("keys", CLASSIFIERS + STEPLESS, ids=label)
def test_a_text_is_read_once(keys: dict[str, Any], family: str, texts: dict[str, Tensor]) -> None:
    model = model_of(family, **keys)
    rows: list[int] = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    scores = model(**texts, candidates=torch.arange(K).expand(3, K))
    assert rows == ([] if keys["name"] == "majority" else [3])
    assert scores.shape == (3, K) and scores.dtype == torch.float32
    some = torch.tensor([[4, 0], [1, 1], [2, 3]])
    torch.testing.assert_close(model(**texts, candidates=some), scores.gather(1, some))
    for row in range(3):
        alone = model(**{name: value[row : row + 1] for name, value in texts.items()}, candidates=some[row : row + 1])
        torch.testing.assert_close(alone[0], scores[row, some[row]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama_gqa", "bert", "deberta_v2"])
@pytest.mark.parametrize("keys", CLASSIFIERS, ids=label)
def test_gradients_reach_every_parameter_and_nothing_else(
    keys: dict[str, Any], family: str, texts: dict[str, Tensor]
) -> None:
    model = model_of(family, **keys).train()
    model(**texts, candidates=torch.arange(K).expand(3, K)).square().sum().backward()
    for name, parameter in model.trainable().items():
        # The reverse direction of the last LSTM layer's first steps included.
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def ours(network: PreTrainedModel, injection: Injection, texts: dict[str, Tensor]) -> Tensor:
    backbone = FrozenBackbone(network, facts_of(network.config))
    return backbone(texts["input_ids"], texts["attention_mask"], injection)


def classifier_of(family: str, **keys: Any) -> TextClassifier:
    method = model_of(family, **keys).method
    assert isinstance(method, TextClassifier)
    return method.eval()


def assert_equal_texts(found: Tensor, expected: Tensor, mask: Tensor) -> None:
    """The last T of the expected states, at real tokens."""
    expected = expected[:, -mask.shape[1] :]
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-10, atol=1e-10)


PEFT_CONFIGS = {
    "prompt": (peft.PromptTuningConfig, {"name": "prompt", "tokens": 4}, {}),
    "prefix": (peft.PrefixTuningConfig, {"name": "prefix", "tokens": 4}, {}),
    "prefix-mlp": (
        peft.PrefixTuningConfig,
        {"name": "prefix", "tokens": 4, "reparametrisation": True, "bottleneck": 6},
        {"prefix_projection": True, "encoder_hidden_size": 6},
    ),
    "p-tuning": (
        peft.PromptEncoderConfig,
        {"name": "p_tuning", "tokens": 4, "encoder_width": 6},
        {"encoder_hidden_size": 6},
    ),
    "p-tuning-lstm": (
        peft.PromptEncoderConfig,
        {"name": "p_tuning", "tokens": 4, "encoder": "lstm", "encoder_width": 6},
        {"encoder_hidden_size": 6, "encoder_reparameterization_type": "LSTM", "encoder_dropout": 0.0},
    ),
}


@pytest.mark.filterwarnings("ignore:.*encoder_num_layers.*")
@pytest.mark.parametrize("name", PEFT_CONFIGS)
@pytest.mark.parametrize("family", ["llama", "llama_gqa"])
def test_equals_peft_on_the_same_weights(name: str, family: str, texts: dict[str, Tensor]) -> None:
    kind, keys, options = PEFT_CONFIGS[name]
    method = classifier_of(family, **keys)
    config = kind(task_type="FEATURE_EXTRACTION", num_virtual_tokens=4, **options)
    theirs = peft.get_peft_model(tiny_model(family).double(), config).double().eval()
    assert method.injector is not None
    theirs.prompt_encoder["default"].load_state_dict(method.injector.state_dict())
    expected = theirs(input_ids=texts["input_ids"], attention_mask=texts["attention_mask"]).last_hidden_state
    injection = method.inject(3)
    assert injection is not None
    assert_equal_texts(ours(tiny_model(family).double(), injection, texts), expected, texts["attention_mask"])


def test_zero_shot_is_where_label_tuning_starts(texts: dict[str, Tensor]) -> None:
    model = model_of("bert", name="zero_shot")
    pooled = model.backbone(texts["input_ids"], texts["attention_mask"])
    masks = texts["attention_mask"]
    pooled = torch.stack([states[mask.bool()].mean(0) for states, mask in zip(pooled, masks, strict=True)])
    head = build_head("label_aware", model.backbone.facts, K).double()
    for index in range(K):
        found = model(**texts, candidates=torch.full((3, 1), index))[:, 0]
        expected = head(pooled, model.label_states[[index] * 3], model.label_mask[[index] * 3])
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_majority_orders_labels_by_their_counts() -> None:
    config = config_of(name="majority")
    method = config.build(facts_of(tiny_model("bert").config), P, 4)
    method.load_state_dict(config.untrained_state([3, 9, 0, 5]))
    states, mask = torch.zeros(4, P, H), torch.ones(4, P, dtype=torch.bool)

    def no_reading(injection: Injection | None, copies: int) -> Tensor:
        raise AssertionError

    scores = method.scores(no_reading, torch.arange(4).expand(2, 4), states, mask)
    assert scores[0].argsort(descending=True).tolist() == [1, 3, 0, 2] and torch.isfinite(scores).all()
    torch.testing.assert_close(scores[0].softmax(0), torch.tensor([4, 10, 1, 6]) / 21)


@pytest.mark.parametrize("counts", [[1000, 1001, 999], [10**9, 10**9 + 1, 10**9 - 1], [0, 1, 0]])
def test_majority_is_the_same_in_bfloat16(counts: list[int]) -> None:
    config = config_of(name="majority")
    method = config.build(facts_of(tiny_model("bert").config), P, 3)
    method.load_state_dict(config.untrained_state(counts))
    method.to(torch.bfloat16)
    scores = method.scores(None, torch.arange(3).expand(1, 3), torch.zeros(3, P, H), torch.ones(3, P))  # type: ignore[arg-type]
    assert int(scores.argmax()) == 1 and int((scores == scores.max()).sum()) == 1


def test_words_that_become_no_token_start_no_prompt() -> None:
    """As an invisible space does with some tokenizers."""
    vocabulary = Vocabulary([5], lambda text: [7] if text == "sports" else [], lambda ids: torch.ones(len(ids), H))
    method = config_of(name="prompt", tokens=2, init="labels").build(facts_of(tiny_model("bert").config), P, 2)
    method.initialize(vocabulary, ["sports", "\u200b"])
    found = method.inject(1)
    assert found is not None and found.prompt is not None and found.prompt.isfinite().all()
    empty = config_of(name="prompt", init="text", init_text="\u200b").build(facts_of(tiny_model("bert").config), P, 2)
    with pytest.raises(UserError, match=r"^method\.init_text becomes no token"):
        empty.initialize(vocabulary, [])


@pytest.mark.parametrize("init", ["vocabulary", "text", "labels"])
def test_a_prompt_starts_from_words(init: str) -> None:
    tokenizer, table = tiny_tokenizer(), torch.randn(400, H)
    ordinary = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids]

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    text = {"init_text": "a gripping film"} if init == "text" else {}
    method = config_of(name="prompt", tokens=12, init=init, **text).build(facts_of(tiny_model("bert").config), P, 2)
    assert isinstance(method, PromptTuning)
    torch.manual_seed(0)
    vocabulary = Vocabulary(ordinary, encode, lambda ids: table[ids])
    method.initialize(vocabulary, ["sports", "business news"])
    found = method.inject(1)
    assert found is not None and found.prompt is not None
    prompt = found.prompt[0]
    if init == "text":
        ids = encode("a gripping film")
        torch.testing.assert_close(prompt, table[(ids * 12)[:12]])
        return
    if init == "labels":
        for place, name in enumerate(["sports", "business news"]):
            ids = encode(name)
            torch.testing.assert_close(prompt[place], table[ids].mean(0))
        prompt = prompt[2:]
    drawn = [int((table == row).all(1).nonzero().item()) for row in prompt]
    assert len(set(drawn)) > 5 and not set(drawn) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "prompt", "init": "text"}, "needs method.init_text"),
        ({"name": "prompt", "init_text": "a"}, "no other init takes one"),
        ({"name": "prefix", "bottleneck": 3}, "only with method.reparametrisation"),
        ({"name": "prefix", "start": "hypotheses", "reparametrisation": True}, "start=hypotheses sets keys and values"),
        ({"name": "prefix", "start": "hypotheses", "init_std": 0.1}, "only with method.start=random"),
    ],
)
def test_options_that_contradict_are_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config_of(**keys)


def test_label_aware_classes_start_as_the_zero_shot_classifier(texts: dict[str, Tensor]) -> None:
    """And gradients reach what would move them from there."""
    model, zero_shot = model_of("bert", name="zero_shot"), model_of("bert", name="zero_shot")
    head = ClassHead("label_aware", model.backbone.facts, K)
    torch.nn.init.zeros_(head.logits.bias)
    model.method = method = TextClassifier(None, head).double()
    zero_shot.label_states, zero_shot.label_mask = model.label_states, model.label_mask
    candidates = torch.arange(K).expand(3, -1)
    scores = model(**texts, candidates=candidates)
    torch.testing.assert_close(scores, zero_shot(**texts, candidates=candidates), rtol=1e-5, atol=1e-5)
    scores.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in method.parameters())
