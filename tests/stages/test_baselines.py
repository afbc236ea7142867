"""Every baseline through all stages, by the same commands as label tuning."""

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline import LTuningClassifier
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.stages.run import run
from tests.tiny_run import tiny_config

SHORT = {"max_steps": 4, "batch_size": 4, "learning_rate": 0.05, "eval_every": 4, "log_every": 1}
METHODS = {
    "linear_probe": {},
    "prompt": {"tokens": 4, "init": "labels"},
    "prefix": {"tokens": 4, "reparametrisation": True},
    "p_tuning": {"tokens": 4, "encoder": "lstm", "encoder_width": 6},
    "zero_shot": {},
    "majority": {},
}
OPEN = ("zero_shot",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    gc.freeze()  # DeepSpeed collects garbage at every start: seconds, with all that is imported here
    yield tmp_path_factory.mktemp("baselines")
    gc.unfreeze()


@pytest.mark.parametrize("name", METHODS)
def test_trains_evaluates_and_predicts(folder: Path, name: str) -> None:
    before = (folder / "backbone" / "model.safetensors").read_bytes() if (folder / "backbone").is_dir() else None
    config = tiny_config(
        folder,
        run={"dir": str(folder / name)},
        method={"name": name} | METHODS[name],
        train=SHORT | {"objective": "candidates"},
        logging={"trackers": ["jsonl"]},
    )
    figures = run(config)["test"]
    state = load_file(config.run_dir.adapter / "adapter.safetensors")
    assert {tensor.dtype for tensor in state.values()} <= {torch.float32}
    assert before is None or before == (folder / "backbone" / "model.safetensors").read_bytes()
    if config.method.is_trained:
        lines = [json.loads(line) for line in config.run_dir.metrics_log.read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        assert len(losses) == 4 and np.isfinite(losses).all()
    if name == "majority":
        assert figures["accuracy"] == figures["majority"]["accuracy"]
    classifier = LTuningClassifier.from_pretrained(config.run_dir.adapter, "cpu")
    assert len(classifier.predict(["a goal", "shares fell"])[0].scores) == 3
    if name in OPEN:
        assert len(classifier.with_labels(["sea", "air"]).predict(["a goal"])[0].scores) == 2
    else:
        with pytest.raises(UserError, match=f"{name} knows only the labels of its training"):
            classifier.with_labels(["sea", "air"])


def test_pairs_train_a_classifier_too(folder: Path) -> None:
    config = tiny_config(folder, run={"dir": str(folder / "pairs")}, method={"name": "prefix"}, train=SHORT)
    assert config.train.objective == "pairs"
    assert run(config)["test"]["n"] == 9


def test_the_plan_counts_one_reading_per_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, words in (
        ("prefix", "1 reading(s) per text, 4 injected tokens each"),
        ("majority", "steps: none"),
        ("lt_prompt", "3 reading(s) per text"),
    ):
        method = {"name": name} | METHODS.get(name, {})
        config = tiny_config(
            folder, run={"dir": str(folder / "plan")}, method=method, train={"objective": "candidates"}
        )
        (folder / "plan.yaml").write_text(config.to_yaml())
        assert main(["run", "--config", str(folder / "plan.yaml"), "--dry-run"]) == 0
        printed = capsys.readouterr().out
        assert words in printed
        assert f"{config.method.name}: " in printed


def test_a_prompt_that_leaves_no_room_is_refused(folder: Path) -> None:
    config = tiny_config(folder, run={"dir": str(folder / "long")}, method={"name": "prompt", "tokens": 100})
    with pytest.raises(UserError, match=r"100 injected tokens and data\.max_length=64"):
        run(config)
