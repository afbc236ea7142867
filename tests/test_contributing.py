"""What CONTRIBUTING.md says is done here as it says: its method is added and compared, its call path is called.

covers methods/__init__
"""

import csv
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.preprocess import preprocess
from pipeline.stages.train import train
from tests.support.tiny import save_tiny
from tests.support.tiny_run import tiny_config

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / "CONTRIBUTING.md").read_text()


def block(section: str, language: str, number: int = 0) -> str:
    """The code blocks of a section, by language and order."""
    [text] = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    found: str = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[number]
    return found


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with the page's method in it, after the page's comparison with a tiny backbone."""
    folder = tmp_path_factory.mktemp("contributing")
    shutil.copytree(REPOSITORY / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "ds_configs", folder / "ds_configs")
    save_tiny(folder / "backbone", "llama_gqa")
    (folder / "pipeline" / "methods" / "mlp_probe.py").write_text(block("Add a tuning method", "python"))
    names = folder / "pipeline" / "methods" / "__init__.py"
    lines = block("Add a tuning method", "diff").splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] != "+")
    assert before in names.read_text()
    names.write_text(names.read_text().replace(before, "".join(line[1:] for line in lines)))
    (folder / "mlp_probe.yaml").write_text(block("Add a tuning method", "yaml"))
    changes = ["backbones={tiny: {backbone: {name_or_path: backbone, dtype: float32}}}"]
    changes += ["seeds=[0]", "base.train.max_steps=2", "base.logging.trackers=[jsonl]"]
    [line] = re.findall(r"^python -m (pipeline compare .*)", block("Add a tuning method", "bash"), re.MULTILINE)
    command = [sys.executable, "-m", *line.split(), *changes]
    # The current folder's copy of the program, not the one under test.
    environment = os.environ | {"PYTHONPATH": str(folder)}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    return folder / "runs" / "compare" / "mlp_probe"


def test_a_method_is_one_file_and_one_line(compared: Path) -> None:
    with (compared / "results.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"lt_prefix", "mlp_probe"}
    # H = 16 and K = 8, by hand.
    assert int(rows["mlp_probe"]["parameters"]) == 16 * 64 + 64 + 64 * 8 + 8
    assert all(0 < float(row["test_accuracy"]) <= 1 and int(row["steps"]) == 2 for row in rows.values())
    assert "mlp_probe" in (compared / "tables.md").read_text()


def test_it_is_not_a_baseline_by_accident(compared: Path) -> None:
    """Compared with what the page names; lt_prefix itself with nothing."""
    with (compared / "summary.csv").open() as file:
        lines = {row["method"]: row for row in csv.DictReader(file)}
    assert {row["best_baseline"] for row in lines.values()} == {"lt_prefix"}
    assert lines["mlp_probe"]["verdict"] and not lines["lt_prefix"]["verdict"]
    folder = compared.parents[2]
    code = "from pipeline.methods import BASELINES, METHOD_NAMES; print(sorted(set(METHOD_NAMES) - BASELINES))"
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout == "['lt_prefix', 'lt_prompt', 'mlp_probe']\n"


def test_the_example_keeps_to_the_style(tmp_path: Path) -> None:
    file = tmp_path / "mlp_probe.py"
    file.write_text(block("Add a tuning method", "python"))
    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check"], ["format", "--check"]):
        subprocess.run([*ruff, *command, "--config", str(REPOSITORY / "pyproject.toml"), str(file)], check=True)


def test_a_training_step_makes_the_calls_of_the_page_in_its_order(tmp_path: Path) -> None:
    path = [line.split()[0] for line in block("A training step in ten calls", "").splitlines()]
    assert len(path) == 10
    config = tiny_config(
        tmp_path,
        train={"max_steps": 1, "batch_size": 2},
        logging={"trackers": ["jsonl"]},
        method={"name": "lt_prefix", "head": "label_aware"},
    )
    preprocess(config)
    encode_labels(config)
    codes = {_function(name).__code__: name for name in path}
    called: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and (name := codes.get(frame.f_code)) and name not in called:
            called.append(name)

    sys.setprofile(note)
    try:
        train(config)
    finally:
        sys.setprofile(None)
    assert called == path


def _function(name: str) -> Any:
    """`room.module.Class.method`"""
    room, module, *rest = name.split(".")
    found: Any = importlib.import_module(f"pipeline.{room}.{module}")
    for part in rest:
        found = getattr(found, part)
    return found
