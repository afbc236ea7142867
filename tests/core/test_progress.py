"""Long work without a terminal says every minute how far it is; on other ranks nothing."""

import logging

import pytest

from pipeline.core import progress
from pipeline.core.progress import counted

log = logging.getLogger("pipeline.tests")


@pytest.mark.parametrize("shown", [True, False])
def test_a_line_every_minute(shown: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock = iter(range(0, 1000, 25))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "pipeline"), counted(log, "reading", 8, shown=shown) as work:
        for _ in range(8):
            work.update()
    said = [record.getMessage() for record in caplog.records]
    assert said == (["reading: 3 of 8 batches, 0:02:05 left", "reading: 6 of 8 batches, 0:00:50 left"] if shown else [])
