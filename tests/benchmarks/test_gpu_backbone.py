"""The GPU benchmark's own code, run on a CPU with a tiny model."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.runs import environment

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_backbone.py"
NEEDS_PEFT = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


@pytest.mark.parametrize("case", ["ours/int8/lt_prefix", pytest.param("peft/int8/prefix", marks=NEEDS_PEFT)])
def test_measures_a_case(case: str, tmp_path: Path) -> None:
    sizes = ["--rows", "2", "--text-tokens", "16", "--steps", "1", "--folder", str(tmp_path)]
    command = [sys.executable, str(SCRIPT), "--tiny", "--device", "cpu", "--json", "--cases", case, *sizes]
    found = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    row = json.loads(found.stdout)
    assert "failed" not in row, found.stderr[-3000:]
    assert [row["loader"], row["quantization"], row["method"]] == case.split("/")
    assert row["tokens_per_second"] > 0
    assert 0 < row["share_of_ceiling"] < 1
    assert row["peak_training_bytes"] >= row["peak_loading_bytes"] > 0
