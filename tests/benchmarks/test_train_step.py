"""The benchmark of a training step, whole on a tiny model."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.runs import environment
from tests.support.tiny import save_tiny

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "train_step.py"
NEEDS_PEFT = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


@NEEDS_PEFT
def test_every_case_is_measured(tmp_path: Path) -> None:
    """As torchrun starts it, with one process."""
    folder = save_tiny(tmp_path / "model", "llama_gqa")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "--standalone"]
    command = [*launcher, str(SCRIPT), "--model", str(folder), "--quick", "--json", "--tokens=6"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    cases = [("prefix", "floor"), ("prefix", "peft_prefix"), ("prefix", "published"), ("late", "prefix")]
    cases += [("late_kept", "prefix"), ("prompt", "peft_prompt"), ("behind", "prompt"), ("behind", "prefix")]
    cases += [("behind_kept", "prefix")]
    assert [(row["case"], row["against"]) for row in rows] == cases
    assert all(row["world_size"] == 1 for row in rows)
    assert all(row["ratio"] > 0 and row["seconds"] > 0 for row in rows)
    assert rows[2]["ratio"] > 1, "padding to 128 tokens costs more than 6"
