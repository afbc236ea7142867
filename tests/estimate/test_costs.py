"""The estimate against measurement and against published sizes.

covers estimate/case, estimate/inventory, estimate/gpus, estimate/sharding
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.model_config import load_model_config
from pipeline.core.errors import UserError
from pipeline.data.batches import rank_slice_within
from pipeline.estimate import inventory as inventories
from pipeline.estimate.case import build_case
from pipeline.estimate.costs import best_plan, plans
from pipeline.estimate.gpus import GPUS
from pipeline.estimate.inventory import Workload, take_inventory
from pipeline.estimate.sharding import ZeroSettings, at_rest_bytes, backbone_traffic_bytes, gathered_bytes
from tests.support.estimate_zero import ZERO
from tests.support.estimated import LLAMA_7B, case_of, sections_of
from tests.support.tiny import FAMILIES, save_tiny, tiny_model
from tests.support.worlds import run_worlds

# Elements of the base model. Sources: the totals on the models' hub pages (safetensors parameter counts), less lm_head
# (V * H) where it is a matrix of its own, or the encoder's pooler (H^2 + H).
PUBLISHED = {
    "llama-2-7b": 6_738_415_616 - 32000 * 4096,
    "bloom-7b1": 7_069_016_064,
    "bert-base": 109_482_240 - 768 * 769,
}
NOMINAL = {"falcon-7b": 7e9, "roberta-base": 125e6, "deberta-v3-base": 184e6}
SMALL_WORKLOAD = Workload(rows=1, text_tokens=8, injected_tokens=2)
EIGHT_LAYERS = LlamaConfig(vocab_size=32000, num_hidden_layers=8)
"""As wide as Llama-2-7B, and a quarter of it: counted four times as soon."""


@pytest.mark.parametrize("name", [*PUBLISHED, *NOMINAL])
def test_counts_every_parameter(name: str) -> None:
    taken = case_of(name).inventory
    if name in PUBLISHED:
        assert taken.parameters == PUBLISHED[name]
    else:
        assert taken.parameters == pytest.approx(NOMINAL[name], rel=0.04)


def test_quantizes_linear_weights_alone() -> None:
    taken = case_of("llama-2-7b").inventory
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert sum(weight.elements for weight in taken.weights if weight.quantized) == matrices
    assert taken.weight_bytes == matrices + 2 * (taken.parameters - matrices)
    scales = 32 * 4 * (5 * 4096 + 2 * 11008)
    assert 0 <= taken.buffer_bytes - scales < 4096  # the rest are the rotary frequencies


@pytest.mark.parametrize("injects", ["prefix", "prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_equal_what_autograd_keeps(family: str, injects: Any) -> None:
    workload = Workload(rows=3, text_tokens=24, injected_tokens=4, injects=injects)
    model = tiny_model(family)
    facts = facts_of(model.config)
    taken = take_inventory(model.config, BackboneConfig(name_or_path="none", dtype="float32"), workload)
    ids, mask, injection = inventories._inputs(facts, workload, torch.float32)
    mask[0, 20:] = 0
    plain = inventories._saved_bytes(FrozenBackbone(model, facts), (ids, mask, injection), workload)
    assert taken.activation_bytes == pytest.approx(plain, rel=0.1)
    checkpointed = FrozenBackbone(tiny_model(family), facts, gradient_checkpointing=True)
    boundaries = inventories._saved_bytes(checkpointed, (ids, mask, injection), workload)
    assert taken.checkpointed_activation_bytes == pytest.approx(boundaries + plain / facts.layers, rel=0.1)
    assert boundaries < plain / 2


@pytest.mark.parametrize("injects", ["prefix", "prompt"])
def test_layers_below_the_injection_keep_nothing_and_run_once_per_text(injects: Any) -> None:
    config, facts = tiny_model("llama").config, facts_of(tiny_model("llama").config)
    backbone = FrozenBackbone(tiny_model("llama"), facts)
    workload = Workload(rows=6, text_tokens=24, injected_tokens=4, injects=injects, first_layer=1)
    taken = take_inventory(config, BackboneConfig(name_or_path="none", dtype="float32"), workload)
    ids, mask, injection = inventories._inputs(facts, workload, torch.float32)
    mask[0, 20:] = 0
    saved = inventories._saved_bytes(backbone, (ids, mask, injection), workload)
    assert taken.activation_bytes == pytest.approx(saved, rel=0.1)
    method, others = f"lt_{injects}", {"labels": {"names": list("abcd")}, "train": {"objective": "candidates"}}
    early = build_case(sections_of(method={"name": method}, **others), LLAMA_7B, 1, "h200")
    late = build_case(sections_of(method={"name": method, "first_layer": 16}, **others), LLAMA_7B, 1, "h200")
    assert late.workload.first_layer == 16 and late.texts * 4 == late.workload.rows
    for less, more in zip(plans(late), plans(early), strict=True):
        assert less.memory.activations < 0.8 * more.memory.activations
        passes = 3 if more.checkpointing else 2
        trunk = late.texts * 256 / (early.workload.tokens * passes)
        assert less.compute_seconds == pytest.approx(more.compute_seconds * (1 + trunk) / 2)


def test_a_late_prompt_of_the_text_costs_the_layers_above_it() -> None:
    made, small = {"name": "generated", "source": "sentence", "layers": [2]}, tiny_model("llama", num_hidden_layers=4)
    early, late = (
        build_case(sections_of(method=made | {"first_layer": first}), small.config, 1, "h200") for first in (0, 2)
    )
    # The table of shifts before layer 2 becomes the prompt itself; nothing else is trained otherwise.
    assert early.trainable - late.trainable == 4 * small.config.hidden_size
    for less, more in zip(plans(late), plans(early), strict=True):
        assert less.checkpointing or less.memory.activations < 0.8 * more.memory.activations
        assert less.compute_seconds < 0.8 * more.compute_seconds


def test_trained_weights_take_half_as_much_again_as_frozen_ones() -> None:
    """`full` computes the gradients of its weights too, which is as much as a forward pass."""
    small = tiny_model("llama", num_hidden_layers=4).config
    keys = {"backbone": {"quantization": "none"}, "labels": {"names": ["a", "b"]}}
    methods = ({"name": "edit"}, {"name": "full", "share": 0.5}, {"name": "full"})
    edit, half, full = (build_case(sections_of(method=method, **keys), small, 1, "h200") for method in methods)
    assert edit.inventory.parameters == half.inventory.parameters == full.inventory.parameters
    assert full.trainable > full.inventory.parameters and not full.inventory.weights
    for none, some, every in zip(plans(edit), plans(half), plans(full), strict=True):
        assert every.compute_seconds / none.compute_seconds == pytest.approx(4 / 3 if none.checkpointing else 3 / 2)
        assert none.compute_seconds < some.compute_seconds < every.compute_seconds


STORED: dict[str, Any] = {"train": {"objective": "candidates", "keep_token_states": True}}


def test_what_is_read_behind_texts_costs_its_own_tokens() -> None:
    facts = facts_of(tiny_model("llama").config)
    backbone = FrozenBackbone(tiny_model("llama"), facts)
    workload = Workload(rows=8, text_tokens=24, injected_tokens=4, injects="prompt", texts_behind=2)
    assert workload.tokens == 8 * 4
    ids, mask, injection = inventories._inputs(facts, workload, torch.float32)
    assert len(ids) == 2 and injection is not None and len(injection.mask) == 8
    taken = take_inventory(tiny_model("llama").config, BackboneConfig(name_or_path="none", dtype="float32"), workload)
    mask[0, 20:] = 0
    saved = inventories._saved_bytes(backbone, (ids, mask, injection), workload)
    assert taken.activation_bytes == pytest.approx(saved, rel=0.1)
    others = {"labels": {"names": list("abcd")}, "train": {"objective": "candidates"}}
    before, behind, stored = (
        build_case(sections_of(method={"name": "lt_prompt", "position": place}, **settings), EIGHT_LAYERS, 1, "h200")
        for place, settings in (("before", others), ("after", others), ("after", others | STORED))
    )
    texts, text_tokens, tokens = behind.texts, behind.workload.text_tokens, behind.workload.injected_tokens
    for less, more in zip(plans(behind), plans(before), strict=True):
        passes = 3 if more.checkpointing else 2
        expected = (4 * passes * tokens + text_tokens) / (4 * passes * (tokens + text_tokens))
        assert less.compute_seconds == pytest.approx(more.compute_seconds * expected)
        assert less.memory.activations < 0.5 * more.memory.activations or less.checkpointing
        kept = texts * text_tokens * behind.facts.prefix_width() * 2
        assert less.memory.injection == more.memory.injection + kept
    for less, more in zip(plans(stored), plans(behind), strict=True):
        passes = 3 if more.checkpointing else 2
        expected = 4 * passes * tokens / (4 * passes * tokens + text_tokens)
        assert less.compute_seconds == pytest.approx(more.compute_seconds * expected)


def test_memory_and_traffic_agree_with_measurement(tmp_path: Path) -> None:
    """Sharded Llama in 8 and in 4 bits on 1, 2 and 4 ranks: within 10 % (the bytes at rest exactly)."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 6, "num_key_value_heads": 2}
    save_tiny(tmp_path / "llama", "llama_gqa", **sizes)
    int8 = BackboneConfig(name_or_path=str(tmp_path / "llama"), quantization="int8", dtype="float32")
    int4, zero = int8.model_copy(update={"quantization": "int4"}), ZeroSettings.of(ZERO)
    taken8, taken4 = (take_inventory(load_model_config(config), config, SMALL_WORKLOAD) for config in (int8, int4))
    for world_size, ranks in run_worlds("tests.support.estimate_ranks:measure", [1, 2, 4], tmp_path, 300).items():
        for name, taken in (("plain", taken8), ("checkpointing", taken8), ("int4", taken4)):
            received = backbone_traffic_bytes(taken, zero, world_size, name == "checkpointing")
            for rank in ranks:
                assert rank[name]["at_rest"] == at_rest_bytes(taken, world_size)
                assert rank[name]["received"] == pytest.approx(received, rel=0.1), (world_size, name)
                assert rank[name]["gathered"] == pytest.approx(gathered_bytes(taken, zero), rel=0.1), (world_size, name)


