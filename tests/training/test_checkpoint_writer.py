"""Checkpoints are written in the background, one at a time, and faults are told."""

import threading
import time
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.training import checkpoint_writer
from pipeline.training.checkpoint import newest_checkpoint
from pipeline.training.checkpoint_writer import CheckpointWriter
from tests.training.test_checkpoint import state_of


def test_training_goes_on_while_one_is_written_and_waits_for_it_at_the_second(tmp_path: Path) -> None:
    free, order = threading.Event(), []

    def first() -> None:
        free.wait(10)
        order.append("first")

    with CheckpointWriter(tmp_path, 2, stop_on_error=False) as writer:
        writer.submit(state_of(2), first)
        assert newest_checkpoint(tmp_path) is None, "submit has returned, nothing is written yet"
        threading.Timer(0.2, free.set).start()
        writer.submit(state_of(4), lambda: order.append("second"))
        assert newest_checkpoint(tmp_path) is not None
    assert order == ["first", "second"] and newest_checkpoint(tmp_path) == tmp_path / "step-000004"


def test_a_full_disk_is_a_warning_or_an_error_at_the_next_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with CheckpointWriter(tmp_path / "file", 2, stop_on_error=False) as writer:
        writer.submit(state_of(2), lambda: None)
        writer.wait()
    assert "CHECKPOINT OF STEP 2 NOT WRITTEN" in caplog.text and "Training goes on" in caplog.text
    with CheckpointWriter(tmp_path / "file", 2, stop_on_error=True) as writer:
        writer.submit(state_of(2), lambda: None)
        with pytest.raises(UserError, match=r"checkpoint of step 2 \(train.on_write_error=stop\): cannot write"):
            writer.submit(state_of(4), lambda: None)
        writer.wait()


def test_a_defect_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", defective)
    with CheckpointWriter(tmp_path, 2, stop_on_error=False) as writer:
        writer.submit(state_of(2), lambda: None)
        time.sleep(0.05)
        with pytest.raises(ZeroDivisionError):
            writer.wait()
