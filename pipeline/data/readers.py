"""File formats: a table's columns and its rows one by one, with a row's fault in place of its values.

Nothing is read whole: memory stays within one line, one JSON object or one batch of Arrow rows.
"""

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pipeline.core.bounds import LONGEST_LINE_BYTES, check_regular
from pipeline.core.errors import UserError
from pipeline.data.columnar import parquet_table
from pipeline.data.json_objects import DECODER, row_of_line, row_of_value
from pipeline.data.rows import Row, Table, refuse_repeated
from pipeline.data.streams import Source, decoded_lines, first_byte

Format = Literal["txt", "csv", "tsv", "json", "jsonl", "parquet"]
FORMATS: dict[str, Format] = {
    ".txt": "txt",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
"""By the file's ending, before .gz where it ends in that."""

UNCLOSED = "unexpected end of data"
"""How the csv module calls a quote that is open at the end of the file, which has swallowed all rows behind it."""
_SEPARATOR = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")


def open_file(path: Path, quoting: bool | None, texts: Sequence[str], label: str | None) -> Table:
    """Opens a file of texts, labelled or not, by its suffix. Only their columns and the label's must be readable.

    Raises:
        UserError: the file is missing, empty, unreadable or of an unknown type, or has a wanted column twice.
    """
    try:
        check_regular(path)
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).removeprefix('it ').lower()}") from error
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    source = Source(str(path))
    format = FORMATS.get(source.suffix, "txt")
    if format == "txt":
        raise UserError(f"{path}: unknown file type; use .csv, .tsv, .json, .jsonl or .parquet")
    return open_table(source, format, quoting, texts, label)


def open_table(
    source: Source,
    format: Format,
    quoting: bool | None,
    texts: Sequence[str],
    label: str | None = None,
    others: Sequence[str] = (),
) -> Table:
    """Opens texts, labelled or not. Of the columns only those of the texts, the label and `others` are read.

    `quoting`: are fields of csv and tsv quoted (None: csv yes, tsv no). txt has a text per line, or two with a tab
    between. UserError as `open_file`, and for Parquet that is not a plain file.
    """
    wanted = list(dict.fromkeys([*texts, *([] if label is None else [label]), *others]))
    match format:
        case "txt":
            return Table(list(texts), _plain_texts(source, texts))
        case "csv":
            return _delimited(source, ",", quoting is not False, wanted)
        case "tsv":
            return _delimited(source, "\t", quoting is True, wanted)
        case "jsonl" | "json":
            return _json_table(_json(source, wanted, lines=format == "jsonl"), wanted if source.is_file else ())
        case "parquet":
            return parquet_table(source, wanted, label)


def _lines(source: Source, faults: list[str]) -> Iterator[str]:
    with source.opened() as file:
        yield from decoded_lines(file, source.name, LONGEST_LINE_BYTES, faults)


def _plain_texts(source: Source, texts: Sequence[str]) -> Iterator[Row]:
    """Each line that is not blank as a text, or as many as `texts` with tabs between."""
    undecodable: list[str] = []
    number = 0
    for line, content in enumerate(_lines(source, undecodable), 1):
        if not content.strip() and not undecodable:
            continue
        number += 1
        content = content.rstrip("\r\n")
        fields = [content] if len(texts) == 1 else content.split("\t")
        fault = undecodable.pop() if undecodable else None
        if not fault and len(fields) != len(texts):
            fault = f"expected {len(texts)} texts separated by a tab, found {len(fields) - 1} tabs"
        values = {} if fault else dict(zip(texts, fields, strict=True))
        yield Row(number, line, values, fault, blank_lines=line - number)


def _delimited(source: Source, delimiter: str, quoted: bool, wanted: list[str]) -> Table:
    undecodable: list[str] = []
    lines = _lines(source, undecodable)
    records = _quoted_records(lines, delimiter) if quoted else _plain_records(lines, delimiter)
    _, columns, fault = next(records, (0, [], "there is none"))
    if undecodable or fault:
        advice = "save the file as UTF-8" if undecodable else "give the columns names on the first line"
        raise UserError(f"{source.name}: the header cannot be read: {fault or undecodable[0]}; {advice}")
    refuse_repeated(source.name, columns, wanted)
    return Table(columns, _delimited_rows(records, columns, undecodable), plain_quotes=not quoted)


def _delimited_rows(
    records: Iterator[tuple[int, list[str], str | None]], columns: list[str], undecodable: list[str]
) -> Iterator[Row]:
    number = blank = 0
    for line, fields, fault in records:
        if not fault and not fields and not undecodable:
            blank += 1
            continue
        number += 1
        if undecodable:
            fault = undecodable[0]
            undecodable.clear()
        if not fault and len(fields) != len(columns):
            fault = f"{len(fields)} fields where the header has {len(columns)}"
        if not fault and len(columns) > 1 and [fields[0].lstrip("\ufeff"), *fields[1:]] == columns:
            fault = "is the header again, as where files are joined: remove the line"
        values = {} if fault else dict(zip(columns, fields, strict=True))
        yield Row(number, line, values, fault, (fault or "").startswith(UNCLOSED), blank)


