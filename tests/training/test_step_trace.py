"""A trace of some steps of a real run, and where it cannot be written.

covers training/step_trace
"""

import json
import logging
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.core.errors import UserError
from pipeline.training.step_trace import StepTrace
from tests.support.tiny_run import tiny_config


def steps_in(file: Path) -> int:
    events = json.loads(file.read_text())["traceEvents"]
    return sum(event["name"] == "aten::_log_softmax_backward_data" for event in events if event.get("ph") == "X")


def test_a_run_leaves_the_trace_of_the_steps_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = {"max_steps": 6, "eval_every": 6, "batch_size": 4}
    config = tiny_config(tmp_path, train=train, logging={"trackers": ["jsonl"]})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    with caplog.at_level(logging.INFO, logger="pipeline"):
        assert main(["run", "--config", str(tmp_path / "config.yaml"), "--profile", "3"]) == 0
    assert steps_in(config.run_dir.trace_file) == 3
    [said] = [message for message in caplog.messages if "s per traced step" in message]
    assert str(config.run_dir.trace_file) in said and said.count("%") == 5


def test_what_ends_early_is_written_and_what_cannot_be_is_told(tmp_path: Path) -> None:
    trace = StepTrace(tmp_path / "short.json", 50)
    for _ in range(3):
        trace.after_step()
    trace.close()
    assert json.loads((tmp_path / "short.json").read_text())["traceEvents"]
    (tmp_path / "taken").write_text("a file")
    trace = StepTrace(tmp_path / "taken" / "trace.json", 1)
    trace.after_step()
    trace.after_step()
    with pytest.raises(UserError, match=r"trace\.json"):
        trace.after_step()
