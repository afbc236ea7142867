"""What a backbone allows: the rule for sliding windows, held against the models themselves."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from transformers import AutoConfig

from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.config import RunConfig, parse_config
from pipeline.core.errors import UserError
from pipeline.methods import AnyMethodConfig
from pipeline.methods.hypothesis_mean import HypothesisMean, labels_of
from pipeline.methods.label_tuning_config import LabelTuningConfig
from pipeline.methods.limits import check_injection, check_verdict, readings_per_text, window_warning
from pipeline.methods.lt_prefix import LTPrefixConfig
from pipeline.methods.lt_prompt import LTPromptConfig
from pipeline.methods.model import LTuningModel
from pipeline.stages.dry_run import plan
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import train
from tests.support.tiny import save_tiny, tiny_model
from tests.support.tiny_run import tiny_config

P, T, K, B = 3, 12, 5, 2
SLIDING: dict[str, dict[str, Any]] = {
    "mistral": {},
    "gemma2": {"layer_types": ["sliding_attention"] * 2},
    "gemma3": {"layer_types": ["sliding_attention"] * 2},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 0},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 0},
}


PROMPT, PREFIX = (
    TypeAdapter(AnyMethodConfig).validate_python({"name": name, "tokens": P}) for name in ("prompt", "prefix")
)


def backbone_of(family: str, window: int, layers: int = 2, **keys: Any) -> FrozenBackbone:
    if "layer_types" in keys:
        keys["layer_types"] = keys["layer_types"][:layers]
    network = tiny_model(family, sliding_window=window, num_hidden_layers=layers, **keys).double()
    return FrozenBackbone(network, facts_of(network.config))


def states_that_depend_on(backbone: FrozenBackbone, slot: int, kind: str) -> list[bool]:
    """By text token: does its last state change with what is injected at `slot`?"""
    facts = backbone.facts
    torch.manual_seed(0)
    ids = torch.randint(4, 300, (1, T))
    shape = (1, P, facts.prefix_width() if kind == "prefix" else facts.hidden_size)
    first = torch.randn(shape, dtype=torch.float64)
    second = first.clone()
    place: Any = (..., slot, slice(None))
    second[place] = torch.randn_like(second[place])

    def read(values: Tensor) -> Tensor:
        injection = Injection(mask=torch.ones(1, P, dtype=torch.bool), **{kind: values})
        return backbone(ids, torch.ones_like(ids), injection)

    with torch.no_grad():
        return (read(first) != read(second))[0].any(-1).tolist()


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
@pytest.mark.parametrize("family", SLIDING)
@pytest.mark.parametrize("window", [2, 4, 6])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_rule_is_what_the_models_do(family: str, window: int, layers: int, kind: str) -> None:
    """A state depends on the prompt that lies up to L * (W - 1) positions before it, and on every slot of a prefix."""
    backbone = backbone_of(family, window, layers, **SLIDING[family])
    assert (backbone.facts.sliding_window, backbone.facts.sliding_layers) == (window, layers)
    for slot in range(P):
        reached = [kind == "prefix" or P + token - slot <= layers * (window - 1) for token in range(T)]
        assert states_that_depend_on(backbone, slot, kind) == reached


@pytest.mark.parametrize("window", range(2, T + P + 3))
def test_it_is_said_exactly_where_the_last_token_misses_some_or_all(window: int) -> None:
    backbone = backbone_of("mistral", window, 1)
    depends = [states_that_depend_on(backbone, slot, "prompt")[-1] for slot in range(P)]
    config = tiny_config_with(max_length=T)
    said = window_warning(PROMPT, backbone.facts, P, config.data.max_length)
    assert window_warning(PREFIX, backbone.facts, P, config.data.max_length) is None
    assert (said is None) == all(depends)
    assert ("as if nothing were injected" in (said or "")) == (not any(depends))


def test_what_is_read_behind_a_text_needs_a_decoder_that_keeps_all_of_it() -> None:
    behind = TypeAdapter(AnyMethodConfig).validate_python({"name": "lt_prompt", "position": "after"})
    facts = facts_of(tiny_model("llama").config)
    check_injection(behind, facts)
    for other, reason in (
        (facts_of(tiny_model("bert").config), "in bert, which is no decoder"),
        (replace(facts, prefix_layers=(None, *facts.prefix_layers[1:])), "llama does not keep all of a text"),
        (replace(facts, keeps_states=True), "llama does not keep all of a text"),
        (replace(facts, family="mpt"), "in mpt a token's distance"),
    ):
        with pytest.raises(UserError, match=f"method.position=after: {reason}.*; set method.position=before"):
            check_injection(behind, other)
    assert window_warning(behind, facts_of(tiny_model("mistral", sliding_window=3).config), P, 99) is None
    failed = {"check.prompt": "passed", "check.prefix": "reads a prefix, but nothing changes"}
    with pytest.raises(UserError, match="lt_prompt injects a prefix, but the backbone reads a prefix, but nothing"):
        check_verdict(behind, failed)
    with pytest.raises(ValidationError, match=r"method\.first_layer has a meaning only with method\.position=before"):
        TypeAdapter(AnyMethodConfig).validate_python({"name": "lt_prompt", "position": "after", "first_layer": 1})


def test_layers_below_an_injection_are_not_joined() -> None:
    facts = replace(facts_of(tiny_model("llama_gqa").config), joined=(1, 2))
    for first_layer in (0, 1):
        check_injection(LTPrefixConfig(first_layer=first_layer), facts)
    with pytest.raises(
        UserError, match=r"method\.first_layer=2: below it, .* layer 1 of backbone\.layers .*=1 or less"
    ):
        check_injection(LTPrefixConfig(first_layer=2), facts)


@pytest.mark.parametrize("config", [LTPrefixConfig, LTPromptConfig])
def test_a_first_layer_that_is_not_there_is_refused(config: type[LabelTuningConfig]) -> None:
    facts = facts_of(tiny_model("llama").config)
    check_injection(config(first_layer=1), facts)
    with pytest.raises(UserError, match=r"method\.first_layer=2: the backbone has only layers 0 to 1"):
        check_injection(config(first_layer=2), facts)


def test_a_first_layer_above_all_attention_takes_no_prefix() -> None:
    """In a hybrid whose last layers are recurrences there would be no number to train."""
    shape = facts_of(tiny_model("llama").config).prefix_layers[0]
    facts = replace(facts_of(tiny_model("llama").config), prefix_layers=(shape, None), carrier="attention")
    check_injection(LTPrefixConfig(), facts)
    check_injection(LTPromptConfig(first_layer=1), facts)
    with pytest.raises(
        UserError, match=r"method\.first_layer=1: no layer .* attention .*: set method\.first_layer=0 or"
    ):
        check_injection(LTPrefixConfig(first_layer=1), facts)


def test_with_one_layer_that_sees_all_something_is_left() -> None:
    backbone = backbone_of("gemma2", 2, layer_types=["sliding_attention", "full_attention"])
    assert (backbone.facts.sliding_window, backbone.facts.sliding_layers) == (2, 1)
    assert all(states_that_depend_on(backbone, 0, "prompt"))
    said = window_warning(PROMPT, backbone.facts, P, T)
    assert said is not None and "in 1 of 2 layers" in said and "as if nothing" not in said


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 3}),
        ("gemma3", {"layer_types": ["full_attention"] * 2, "sliding_window": 3}),
        ("llama", {"sliding_window": 3}),  # Llama does not know the key
    ],
)
def test_no_window_no_words(family: str, keys: dict[str, Any]) -> None:
    facts = facts_of(tiny_model(family, **keys).config)
    assert facts.sliding_window is None and window_warning(PROMPT, facts, P, 99) is None


def test_what_is_said_tells_what_to_do() -> None:
    facts = replace(facts_of(tiny_model("mistral").config), sliding_window=64, sliding_layers=2)
    assert window_warning(PROMPT, facts, 2, 62) is None
    assert window_warning(PROMPT, facts, 0, 99) is None, "nothing is injected"
    said = window_warning(PROMPT, facts, 2, 63)
    assert said == (
        "a sliding window of 64 positions in all layers is shorter than 2 injected tokens and data.max_length=63: "
        "texts of more than 62 tokens are read with a part of them hidden; set data.max_length to 62 or less"
    )
    assert "take a backbone with a wider window" in str(window_warning(PROMPT, facts, 64, 5))


def tiny_config_with(**data: Any) -> RunConfig:
    return parse_config(
        {
            "run": {"dir": "run"},
            "backbone": {"name_or_path": "none"},
            "data": {"train": "none.tsv"} | data,
            "method": {"name": "prompt", "tokens": P},
        }
    )


def test_dry_run_training_and_evaluation_say_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny(tmp_path / "backbone", "mistral", sliding_window=8)
    training = {"max_steps": 1, "batch_size": 4}
    config = tiny_config(
        tmp_path, method={"name": "prompt", "tokens": 3}, train=training, logging={"trackers": ["jsonl"]}
    )
    said = "a sliding window of 8 positions in all layers is shorter than 3 injected tokens and data.max_length=64"
    plan(config)
    assert f"warning: {said}" in capsys.readouterr().out
    preprocess(config)
    encode_labels(config)
    with caplog.at_level(logging.WARNING, "pipeline"):
        train(config)
        evaluate(config)
    assert f"train: {said}" in caplog.text and f"evaluate: {said}" in caplog.text


def test_a_backbone_that_takes_no_prefix_is_refused_for_prefix_methods_alone() -> None:
    sizes = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 8}
    facts = facts_of(AutoConfig.for_model("mamba", **sizes))
    with pytest.raises(UserError, match=r"method prefix injects a prefix, .* takes none: mamba has no attention"):
        check_injection(PREFIX, facts)
    check_injection(PROMPT, facts)
    check_injection(PREFIX, facts_of(tiny_model("bert").config))


@pytest.mark.parametrize("candidates", [1, 2, K])
@pytest.mark.parametrize(
    "keys",
    [
        {"name": "lt_prompt", "start": "random"},
        {"name": "lt_prompt", "start": "random", "shortlist": 3},
        {"name": "lt_prompt", "start": "random", "shortlist": None},
        {"name": "lt_prompt", "start": "random", "judge": "label_aware", "shortlist": 3},
        {"name": "lt_prompt", "start": "random", "head": "linear"},
        {"name": "prompt", "tokens": 4},
        {"name": "probe"},
    ],
    ids=lambda keys: "-".join(map(str, keys.values())),
)
@pytest.mark.parametrize("hypotheses", [1, 3])
def test_readings_are_the_rows_of_the_backbone(keys: dict[str, Any], candidates: int, hypotheses: int) -> None:
    config = TypeAdapter(AnyMethodConfig).validate_python(keys)
    network = tiny_model("bert")
    facts = facts_of(network.config)
    count, weights = K * hypotheses, [[1 / hypotheses] * hypotheses] * K
    states, mask = torch.randn(count, P, facts.hidden_size), torch.ones(count, P, dtype=torch.bool)
    method, mean = config.build(facts, P, K).among(labels_of(weights)), HypothesisMean(weights)
    model = LTuningModel(FrozenBackbone(network, facts), method, states, mask, "mean", mean=mean)
    model.method.begin_tuning()
    rows: list[int] = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    ids = torch.randint(4, 300, (B, T))
    is_stored = config.open_labels and config.wants_states
    stored = {"alone": torch.randn(B, facts.hidden_size)} if is_stored else {}
    model(ids, torch.ones_like(ids), torch.arange(candidates).expand(B, -1), **stored)
    assert sum(rows) == B * readings_per_text(config, K, candidates, hypotheses)


def test_a_text_is_read_alone_once_for_all_who_ask() -> None:
    """As `predict` reads it, without stored states: the probe asks, and so does what is tuned beside it."""
    config = TypeAdapter(AnyMethodConfig).validate_python(
        {"name": "lt_prompt", "start": "random", "judge": "label_aware", "shortlist": 3}
    )
    network = tiny_model("bert")
    facts = facts_of(network.config)
    states, mask = torch.randn(K, P, facts.hidden_size), torch.ones(K, P, dtype=torch.bool)
    model = LTuningModel(FrozenBackbone(network, facts), config.build(facts, P, K), states, mask, "mean").eval()
    model.method.begin_tuning()
    rows: list[int] = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    ids = torch.randint(4, 300, (B, T))
    model(ids, torch.ones_like(ids), torch.arange(K).expand(B, -1))
    assert sum(rows) == B * (1 + 3)
