"""The benchmark of many tenants: what it measures are the adapters' own scores, on a tiny model."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.tenants import METHODS, LoRATenants, batch_of, load_tenants, served
from pipeline.backbone.by_length import PASS_COST
from tests.launch.runs import environment
from tests.support.tiny import save_tiny

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "tenants.py"


def test_each_text_is_scored_by_its_tenant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASS_COST, "cpu", 128)  # so that texts of unlike length share a pass
    folder = save_tiny(tmp_path / "model", "llama_gqa")
    options = argparse.Namespace(model=str(folder), dtype="float32", tenants=[3], methods=list(METHODS))
    adapters, texts = load_tenants(tmp_path, options), batch_of(5, 3)
    assert [len(own) for own in texts] == [2, 2, 1]
    for (name, _), case in served(adapters, options.methods, 3, 5).items():
        found, passes = case.read()
        for number, (own, scores) in enumerate(zip(texts, found, strict=True)):
            expected = [list(one.scores.values()) for one in adapters[f"{name}-{number}"].predict(own)]
            torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-5)
        assert passes == 1, name  # whatever the method, all tenants share it
    loras = LoRATenants(adapters["probe-0"], 3)
    mixed, in_turn = (case.read() for case in loras.cases(3, 5).values())
    torch.testing.assert_close(mixed, in_turn, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(
        mixed, loras.in_turn([loras.tokenize([text for own in texts for text in own]), [], []][:1])
    )


def test_every_case_is_measured(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "bert")
    command = [sys.executable, str(SCRIPT), "--model", str(folder), "--quick", "--json", "--tenants", "1", "2", "64"]
    command += ["--methods", "edit", "lt_prefix"]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    names = ["probe", "edit", "lt_prefix", "LoRA mixed", "LoRA in turn"]
    assert [(row["case"], row["tenants"]) for row in rows] == [(name, count) for count in (1, 2) for name in names]
    assert all(row["ratio"] > 0 and row["kib_per_tenant"] > 0 for row in rows)
    assert rows[0]["of_probe"] == pytest.approx(1)
