"""The estimate against measurement, against published sizes, and its advice.

covers estimate/case, estimate/inventory, estimate/table, stages/estimate, estimate/gpus
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BloomConfig,
    DebertaV2Config,
    FalconConfig,
    LlamaConfig,
    PreTrainedConfig,
    RobertaConfig,
)

from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.model_config import load_model_config
from pipeline.cli import main
from pipeline.config import RunConfig, parse_config
from pipeline.core.errors import UserError
from pipeline.estimate import inventory as inventories
from pipeline.estimate.case import Sections, build_case
from pipeline.estimate.costs import (
    Case,
    ZeroSettings,
    at_rest_bytes,
    backbone_traffic_bytes,
    best_plan,
    configured_plan,
    gathered_bytes,
    plans,
    plans_of_nodes,
)
from pipeline.estimate.gpus import GPUS
from pipeline.estimate.inventory import Workload, take_inventory
from pipeline.estimate.table import report
from pipeline.stages.estimate import estimate
from tests.support.estimate_zero import ZERO
from tests.support.tiny import FAMILIES, save_tiny, tiny_model
from tests.support.tiny_run import estimated
from tests.support.worlds import run_worlds

LLAMA_7B = LlamaConfig(vocab_size=32000)
LLAMA_70B = LlamaConfig(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=128256,
)
LLAMA_405B = LlamaConfig(
    hidden_size=16384,
    intermediate_size=53248,
    num_hidden_layers=126,
    num_attention_heads=128,
    num_key_value_heads=8,
    vocab_size=128256,
)
FALCON_180B = FalconConfig(
    hidden_size=14848,
    num_hidden_layers=80,
    num_attention_heads=232,
    num_kv_heads=8,
    new_decoder_architecture=True,
    bias=False,
)
FALCON_7B = FalconConfig(hidden_size=4544, num_hidden_layers=32, num_attention_heads=71, bias=False)
BLOOM_176B = BloomConfig(hidden_size=14336, n_layer=70, n_head=112, vocab_size=250880)
BLOOM_7B = BloomConfig(hidden_size=4096, n_layer=30, n_head=32, vocab_size=250880)
DEBERTA = DebertaV2Config(
    vocab_size=128100,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    type_vocab_size=0,
    relative_attention=True,
    position_buckets=256,
    pos_att_type=["p2c", "c2p"],
    position_biased_input=False,
    share_att_key=True,
    norm_rel_ebd="layer_norm",
)

BACKBONES: dict[str, PreTrainedConfig] = {
    "llama-2-7b": LLAMA_7B,
    "llama-3-70b": LLAMA_70B,
    "llama-3-405b": LLAMA_405B,
    "falcon-7b": FALCON_7B,
    "falcon-180b": FALCON_180B,
    "bloom-7b1": BLOOM_7B,
    "bloom-176b": BLOOM_176B,
    "bert-base": BertConfig(),
    "roberta-base": RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
    "deberta-v3-base": DEBERTA,
}
LARGE = ("llama-3-70b", "llama-3-405b", "falcon-180b", "bloom-176b")

# Elements of the base model. Sources: the totals on the models' hub pages (safetensors parameter counts), less lm_head
# (V * H) where it is a matrix of its own, or the encoder's pooler (H^2 + H).
PUBLISHED = {
    "llama-2-7b": 6_738_415_616 - 32000 * 4096,
    "llama-3-70b": 70_553_706_496 - 128256 * 8192,
    "llama-3-405b": 405_853_388_800 - 128256 * 16384,
    "bloom-176b": 176_247_271_424,
    "bloom-7b1": 7_069_016_064,
    "bert-base": 109_482_240 - 768 * 769,
}
NOMINAL = {"falcon-7b": 7e9, "falcon-180b": 180e9, "roberta-base": 125e6, "deberta-v3-base": 184e6}
SMALL_WORKLOAD = Workload(rows=1, text_tokens=8, injected_tokens=2)


def run_config(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "run": {"dir": "runs/test"},
        "backbone": {"name_or_path": "none", "quantization": "int8"},
        "data": {"train": "train.csv"},
        "method": {"name": "lt_prefix", "head": "linear"},
        "train": {"objective": "pairs"},
        "engine": {"deepspeed": "ds_configs/zero3_int8.json"},
    }
    for section, keys in changes.items():
        values[section] = values.get(section, {}) | keys
    return parse_config(values)


def sections_of(**changes: dict[str, Any]) -> Sections:
    return estimated(run_config(**changes))


@cache
def case_of(name: str) -> Case:
    """An int8 backbone on one A100 with 80 GB."""
    return build_case(sections_of(), BACKBONES[name], 1, "a100-80")


@pytest.mark.parametrize("name", BACKBONES)
def test_counts_every_parameter(name: str) -> None:
    taken = case_of(name).inventory
    if name in PUBLISHED:
        assert taken.elements == PUBLISHED[name]
    else:
        assert taken.elements == pytest.approx(NOMINAL[name], rel=0.04)


def test_quantizes_linear_weights_alone() -> None:
    taken = case_of("llama-2-7b").inventory
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert sum(weight.elements for weight in taken.weights if weight.quantized) == matrices
    assert taken.weight_bytes == matrices + 2 * (taken.elements - matrices)
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
    plain = inventories._saved_bytes(FrozenBackbone(model, facts), (ids, mask, injection))
    assert taken.activation_bytes == pytest.approx(plain, rel=0.1)
    checkpointed = FrozenBackbone(tiny_model(family), facts, gradient_checkpointing=True)
    boundaries = inventories._saved_bytes(checkpointed, (ids, mask, injection))
    assert taken.checkpointed_activation_bytes == pytest.approx(boundaries + plain / facts.layers, rel=0.1)
    assert boundaries < plain / 2


def test_memory_and_traffic_agree_with_measurement(tmp_path: Path) -> None:
    """Sharded int8 Llama on 1, 2 and 4 ranks: within 10 % (the bytes at rest exactly)."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 6, "num_key_value_heads": 2}
    save_tiny(tmp_path / "llama", "llama_gqa", **sizes)
    config = BackboneConfig(name_or_path=str(tmp_path / "llama"), quantization="int8", dtype="float32")
    taken = take_inventory(load_model_config(config), config, SMALL_WORKLOAD)
    zero = ZeroSettings.of(ZERO)
    for world_size, ranks in run_worlds("tests.support.estimate_ranks:measure", [1, 2, 4], tmp_path, 300).items():
        for name, checkpointing in (("plain", False), ("checkpointing", True)):
            received = backbone_traffic_bytes(taken, zero, world_size, checkpointing)
            for rank in ranks:
                assert rank[name]["at_rest"] == at_rest_bytes(taken, world_size)
                assert rank[name]["received"] == pytest.approx(received, rel=0.1), (world_size, name)
                assert rank[name]["gathered"] == pytest.approx(gathered_bytes(taken, zero), rel=0.1), (world_size, name)


