"""What a command reads of its backbone is read once."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipeline.backbone import loading, weights
from pipeline.comparison.config import load_comparison
from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.yaml import dump_yaml
from pipeline.engine import backbone as backbone_module
from pipeline.engine import models
from pipeline.engine.backbone import Backbone, backbone_of
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.stages.compare import compare
from pipeline.stages.dry_run import plan
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.run import run
from pipeline.stages.train import train
from tests.support.tiny_run import tiny_config

ONCE = {"tokenizer": 1, "config.json": 1, "headers": 1}
LOADED = {**ONCE, "weights": 1}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each thing has been read since."""
    counts: Counter[str] = Counter()

    def counted(owner: Any, name: str, what: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            counts[what] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    counted(AutoTokenizer, "from_pretrained", "tokenizer")
    counted(backbone_module, "load_model_config", "config.json")
    counted(loading, "load_model_config", "config.json")
    counted(weights, "_read_header", "headers")
    counted(models, "load_backbone", "weights")
    return counts


def config_in(folder: Path) -> RunConfig:
    return tiny_config(folder, train={"max_steps": 2, "batch_size": 4}, logging={"trackers": ["jsonl"]})


def test_run_reads_each_once(tmp_path: Path, reads: Counter[str]) -> None:
    config = config_in(tmp_path)
    reads.clear()
    run(config)
    assert reads == LOADED, "a stage that loads for itself makes it two"
    run(config)
    assert reads == {**LOADED, "tokenizer": 2, "headers": 2, "config.json": 2}, "also where all is current"


def test_each_stage_alone_reads_each_at_most_once(tmp_path: Path, reads: Counter[str]) -> None:
    config = config_in(tmp_path)
    for stage in (preprocess, encode_labels, train, evaluate):
        reads.clear()
        stage(config)
        assert max(reads.values()) == 1, stage
    reads.clear()
    LoadedAdapter.load(config.run_dir.adapter, "cpu").predict(["a goal"])
    assert reads == ONCE


def test_a_dry_run_reads_each_once(tmp_path: Path, reads: Counter[str]) -> None:
    config = config_in(tmp_path)
    reads.clear()
    plan(config)
    assert reads == ONCE


def test_a_comparison_reads_each_once_a_backbone(tmp_path: Path, reads: Counter[str]) -> None:
    config = config_in(tmp_path)
    values = config.model_dump(mode="json", include={"backbone", "data", "train", "logging"})
    backbone, data = values.pop("backbone"), values.pop("data")
    comparison = {
        "dir": str(tmp_path / "compared"),
        "base": values | {"train": values["train"] | {"max_steps": 1}},
        "backbones": {"tiny": {"backbone": backbone}},
        "datasets": {"news": {"data": data}},
        "methods": {"lt_prefix": {}, "prompt": {}},
        "seeds": [0, 1],
    }
    (tmp_path / "compare.yaml").write_text(dump_yaml(comparison))
    reads.clear()
    compare(load_comparison(tmp_path / "compare.yaml"))
    assert reads == LOADED


def test_what_fails_is_tried_again(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    backbone = backbone_of(config.backbone, config.data)
    file = tmp_path / "backbone" / "config.json"
    content = file.read_text()
    file.write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        _ = backbone.facts
    file.write_text(content)
    assert backbone.facts is backbone.facts and backbone.facts.family == "llama"


def test_a_stage_takes_the_backbone_it_is_given(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    other = Backbone(config.backbone, special_tokens=True)
    assert other.tokenizer is not backbone_of(config.backbone, config.data).tokenizer
    assert preprocess(config, other)["fingerprint"]["tokenizer"] == other.tokenizer_fingerprint
