"""Labels for a table of any size: the rows in parts, shared out over ranks and jobs; a killed one goes on."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from pipeline.adapter.directory import Adapter, adapter_fingerprint, adapter_folder, load_adapter
from pipeline.config import RunConfig, parse_config
from pipeline.core.checksums import read_whole
from pipeline.core.errors import UserError
from pipeline.core.parts import Parts
from pipeline.data.batches import USUAL_PASS, PassSize
from pipeline.data.checks import text_of
from pipeline.data.rows import Row
from pipeline.data.streams import Source
from pipeline.data.unlabelled import Input
from pipeline.distributed.launcher import rank, world_size
from pipeline.distributed.ranks import Ranks
from pipeline.engine.answers import FIELDS, OF_LABELS, Answer, AnswerTable, kept_types
from pipeline.engine.backbone import backbone_of
from pipeline.engine.loaded_adapter import LoadedAdapter
from pipeline.engine.own_texts import OwnTexts, local_device
from pipeline.engine.startup import start
from pipeline.stages.predict import split_labels, tell_of_blank_lines

log = logging.getLogger(__name__)

FORMAT = "1"
"""Of the parts: raised when the same job comes to mean other files."""


@dataclass(frozen=True)
class PartsOutput:
    """Where the parts go, and which of them this job writes."""

    folder: Path
    format: Literal["parquet", "jsonl"] = "parquet"
    rows: int = 8192
    """Of the input, per part."""
    share: tuple[int, int] = (0, 1)
    """Of N jobs, such as the tasks of an array, this one's number from 0; and N."""


@dataclass(frozen=True)
class Scoring:
    """What scores, and how."""

    adapter: Path
    labels: Sequence[str] = ()
    """See `split_labels`; none: those of training."""
    calibrated: bool = False
    backbone: str | None = None
    """Where it is, if it has moved."""
    device: str | None = None
    deepspeed: str | None = None
    """DeepSpeed file: the ranks share one backbone as it says. None: each has a whole one."""
    pass_size: PassSize = USUAL_PASS
    trust_remote_code: bool = False


def predict_parts(scoring: Scoring, input: Input, output: PartsOutput) -> int:
    """Writes parts of answers, in the order of the rows, into a folder (see `core.parts`), or what is missing of them.

    Part i has the rows from i * `output.rows` on, and is written by one of all ranks of all shares, whichever they
    are, so that a job may go on with other numbers of them. The last to end writes the manifest. Returns how many
    texts this rank has classified. Every rank must call it; without `deepspeed` ranks do not wait for each other.
    Raises UserError as `predict` does, for a folder of another job, and where the input has changed.
    """
    _check(scoring, input)
    adapter, fingerprint = _adapter(scoring)
    ranks, load = _group(scoring, adapter, output.folder)
    names = split_labels(scoring.labels, adapter.labels.names) if scoring.labels else adapter.labels.names
    job = _job(input, output, adapter, fingerprint, names)
    parts = ranks.on_main(partial(Parts.claimed, output.folder, job, f".{output.format}"))
    work = _Work(input, output, adapter, names, parts)
    todo = work.undone()
    texts: OwnTexts | None = None
    while True:
        part = ranks.on_every(lambda: next(todo, None))
        if not any(ranks.gather(part is not None)):
            break
        texts = texts or load()
        started = time.monotonic()
        rows, tokens = ranks.on_every(partial(work.read, part, texts))
        scores = texts.scores(tokens)
        ranks.on_every(partial(work.write, part, rows, partial(texts.predictions, tokens, scores)))
        if part is not None:
            log.info("predict: part %d, %.1f texts/s", part.index, len(tokens) / (time.monotonic() - started))
    complete = ranks.on_every(lambda: work.finish())
    where = output.folder if complete else f"{output.folder}; others are at work on the rest, or have not begun"
    log.info("predict: %d texts in %d parts, in %s", work.texts, work.written, where)
    return work.texts


