"""What a shell offers where TAB is pressed: the script runs in bash."""

import shlex
import subprocess
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.cli.completion import script
from pipeline.cli.options import STAGES, build_parser
from pipeline.config import RunConfig


def offered(words: list[str], folder: Path) -> list[str]:
    """bash's answer to TAB behind the last of these words."""
    lines = [
        script(build_parser(), "bash"),
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}",
        '_ltune; printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    ended = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    assert ended.stderr == ""
    return ended.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ltune", "ev"], {"evaluate"}),
        (["ltune", "run", "--dry"], {"--dry-run"}),
        (["ltune", "train", "train.warm"], {"train.warmup_ratio="}),
        (["ltune", "predict", "--on-error", ""], {"stop", "skip"}),
        (["ltune", "run", "--config", "mi"], {"mine.yaml"}),
        (["ltune", "keys", "back"], {"backbone"}),
        (["ltune", "completion", ""], {"-h", "--help", "--debug", "bash", "zsh"}),
    ],
)
def test_bash_offers(words: list[str], expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    assert set(offered(words, tmp_path)) == expected


def test_all_commands_and_sections_are_offered(tmp_path: Path) -> None:
    assert {*STAGES, "compare", "predict", "report", "keys"} <= set(offered(["ltune", ""], tmp_path))
    assert {*RunConfig.model_fields, "compare"} <= set(offered(["ltune", "keys", ""], tmp_path))


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("autoload -U +X bashcompinit && bashcompinit\n")
    assert shown.rstrip("\n").endswith(script(build_parser(), "bash").rstrip("\n"))
    assert subprocess.run(["bash", "-n"], input=script(build_parser(), "bash"), text=True).returncode == 0