@pytest.mark.parametrize("name", LARGE)
def test_answers_for_large_backbones_on_8_to_1024_gpus(name: str) -> None:
    totals = []
    for world_size in (8, 64, 1024):
        case = replace(case_of(name), world_size=world_size)
        whole, _, sharded, checkpointed = plans(case)
        share = case.inventory.weight_bytes / world_size
        assert share <= sharded.memory.frozen < share + 0.002 * whole.memory.frozen  # scales, norms: on every rank
        assert sharded.communication_bytes > 100 * whole.communication_bytes
        assert checkpointed.memory.activations < sharded.memory.activations / 4
        totals.append(checkpointed.memory.total)
        assert "advice: " in report(sections_of(), case, "a100-80")
    assert totals == sorted(totals, reverse=True)


def test_one_rank_gathers_and_sends_nothing() -> None:
    for plan in plans(case_of("llama-2-7b")):
        assert plan.memory.gathered == plan.communication_bytes == 0


@pytest.mark.parametrize(
    ("name", "world_size", "gpu", "expected"),
    [
        ("llama-2-7b", 4, "a100-80", ("replicated", False)),
        ("llama-2-7b", 1, "a100-40", ("replicated", False)),
        ("llama-3-70b", 8, "a100-80", ("sharded", True)),
        ("llama-3-405b", 2, "a100-80", None),
    ],
)
def test_advises_the_simplest_plan_that_fits(name: str, world_size: int, gpu: str, expected: object) -> None:
    plan = best_plan(replace(case_of(name), world_size=world_size, gpu=GPUS[gpu]))
    assert (None if plan is None else (plan.backbone, plan.checkpointing)) == expected