def _check(scoring: Scoring, input: Input) -> None:
    input.check(FIELDS)
    input.check_rereadable()
    for name in input.keep:
        if name.startswith(OF_LABELS):
            raise UserError(f"--keep {name}: the output has columns of such names: rename the input's column")
    if scoring.labels and scoring.deepspeed:
        raise UserError(
            "--labels and --deepspeed: other labels are scored with a whole backbone: leave one of them out"
        )


def _adapter(scoring: Scoring) -> tuple[Adapter, str]:
    """The adapter, read once, and its fingerprint: another may take its place long before the first part is scored."""

    def read(folder: Path) -> tuple[Adapter, str]:
        return load_adapter(folder, calibrated=scoring.calibrated), adapter_fingerprint(folder)

    return read_whole(adapter_folder(scoring.adapter), read)


def _group(scoring: Scoring, adapter: Adapter, folder: Path) -> tuple[Ranks, Callable[[], OwnTexts]]:
    """The ranks that must keep in step, and what loads the adapter's backbone on them."""
    if scoring.deepspeed is None:
        return Ranks.alone(), partial(_whole, scoring, adapter)
    backbone = adapter.config.backbone.trusted(scoring.trust_remote_code).moved(scoring.backbone)
    accelerator, ranks = start(_run_config(adapter, folder, scoring.deepspeed))
    known = backbone_of(backbone, adapter.config.data)
    return ranks, lambda: OwnTexts.sharded(accelerator, ranks, adapter, known, scoring.pass_size)


def _run_config(adapter: Adapter, folder: Path, deepspeed: str) -> RunConfig:
    """What a run is started with, of which only the engine's part matters here."""
    config = adapter.config.model_copy(update={"method": adapter.config.method.trained_as})  # a run has no exported one
    parts = config.model_dump(mode="json", exclude={"version"})
    data = {**parts["data"], "train": "embedded"}
    return parse_config({**parts, "data": data, "run": {"dir": str(folder)}, "engine": {"deepspeed": deepspeed}})


def _whole(scoring: Scoring, adapter: Adapter) -> OwnTexts:
    loaded = LoadedAdapter.of(
        adapter,
        scoring.device or local_device(),
        backbone=scoring.backbone,
        trust_remote_code=scoring.trust_remote_code,
    )
    if scoring.labels:
        loaded = loaded.with_labels(split_labels(scoring.labels, loaded.labels))
    return OwnTexts.of(loaded, scoring.pass_size)


def _job(input: Input, output: PartsOutput, adapter: Adapter, fingerprint: str, names: Sequence[str]) -> dict[str, str]:
    """All that the parts depend on but the rows, which each part knows. Not the size of batches: a job that ran out of
    memory goes on with smaller ones."""
    return {
        "format": FORMAT,
        "adapter": fingerprint,
        "labels": json.dumps(list(names), ensure_ascii=False),
        "temperature": str(adapter.temperature),
        "--part-format": output.format,
        "--part-rows": str(output.rows),
        "--keep": json.dumps(list(input.keep), ensure_ascii=False),
        "--on-error": input.on_error,
        "--format": input.resolved_format(),
    }


@dataclass(frozen=True)
class _Part:
    """Rows that one rank answers."""

    index: int
    rows: list[Row]
    digest: str


