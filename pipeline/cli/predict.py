"""`ltune predict`: its options, and what they lead to."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cli.common import add_adapter_options, add_backbone_options, add_common_options, positive
from pipeline.core.errors import UserError
from pipeline.core.imports import quick_imports
from pipeline.core.output import STANDARD, ended_by_signals
from pipeline.distributed.device import announce_device
from pipeline.distributed.launcher import world_size

if TYPE_CHECKING:
    from pipeline.data.unlabelled import Input

log = logging.getLogger(__name__)


def add_predict_options(command: argparse.ArgumentParser) -> None:
    """Of `ltune predict`."""
    add_adapter_options(command)
    command.add_argument(
        "--input",
        default="-",
        metavar="FILE",
        help="txt, csv, tsv, json or jsonl, also as .gz; parquet; hub:NAME:SPLIT; - reads standard input (default)",
    )
    command.add_argument(
        "--format",
        choices=["txt", "csv", "tsv", "json", "jsonl", "parquet"],
        help="format of the input, where its name has no such suffix (standard input: txt by default)",
    )
    command.add_argument(
        "--keep",
        action="append",
        metavar="A,B",
        help="columns of the input to put beside the answers; may be repeated; quotes protect a comma, as in CSV",
    )
    command.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="at a faulty row: stop (default), or write {line, error} in the place of its answer",
    )
    command.add_argument(
        "--output", default="-", metavar="FILE", help="JSONL file; - writes to standard output (default)"
    )
    command.add_argument(
        "--labels",
        action="append",
        metavar="A,B",
        help="score these labels instead of those of training; new ones by their hypotheses alone; may be repeated; "
        "quote a name with a comma, as in CSV: '\"A, or B\",C'; names of trained labels need no quotes",
    )
    command.add_argument(
        "--calibrated", action="store_true", help="probabilities with the temperature fitted on the validation split"
    )
    add_backbone_options(command)
    command.add_argument(
        "--batch-rows", type=positive, default=64, metavar="N", help="(text, label) pairs per forward pass (default 64)"
    )
    command.add_argument(
        "--batch-tokens",
        type=positive,
        metavar="N",
        help="instead of --batch-rows: tokens per forward pass, padding counted",
    )
    _add_parts_options(command)
    add_common_options(command)


def _add_parts_options(command: argparse.ArgumentParser) -> None:
    parts = command.add_argument_group("a large table, on several ranks or in several jobs (docs/predict.md)")
    parts.add_argument(
        "--parts",
        metavar="DIR",
        help="write numbered parts into this folder, in place of --output; the same command goes on after a kill",
    )
    parts.add_argument("--part-format", choices=["parquet", "jsonl"], default="parquet", help="default: parquet")
    parts.add_argument(
        "--part-rows", type=positive, default=8192, metavar="N", help="rows of the input per part (default 8192)"
    )
    parts.add_argument("--share", metavar="I/N", help="write only the I-th of N shares (from 0), as in an array job")
    parts.add_argument(
        "--deepspeed",
        metavar="FILE",
        help="spread the backbone over the ranks as this DeepSpeed file says (default: a whole one on each)",
    )


@ended_by_signals()
def predict(options: argparse.Namespace) -> None:
    """Labels new texts: in a stream, or in parts."""
    with quick_imports():
        from pipeline.data.batches import PassSize
        from pipeline.data.unlabelled import Input
        from pipeline.stages import predict as stage

    keep = [name for value in options.keep or () if value for name in stage.fields("--keep", value)]
    source = Input(options.input, options.format, keep, options.on_error)
    if options.parts:
        _predict_parts(options, source)
        return
    for name in ("share", "deepspeed"):
        if getattr(options, name):
            raise UserError(f"--{name} needs --parts DIR, which says where the parts go")
    if world_size() > 1:
        log.warning("predict: one of %d ranks answers: --parts DIR shares the work out", world_size())
    stage.predict(
        options.run or options.adapter,
        source,
        options.output,
        labels=options.labels,
        device=options.device,
        backbone=options.backbone,
        calibrated=options.calibrated,
        trust_remote_code=options.trust_remote_code,
        pass_size=PassSize(options.batch_rows, options.batch_tokens),
    )


def _predict_parts(options: argparse.Namespace, source: "Input") -> None:
    if options.output != STANDARD:
        raise UserError("--parts or --output: give one of them")
    announce_device()
    with quick_imports():
        from pipeline.comparison.config import parse_share
        from pipeline.data.batches import PassSize
        from pipeline.stages.predict_parts import PartsOutput, Scoring, predict_parts

    taken = {name: getattr(options, name) for name in ("calibrated", "backbone", "device", "deepspeed")}
    adapter, trusted = Path(options.run or options.adapter), options.trust_remote_code
    size = PassSize(options.batch_rows, options.batch_tokens)
    scoring = Scoring(adapter, options.labels or (), pass_size=size, trust_remote_code=trusted, **taken)
    share = parse_share(options.share, "--share") if options.share else (0, 1)
    predict_parts(scoring, source, PartsOutput(Path(options.parts), options.part_format, options.part_rows, share))
