"""Sharded against whole backbones on 1 to 3 real CPU ranks.

covers backbone/loading, backbone/partition, backbone/experts
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.families.models import tiny_model
from tests.support.tiny import save_tiny
from tests.support.worlds import run_worlds

WORLDS = [1, 2, 3]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("sharded")
    for family in ("llama_gqa", "bert", "gpt2"):
        save_tiny(folder / family, family)
    for kind in ("qwen3_moe", "gpt_oss", "mixtral", "olmoe"):
        tiny_model(kind).save_pretrained(folder / kind)
    _make_faults(folder)
    return run_worlds("tests.support.sharded:check_world", WORLDS, folder, timeout_seconds=600)


def _make_faults(folder: Path) -> None:
    good = folder / "llama_gqa"
    nan = shutil.copytree(good, folder / "fault-nan")
    weights = load_file(nan / "model.safetensors")
    weights["layers.1.mlp.down_proj.weight"][-1, -1] = torch.nan  # in the last rank's share
    save_file(weights, nan / "model.safetensors", {"format": "pt"})
    truncated = shutil.copytree(good, folder / "fault-truncated") / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    other = folder / "one-rank-other"
    shutil.copytree(good, other / "others")
    shutil.copytree(good, other / "last")
    weights = load_file(other / "last" / "model.safetensors")
    weights["norm.weight"] += 1
    save_file(weights, other / "last" / "model.safetensors", {"format": "pt"})
    absent = folder / "one-rank-absent"
    shutil.copytree(good, absent / "others")
    shutil.copytree(good, absent / "last")
    (absent / "last" / "model.safetensors").unlink()


def test_ranks_that_hit_other_numbers_of_experts_stay_in_step(results: dict) -> None:
    assert [rank["uneven"] for rank in results[2]] == [True, True]


@pytest.mark.parametrize("world", WORLDS)
def test_a_sharded_backbone_equals_the_whole_one(results: dict, world: int) -> None:
    for rank in results[world]:
        cases = {name: checks for name, checks in rank.items() if name not in ("losses", "uneven", "small", "faults")}
        assert len(cases) == (10 if world < 3 else 6)
        failed = {name: [check for check, holds in checks.items() if not holds] for name, checks in cases.items()}
        assert not any(failed.values()), json.dumps(failed, indent=1)


def test_losses_do_not_depend_on_the_number_of_ranks(results: dict) -> None:
    for family, alone in results[1][0]["losses"].items():
        assert len(set(alone)) == 10
        assert results[2][0]["losses"][family] == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("world", WORLDS)
def test_a_tensor_may_have_fewer_elements_than_ranks(results: dict, world: int) -> None:
    assert all(rank["small"] for rank in results[world])


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("fault-nan", "layers.1.mlp.down_proj.weight holds values that are not finite"),
        ("fault-truncated", "cut off"),
        ("one-rank-absent", "no model.safetensors"),
        ("one-rank-other", "does not see the same model.safetensors"),
    ],
)
def test_a_fault_that_one_rank_sees_is_an_error_on_all(results: dict, world: int, fault: str, words: str) -> None:
    messages = [rank["faults"][fault] for rank in results[world]]
    if world == 1 and fault == "one-rank-other":
        assert messages == ["no error"]  # nobody to differ from
    else:
        assert all(words in message for message in messages)