class _Work:
    """This rank's parts, from reading to writing."""

    def __init__(
        self, input: Input, output: PartsOutput, adapter: Adapter, labels: Sequence[str], parts: Parts
    ) -> None:
        self.input, self.output, self.parts = input, output, parts
        data = adapter.config.data
        self.columns, self.quoting = data.columns, data.quoting
        self.labels = labels
        self.where = Source(input.place).name
        self.schema: pa.Schema | None = None
        self.count = self.texts = self.written = 0

    def undone(self) -> Iterator[_Part]:
        """Reads the input to its end; sets `count`, of all parts."""
        share, shares = self.output.share
        mine, workers = share * world_size() + rank(), shares * world_size()
        table = self.input.table(self.columns, self.quoting, lambda: None)
        self.schema = table.schema
        rows: list[Row] = []
        for place, row in enumerate(table.rows):
            index, offset = divmod(place, self.output.rows)
            self.count = index + 1
            if row.ends:
                raise UserError(f"{self.where}, {row.place}: {row.fault}")
            if index % workers != mine:
                continue
            if offset == 0 and rows:
                yield from self._if_undone(rows, index - workers)
                rows = []
            rows.append(row)
        if not self.count:
            raise UserError(f"{self.where} holds no text")
        if not mine:
            tell_of_blank_lines(row)
        if rows:
            last = self.count - 1
            yield from self._if_undone(rows, last - (last - mine) % workers)

    def _if_undone(self, rows: list[Row], index: int) -> Iterator[_Part]:
        part = _Part(index, rows, _digest(rows, [*self.columns, *self.input.keep]))
        if not self.parts.has(part.index, part.digest):
            yield part

    def read(self, part: _Part | None, texts: OwnTexts) -> tuple[list[Answer], list[dict[str, Any]]]:
        """The rows of a part with their texts or faults, and the tokens of those without a fault."""
        if part is None:
            return [], []
        answers = [self._read(row) for row in part.rows]
        good = [answer for answer in answers if answer.fault is None]
        tokens = dict(zip(map(id, good), texts.encode([answer.texts for answer in good]), strict=True))
        checked = [self._with_tokens(answer, tokens.get(id(answer))) for answer in answers]
        return checked, [row for row in tokens.values() if row["input_ids"]]

    def _read(self, row: Row) -> Answer:
        kept = self.input.kept(row.values)
        if row.fault:
            return self._faulty(row, kept, row.fault)
        try:
            return Answer(row, kept, [text_of(row.values, column) for column in self.columns])
        except ValueError as fault:
            return self._faulty(row, kept, str(fault))

    def _with_tokens(self, answer: Answer, tokens: dict[str, Any] | None) -> Answer:
        if tokens is None or tokens["input_ids"]:
            return answer
        return self._faulty(answer.row, answer.kept, f"becomes no token at all: {answer.texts[0]!r}")

    def _faulty(self, row: Row, kept: Mapping[str, Any], fault: str) -> Answer:
        if self.input.on_error == "stop":
            raise UserError(f"{self.where}, {row.place}: {fault}")
        return Answer(row, kept, fault=fault)

    def write(self, part: _Part | None, answers: list[Answer], predictions: Callable[[str], list[Any]]) -> None:
        """Writes a part, with the predictions for the rows without a fault."""
        if part is None:
            return
        found = iter(predictions(f"part {part.index}") if any(not answer.fault for answer in answers) else [])
        answered = [
            answer if answer.fault else Answer(answer.row, answer.kept, answer.texts, next(found)) for answer in answers
        ]
        faulty = sum(answer.fault is not None for answer in answered)
        self.parts.write(part.index, len(answered), faulty, part.digest, partial(self._write, answered))
        self.written += 1
        self.texts += len(answered) - faulty

    def _write(self, answers: list[Answer], file: Path) -> None:
        if self.output.format == "jsonl":
            file.write_text("".join(answer.line() for answer in answers), encoding="utf-8")
        else:
            kept = kept_types(self.input.keep, self.schema)
            AnswerTable(self.labels, len(self.columns), kept).write(answers, file)

    def finish(self) -> bool:
        """The manifest, if all parts are there."""
        return self.parts.finish(self.count)


def _digest(rows: list[Row], columns: Sequence[str]) -> str:
    """Of what is read of the rows."""
    digest = sha256()
    for row in rows:
        values = [row.values.get(name) for name in columns]
        digest.update(json.dumps([row.number, values, row.fault], default=str).encode() + b"\n")
    return digest.hexdigest()
