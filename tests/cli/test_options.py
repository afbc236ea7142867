"""The command line's words: help, options, and overrides anywhere among them."""

import itertools
import re
import subprocess
import sys

import pytest

from pipeline.cli import main
from pipeline.cli.options import DAILY, STAGES, build_parser


def test_unknown_and_missing_commands_and_options(capsys: pytest.CaptureFixture) -> None:
    for arguments in ([], ["fly"], ["run"], ["train", "--config"], ["predict"], ["run", "--config", "x", "--nope"]):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2 and "usage: ltune" in capsys.readouterr().err


def test_the_help_shows_an_ordinary_day_first(capsys: pytest.CaptureFixture) -> None:
    """Five commands, then the rest, each command once; what it says to type can be parsed."""
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    groups = [part.splitlines() for part in shown.split("\n\n") if ":\n  " in part]
    listed = [[line.split()[0] for line in group[1:]] for group in groups[:3]]
    assert listed[0] == list(DAILY) and len(DAILY) == 5
    assert sorted(itertools.chain(*listed)) == sorted(build_parser().commands)
    typed = [re.split("  +", line.strip())[0].split()[1:] for line in groups[3][1:]]
    assert len(typed) == 5
    for words in typed:
        build_parser().parse_args(words)
    assert all(len(line) <= 110 for line in shown.splitlines())


def test_help_of_every_stage_says_where_the_keys_are_and_loads_nothing(capsys: pytest.CaptureFixture) -> None:
    for command in STAGES:
        with pytest.raises(SystemExit) as end:
            main([command, "--help"])
        assert end.value.code == 0 and "`ltune keys SECTION`" in capsys.readouterr().out
    asked = "from pipeline.cli import main\ntry: main(['train', '--help'])\nfinally: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"import sys\n{asked}"], check=True, capture_output=True)
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    assert "--labels" in capsys.readouterr().out
    for command in (*STAGES, "compare", "predict", "report"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert "--trust-remote-code" in capsys.readouterr().out, "the only place that says so"


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.b=1", "c.d=2", "--config", "x", "--overwrite"],
        ["--config", "x", "a.b=1", "--overwrite", "c.d=2"],
        ["--overwrite", "a.b=1", "--config", "x", "c.d=2"],
        ["--config", "x", "--overwrite", "a.b=1", "c.d=2"],
        ["--config=x", "--overwrite", "--debug", "a.b=1", "--trust-remote-code", "c.d=2"],
    ],
)
@pytest.mark.parametrize("command", ["run", "train", "compare"])
def test_overrides_may_stand_anywhere(command: str, arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    options = build_parser().parse_args([command, *arguments])
    assert (options.config, options.overwrite, options.overrides) == ("x", True, ["a.b=1", "c.d=2"])
    for wrong in (["--nope", "c.d=2"], ["--nope=3"]):
        with pytest.raises(SystemExit) as end:
            build_parser().parse_args([command, *arguments, *wrong])
        assert end.value.code == 2 and "unrecognized arguments: --nope" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        build_parser().parse_args(["predict", "--run", "x", "c.d=2"])
    assert "unrecognized arguments: c.d=2" in capsys.readouterr().err


def test_home_in_the_paths_of_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    options = build_parser().parse_args(
        ["predict", "--run=~/run", "--input=~/in.txt", "--output=~/out.jsonl", "--backbone=~/b"]
    )
    paths = (options.run, options.input, options.output, options.backbone, options.adapter)
    assert paths == ("/home/me/run", "/home/me/in.txt", "/home/me/out.jsonl", "/home/me/b", None)
    assert build_parser().parse_args(["report", "--compare", "~/a", "$B"]).compare == ["/home/me/a", "$B"]
    assert build_parser().parse_args(["run", "--config=~/c.yaml"]).config == "/home/me/c.yaml"
    with pytest.raises(SystemExit) as end:
        build_parser().parse_args(["doctor", "~no-such-user-here/x"])
    assert end.value.code == 2 and "no home folder '~no-such-user-here'" in capsys.readouterr().err


def test_the_deepspeed_launchers_rank_is_taken() -> None:
    """It stands before the command, where the launcher puts it; LOCAL_RANK says the same."""
    assert build_parser().parse_args(["--local_rank=1", "train", "--config", "c.yaml"]).command == "train"


def test_what_takes_several_values_takes_them_one_by_one_too() -> None:
    """The last would count alone, and nobody would know."""
    parse = build_parser().parse_args
    assert parse(["report", "--compare", "a", "b", "--compare", "c"]).compare == ["a", "b", "c"]
    assert parse(["predict", "--run", "r", "--keep", "id,day", "--keep", "size"]).keep == ["id,day", "size"]
