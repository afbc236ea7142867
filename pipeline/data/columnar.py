"""Arrow tables, of Parquet files and of `datasets`: their rows, out of the wanted columns alone."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.bounds import LARGEST_PARQUET_READ, LONGEST_LINE_BYTES
from pipeline.core.errors import UserError
from pipeline.data.labels import label_name
from pipeline.data.rows import Row, Table, refuse_repeated
from pipeline.data.streams import Source

ARROW_BATCH_ROWS = 256


def arrow_rows(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Row]:
    """Rows of Arrow batches, read in order."""
    records = chain.from_iterable(map(_records, chain.from_iterable(map(_pieces, batches))))
    for number, (values, fault) in enumerate(records, 1):
        yield Row(number, None, values, fault)


def _records(batch: pa.RecordBatch | pa.Table) -> list[tuple[dict[str, Any], str | None]]:
    if len(batch) == 1 and batch.nbytes > LONGEST_LINE_BYTES:
        return [({}, f"this row is longer than {LONGEST_LINE_BYTES >> 20} MiB")]
    try:
        return [(values, None) for values in batch.to_pylist()]
    except UnicodeDecodeError:  # somewhere in it
        if len(batch) == 1:
            return [({}, "is not UTF-8")]
        return [record for offset in range(len(batch)) for record in _records(batch.slice(offset, 1))]


def _pieces(batch: pa.RecordBatch | pa.Table) -> Iterator[pa.RecordBatch | pa.Table]:
    """The batch; or its rows one by one, where one may be too long and all at once might take much memory."""
    kept_once = [column for column in batch.columns if pa.types.is_dictionary(column.type)]
    chunks = chain.from_iterable(getattr(column, "chunks", [column]) for column in kept_once)
    if batch.nbytes + len(batch) * sum(chunk.dictionary.nbytes for chunk in chunks) <= LONGEST_LINE_BYTES:
        yield batch
        return
    for row in (batch.slice(place, 1) for place in range(len(batch))):
        columns = [pc.cast(c, c.type.value_type) if pa.types.is_dictionary(c.type) else c for c in row.columns]
        yield type(row).from_arrays(columns, names=row.schema.names)


def refuse_stream(source: Source) -> None:
    """UserError for what can only be read from start to end, which a Parquet file cannot."""
    if not source.is_plain_file:
        raise UserError(f"{source.name}: Parquet is read from its end: give a plain file, not a pipe and not gzip")


def parquet_table(source: Source, wanted: list[str], label: str | None) -> Table:
    refuse_stream(source)
    try:
        file = pq.ParquetFile(source.place)
        columns = file.schema_arrow.names
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"{source.name}: is not a readable parquet file ({str(error).splitlines()[0]})") from error
    refuse_repeated(source.name, columns, wanted)
    rows = arrow_rows(_parquet_batches(file, source.name, [name for name in wanted if name in columns]))
    names = None if label is None else names_of_ids(file.schema_arrow, label)
    return Table(columns, rows, names, schema=file.schema_arrow)


def _parquet_batches(file: pq.ParquetFile, name: str, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        yield from file.iter_batches(batch_size=_batch_rows(file.metadata, wanted), columns=wanted)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{name}: cannot be read to its end ({str(error).splitlines()[0]})") from error


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
