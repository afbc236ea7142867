"""Every preset in ds_configs/ is accepted by DeepSpeed itself and trains the trainable part alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import parse_config
from pipeline.engine.deepspeed_config import resolve_deepspeed
from tests.support.tiny import save_tiny
from tests.support.worlds import run_worlds

PRESETS = sorted((Path(__file__).resolve().parents[1] / "ds_configs").glob("*.json"))
NAMES = [path.stem for path in PRESETS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    [figures] = run_worlds("tests.support.ds_config_ranks:train_all", [1], tmp_path_factory.mktemp("presets"), 300)[1]
    return figures


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_trains(trained: dict[str, Any], name: str, dtype: str) -> None:
    figures = trained[f"{name} {dtype}"]
    first, again, second, _ = figures["losses"]
    assert first == again and second < first  # one optimizer step per two passes
    assert figures["optimizer_dtypes"] == [figures["master_dtype"]] == ["torch.float32"]
    assert figures["frozen_kept"] and figures["trained_moved"]


@pytest.mark.parametrize("name", NAMES)
def test_leaves_to_the_run_config_what_is_its(name: str) -> None:
    settings = json.loads((PRESETS[NAMES.index(name)]).read_text())
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        assert settings[key] == "auto"
    assert settings["bf16"]["enabled"] == "auto"
    assert not {"optimizer", "scheduler", "fp16"} & set(settings)


@pytest.mark.parametrize("name", NAMES)
def test_resolves(name: str) -> None:
    config = parse_config(
        {
            "run": {"dir": "runs/test"},
            "backbone": {"name_or_path": "none"},
            "data": {"train": "train.csv"},
            "method": {"name": "lt_prompt"},
            "engine": {"deepspeed": f"ds_configs/{name}.json"},
        }
    )
    assert "auto" not in json.dumps(resolve_deepspeed(config.engine, config.train, config.backbone.dtype, world_size=2))


@pytest.mark.parametrize("name", NAMES)
def test_is_explained(name: str) -> None:
    assert f"`{name}.json`" in (PRESETS[0].parent / "README.md").read_text()


def test_nodes_gather_int8_among_themselves(tmp_path: Path) -> None:
    """Hierarchical partitioning (ZeRO++ hpZ), four ranks as two nodes."""
    save_tiny(tmp_path / "llama", "llama")
    for figures in run_worlds("tests.support.ds_config_ranks:train_in_nodes", [4], tmp_path, 300)[4]:
        flat, nodes = figures["1"], figures["2"]
        assert nodes["losses"] == flat["losses"]
        assert flat["losses"][2] < flat["losses"][0]
        assert (flat["gathered_over_ranks"], nodes["gathered_over_ranks"]) == ([4], [2])
        assert (flat["held"], flat["held_for_node"]) == (flat["elements"] / 4, 0)
        assert (nodes["held"], nodes["held_for_node"]) == (flat["elements"] / 4, flat["elements"] / 2)
