"""Too little memory for a pass: smaller ones, the same steps, and what was learnt is kept for the next start.

covers engine/memory_limit, distributed/device
"""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import RunConfig
from pipeline.core.errors import UserError
from pipeline.core.files import read_json
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.evaluate import evaluate
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import train
from tests.support.faults import no_memory_above
from tests.support.processes import launch, run_script
from tests.support.tiny_run import tiny_config

LABELS, ROWS = 3, 6
"""At most so many rows fit, where a pass of four texts has twelve."""
METHOD = {"name": "lt_prefix", "head": "linear"}


def config_in(folder: Path, name: str, *, zero: int = 3, **train_settings: Any) -> RunConfig:
    settings = json.loads(Path("ds_configs/zero3_cpu.json").read_text())
    settings["zero_optimization"] = {"stage": zero}
    (folder / f"zero{zero}.json").write_text(json.dumps(settings))
    steps = {"max_steps": 5, "batch_size": 4, "eval_every": 5, "save_every": 2, "learning_rate": 1e-2, "log_every": 1}
    return tiny_config(
        folder,
        run={"dir": str(folder / name)},
        method=METHOD,
        train=steps | train_settings,
        evaluate={"batch_size": 3 if name == "two" else 64},
        logging={"trackers": ["jsonl"]},
        engine={"deepspeed": str(folder / f"zero{zero}.json"), "threads": 1},
    )


def prepared(config: RunConfig) -> RunConfig:
    preprocess(config)
    encode_labels(config)
    return config


def same_adapters(first: RunConfig, second: RunConfig) -> bool:
    one, other = (load_file(each.run_dir.adapter_final / "adapter.safetensors") for each in (first, second))
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(("zero", "after"), [(0, 0), (3, 3)])
def test_training_goes_on_in_smaller_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, zero: int, after: int
) -> None:
    """From the start, or, `after` steps, from the checkpoint of step 2."""
    config = prepared(config_in(tmp_path, "short", zero=zero))
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        no_memory_above(f"{ROWS},{after}", patch.setattr)
        summary = train(config)
        metrics = evaluate(config)
    noted = read_json(config.run_dir.memory_file)
    assert "train: out of memory in a pass of 4 text(s)" in caplog.text
    assert caplog.text.count("goes on after step 2") == (1 if after else 0)
    limit = noted["train.tokens_per_batch"]
    assert summary["steps"] == 5 and len(config.run_dir.metrics_log.read_text().splitlines()) == 6
    told = prepared(config_in(tmp_path, "told", zero=zero, tokens_per_batch=limit))
    train(told)
    if not after:
        assert same_adapters(config, told)
    else:  # two steps in whole passes
        assert evaluate(told)["test"]["log_loss"] == pytest.approx(metrics["test"]["log_loss"], rel=1e-3)
    with caplog.at_level(logging.INFO):
        caplog.clear()
        train(config)
        assert "is current" in caplog.text, "the run is the one that its config says"
        train(config, overwrite=True)
    assert f"train.tokens_per_batch={limit}: larger passes did not fit" in caplog.text


def test_a_text_too_large_for_memory_ends_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = prepared(config_in(tmp_path, "hopeless"))
    no_memory_above("0,0", monkeypatch.setattr)
    with pytest.raises(UserError, match=r"out of memory in a pass of 1 text\(s\), \d+ tokens.*see docs/troubleshoot"):
        train(config)
    assert not config.run_dir.is_finished


@pytest.mark.parametrize("zero", [0, 3])
def test_scoring_goes_on_in_smaller_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, zero: int
) -> None:
    """A whole model at once, also label by label; a sharded one from the beginning, and the note says how."""
    config = prepared(config_in(tmp_path, "scored", zero=zero))
    train(config)
    expected = evaluate(config)
    classifier, texts = LoadedAdapter.load(config.run_dir.adapter), ["one text", "and another one"]
    answers = classifier.predict(texts)
    (config.run_dir.evaluation / "fingerprint.json").unlink()
    no_memory_above("1,0" if zero == 0 else "2,0", monkeypatch.setattr)
    found = evaluate(config)
    for split in ("validation", "test"):
        assert found[split]["log_loss"] == pytest.approx(expected[split]["log_loss"], rel=1e-4)
    assert config.run_dir.memory_file.exists() == (zero == 3)
    assert "halved" in caplog.text or zero == 3
    for one, other in zip(classifier.predict(texts), answers, strict=True):
        assert one.scores == pytest.approx(other.scores, rel=1e-4, abs=1e-5)


def two_ranks(folder: Path) -> list[list[int]]:
    """The statuses of a start in which memory is short on rank 1, and of the one after it."""
    config = config_in(folder, "two")
    (folder / "two.yaml").write_text(config.to_yaml())
    command, log = ["run", "--config", str(folder / "two.yaml")], folder / "two.log"
    fault = f"no_memory_above:{ROWS},0"
    first = launch(command, log, world=2, fault=fault, faulty=[1], timeout_seconds=120)
    signs = [(folder / "two" / name).is_file() for name in ("PREEMPTED", "logs/memory.json")]
    return [first, signs, launch(command, log, world=2, fault=fault, faulty=[1])]  # type: ignore[list-item]


def test_other_ranks_begin_anew_with_the_one_whose_memory_was_short(tmp_path: Path) -> None:
    first, signs, second = run_script("tests.stages.test_memory:two_ranks", tmp_path, 300)
    said = (tmp_path / "two.log").read_text()
    assert first == [86, 2] and signs == [True, True], said
    assert second == [0, 0], said
    assert "rank 0: error: rank 1 on" in said and "that is noted, and the same command goes on with it" in said
