"""File formats: a table's columns and its rows one by one, with a row's fault in place of its values.

Nothing is read whole: memory stays within one line, one JSON object or one batch of Arrow rows.
"""

import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import UserError
from pipeline.data.json_objects import DECODER, row_of_line, row_of_value
from pipeline.data.labels import label_name
from pipeline.data.rows import Row, Table, refuse_repeated
from pipeline.data.streams import Source, decoded_lines, first_byte

MAX_LINE_BYTES = 16 * 2**20
"""Longest line, quoted field or JSON object accepted; more is a file of another kind or a quote never closed."""
ARROW_BATCH_ROWS = 256

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


def open_file(path: Path, quoting: bool | None, texts: Sequence[str], label: str) -> Table:
    """Opens a file of labelled texts by its suffix. Only the columns of the texts and of the label must be readable.

    Raises:
        UserError: the file is missing, empty, unreadable or of an unknown type, or has a wanted column twice.
    """
    if not path.is_file():
        raise UserError(f"{path}: " + ("is a folder, not a file" if path.is_dir() else "no such file"))
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
            return _json_table(_json(source, wanted, lines=format == "jsonl"))
        case "parquet":
            return _parquet(source, wanted, label)


def arrow_rows(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Row]:
    """Rows of Arrow batches, read in order."""
    records = chain.from_iterable(map(_arrow_records, batches))
    for number, (values, fault) in enumerate(records, 1):
        yield Row(number, None, values, fault)


def _arrow_records(batch: pa.RecordBatch | pa.Table) -> list[tuple[dict[str, Any], str | None]]:
    try:
        return [(values, None) for values in batch.to_pylist()]
    except UnicodeDecodeError:  # somewhere in it
        if len(batch) == 1:
            return [({}, "is not UTF-8")]
        return [record for offset in range(len(batch)) for record in _arrow_records(batch.slice(offset, 1))]


def _lines(source: Source, faults: list[str]) -> Iterator[str]:
    with source.opened() as file:
        yield from decoded_lines(file, source.name, MAX_LINE_BYTES, faults)


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
        yield Row(number, line, {} if fault else dict(zip(texts, fields, strict=True)), fault)


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
    number = 0
    for line, fields, fault in records:
        if not fault and not any(fields) and len(fields) <= 1 and not undecodable:
            continue  # a blank line
        number += 1
        if undecodable:
            fault = undecodable[0]
            undecodable.clear()
        if not fault and len(fields) != len(columns):
            fault = f"{len(fields)} fields where the header has {len(columns)}"
        if not fault and len(columns) > 1 and [fields[0].lstrip("\ufeff"), *fields[1:]] == columns:
            fault = "is the header again, as where files are joined: remove the line"
        values = {} if fault else dict(zip(columns, fields, strict=True))
        yield Row(number, line, values, fault, (fault or "").startswith(UNCLOSED))


def _plain_records(lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    """(line, fields, fault) of every line; a double quote is an ordinary character."""
    for number, line in enumerate(lines, 1):
        yield number, line.rstrip("\r\n").split(delimiter), None


def _quoted_records(lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    """(first line, fields, fault) of every record; a quoted field may hold line breaks."""
    csv.field_size_limit(MAX_LINE_BYTES)  # for the whole csv module, whose 128 KiB are too few for documents
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


def _json_table(rows: Iterator[Row]) -> Table:
    head, columns = [], None
    for row in islice(rows, 100):  # of a slow stream no more than must be
        head.append(row)
        if not row.fault:
            columns = list(row.values)
            break
    return Table(columns, chain(head, rows))


def _json(source: Source, wanted: list[str], *, lines: bool) -> Iterator[Row]:
    with source.opened() as file:
        read = _json_array if not lines and first_byte(file) == b"[" else _json_lines
        yield from read(file, source.name, wanted)


def _json_lines(file: BinaryIO, name: str, wanted: list[str]) -> Iterator[Row]:
    undecodable: list[str] = []
    number = 0
    for line, text in enumerate(decoded_lines(file, name, MAX_LINE_BYTES, undecodable), 1):
        if not text.strip():
            continue
        number += 1
        if undecodable:
            yield Row(number, line, {}, undecodable.pop())
            continue
        try:
            yield Row(number, line, row_of_line(text, wanted))
        except ValueError as error:
            yield Row(number, line, {}, str(error))


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
        if more is None or len(buffer) - start > MAX_LINE_BYTES:
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


def _parquet(source: Source, wanted: list[str], label: str | None) -> Table:
    if not source.is_plain_file:
        raise UserError(f"{source.name}: Parquet is read from its end: give a plain file, not a pipe and not gzip")
    try:
        file = pq.ParquetFile(source.place)
        columns = file.schema_arrow.names
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"{source.name}: is not a readable parquet file ({str(error).splitlines()[0]})") from error
    refuse_repeated(source.name, columns, wanted)
    rows = arrow_rows(_parquet_batches(file, source.name, [name for name in wanted if name in columns]))
    return Table(columns, rows, None if label is None else names_of_ids(file.schema_arrow, label))


def _parquet_batches(file: pq.ParquetFile, name: str, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(batch_size=ARROW_BATCH_ROWS, columns=wanted)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{name}: cannot be read to its end ({str(error).splitlines()[0]})") from error


def names_of_ids(schema: pa.Schema, label: str) -> list[str] | None:
    """`label_name` of each id of a ClassLabel column, None for any other column.

    Read from what `datasets` writes into a schema, and not by `datasets`: it wants to understand every column, and
    forgets the names of ids that are not int64.
    """
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None
    return None if names is None else [label_name(str(name)) for name in names]
