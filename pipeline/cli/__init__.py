"""The command line: one subcommand per stage, each a thin call of the stage's function."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.cli.hand_over import export, push
from pipeline.cli.options import build_parser
from pipeline.cli.predict import predict
from pipeline.cli.serve import serve
from pipeline.core.bounds import abridged
from pipeline.core.errors import PREEMPTED, RANK_LOST, Preempted, RankFailedError, UserError, nearest
from pipeline.core.escapes import visible
from pipeline.core.imports import quick_imports
from pipeline.core.output import ReaderGone, ended_by_signals, say, say_error, whole_output
from pipeline.distributed.device import announce_device
from pipeline.distributed.launcher import check_launcher, ignore_renamed_collectives, rank, world_size

if TYPE_CHECKING:
    from pipeline.config import RunConfig

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for a fault the user can mend, 1 for ours, 130 interrupted.

    85 asks to be started again: a signal ended training after a checkpoint. 86: another rank was lost.
    """
    options = build_parser().parse_args(arguments)
    try:
        check_launcher()
    except UserError as error:  # before anything asks which rank this is
        say_error(f"error: {error}")
        return 2
    _set_up_logging(options.debug)
    alone = options.command in ONE_ANSWERS and not getattr(options, "parts", None)
    if rank() != 0 and (alone or getattr(options, "dry_run", False)):
        log.warning(
            "rank %d of %d (variables RANK, WORLD_SIZE) has nothing to do: rank 0 answers", rank(), world_size()
        )
        return 0
    try:
        with whole_output(needed=options.command in PRINTING or getattr(options, "dry_run", False)):
            COMMANDS.get(options.command, _stage)(options)
    except UserError as error:
        return _fail(str(error), 2, options.debug)
    except Preempted as preempted:
        logging.getLogger("pipeline").info("%s", preempted)
        _leave_group()
        return PREEMPTED
    except KeyboardInterrupt:
        return _fail("interrupted", 130, options.debug)
    except ReaderGone:
        return 0
    except RankFailedError as error:
        return _fail(f"{error}; --debug shows where", 1, options.debug)
    except Exception as error:
        return _fail(_unexpected(error, options), 1, options.debug, known=False)
    _leave_group()
    return 0


def _load(options: argparse.Namespace) -> "RunConfig":
    announce_device()
    with quick_imports():
        from pipeline.config import load_config

    profile = getattr(options, "profile", None)
    overrides = [*options.overrides, *([f"logging.trace_steps={profile}"] if profile else [])]
    return load_config(options.config, overrides).trusted(options.trust_remote_code)


def _stage(options: argparse.Namespace) -> None:
    config = _load(options)
    given = {name: value for name in OF_STAGES if (value := getattr(options, name, None))}
    with quick_imports():
        from pipeline.engine.agreement import check_alike
        from pipeline.engine.startup import join, own_run_dir
    stage = _stage_function(options.command)  # before there is a process group: its threads must not outlive it, frozen

    ranks = join(config)
    with own_run_dir(config.run_dir, ranks):
        said = {f"--{name.replace('_', '-')}": given.get(name, False) for name in OF_STAGES}
        check_alike({"the command": options.command, **said}, ranks)
        stage(config, **given)
        # Only now: what was refused must not stand beside what an earlier config made.
        if options.command in ("run", "train", "evaluate") or not config.run_dir.is_trained:
            ranks.on_main(lambda: config.run_dir.write_config(config.to_kept_yaml()))


def _run(options: argparse.Namespace) -> None:
    if not options.dry_run:
        _stage(options)
        return
    config = _load(options)
    with quick_imports():
        from pipeline.stages.dry_run import plan

    plan(config)


def _estimate(options: argparse.Namespace) -> None:
    config = _load(options)
    with quick_imports():
        from pipeline.stages.estimate import estimate

    estimate(config, world_size=options.world_size, gpu=options.gpu, bandwidth=options.bandwidth)


@ended_by_signals()
def _report(options: argparse.Namespace) -> None:
    if options.compare:
        with quick_imports():
            from pipeline.stages.report_comparison import report_comparison

        report_comparison(options.compare, options.output)
    else:
        with quick_imports():
            from pipeline.stages.report import report

        report(
            options.run,
            options.output,
            texts=not options.no_texts,
            trust_remote_code=options.trust_remote_code,
        )


def _doctor(options: argparse.Namespace) -> None:
    with quick_imports():
        from pipeline.stages.doctor import doctor

    doctor(options.run)


def _compare(options: argparse.Namespace) -> None:
    announce_device()
    with quick_imports():
        from pipeline.comparison.config import describe, groups, load_comparison, parse_share
        from pipeline.stages.compare import check_cells, compare

    reference = [f"reference={json.dumps(options.against)}"] if options.against else []
    comparison = load_comparison(options.config, [*options.overrides, *reference]).trusted(options.trust_remote_code)
    share = parse_share(options.cells) if options.cells else None
    if options.dry_run:
        check_cells(comparison, groups(comparison), {})
        say(describe(comparison))
        return

    compare(comparison, share, overwrite=options.overwrite)


