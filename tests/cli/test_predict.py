"""The options of `ltune predict`, alone and as torchrun hands them on.

covers cli/predict, cli/common
"""

import gzip
import re
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from pipeline.cli import main
from pipeline.cli.options import build_parser
from pipeline.core.errors import UserError
from pipeline.data.unlabelled import Input


def test_torchrun_takes_none_of_its_options() -> None:
    """But --run, which it has two of: --run-dir says the same."""
    command = build_parser().commands["predict"]
    options = {name: action for action in command._actions for name in action.option_strings}
    for name in options.keys() - {"--run", "-h"}:
        given = ["predict", name] if options[name].nargs == 0 else ["predict", name, "value"]
        assert get_args_parser().parse_args(["--standalone", "-m", "pipeline", *given]).training_script_args == given
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["--standalone", "-m", "pipeline", "predict", "--run", "value"])
    assert build_parser().parse_args(["predict", "--run-dir", "mine"]).run == "mine"


def test_its_help_promises_gzip_for_the_formats_that_may_be_gzip(tmp_path: Path) -> None:
    options = {action.dest: action for action in build_parser().commands["predict"]._actions}
    promised = re.findall(r"\w+", str(options["input"].help).partition(".gz")[0])
    taken = []
    for name in options["format"].choices or ():
        file = tmp_path / f"texts.{name}.gz"
        file.write_bytes(gzip.compress(b"{}"))
        try:
            Input(str(file)).check(())
        except UserError:
            continue
        taken.append(name)
    assert set(promised) & set(options["format"].choices or ()) == set(taken) != set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", "0/2"], "--share needs --parts DIR"),
        (["--deepspeed", "zero3.json"], "--deepspeed needs --parts DIR"),
        (["--parts", "out", "--output", "out.jsonl"], "--parts or --output: give one of them"),
        (["--parts", "out", "--share", "2/2"], "--share '2/2': write I/N"),
        (["--parts", "out"], "standard input: --parts reads its input again to go on: give a file"),
    ],
)
def test_options_that_do_not_go_together(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--adapter", "none", *options]) == 2
    assert message in capsys.readouterr().err


def test_without_parts_one_of_several_ranks_answers_and_says_how_all_would(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert main(["predict", "--adapter", "none", "--input", "none.txt"]) == 2
    assert "one of 2 ranks answers: --parts DIR shares the work out" in caplog.text
    assert "cannot be read" in capsys.readouterr().err