def test_nodes_of_their_own_cost_memory_and_spare_the_network() -> None:
    flat = replace(case_of("llama-3-70b"), world_size=64)
    nodes = replace(flat, zero=replace(flat.zero, node_ranks=8))
    far, near = plans(flat)[3], plans(nodes)[3]
    assert near.memory.frozen - far.memory.frozen == pytest.approx(flat.inventory.weight_bytes / 8, rel=0.001)
    assert near.communication_seconds < far.communication_seconds / 5


def test_bandwidth_sets_the_time() -> None:
    eight = replace(case_of("llama-2-7b"), world_size=8)
    slow, fast = (plans(replace(eight, bytes_per_second=speed))[2] for speed in (10e9, 100e9))
    assert slow.communication_seconds == pytest.approx(10 * fast.communication_seconds)
    assert slow.communication_seconds == pytest.approx(slow.communication_bytes / 10e9)


def test_says_how_many_gpus_would_do() -> None:
    text = report(sections_of(), replace(case_of("llama-3-405b"), world_size=2), "a100-80")
    assert "nothing fits in 90% of 2 x a100-80; on 16: engine.deepspeed=ds_configs/zero3_int8.json" in text


def advice_for(case: Case, world_size: int, gpu: str = "a100-80", **changes: Any) -> str:
    there = replace(case, world_size=world_size, gpu=GPUS[gpu])
    return report(sections_of(**changes), there, gpu).splitlines()[-1]


def test_advises_nodes_of_their_own_where_there_are_several() -> None:
    case = case_of("llama-3-70b")
    assert "zero3_int8.json" in advice_for(case, 8), "one node"
    assert "zero3_multinode.json" in advice_for(case, 64)
    assert "zero3_int8.json" in advice_for(case, 12), "8 GPUs per node do not divide 12"
    assert case.zero_of_nodes is not None and case.zero_of_nodes.node_ranks == 8
    configured = replace(case, world_size=64, zero=case.zero_of_nodes)
    assert advice_for(configured, 64) == advice_for(case, 64)
    several = replace(case, world_size=64)
    near, far = plans_of_nodes(several)[1], plans(several)[3]
    assert near == plans(configured)[3] == configured_plan(configured, True) and plans_of_nodes(configured) == []
    assert near.communication_seconds < far.communication_seconds / 5
    assert report(sections_of(), several, "a100-80").count("and per node") == 2


def test_offload_is_offered_where_it_helps() -> None:
    """The backbone at rest goes to host memory; activations do not."""
    offload = "ds_configs/zero3_offload.json"
    assert offload in advice_for(case_of("llama-3-405b"), 2)
    assert offload in advice_for(case_of("llama-3-70b"), 1, "a100-40")
    case = case_of("llama-3-70b")
    more = replace(case.inventory, checkpointed_activation_bytes=10**12, activation_bytes=10**13)
    for world_size in (1, 64):
        found = advice_for(replace(case, inventory=more), world_size)
        assert "lower train.batch_size" in found and "(1000.0 GB of activations" in found and offload not in found


