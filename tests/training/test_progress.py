"""The signs of life of training without a terminal."""

import io
import logging
import re
import sys
from pathlib import Path

import pytest

from pipeline.core import progress
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import train
from pipeline.training.progress import Progress
from tests.support.tiny_run import tiny_config

LINE = re.compile(r"train: step (\S+) of (\S+), loss (\d\.\d{4}), (\d+\.\d) texts/s, (\d+:\d\d:\d\d) left")


def test_training_tells_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    config = tiny_config(tmp_path, train={"max_steps": 4, "batch_size": 4, "eval_every": 4})
    preprocess(config)
    encode_labels(config)
    with caplog.at_level(logging.INFO, logger="pipeline"):
        train(config)
    lines = [match for record in caplog.records if (match := LINE.fullmatch(record.getMessage()))]
    assert [(line[1], line[2]) for line in lines] == [(str(step), "4") for step in (1, 2, 3, 4)]
    assert lines[-1][5] == "0:00:00" and all(float(line[4]) > 0 for line in lines)


def test_speed_and_time_left(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Of the steps since the line before: 10 seconds a step, then 40."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with caplog.at_level(logging.INFO, logger="pipeline"):
        told = Progress(100, 2000, 32, shown=True)
        for step in range(101, 107):
            now += 10
            told.update(step, 0.5)
        for step in (107, 108):
            now += 40
            told.update(step, 0.25)
    assert caplog.messages == [
        "train: step 106 of 2,000, loss 0.5000, 3.2 texts/s, 5:15:40 left",
        "train: step 108 of 2,000, loss 0.2500, 0.8 texts/s, 21:01:20 left",
    ]


def test_a_terminal_has_the_bar_and_other_ranks_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, logger="pipeline"):
        for shown in (True, False):
            told = Progress(0, 2, 8, shown=shown)
            told.update(1, 0.5)
            told.close()
            assert ("1/2" in terminal.getvalue()) == shown
            terminal.seek(0)
            terminal.truncate()
    assert caplog.messages == []