def _plain_records(lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    """(line, fields, fault) of every line, none of a blank one; a double quote is an ordinary character."""
    for number, line in enumerate(lines, 1):
        content = line.rstrip("\r\n")
        yield number, content.split(delimiter) if content else [], None


def _quoted_records(lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    """(first line, fields, fault) of every record; a quoted field may hold line breaks.

    A blank line has no field. `""` has one, an empty one: so an empty cell is written where it is a row's only one.
    """
    csv.field_size_limit(LONGEST_LINE_BYTES)  # for the whole csv module, whose 128 KiB are too few for documents
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first_line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lost = "" if reader.line_num <= first_line else f"; lines {first_line} to {reader.line_num} are lost"
            yield first_line, [], f"{error} (is a quote not closed or not doubled?){lost}"
        else:
            yield first_line, fields, None


def _json_table(rows: Iterator[Row], wanted: Sequence[str]) -> Table:
    """Columns are those of the first rows, as many as have to be read until each `wanted` one was there."""
    head, columns = [], None
    for row in islice(rows, 100):
        head.append(row)
        if not row.fault:
            columns = list(dict.fromkeys([*(columns or ()), *row.values]))
            if set(wanted) <= set(columns):
                break
    return Table(columns, chain(head, rows))


def _json(source: Source, wanted: list[str], *, lines: bool) -> Iterator[Row]:
    with source.opened() as file:
        read = _json_array if not lines and first_byte(file) == b"[" else _json_lines
        yield from read(file, source.name, wanted)


def _json_lines(file: BinaryIO, name: str, wanted: list[str]) -> Iterator[Row]:
    undecodable: list[str] = []
    number = 0
    for line, text in enumerate(decoded_lines(file, name, LONGEST_LINE_BYTES, undecodable), 1):
        if not text.strip():
            continue
        number += 1
        blank = line - number
        if undecodable:
            yield Row(number, line, {}, undecodable.pop(), blank_lines=blank)
            continue
        try:
            yield Row(number, line, row_of_line(text, wanted), blank_lines=blank)
        except ValueError as error:
            yield Row(number, line, {}, str(error), blank_lines=blank)


def _json_array(file: BinaryIO, name: str, wanted: list[str]) -> Iterator[Row]:
    """Objects of one JSON array, decoded as they come."""
    chunks, number = _decoded_chunks(file, name), 0
    buffer = next(chunks)
    position = buffer.index("[") + 1
    while True:
        start = _SEPARATOR.match(buffer, position).end()  # type: ignore[union-attr]  # matches the empty string too
        if buffer[start : start + 1] == "]":
            yield from _after_array(buffer[start + 1 :], chunks, number + 1)
            return
        try:
            value, position = DECODER.raw_decode(buffer, start)
            fault = "the array is not closed"
        except (ValueError, RecursionError) as error:
            value, position, fault = None, len(buffer), str(error)
        if position < len(buffer):
            number += 1
            yield _json_row(number, value, wanted)
            continue
        # What was decoded, or not, up to the very end of the buffer may go on in the next chunk.
        more = next(chunks, None)
        if more is None or len(buffer) - start > LONGEST_LINE_BYTES:
            yield Row(number + 1, None, {}, f"no JSON from here on ({fault})", ends=True)
            return
        buffer, position = buffer[start:] + more, 0


def _json_row(number: int, value: Any, wanted: list[str]) -> Row:
    try:
        return Row(number, None, row_of_value(value, wanted))
    except ValueError as error:
        return Row(number, None, {}, str(error))


def _after_array(rest: str, chunks: Iterator[str], number: int) -> Iterator[Row]:
    """A row that is a fault, where anything but white space follows the array: rows in it would be lost."""
    for text in chain([rest], chunks):
        if found := text.strip():
            fault = f"the array ends here, but {found[:20]!r} follows: a .json file is one array"
            yield Row(number, None, {}, fault, ends=True)
            return


def _decoded_chunks(file: BinaryIO, name: str) -> Iterator[str]:
    """The text of a file in pieces. Raises UserError with the line of the first byte that is not UTF-8."""
    decoder, line = codecs.getincrementaldecoder("utf-8-sig")(), 1
    for raw in chain(iter(lambda: file.read(2**20), b""), [b""]):
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            byte = error.object[error.start]
            raise UserError(f"{name}: byte 0x{byte:02x} on line {line} is not UTF-8; save the file as UTF-8") from None
        line += text.count("\n")
        yield text