def test_four_bits_weigh_four_and_a_quarter() -> None:
    int8, int4 = (case_of("llama-2-7b", quantization).inventory for quantization in ("int8", "int4"))
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert int4.parameters == int8.parameters == PUBLISHED["llama-2-7b"]
    assert int4.weight_bytes == matrices * 4.25 / 8 + 2 * (int4.parameters - matrices)
    assert sum(weight.numbers for weight in int4.weights if weight.quantized) == matrices
    plans4, plans8 = (plans(case_of("llama-2-7b", quantization)) for quantization in ("int4", "int8"))
    for fewer, more in zip(plans4, plans8, strict=True):
        assert fewer.compute_seconds == more.compute_seconds and fewer.memory.dequantized == more.memory.dequantized


def test_one_rank_gathers_and_sends_nothing() -> None:
    for plan in plans(case_of("llama-2-7b")):
        assert plan.memory.gathered == plan.communication_bytes == 0


@pytest.mark.parametrize(("world_size", "gpu"), [(4, "a100-80"), (1, "a100-40")])
def test_advises_the_simplest_plan_that_fits(world_size: int, gpu: str) -> None:
    plan = best_plan(replace(case_of("llama-2-7b"), world_size=world_size, gpu=GPUS[gpu]))
    assert plan is not None and (plan.backbone, plan.checkpointing) == ("replicated", False)


