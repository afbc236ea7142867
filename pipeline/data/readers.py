"""File formats: a table's columns and its rows one by one, with a row's fault in place of its values.

Nothing is read whole: memory stays within one line, one JSON object or one batch of Arrow rows.
"""

import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.bounds import LARGEST_BATCH_BYTES, LARGEST_PARQUET_READ, MOST_COLUMNS, check_regular
from pipeline.core.errors import UserError
from pipeline.data.json_objects import DECODER, row_of_line, row_of_value
from pipeline.data.labels import label_name

MAX_LINE_BYTES = 16 * 2**20
"""Longest line, quoted field or JSON object accepted; more is a file of another kind or a quote never closed."""
ARROW_BATCH_ROWS = 256

_SEPARATOR = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")


class Row(NamedTuple):
    """One data row: its values by column name, or what is wrong with it."""

    number: int
    """1 for the first data row; a header does not count."""
    line: int | None
    """1 for the first line of the file; None for formats without lines."""
    values: dict[str, Any]
    fault: str | None = None

    @property
    def place(self) -> str:
        return f"row {self.number}" if self.line is None else f"row {self.number} (line {self.line})"


@dataclass
class Table:
    """An opened source."""

    columns: list[str] | None
    """Column names; None if no row near the start of a JSON file could be read."""
    rows: Iterator[Row]
    label_names: list[str] | None = None
    """`label_name` of each id, where the source itself gives names (ClassLabel)."""


def open_file(path: Path, quoting: bool | None, texts: Sequence[str], label: str) -> Table:
    """Opens a file by its suffix. Of its columns only those of the texts and of the label need to be readable.

    Raises:
        UserError: the file is missing, empty, unreadable or of an unknown type, or has a wanted column twice.
    """
    wanted = list(dict.fromkeys([*texts, label]))
    try:
        check_regular(path)
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).removeprefix('it ').lower()}") from error
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty")
    match path.suffix.lower():
        case ".csv":
            return _delimited(path, ",", quoting is not False, wanted)
        case ".tsv":
            return _delimited(path, "\t", quoting is True, wanted)
        case ".jsonl":
            return _json_table(_json_lines(path, wanted))
        case ".json":
            return _json_table((_json_array if _first_byte(path) == b"[" else _json_lines)(path, wanted))
        case ".parquet":
            return _parquet(path, wanted, label)
    raise UserError(f"{path}: unknown file type; use .csv, .tsv, .json, .jsonl or .parquet")


def arrow_rows(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Row]:
    """Rows of Arrow batches, read in order."""
    number = 0
    for batch in chain.from_iterable(map(_pieces, batches)):
        if len(batch) == 1 and batch.nbytes > MAX_LINE_BYTES:
            yield Row(number + 1, None, {}, f"this row is longer than {MAX_LINE_BYTES >> 20} MiB")
            number += 1
            continue
        try:
            records = batch.to_pylist()
        except UnicodeDecodeError:
            yield Row(number + 1, None, {}, f"this row or one of the {len(batch) - 1} after it is not UTF-8")
            records = []
        for offset, values in enumerate(records, 1):
            yield Row(number + offset, None, values)
        number += len(batch)


