"""The benchmark of scoring, whole on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path

from tests.launch.runs import environment
from tests.support.tiny import save_tiny

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "scoring.py"


def test_every_case_is_measured(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama_gqa")
    sizes = ["--tokens=6", "--labels", "2", "77", "1000"]
    command = [sys.executable, str(SCRIPT), "--model", str(folder), "--quick", "--json", *sizes]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    cases = [(name, labels) for labels in (2, 77) for name in ("all", "late", "behind", "shortlist")]
    assert [(row["case"], row["labels"]) for row in rows] == cases
    assert all(row["ratio"] > 0 and row["texts_per_second"] > 0 for row in rows)
    assert rows[7]["ratio"] > 1, "4 of 77 labels take less than all"