def test_bandwidth_sets_the_time() -> None:
    eight = replace(case_of("llama-2-7b"), world_size=8)
    slow, fast = (plans(replace(eight, bytes_per_second=speed))[2] for speed in (10e9, 100e9))
    assert slow.communication_seconds == pytest.approx(10 * fast.communication_seconds)
    assert slow.communication_seconds == pytest.approx(slow.communication_bytes / 10e9)


def test_candidates_are_rows() -> None:
    tiny = tiny_model("llama").config
    pairs = build_case(sections_of(), tiny, 1, "h200")
    four = build_case(sections_of(train={"objective": "candidates", "candidates": 4}), tiny, 1, "h200")
    assert four.workload.rows == 4 * pairs.workload.rows
    with pytest.raises(UserError, match=r"labels\.names"):
        build_case(sections_of(train={"objective": "candidates", "candidates": "all"}), tiny, 1, "h200")
    unknown = build_case(sections_of(train={"objective": "candidates"}), tiny, 1, "h200")
    assert unknown.workload.rows == 8 * pairs.workload.rows


@pytest.mark.parametrize(
    ("tokens", "texts", "passes"), [(None, 16, 3), (100, 1, 48), (5 * 256, 5, 10), (16 * 256, 16, 3), (10**6, 48, 1)]
)
def test_a_pass_has_the_texts_that_its_tokens_allow(tokens: int | None, texts: int, passes: int) -> None:
    """As the trainer cuts a step of 48 texts of 256 tokens, three readings each, into passes."""
    names = {"labels": {"names": list("abc")}, "method": {"shortlist": None}}
    train = {"objective": "candidates", "gradient_accumulation": 3}
    limit = None if tokens is None else 3 * tokens
    case = build_case(sections_of(**names, train=train | {"tokens_per_batch": limit}), EIGHT_LAYERS, 1, "h200")
    assert (case.workload.rows, case.texts, case.accumulation) == (3 * texts, texts, passes)
    if tokens is not None:
        cut = rank_slice_within(np.full(48, 256), 0, 1, tokens)
        assert (max(map(len, cut)), len(cut)) == (texts, passes)