def _pieces(batch: pa.RecordBatch | pa.Table) -> Iterator[pa.RecordBatch | pa.Table]:
    """The batch, or one by one its rows, where all of them at once would take much memory as Python values."""
    kept_once = [column for column in batch.columns if pa.types.is_dictionary(column.type)]
    chunks = chain.from_iterable(getattr(column, "chunks", [column]) for column in kept_once)
    if batch.nbytes + len(batch) * sum(chunk.dictionary.nbytes for chunk in chunks) <= LARGEST_BATCH_BYTES:
        yield batch
        return
    for row in (batch.slice(place, 1) for place in range(len(batch))):
        columns = [pc.cast(c, c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in row.columns]
        yield type(row).from_arrays(columns, names=row.schema.names)


def refuse_repeated(where: str, columns: Sequence[str], wanted: Iterable[str]) -> None:
    """UserError if a wanted column is there more than once: which of them is meant nobody knows. Or for too many."""
    if len(columns) > MOST_COLUMNS:
        raise UserError(
            f"{where}: has {len(columns):,} columns, at most {MOST_COLUMNS:,} are read: is the separator right?"
        )
    for name in wanted:
        if columns.count(name) > 1:
            raise UserError(
                f"{where}: column {name!r} is there {columns.count(name)} times: rename or remove all but one"
            )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _first_byte(path: Path) -> bytes:
    """The first byte that is neither white space nor a byte-order mark."""
    with _opened(path) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _lines(path: Path, faults: list[str]) -> Iterator[str]:
    """Decoded lines; a line with bytes that are not UTF-8 is given with replacements, and appended to `faults`."""
    with _opened(path) as file:
        for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(raw) > MAX_LINE_BYTES:
                raise UserError(
                    f"{path}: line {number} is longer than {MAX_LINE_BYTES >> 20} MiB; is this a text file?"
                )
            encoding = "utf-8-sig" if number == 1 else "utf-8"
            try:
                yield raw.decode(encoding)
            except UnicodeDecodeError as error:
                faults.append(f"byte 0x{error.object[error.start]:02x} on line {number} is not UTF-8")
                yield raw.decode(encoding, errors="replace")


def _delimited(path: Path, delimiter: str, quoted: bool, wanted: list[str]) -> Table:
    undecodable: list[str] = []
    lines = _lines(path, undecodable)
    records = _quoted_records(lines, delimiter) if quoted else _plain_records(lines, delimiter)
    _, columns, fault = next(records)
    if undecodable or fault:
        raise UserError(f"{path}: the header cannot be read: {fault or undecodable[0]}; save the file as UTF-8")
    refuse_repeated(str(path), columns, wanted)
    return Table(columns, _delimited_rows(records, columns, undecodable))


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
        yield Row(number, line, {} if fault else dict(zip(columns, fields, strict=True)), fault)


def _plain_records(lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    """(line, fields, fault) of every line; a double quote is an ordinary character."""
    for number, line in enumerate(lines, 1):
        yield number, line.rstrip("\r\n").split(delimiter), None


def _quoted_records(lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str], str | None]]:
    """(first line, fields, fault) of every record; a quoted field may hold line breaks."""
    csv.field_size_limit(
        MAX_LINE_BYTES
    )  # a global of the csv module, whose default of 128 KiB is too small for documents
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first_line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield first_line, [], f"{error} (is a quote not closed or not doubled?)"
        else:
            yield first_line, fields, None


def _json_table(rows: Iterator[Row]) -> Table:
    head = list(islice(rows, 100))
    columns = next((list(row.values) for row in head if not row.fault), None)
    return Table(columns, chain(head, rows))


def _json_lines(path: Path, wanted: list[str]) -> Iterator[Row]:
    undecodable: list[str] = []
    number = 0
    for line, text in enumerate(_lines(path, undecodable), 1):
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


def _json_array(path: Path, wanted: list[str]) -> Iterator[Row]:
    """Objects of one JSON array, decoded as they come."""
    chunks, number = _decoded_chunks(path), 0
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
            yield Row(number + 1, None, {}, f"no JSON from here on ({fault})")
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
            yield Row(number, None, {}, f"the array ends here, but {found[:20]!r} follows: a .json file is one array")
            return


def _decoded_chunks(path: Path) -> Iterator[str]:
    """The text of a file in pieces. Raises UserError with the line of the first byte that is not UTF-8."""
    decoder, line = codecs.getincrementaldecoder("utf-8-sig")(), 1
    with _opened(path) as file:
        for raw in chain(iter(lambda: file.read(2**20), b""), [b""]):
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                byte = error.object[error.start]
                raise UserError(
                    f"{path}: byte 0x{byte:02x} on line {line} is not UTF-8; save the file as UTF-8"
                ) from None
            line += text.count("\n")
            yield text


def _parquet(path: Path, wanted: list[str], label: str) -> Table:
    try:
        file = pq.ParquetFile(path)
        columns = file.schema_arrow.names
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"{path}: is not a readable parquet file ({str(error).splitlines()[0]})") from error
    refuse_repeated(str(path), columns, wanted)
    rows = arrow_rows(_parquet_batches(file, path, [name for name in wanted if name in columns]))
    return Table(columns, rows, names_of_ids(file.schema_arrow, label))


def _parquet_batches(file: pq.ParquetFile, path: Path, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(batch_size=_batch_rows(file.metadata, wanted), columns=wanted)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read to its end ({str(error).splitlines()[0]})") from error


def _batch_rows(metadata: pq.FileMetaData, wanted: list[str]) -> int:
    """Rows to read at a time: a column that is short in the file may repeat one long cell in every row."""
    largest = 1
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema.partition(".")[0] in wanted:
                largest = max(largest, chunk.total_uncompressed_size)
    return max(1, min(ARROW_BATCH_ROWS, LARGEST_PARQUET_READ // largest))


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
