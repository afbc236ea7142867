"""Labels for unlabelled texts, from a file or standard input to JSON lines, in constant memory."""

import csv
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.adapter.directory import adapter_folder
from pipeline.core.errors import UserError
from pipeline.core.output import check_output, opened_output
from pipeline.data.batches import USUAL_PASS, PassSize
from pipeline.data.checks import text_of
from pipeline.data.in_memory import Text
from pipeline.data.rows import Row
from pipeline.data.streams import Source
from pipeline.data.unlabelled import Input
from pipeline.engine.answers import FIELDS, Answer
from pipeline.engine.loaded_adapter import LoadedAdapter

log = logging.getLogger(__name__)

CHUNK_TEXTS = 256
"""Texts read, scored and written at a time, where so many are there."""


def predict(
    adapter: str | Path,
    input: str | Input,
    output: str = "-",
    *,
    labels: Sequence[str] | None = None,
    device: str | None = None,
    backbone: str | None = None,
    calibrated: bool = False,
    trust_remote_code: bool = False,
    pass_size: PassSize = USUAL_PASS,
) -> int:
    """Writes a JSON object per text: [kept columns], text, [text_pair], [truncated], label, scores, probabilities;
    for a faulty row that is skipped line (or row) and error. Returns how many texts were classified.

    `adapter` is an adapter directory or a run directory. `input`: see `Input`; a string is its place. `output` is a
    file, which appears only when all is done, or "-" for standard output, which gets each part as it is ready, as do
    devices and pipes. `labels`: score these (see `split_labels`) by hypothesis, in place of those of training.
    `backbone`: where it is, if moved. `calibrated`: probabilities with the temperature fitted on the validation split.
    `trust_remote_code`: run the Python code that ships with the backbone.
    Raises UserError naming a row that cannot be read, for labels that can be read in two ways, and where `output` is
    something that is read.
    """
    input = Input(input) if isinstance(input, str) else input
    input.check(FIELDS)
    check_output(output, [input.place, adapter_folder(adapter)])
    classifier = LoadedAdapter.load(
        adapter, device, backbone=backbone, calibrated=calibrated, trust_remote_code=trust_remote_code
    )
    check_output(output, [backbone or classifier.adapter.config.backbone.location])
    classifier = replace(classifier, pass_size=pass_size)
    if labels:
        classifier = classifier.with_labels(split_labels(labels, classifier.labels))
        log.info("predict: among %s", ", ".join(map(repr, classifier.labels)))
    with opened_output(output) as write:
        answers = _Answers(classifier, input, write)
        data = classifier.adapter.config.data
        row = None
        for row in input.table(answers.texts, data.quoting, answers.flush).rows:
            answers.add(row)
        answers.flush()
        if row is None:
            raise UserError(f"{answers.where} holds no text")
    answers.report(row)
    return answers.count


class _Answers:
    """Answers rows in their order, as many together as are there."""

    def __init__(self, classifier: LoadedAdapter, input: Input, write: Callable[[str], None]) -> None:
        self.classifier, self.input, self.write = classifier, input, write
        self.texts = classifier.adapter.config.data.columns
        self.where = Source(input.place).name
        self.waiting: list[tuple[Row, list[str]]] = []
        self.count = self.faulty = 0

    def add(self, row: Row) -> None:
        """Raises UserError for a faulty row, when all before it are answered, unless such rows are skipped."""
        try:
            if row.fault:
                raise ValueError(row.fault)
            texts = [text_of(row.values, column) for column in self.texts]
        except ValueError as fault:
            self.flush()
            self._tell(row, str(fault))
            return
        self.waiting.append((row, texts))
        if len(self.waiting) == CHUNK_TEXTS:
            self.flush()

    def flush(self) -> None:
        """Answers what waits."""
        rows, self.waiting = self.waiting, []
        if rows:
            self._answer(rows)

    def report(self, last: Row) -> None:
        """Says what must be known to bring input and output together."""
        if self.faulty:
            log.warning("predict: %d rows are faulty: where their answers would be is what is wrong", self.faulty)
        tell_of_blank_lines(last)

    def _answer(self, rows: list[tuple[Row, list[str]]]) -> None:
        texts: list[Text] = [parts[0] if len(parts) == 1 else (parts[0], parts[1]) for _, parts in rows]
        try:
            found = self.classifier.predict(texts)
        except UserError as error:
            if len(rows) == 1:
                self._tell(rows[0][0], str(error).removeprefix("text 1 "))
            for row in rows if len(rows) > 1 else ():  # which of them it is
                self._answer([row])
            return
        answers = [
            Answer(row, self.input.kept(row.values), parts, prediction)
            for (row, parts), prediction in zip(rows, found, strict=True)
        ]
        self.write("".join(answer.line() for answer in answers))
        self.count += len(rows)

    def _tell(self, row: Row, fault: str) -> None:
        if self.input.on_error == "stop" or row.ends:
            raise UserError(f"{self.where}, {row.place}: {fault}")
        self.faulty += 1
        self.write(Answer(row, self.input.kept(row.values), fault=fault).line())


def tell_of_blank_lines(last: Row) -> None:
    """`last`: of the input. Who brings input and output together by line has to know."""
    if last.blank_lines:
        log.warning("predict: %d blank lines of the input are not in the output", last.blank_lines)


def split_labels(values: Sequence[str], trained: Sequence[str]) -> list[str]:
    """The labels that the values list, each one or several between commas; quotes protect a comma, as in a CSV file.

    A value that is a label of training is never split. Raises UserError where one may be meant within a value.
    """
    names = []
    for value in values:
        parts = [value.strip()] if value.strip() in trained else fields("--labels", value)
        for label in trained:
            if "," in label and label in value and label not in parts:
                raise UserError(
                    f"--labels {value!r}: is the label {label!r} meant, or its parts? Put each label in quotes, as in "
                    f'\'"{label}","..."\', or give each a --labels of its own'
                )
        names += parts
    return names


def fields(option: str, value: str) -> list[str]:
    """The names in an option's value, read as a line of a CSV file. UserError where it is not one."""
    try:
        (names,) = csv.reader([value], skipinitialspace=True, strict=True)
    except csv.Error as error:
        raise UserError(
            f"{option} {value!r}: {error}; a name with a comma stands in quotes: '\"A, or B\",C'"
        ) from error
    return [name.strip() for name in names]
