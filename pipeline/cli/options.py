"""The argument parser: commands, their options and their help."""

import argparse
from collections.abc import Mapping
from typing import Any, NoReturn

from pipeline import __version__
from pipeline.cli.common import add_common_options, add_debug_option, positive
from pipeline.cli.hand_over import add_hand_over_commands
from pipeline.cli.predict import add_predict_options
from pipeline.cli.serve import SERVE, add_serve_options
from pipeline.core.bounds import abridged
from pipeline.core.escapes import visible
from pipeline.core.paths import home_expanded
from pipeline.data.public_sets import HOST, PUBLIC_SETS

STAGES = {
    "run": "all stages in order: preprocess, encode-labels, encode-texts, train, evaluate",
    "preprocess": "read, check and tokenize the texts",
    "encode-labels": "let the frozen backbone read each label's hypothesis once",
    "encode-texts": "let the frozen backbone read each text once, and keep its states",
    "choose-reading": "find the layers and the pooling that a probe does best with, and print the config keys",
    "train": "train the tuning method",
    "evaluate": "score every label for every text of the evaluated splits",
    "estimate": "memory, time and communication from the config alone, for any number of GPUs",
}

KEYS = "`ltune keys` lists the sections of the config, `ltune keys SECTION` their keys, with defaults and examples."

COMPARE = "compare tuning methods: backbones x data sets x training sizes x seeds, with statistics"

REPORT = "write the results of a run or a comparison, with charts, to one HTML page"

DAILY = ("run", "predict", "report", "compare", "doctor")
"""The commands of an ordinary day, which `--help` shows first."""

SHELLS = ("bash", "zsh")

PLANNING = ("choose-reading", "estimate")
"""Stages that `run` does not have."""

EPILOG = """\
an ordinary day:
  ltune run --config mine.yaml --dry-run     check the config and print the plan
  ltune run --config mine.yaml               all stages; those already done are skipped
  ltune predict --run runs/mine --input new.csv
  ltune report --run runs/mine
  ltune keys data                            the keys of the section `data` of mine.yaml

ltune COMMAND --help has a command's options. Words are explained in docs/glossary.md, trouble in
docs/troubleshooting.md."""

PATHS = {
    "config",
    "run",
    "adapter",
    "input",
    "output",
    "backbone",
    "compare",
    "parts",
    "deepspeed",
    "to",
    "token_file",
    "admin_token_file",
}
"""Options that are paths. `--output=~/x` reaches us as it is typed: a shell looks at the beginning of a word alone."""


def build_parser() -> "TopParser":
    """The whole command line."""
    parser = TopParser(
        prog="ltune",
        description="L-Tuning of frozen language models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    # The deepspeed launcher gives it to every process, beside the LOCAL_RANK that is read.
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)
    for name, description in STAGES.items():
        command = commands.add_parser(name, help=description, description=description, epilog=KEYS)
        command.add_argument("--config", required=True, metavar="FILE", help="YAML file with config keys")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="override of a config key")
        add_common_options(command)
        if name in ("run", "train"):
            command.add_argument("--overwrite", action="store_true", help="train afresh, over what an earlier run left")
            command.add_argument(
                "--profile",
                type=positive,
                metavar="STEPS",
                help="trace so many training steps to logs/trace.json (logging.trace_steps)",
            )
        if name == "run":
            command.add_argument("--dry-run", action="store_true", help="print the plan and stop")
        if name == "choose-reading":
            _add_reading_options(command)
        if name == "estimate":
            _add_estimate_options(command)
    _add_compare_options(commands.add_parser("compare", help=COMPARE, description=COMPARE))
    add_predict_options(commands.add_parser("predict", help="label new texts", description="label new texts"))
    add_hand_over_commands(commands)
    add_serve_options(commands.add_parser("serve", help=SERVE, description=SERVE))
    _add_report_options(commands.add_parser("report", help=REPORT, description=REPORT))
    description = "check this machine, or under a launcher all its hosts, before the first job"
    _add_doctor_options(commands.add_parser("doctor", help=description, description=description))
    description = "fetch a public data set, which configs name as data: {public: NAME}"
    fetch = commands.add_parser("fetch-data", help=description, description=description)
    fetch.add_argument("name", metavar="NAME", help=f"one of {', '.join(PUBLIC_SETS)}")
    fetch.add_argument("--output", metavar="DIR", help="folder of all sets (default: $LTUNE_DATA, else public_data)")
    fetch.add_argument("--mirror", default=HOST, metavar="URL", help="host with the same paths (default: %(default)s)")
    description = "the config keys of a section, with their defaults, meanings and an example"
    keys = commands.add_parser("keys", help=description, description=description)
    keys.add_argument("section", nargs="?", metavar="SECTION", help="data, train, ... or compare (default: list them)")
    description = "a script for the shell: source <(ltune completion bash)"
    completion = commands.add_parser("completion", help=description, description=description)
    completion.add_argument("shell", choices=SHELLS)
    for command in (fetch, keys, completion):
        add_debug_option(command)
    parser.commands = commands.choices
    return parser


