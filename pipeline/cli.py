"""The command line: one subcommand per stage, each a thin call of the stage's function."""

import argparse
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline import __version__
from pipeline.errors import PREEMPTED, RANK_LOST, Preempted, UserError
from pipeline.launcher import rank, world_size

if TYPE_CHECKING:
    from pipeline.config import RunConfig

STAGES = {
    "run": "all stages in order: preprocess, encode-labels, train, evaluate",
    "preprocess": "read, check and tokenise the texts",
    "encode-labels": "let the frozen backbone read each label's hypothesis once",
    "train": "train the tuning method",
    "evaluate": "score every label for every text of the evaluated splits",
    "estimate": "memory, time and communication from the config alone, for any number of GPUs",
}

COMPARE = "compare tuning methods: backbones x data sets x training sizes x seeds, with statistics"

REPORT = "write what a run came to, with its pictures, to one HTML page"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for a fault the user can mend, 1 for ours, 130 interrupted.

    85 asks to be started again: a signal ended training after a checkpoint. 86: another rank was lost.
    """
    options = build_parser().parse_args(arguments)
    _set_up_logging(options.debug)
    try:
        COMMANDS.get(options.command, _stage)(options)
    except UserError as error:
        return _fail(str(error), 2, options.debug)
    except Preempted as preempted:
        logging.getLogger("pipeline").info("%s", preempted)
        _leave_group()
        return PREEMPTED
    except KeyboardInterrupt:
        return _fail("interrupted", 130, options.debug)
    except BrokenPipeError:
        # The reader of our output has gone (predict | head); nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _fail(f"unexpected {type(error).__name__}: {error}; --debug shows where", 1, options.debug)
    _leave_group()
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="ltune", description="L-Tuning of frozen language models.")
    parser.add_argument("--version", action="version", version=__version__)
    # The deepspeed launcher gives it to every process, beside the LOCAL_RANK that is read.
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_CommandParser)
    for name, description in STAGES.items():
        command = commands.add_parser(name, help=description, description=description)
        command.show_config_keys = True
        command.add_argument("--config", required=True, metavar="FILE", help="YAML file with the config keys below")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="override of a config key")
        command.add_argument("--debug", action="store_true", help="show tracebacks and every log line")
        if name in ("run", "train"):
            command.add_argument("--overwrite", action="store_true", help="train afresh, over what an earlier run left")
        if name == "run":
            command.add_argument("--dry-run", action="store_true", help="print the plan and stop")
        if name == "estimate":
            _add_estimate_options(command)
    _add_compare_options(commands.add_parser("compare", help=COMPARE, description=COMPARE))
    _add_predict_options(commands.add_parser("predict", help="label new texts", description="label new texts"))
    description = "check this machine, or under a launcher all its hosts, before the first job"
    _add_report_options(commands.add_parser("report", help=REPORT, description=REPORT))
    _add_doctor_options(commands.add_parser("doctor", help=description, description=description))
    return parser


def _add_estimate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--world-size", type=int, default=1, metavar="N", help="number of GPUs (default 1)")
    command.add_argument("--gpu", default="h200", metavar="NAME", help="h200, a100-80, ... (default h200)")
    command.add_argument("--bandwidth", type=float, metavar="GB/S", help="interconnect per GPU, in GB/s")


def _add_compare_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", required=True, metavar="FILE", help="YAML file, see launch/recipes/compare/")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="override of a key, e.g. seeds=[0]")
    command.add_argument("--cells", metavar="I/N", help="run only the I-th of N shares (from 0), as in an array job")
    command.add_argument("--dry-run", action="store_true", help="check every cell's config, list them and stop")
    command.add_argument("--debug", action="store_true", help="show tracebacks and every log line")


def _add_predict_options(command: argparse.ArgumentParser) -> None:
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", metavar="DIR", help="run directory; its adapter/ is used")
    source.add_argument("--adapter", metavar="DIR", help="adapter directory")
    command.add_argument("--input", default="-", metavar="FILE", help="txt, csv, tsv or jsonl; - reads lines (default)")
    command.add_argument("--format", choices=["txt", "csv", "tsv", "jsonl"], help="of the input, where no suffix tells")
    command.add_argument(
        "--output", default="-", metavar="FILE", help="JSONL file; - writes to standard output (default)"
    )
    command.add_argument(
        "--labels", action="append", metavar="A,B", help="other labels, scored from their wording alone"
    )
    command.add_argument(
        "--calibrated", action="store_true", help="probabilities with the temperature fitted on the validation split"
    )
    command.add_argument("--backbone", metavar="PATH", help="where the adapter's backbone is, if it has moved")
    command.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    command.add_argument("--debug", action="store_true", help="show tracebacks and every log line")


def _add_report_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--run", required=True, metavar="DIR", help="run directory that has been evaluated")
    command.add_argument("--output", metavar="FILE", help="HTML file (default: report.html in the directory)")
    command.add_argument("--debug", action="store_true", help="show tracebacks and every log line")


def _add_doctor_options(command: argparse.ArgumentParser) -> None:
    # Not --run: torchrun would take that for an option of its own.
    command.add_argument("run", nargs="?", metavar="DIR", help="run directory of the job: may all hosts write it?")
    command.add_argument("--debug", action="store_true", help="show tracebacks and every log line")


class _CommandParser(argparse.ArgumentParser):
    """A parser whose help can end with every config key, its default and what it does."""

    show_config_keys = False

    def format_help(self) -> str:
        if not self.show_config_keys:
            return super().format_help()
        from pipeline.config import config_keys

        lines = [super().format_help(), "config keys (section.key=value):"]
        for key, default, text in config_keys():
            lines.append(f"  {key}={default}")
            lines += textwrap.wrap(text, 96, initial_indent="      ", subsequent_indent="      ")
        return "\n".join(lines) + "\n"


def _choose_device() -> None:
    import torch

    if not torch.cuda.is_available():
        # Said before DeepSpeed is imported, which else warns that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def _load(options: argparse.Namespace) -> "RunConfig":
    _choose_device()
    from pipeline.config import load_config

    return load_config(options.config, options.overrides)


def _stage(options: argparse.Namespace) -> None:
    config = _load(options)
    with _own_run_dir(config):
        if getattr(options, "overwrite", False):
            _on_rank_0(config, config.run_dir.remove_training)
        _stage_function(options.command)(config)


@contextmanager
def _own_run_dir(config: "RunConfig") -> Iterator[None]:
    """The run directory, made, cleaned up and locked by rank 0; where that fails, all ranks end."""
    from pipeline.run_lock import RunLock

    lock = RunLock(config.run_dir.path)

    def take() -> None:
        lock.acquire()
        config.run_dir.create()
        config.run_dir.write_config(config.to_yaml())

    _on_rank_0(config, take)
    try:
        yield
    finally:
        lock.release()


def _on_rank_0(config: "RunConfig", work: Callable[[], None]) -> None:
    if world_size() == 1:
        work()
    else:
        # Late: one process needs no DeepSpeed for this, which takes seconds to import.
        from pipeline.engine.startup import on_main_process, start

        on_main_process(start(config), work)


def _run(options: argparse.Namespace) -> None:
    if not options.dry_run:
        _stage(options)
        return
    if rank() == 0:
        config = _load(options)
        from pipeline.stages.plan import plan

        plan(config)


def _estimate(options: argparse.Namespace) -> None:
    if rank() != 0:
        return
    config = _load(options)
    from pipeline.stages.estimate import estimate

    estimate(config, world_size=options.world_size, gpu=options.gpu, bandwidth=options.bandwidth)


def _predict(options: argparse.Namespace) -> None:
    from pipeline.stages.predict import predict

    labels = [name.strip() for part in options.labels or () for name in part.split(",")]
    predict(
        options.run or options.adapter,
        options.input,
        options.output,
        labels=labels or None,
        format=options.format,
        device=options.device,
        backbone=options.backbone,
        calibrated=options.calibrated,
    )


def _report(options: argparse.Namespace) -> None:
    from pipeline.stages.report import report

    report(options.run, options.output)


def _doctor(options: argparse.Namespace) -> None:
    from pipeline.stages.doctor import doctor

    doctor(options.run)


def _compare(options: argparse.Namespace) -> None:
    _choose_device()
    from pipeline.comparison import describe, load_comparison, parse_share

    comparison = load_comparison(options.config, options.overrides)
    share = parse_share(options.cells) if options.cells else None
    if options.dry_run:
        print(describe(comparison))
        return
    from pipeline.stages.compare import compare

    compare(comparison, share)


COMMANDS = {
    "run": _run,
    "compare": _compare,
    "estimate": _estimate,
    "predict": _predict,
    "report": _report,
    "doctor": _doctor,
}


def _stage_function(name: str) -> Any:
    """The stage's function, imported only now: `--help` must not wait for torch."""
    module = __import__(f"pipeline.stages.{name.replace('-', '_')}", fromlist=["pipeline"])
    return getattr(module, name.replace("-", "_"))


def _set_up_logging(debug: bool) -> None:
    """Plain lines on standard error; ranks other than 0 speak only of trouble."""
    first = rank() == 0
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("pipeline").setLevel(logging.DEBUG if debug else logging.INFO if first else logging.WARNING)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not debug:
        # torch 2.13 renamed collectives that DeepSpeed 0.19.8 still calls by their old names, at every step.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        logging.getLogger("pipeline").exception("traceback:")
    if startup := sys.modules.get("pipeline.engine.startup"):
        lost = startup.explain_failure(message, known=status != 1)
        message, status = (lost, RANK_LOST) if lost else (message, status)
    who = f"rank {rank()}: " if world_size() > 1 else ""
    print(f"{who}error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status


def _leave_group() -> None:
    """Ends the process group, if a stage has joined one."""
    if startup := sys.modules.get("pipeline.engine.startup"):
        startup.leave()
