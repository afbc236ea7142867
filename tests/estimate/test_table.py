"""The estimate for people: its advice, its totals, and the command that prints it.

covers stages/estimate
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cli import main
from pipeline.core.errors import UserError
from pipeline.estimate.costs import Case, best_plan, configured_plan, plans, plans_of_nodes
from pipeline.estimate.gpus import GPUS
from pipeline.estimate.table import report
from pipeline.methods.probe import ProbeConfig
from pipeline.stages.estimate import estimate
from tests.support.estimated import case_of, run_config, sections_of
from tests.support.tiny import save_tiny

LARGE = ("llama-3-70b", "llama-3-405b")


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


def test_counts_every_parameter_of_a_large_one() -> None:
    """The total on its hub page, less lm_head; smaller ones are in test_costs."""
    assert case_of("llama-3-70b").inventory.parameters == 70_553_706_496 - 128256 * 8192


@pytest.mark.parametrize(("world_size", "gpu", "expected"), [(8, "a100-80", ("sharded", True)), (1, "a100-40", None)])
def test_advises_the_simplest_plan_that_fits(world_size: int, gpu: str, expected: object) -> None:
    plan = best_plan(replace(case_of("llama-3-70b"), world_size=world_size, gpu=GPUS[gpu]))
    assert (None if plan is None else (plan.backbone, plan.checkpointing)) == expected


def test_nodes_of_their_own_cost_memory_and_spare_the_network() -> None:
    flat = replace(case_of("llama-3-70b"), world_size=64)
    nodes = replace(flat, zero=replace(flat.zero, node_ranks=8))
    far, near = plans(flat)[3], plans(nodes)[3]
    assert near.memory.frozen - far.memory.frozen == pytest.approx(flat.inventory.weight_bytes / 8, rel=0.001)
    assert near.communication_seconds < far.communication_seconds / 5


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
    train = {"max_steps": 3000, "gradient_accumulation": 2}
    config = sections_of(train=train, backbone={"gradient_checkpointing": True})
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


def test_says_why_no_step_is_taken() -> None:
    stopped = sections_of(method={"head": "fitted"}, train={"max_steps": 0})
    for config, why in (
        (stopped, "train.max_steps is 0"),
        (replace(stopped, method=ProbeConfig()), "the method takes none"),
    ):
        assert f"\nsteps: none, {why}\n" in report(config, case_of("llama-3-70b"), "a100-80")


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


def test_needs_a_config_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name_or_path"):
        estimate(run_config(backbone={"name_or_path": str(tmp_path)}))
