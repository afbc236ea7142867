"""The benchmark of growth: what is too steep is found, and what is measured here is not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.runs import environment

pytest.importorskip("peft")

from benchmarks.growth import Case, slope

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "growth.py"


@pytest.mark.parametrize(("power", "too_fast"), [(1.0, False), (2.0, True), (0.5, False)])
def test_the_power_of_a_size_is_found(power: float, too_fast: bool) -> None:
    sizes = (4, 8, 16)
    case = Case("case", "rows", sizes, {"bytes": 1.1}, lambda size, rows: {"bytes": 3 * rows**power})
    [row] = case.rows(sizes, [case.measure("rows", rows) for rows in sizes])
    assert slope(sizes, row["values"]) == pytest.approx(power)
    assert (row["slope"], row["grows_too_fast"]) == (power, too_fast)


def test_memory_of_preprocessing_does_not_grow_with_rows() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--json", "--only", "preprocess"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    rows = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert [(row["case"], row["measured"]) for row in rows] == [("preprocess", "seconds"), ("preprocess", "bytes")], (
        ended.stderr[-3000:]
    )
    seconds, memory = (row["values"] for row in rows)
    assert seconds[2] > seconds[0] and memory[2] < 2 * memory[0], "for four times as many rows"
    assert ended.returncode == int(any(row["grows_too_fast"] for row in rows))