def test_totals_of_the_config_as_given() -> None:
    config = sections_of(train={"max_steps": 3000}, backbone={"gradient_checkpointing": True})
    case = replace(case_of("llama-3-70b"), world_size=8, accumulation=2)
    seconds = plans(case)[3].step_seconds
    [speed, cost] = report(config, case, "a100-80").split("\n\n")[-2].splitlines()[-2:]
    assert speed == (
        f"as configured (sharded, with checkpointing): {seconds:.3g} s per step, {16 * 2 * 8 / seconds:,.0f} texts/s"
    )
    hours = 3000 * seconds / 3600
    assert cost.startswith(f"3,000 steps: {hours:.3g} hours, {8 * hours:.3g} GPU-hours, ")
    config, case = sections_of(), replace(case, sharded=False, accumulation=1)
    printed = report(config, case, "a100-80")
    assert "(replicated, without checkpointing)" in printed and "; it does not fit" in printed
    hours = 100_000 / (16 * 8) * plans(case)[0].step_seconds / 3600
    assert f"every 100,000 texts (the dry run counts yours): {hours:.3g} hours" in printed
    assert "\n50 steps: " in report(config, case, "a100-80", steps=50)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_said_of_time(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    file = tmp_path / "run.yaml"
    file.write_text(run_config(backbone={"name_or_path": str(tmp_path)}).to_yaml())
    assert main(["estimate", "--config", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "total per rank" in printed and "no GPU is known here" in printed
    assert ", s per step" not in printed and "advice" not in printed and "1 x rank; " in printed


def test_command_line_prints_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    save_tiny(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "run.yaml"
    file.write_text(run_config(backbone={"name_or_path": str(tmp_path)}).to_yaml())
    assert main(["estimate", "--config", str(file), "--world-size", "8", "--gpu", "a100-80", "--bandwidth", "25"]) == 0
    printed = capsys.readouterr().out
    assert "8 x a100-80" in printed
    assert "advice: engine.deepspeed=ds_configs/zero2_int8.json" in printed


def test_candidates_are_rows() -> None:
    tiny = tiny_model("llama").config
    pairs = build_case(sections_of(), tiny, 1, "h200")
    four = build_case(sections_of(train={"objective": "candidates", "candidates": 4}), tiny, 1, "h200")
    assert four.workload.rows == 4 * pairs.workload.rows
    with pytest.raises(UserError, match=r"labels\.names"):
        build_case(sections_of(train={"objective": "candidates", "candidates": "all"}), tiny, 1, "h200")
    unknown = build_case(sections_of(train={"objective": "candidates"}), tiny, 1, "h200")
    assert unknown.workload.rows == 8 * pairs.workload.rows


def test_a_shortlist_reads_every_text_alone_first() -> None:
    """Forward only: no activations are kept of it, and weights come once more."""
    read_apart = {"method": {"head": "label_aware", "shortlist": None}, "train": {"objective": "candidates"}}
    every = build_case(
        sections_of(**read_apart | {"train": read_apart["train"] | {"candidates": 4}}), LLAMA_7B, 8, "h200"
    )
    short = build_case(
        sections_of(**read_apart | {"method": {"head": "label_aware", "shortlist": 4}}), LLAMA_7B, 8, "h200"
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
        assert build_case(pairs, LLAMA_7B, 8, "h200").shortlist_rows == rows


def test_without_zero3_configured_the_preset_counts() -> None:
    config = sections_of(engine={"deepspeed": "ds_configs/zero2_int8.json"})
    case = build_case(config, tiny_model("llama").config, 8, "h200")
    assert case.zero == case_of("llama-2-7b").zero and not case.sharded and case_of("llama-2-7b").sharded


@pytest.mark.parametrize("options", [{"gpu": "abacus"}, {"world_size": 0}, {"bandwidth": -1.0}])
def test_refuses_nonsense(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--"):
        build_case(sections_of(), LLAMA_7B, **{"world_size": 1, "gpu": "h200"} | options)


def test_needs_a_config_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name_or_path"):
        estimate(run_config(backbone={"name_or_path": str(tmp_path)}))
