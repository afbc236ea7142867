"""The GPU benchmark's own code, run on a CPU with a tiny model."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.runs import environment

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_backbone.py"
PEFT = importlib.util.find_spec("peft") is not None
CASES = ["ours/int8/lt_prefix", "ours/int8/late", "ours/none/behind", *(["peft/int8/prefix"] if PEFT else [])]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict, str]]:
    """Of each case its figures, and what the benchmark said in all."""
    sizes = ["--rows", "2", "--text-tokens", "16", "--steps", "1", "--folder", str(tmp_path_factory.mktemp("gpu"))]
    command = [sys.executable, str(SCRIPT), "--tiny", "--device", "cpu", "--json", "--cases", *CASES, *sizes]
    found = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    lines = found.stdout.splitlines()
    return {case: (json.loads(line), found.stderr[-3000:]) for case, line in zip(CASES, lines, strict=True)}


@pytest.mark.parametrize("case", ["ours/int8/lt_prefix", "ours/int8/late", "ours/none/behind", "peft/int8/prefix"])
def test_measures_a_case(case: str, rows: dict[str, tuple[dict, str]]) -> None:
    if case not in rows:
        pytest.skip("peft is not installed")
    row, said = rows[case]
    assert "failed" not in row, said
    assert [row["loader"], row["quantization"], row["method"]] == case.split("/")
    assert row["tokens_per_second"] > 0
    assert 0 < row["share_of_ceiling"] < 1
    assert row["peak_training_bytes"] >= row["peak_loading_bytes"] > 0
