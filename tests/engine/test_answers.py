"""Tests of what is written for each text."""

import json
from datetime import date
from decimal import Decimal

from pipeline.data.rows import Row
from pipeline.engine.answers import Answer


def test_a_kept_value_that_json_lacks_is_written_in_its_usual_form() -> None:
    kept = {"key": b"\x01a", "day": date(2026, 11, 29), "price": Decimal("1.50"), "share": float("nan"), "deep": [b"a"]}
    record = json.loads(Answer(Row(1, None, kept), kept, fault="no text").line())
    expected = {"key": "AWE=", "day": "2026-11-29", "price": "1.50", "share": None, "deep": ["YQ=="]}
    assert record == {**expected, "row": 1, "error": "no text"}
