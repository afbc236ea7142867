"""Unlabelled texts, one at a time, from a file or standard input: never more than one row in memory."""

import csv
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

from pipeline.core.errors import UserError
from pipeline.data.json_objects import row_of_line
from pipeline.data.readers import MAX_LINE_BYTES, refuse_repeated

if TYPE_CHECKING:
    import _csv

Format = Literal["txt", "csv", "tsv", "jsonl"]
FORMATS: dict[str, Format] = {".txt": "txt", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
STANDARD_INPUT = "-"


class TextRow(NamedTuple):
    """A text to classify, and where it stands."""

    line: int
    """Line of the input on which the row ends, from 1."""
    text: str
    text_pair: str | None = None

    @property
    def inputs(self) -> str | tuple[str, str]:
        return self.text if self.text_pair is None else (self.text, self.text_pair)


def format_of(source: str) -> Format:
    """By the file's ending; standard input is txt. UserError for other endings."""
    if source == STANDARD_INPUT:
        return "txt"
    try:
        return FORMATS[Path(source).suffix.lower()]
    except KeyError:
        raise UserError(
            f"input '{source}': unknown ending; give the format: {', '.join(dict.fromkeys(FORMATS.values()))}"
        ) from None


def check_input(source: str, format: Format | None = None) -> None:
    """UserError for a file that cannot be opened or has an unknown format: cheap, before anything is loaded."""
    if format is None:
        format_of(source)
    if source == STANDARD_INPUT and sys.stdin is None:
        raise UserError("standard input is closed: give a file as input")
    with _opened(source):
        pass


def read_texts(
    source: str, text: str, text_pair: str | None, format: Format | None = None, *, quoted: bool | None = None
) -> Iterator[TextRow]:
    """Rows of a file, or of standard input if `source` is "-".

    txt has one text per line (with `text_pair`: the two separated by a tab); the other formats have the columns `text`
    and `text_pair`; `quoted` tells whether fields of csv and tsv may stand in quotes (None: csv yes, tsv no).
    UserError names the line of the first row that is empty, lacks a column, does not parse or is not UTF-8; an input
    without any row is an error too.
    """
    format = format or format_of(source)
    columns = [text] if text_pair is None else [text, text_pair]
    rows = 0
    with _opened(source) as file:
        lines = _decoded(file, source)
        if format in ("csv", "tsv"):
            parsed = _table_rows(_table_reader(lines, format, quoted), source, columns)
        else:
            parsed = _line_rows(lines, source, columns, _plain_values if format == "txt" else _json_values)
        for number, values in parsed:
            if any(not value.strip() for value in values):
                raise UserError(f"{_name(source)}, line {number}: the text is empty; remove the line or fill it")
            rows += 1
            yield TextRow(number, *values)
    if rows == 0:
        raise UserError(f"{_name(source)} holds no text")


def _line_rows(
    lines: Iterator[str], source: str, columns: list[str], parse: Callable[[str, list[str]], list[str]]
) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, start=1):
        try:
            yield number, parse(line.rstrip("\r\n"), columns)
        except ValueError as error:
            raise UserError(f"{_name(source)}, line {number}: {error}") from error


def _plain_values(line: str, columns: list[str]) -> list[str]:
    values = [line] if len(columns) == 1 else line.split("\t")
    if len(values) != len(columns):
        raise ValueError(f"expected two texts separated by one tab, found {len(values) - 1} tabs")
    return values


def _json_values(line: str, columns: list[str]) -> list[str]:
    if not line.strip():
        return [""]
    value = row_of_line(line, columns)
    texts = [value[column] for column in columns if isinstance(value.get(column), str)]
    if len(texts) < len(columns):
        raise ValueError(f"no string under '{' and '.join(columns)}' (keys: {', '.join(value)})")
    return texts


def _table_reader(lines: Iterable[str], format: Format, quoted: bool | None) -> "_csv.Reader":
    delimiter = "," if format == "csv" else "\t"
    in_quotes = format == "csv" if quoted is None else quoted
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if in_quotes else csv.QUOTE_NONE
    return csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)


def _table_rows(reader: "_csv.Reader", source: str, columns: list[str]) -> Iterator[tuple[int, list[str]]]:
    try:
        header = next(reader, [])
        missing = [column for column in columns if column not in header]
        if header and missing:
            raise UserError(f"{_name(source)}: no column '{missing[0]}' (columns: {', '.join(header)})")
        refuse_repeated(_name(source), header, columns)
        places = [header.index(column) for column in columns if header]
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(
                    f"{_name(source)}, line {reader.line_num}: {len(row)} fields, the header has {len(header)}"
                )
            yield reader.line_num, [row[place] for place in places] if row else [""]
    except csv.Error as error:
        raise UserError(f"{_name(source)}, line {reader.line_num}: {error}") from error


def _decoded(file: BinaryIO, source: str) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
        if len(line) > MAX_LINE_BYTES:
            raise UserError(
                f"{_name(source)}, line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; is this a text file?"
            )
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{_name(source)}, line {number}: not UTF-8 ({error.reason}); convert the file") from error


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    try:
        with open(source, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"input '{source}' cannot be read ({error.strerror})") from error


def _name(source: str) -> str:
    return "standard input" if source == STANDARD_INPUT else f"'{source}'"
