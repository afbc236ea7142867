"""Everything that can be known beforehand is reported at once, and looked at once."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.engine import checks
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.engine.checks import check_all
from pipeline.engine.models import load_frozen
from pipeline.engine.startup import start
from tests.support.tiny import save_tiny
from tests.support.tiny_run import tiny_config


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def with_backbone(config: RunConfig) -> tuple[RunConfig, Backbone]:
    return config, backbone_of(config.backbone, config.data)


def told(configs: list[RunConfig], folder: Path) -> str:
    with pytest.raises(UserError) as fault:
        check_all(map(with_backbone, configs), folder)
    return str(fault.value)


def test_a_config_that_is_right_passes(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    check_all([with_backbone(config)], config.run_dir.path)
    assert not config.run_dir.path.exists()


def test_all_faults_at_once(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes").write_text("mine")
    data = {"train": str(tmp_path / "none.csv"), "validation": None, "test": None, "max_length": 1000}
    config = tiny_config(tmp_path, data=data, engine={"deepspeed": "none.json"}, evaluate={"splits": ["test"]})
    message = told([config], tmp_path / "own")
    for words in (
        "own' holds 'notes'",
        "nothing to evaluate (evaluate.splits=test): set data.test",
        "none.csv: no such file",
        "'none.json' does not exist",
        "set data.max_length=128",
    ):
        assert words in message, message


def test_a_column_that_is_missing_is_seen_before_the_rows(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, data={"label": "lable"})
    assert told([config], config.run_dir.path).count("no column 'lable'") == 3


def test_what_configs_share_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    real = checks.check_source

    def counted(source: str, *rest: Any) -> Any:
        looked.append(source)
        return real(source, *rest)

    monkeypatch.setattr(checks, "check_source", counted)
    configs = [tiny_config(tmp_path, run={"dir": str(tmp_path / f"run-{n}"), "seed": n}) for n in range(30)]
    check_all(map(with_backbone, configs), tmp_path / "compared", "comparison")
    assert len(looked) == 3


def test_the_hub_that_cannot_be_reached_is_told_once_and_hides_nothing(tmp_path: Path) -> None:
    configs = []
    for n in range(20):
        section = {"name_or_path": f"nobody/model-{n % 2}", "dtype": "float32"}
        data = {"train": "hub:nobody/texts:train", "test": str(tmp_path / "none.csv")}
        configs.append(tiny_config(tmp_path, backbone=section, data=data))
    message = told(configs, tmp_path / "run")
    assert message.count("cannot be reached") == 1 and message.count("nobody/model-0") == 1
    assert "hub:nobody/texts:train, nobody/model-0, nobody/model-1" in message
    assert message.count("none.csv") == 1


def test_the_first_layers_of_a_decoder_are_not_asked_for_likelihoods(tmp_path: Path) -> None:
    """Its output layer makes nothing of their states, and says nothing of it."""
    config = tiny_config(tmp_path, method={"name": "zero_shot"}, backbone={"layers": 1})
    assert "set backbone.layers=null (in a comparison, methods.zero_shot.backbone.layers)" in told([config], tmp_path)
    with pytest.raises(UserError, match="the whole language model, not its first 1 layers"):
        load_frozen(*start(config), backbone_of(config.backbone, config.data), output_layer=True)


def test_an_output_layer_that_is_not_stored_is_missed_before_anything_is_made(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, method={"name": "zero_shot"})
    assert "LlamaForCausalLM needs tensors it lacks: lm_head.weight" in told([config], config.run_dir.path)
    save_tiny(tmp_path / "backbone", "llama_gqa", AutoModelForCausalLM)
    check_all([with_backbone(config)], config.run_dir.path)


def test_a_first_layer_is_looked_for_among_those_that_each_cell_reads(tmp_path: Path) -> None:
    method = {"name": "lt_prefix", "first_layer": 1}
    configs = [tiny_config(tmp_path, method=method, backbone={"layers": layers}) for layers in (2, 1)]
    assert "method.first_layer=1: the backbone has only layers 0 to 0" in told(configs, tmp_path / "run")


@pytest.mark.parametrize("name", ["edit", "generated"])
def test_layers_that_a_method_names_are_looked_for(tmp_path: Path, name: str) -> None:
    configs = [tiny_config(tmp_path, method={"name": name, "layers": layers}) for layers in ([1], [0, 2])]
    check_all([with_backbone(configs[0])], tmp_path / "run")
    assert "method.layers: 2 is none of the backbone's layers 0 to 1" in told(configs, tmp_path / "run")