def _add_reading_options(command: argparse.ArgumentParser) -> None:
    for split, default in (("train", "2000"), ("validation", "1000")):
        command.add_argument(
            f"--{split}-texts",
            type=positive,
            metavar="N",
            help=f"read at most so many {split} texts, each label with its share (default {default})",
        )


def _add_estimate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--world-size", type=int, default=1, metavar="N", help="number of GPUs (default 1)")
    command.add_argument("--gpu", metavar="NAME", help="h200, a100-80, ... (default: that of this machine)")
    command.add_argument("--bandwidth", type=float, metavar="GB/S", help="interconnect per GPU, in GB/s")


def _add_compare_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, metavar="FILE", help="YAML file, see launch/recipes/compare/")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="override of a key, e.g. seeds=[0]")
    command.add_argument(
        "--against",
        metavar="METHOD",
        help="compare all methods with this one, not with the best baseline; where all runs are finished, only the "
        "tables are made again",
    )
    command.add_argument("--cells", metavar="I/N", help="run only the I-th of N shares (from 0), as in an array job")
    command.add_argument("--overwrite", action="store_true", help="retrain cells that were trained with another config")
    command.add_argument("--dry-run", action="store_true", help="check every cell's config, list them and stop")
    add_common_options(command)


def _add_report_options(command: argparse.ArgumentParser) -> None:
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="DIR", help="run directory that has been evaluated")
    source.add_argument(
        "--compare",
        action="extend",
        nargs="+",
        metavar="DIR",
        help="directory that `compare` has written; several are shown together",
    )
    command.add_argument(
        "--output", metavar="FILE", help="HTML file (default: report.html in the directory; for several it is needed)"
    )
    command.add_argument("--no-texts", action="store_true", help="leave out the texts of a run's mistakes")
    add_common_options(command)


def _add_doctor_options(command: argparse.ArgumentParser) -> None:
    # Not --run: torchrun would take that for an option of its own.
    command.add_argument("run", nargs="?", metavar="DIR", help="also check that all hosts can write this run directory")
    add_debug_option(command)


class _Parser(argparse.ArgumentParser):
    """A parser that takes overrides before, between and after options, and `~` in the paths of options."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse itself gives them to the command up to the next option, and calls what comes later unknown."""
        options, rest = self.parse_known_args(args, namespace)
        unknown = [word for word in rest if word.startswith("-") or "overrides" not in options]
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        if rest:
            options.overrides += rest
        try:
            for name in PATHS & vars(options).keys():
                setattr(options, name, _expanded(getattr(options, name)))
        except ValueError as error:
            self.error(str(error))
        return options

    def error(self, message: str) -> NoReturn:
        """One line of a readable length."""
        super().error(abridged(visible(" ".join(message.split()))))


def _expanded(value: str | list[str] | None) -> str | list[str] | None:
    if isinstance(value, list):
        return [home_expanded(path) for path in value]
    return value and home_expanded(value)


class TopParser(_Parser):
    """The parser of all commands: its help has them in groups."""

    commands: Mapping[str, argparse.ArgumentParser]
    """By name."""

    def format_help(self) -> str:
        about = {name: command.description or "" for name, command in self.commands.items()}
        groups = {
            "commands of an ordinary day:": DAILY,
            "the stages of run, one by one:": [name for name in STAGES if name not in (*DAILY, *PLANNING)],
            "before a run, and beside it:": [*PLANNING, *(name for name in about if name not in (*DAILY, *STAGES))],
        }
        lines = [f"usage: {self.prog} [--version] command ...", "", self.description or ""]
        for title, names in groups.items():
            lines += ["", title, *(f"  {name:15} {about[name]}" for name in names)]
        return "\n".join([*lines, "", self.epilog or ""]) + "\n"