def test_a_shortlist_reads_every_text_alone_first() -> None:
    """Forward only: no activations are kept of it, and weights come once more."""
    read_apart = {"method": {"head": "label_aware", "shortlist": None}, "train": {"objective": "candidates"}}
    every = build_case(
        sections_of(**read_apart | {"train": read_apart["train"] | {"candidates": 4}}), EIGHT_LAYERS, 8, "h200"
    )
    short = build_case(
        sections_of(**read_apart | {"method": {"head": "label_aware", "shortlist": 4}}), EIGHT_LAYERS, 8, "h200"
    )
    assert short.workload == every.workload and (short.shortlist_rows, every.shortlist_rows) == (16, 0)
    for more, less in zip(plans(short), plans(every), strict=True):
        assert more.memory == less.memory
        once = int(sum(w.elements * w.item_bytes for w in short.inventory.weights if w.elements > 100_000) * 7 / 8)
        extra = once if more.backbone == "sharded" else 0
        assert more.communication_bytes - less.communication_bytes == pytest.approx(extra, abs=2)
        passes = 3 if more.checkpointing else 2
        assert more.compute_seconds / less.compute_seconds == pytest.approx(1 + 16 * 256 / (64 * 256 * passes))
    for names, rows in (("abcd", 0), ("abcde", 16)):
        pairs = sections_of(method={"head": "label_aware"}, labels={"names": list(names)})
        assert build_case(pairs, EIGHT_LAYERS, 8, "h200").shortlist_rows == rows
    stored = sections_of(method={"head": "fitted"}, labels={"names": list("abcde")})
    assert build_case(stored, EIGHT_LAYERS, 8, "h200").shortlist_rows == 0, "those readings are kept by encode-texts"


def test_without_zero3_configured_the_preset_counts() -> None:
    config = sections_of(engine={"deepspeed": "ds_configs/zero2_int8.json"})
    case = build_case(config, tiny_model("llama").config, 8, "h200")
    assert case.zero == case_of("llama-2-7b").zero and not case.sharded and case_of("llama-2-7b").sharded


@pytest.mark.parametrize("options", [{"gpu": "abacus"}, {"world_size": 0}, {"bandwidth": -1.0}])
def test_refuses_nonsense(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--"):
        build_case(sections_of(), EIGHT_LAYERS, **{"world_size": 1, "gpu": "h200"} | options)


def test_a_backbone_that_reads_a_prompt_by_its_values_is_refused() -> None:
    config = AutoConfig.for_model(
        "gemma4_text", num_hidden_layers=2, layer_types=["full_attention"] * 2, per_layer_config={}
    )
    with pytest.raises(UserError, match="gemma4_text reads a prompt by its values"):
        build_case(sections_of(method={"name": "lt_prompt"}), config, 1, "h200")