@ended_by_signals()
def _fetch_data(options: argparse.Namespace) -> None:
    from pipeline.stages.fetch_data import fetch_data

    fetch_data(options.name, options.output, mirror=options.mirror)


def _keys(options: argparse.Namespace) -> None:
    from pipeline.cli.keys import described, overview, sections

    if options.section is None:
        say(overview())
    elif options.section in sections():
        say(described(options.section))
    else:
        raise UserError(
            f"there is no section {options.section!r}{nearest(options.section, sections())}: {', '.join(sections())}"
        )


def _completion(options: argparse.Namespace) -> None:
    from pipeline.cli.completion import script

    say(script(build_parser(), options.shell))


COMMANDS = {
    "run": _run,
    "compare": _compare,
    "estimate": _estimate,
    "predict": predict,
    "export": export,
    "push": push,
    "serve": serve,
    "report": _report,
    "doctor": _doctor,
    "fetch-data": _fetch_data,
    "keys": _keys,
    "completion": _completion,
}


OF_STAGES = ("overwrite", "train_texts", "validation_texts")
"""Options that are handed to the function of a stage, where they are given."""

PRINTING = ("choose-reading", "estimate", "predict", "doctor", "fetch-data", "keys", "completion")
"""Commands whose results go to standard output."""

ONE_ANSWERS = ("estimate", "predict", "export", "push", "serve", "report", "fetch-data", "keys", "completion")
"""Commands that are one process's work, under a launcher too."""


def _stage_function(name: str) -> Any:
    """The stage's function, imported only now: `--help` must not wait for torch."""
    with quick_imports():
        module = __import__(f"pipeline.stages.{name.replace('-', '_')}", fromlist=["pipeline"])
    return getattr(module, name.replace("-", "_"))


def _set_up_logging(debug: bool) -> None:
    """Plain lines on standard error; ranks other than 0 speak only of trouble."""
    first = rank() == 0
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(message)s"))
    logging.setLogRecordFactory(_Record)  # for libraries with handlers of their own, such as transformers
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("pipeline").setLevel(logging.DEBUG if debug else logging.INFO if first else logging.WARNING)
    logging.getLogger("huggingface_hub.utils._http").addFilter(_Once())
    if sys.stderr is None or not sys.stderr.isatty():
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not debug:
        ignore_renamed_collectives()


class _Record(logging.LogRecord):
    """A message of ours or of any library: one line, in which no text moves the cursor, colours the screen or poses."""

    def getMessage(self) -> str:  # noqa: N802 (the library's name)
        line = visible(super().getMessage().replace("\n", " "))
        return abridged(line) if self.levelno >= logging.WARNING else line


class _Once(logging.Filter):
    """Says once that the hub does not answer, where its library would say so at every try for every file."""

    said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not self.said:
            self.said = True
            logging.getLogger("pipeline").warning("the hub does not answer: %s; trying again", record.getMessage())
        return False


class _Formatter(logging.Formatter):
    """The message alone, and below it the traceback where there is one."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 (the library's name)
        return visible(super().formatException(ei), keep="\n\t")


def _fail(message: str, status: int, debug: bool, *, known: bool = True) -> int:
    """Says what ended the command. `known`: the message names the cause; else another rank may be the cause."""
    if debug:
        logging.getLogger("pipeline").exception("traceback:")
    if startup := sys.modules.get("pipeline.engine.startup"):
        lost = startup.explain_failure(message, known=known)
        message, status = (lost, RANK_LOST) if lost else (message, status)
    who = f"rank {rank()}: " if world_size() > 1 else ""
    line = visible(" ".join(message.split()))
    say_error(f"{who}error: {line if debug else abridged(line)}")
    return status


def _unexpected(error: Exception, options: argparse.Namespace) -> str:
    """The last resort: what failed, in which command, and what it was about as far as that is known."""
    given = [f"--{name} {value}" for name in ("config", "run", "adapter") if (value := getattr(options, name, None))]
    places = [f"at {abridged(note, 150)}" for note in getattr(error, "__notes__", [])]
    where = ", ".join([" ".join([options.command, *given[:1]]), *places])
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not have been imported
        said = f"out of GPU memory: {abridged(str(error), 200)} ({where})"
        what_to_do = "lower train.batch_size, evaluate.batch_size or --batch-rows (predict)"
        return f"{said}; {what_to_do}, or see docs/troubleshooting.md"
    return f"unexpected {type(error).__name__}: {abridged(str(error), 200)} ({where}); --debug shows where"


def _leave_group() -> None:
    """Ends the process group, if a stage has joined one."""
    if startup := sys.modules.get("pipeline.engine.startup"):
        startup.leave()
