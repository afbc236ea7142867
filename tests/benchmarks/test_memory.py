"""The memory of a sharded int8 backbone, by the benchmark's own figures on a small model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory import HIDDEN, INTERMEDIATE, LIVE_ELEMENTS, VOCABULARY

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "memory.py"
WORLD = 2
LARGEST_BYTES = 2 * VOCABULARY * HIDDEN  # the embedding, in bfloat16
CONSTANT_BYTES = 24 * 2**20  # chunks of rows on their way, and what DeepSpeed allocates


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    options = ["--world-size", str(WORLD), "--size", "60e6", "--loaders", "ours", "--timeout-seconds", "280", "--json"]
    done = subprocess.run([sys.executable, BENCHMARK, *options], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_each_rank_holds_its_share(rows: list[dict]) -> None:
    assert [row["rank"] for row in rows] == list(range(WORLD))
    for row in rows:
        assert row["backbone_bytes_at_rest"] == pytest.approx(row["backbone_bytes_total"] / WORLD, rel=0.03)


def test_what_is_gathered_stays_within_the_limits_of_zero3(rows: list[dict]) -> None:
    for row in rows:
        gathered = row["code_bytes_alive_after_forward"] - row["code_bytes_total"] / WORLD
        assert 0 <= gathered <= 2 * LIVE_ELEMENTS + HIDDEN * INTERMEDIATE  # kept, fetched ahead, and the one in use
        assert gathered < row["code_bytes_total"] / 2  # so the limits bind


def test_loading_needs_little_more_than_the_share(rows: list[dict]) -> None:
    for row in rows:
        assert row["anon_peak_bytes"] <= row["backbone_bytes_at_rest"] + 2 * LARGEST_BYTES + CONSTANT_BYTES
