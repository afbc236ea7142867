"""A CPU without bfloat16 arithmetic is told of, by the doctor and where a backbone is loaded."""

import logging

import pytest

from pipeline.backbone import cpu_speed
from pipeline.doctor import hardware
from pipeline.engine import models


def test_the_products_are_timed() -> None:
    assert 0.01 < cpu_speed.bfloat16_slowdown() < 1000


@pytest.mark.parametrize(("times", "state"), [(0.3, "ok"), (6.0, "warning")])
def test_the_doctor_says_so(monkeypatch: pytest.MonkeyPatch, times: float, state: str) -> None:
    monkeypatch.setattr(cpu_speed, "bfloat16_slowdown", lambda: times)
    check = hardware._try_cpu()
    assert check.state == state and ("backbone.dtype=float32" in check.advice) == (times > 1)


@pytest.mark.parametrize("times", [0.3, 6.0])
def test_loading_warns(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, times: float) -> None:
    monkeypatch.setattr(models, "bfloat16_slowdown", lambda: times)
    with caplog.at_level(logging.WARNING):
        models._warn_if_slow()
    assert ("bfloat16 takes 6.0 times as long" in caplog.text) == (times > 1)
