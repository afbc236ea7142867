"""Reads one split, checks every row, and keeps it as a memory-mapped Arrow table: larger than memory is no problem."""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetsError
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.core.bounds import LONGEST_LABEL
from pipeline.core.errors import SHOWN, UserError, nearest, some
from pipeline.data.config import DataConfig
from pipeline.data.labels import FileLabels, LabelSeen, value_name
from pipeline.data.readers import ARROW_BATCH_ROWS, Row, Table, arrow_rows, names_of_ids, open_file

EMBEDDED = Path(__file__).parent / "embedded"
MAX_LABELS = 10_000

_HUB = re.compile(r"hub:(?P<path>[^:@]+)(@(?P<revision>[^:]+))?(:(?P<name>[^:\[\]]+))?:(?P<split>\w[^:\[\]]*(\[.*\])?)")


@dataclass
class CheckedSplit:
    """One split as read: rows that passed every check."""

    rows: Dataset
    """Columns row, text, text_pair if there is one, and label: its name, or its index as a string."""
    labels: FileLabels
    text_hashes: NDArray[np.uint64]
    """64-bit hash [rows] of each normalised text (pair): finds texts in two splits in 8 bytes per row."""


def split_file(source: str, split: str) -> Path | None:
    """The file behind a split's config value; None for a hub data set."""
    if source.startswith("hub:"):
        return None
    return EMBEDDED / f"{split}.tsv" if source == "embedded" else Path(source)


def read_split(source: str, split: str, config: DataConfig, arrow_file: Path) -> CheckedSplit:
    """Reads and checks a split, and writes its rows to `arrow_file`, which stays memory-mapped.

    Raises:
        UserError: the source cannot be read, lacks a column, or has faulty rows (the first few are named).
    """
    where = str(split_file(source, split) or source)
    texts = _text_columns(config)
    table = check_source(source, split, config)
    checker = _Checker(where, texts, config.label, table.label_names)
    _write(
        arrow_file, checker.good_rows(tqdm(table.rows, f"reading {split}", unit=" rows", disable=None)), len(texts) == 2
    )
    checker.raise_faults()
    if not checker.row_count:
        raise UserError(f"{where}: no rows")
    hashes = np.frombuffer(checker.hashes, dtype=np.uint64)
    return CheckedSplit(Dataset.from_file(str(arrow_file)), checker.labels, hashes)


def check_source(source: str, split: str, config: DataConfig) -> Table:
    """The source, opened, of which the head alone has been read. UserError where it cannot be, or lacks a column."""
    table = _open(source, split, config)
    if table.columns is not None:
        wanted = {"text": config.text, "text_pair": config.text_pair, "label": config.label}
        _check_columns(str(split_file(source, split) or source), table.columns, wanted)
    return table


def texts_of_rows(source: str, split: str, config: DataConfig, numbers: set[int]) -> dict[int, list[str]]:
    """The text, or the two, of the rows with these numbers (from 1). Raises UserError where the source is gone."""
    columns = _text_columns(config)
    found: dict[int, list[str]] = {}
    for row in _open(source, split, config).rows:
        if row.number in numbers:
            found[row.number] = [str(row.values.get(column, "")) for column in columns]
            if len(found) == len(numbers):
                break
    return found


def overlap(first: CheckedSplit, second: CheckedSplit) -> list[int]:
    """Positions in `second.rows` of texts (pairs) also in `first`, compared by letters, digits and underscores only."""
    return np.flatnonzero(np.isin(second.text_hashes, first.text_hashes)).tolist()


class _RowError(Exception):
    """What is wrong with one row."""


class _Checker:
    """Passes good rows on and gathers the faults of the others."""

    def __init__(self, where: str, text_columns: list[str], label_column: str, own_names: list[str] | None) -> None:
        self.where, self.text_columns, self.label_column = where, text_columns, label_column
        self.labels = FileLabels(where, {}, own_names)
        self.hashes = array("Q")
        self.row_count = self.fault_count = 0
        self.faults: list[str] = []

    def good_rows(self, rows: Iterable[Row]) -> Iterator[tuple[Any, ...]]:
        """(row number, text, [text_pair], label as a string) of every row without a fault."""
        for row in rows:
            self.row_count += 1
            try:
                texts, label = self._checked(row)
            except _RowError as fault:
                self.fault_count += 1
                if self.fault_count <= SHOWN:
                    self.faults.append(f"{row.place}: {fault}")
                continue
            self._count(label, row.place)
            self.hashes.append(_text_hash(texts))
            yield row.number, *texts, label

    def raise_faults(self) -> None:
        if self.fault_count:
            shown = some(self.faults, self.fault_count)
            raise UserError(f"{self.where}: {self.fault_count} of {self.row_count} rows are faulty: {shown}")

    def _checked(self, row: Row) -> tuple[list[str], str]:
        if row.fault:
            raise _RowError(row.fault)
        texts = [_text(row.values, column) for column in self.text_columns]
        return texts, _label(row.values, self.label_column, self.labels.own_names)

    def _count(self, label: str, place: str) -> None:
        if len(label) > LONGEST_LABEL:
            raise UserError(
                f"{self.where}: {place}: the label in {self.label_column!r} has {len(label):,} characters, at most "
                f"{LONGEST_LABEL:,} are taken: set data.label to the column of the labels"
            )
        self.labels.seen.setdefault(label, LabelSeen()).add(place)
        if len(self.labels.seen) > MAX_LABELS:
            raise UserError(
                f"{self.where}: column {self.label_column!r} has more than {MAX_LABELS} different values; "
                "set data.label to the column of the labels"
            )


def hub_arguments(source: str) -> dict[str, str | None]:
    """`hub:NAME@REVISION:CONFIG:SPLIT` as arguments of `load_dataset`. Raises UserError for another form."""
    match = _HUB.fullmatch(source)
    if not match:
        raise UserError(f"{source!r} is not a hub data set: write hub:NAME:SPLIT or hub:NAME@REVISION:CONFIG:SPLIT")
    return match.groupdict()


def _text_columns(config: DataConfig) -> list[str]:
    return [config.text] + ([config.text_pair] if config.text_pair else [])


def _open(source: str, split: str, config: DataConfig) -> Table:
    file = split_file(source, split)
    if file is not None:
        return open_file(file, config.quoting, _text_columns(config), config.label)
    return _open_hub(source, [*_text_columns(config), config.label], config.label)


def _open_hub(source: str, wanted: list[str], label: str) -> Table:
    arguments = hub_arguments(source)
    try:
        dataset = load_dataset(**arguments)
        names = names_of_ids(dataset.features.arrow_schema, label)
        _check_names_of_parts(source, str(arguments["path"]), arguments["name"], label, names)
    # RuntimeError: a folder with a script
    except (OSError, ValueError, RuntimeError, DatasetsError, pa.ArrowException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source}: the data set cannot be loaded: {reason}") from error
    columns = dataset.column_names
    read = dataset.select_columns([name for name in dict.fromkeys(wanted) if name in columns])
    return Table(columns, arrow_rows(read.with_format("arrow").iter(ARROW_BATCH_ROWS)), names)


def _check_names_of_parts(source: str, folder: str, name: str | None, label: str, names: list[str] | None) -> None:
    """UserError where a Parquet file of a folder has other names of ids: `datasets` takes those of the first file."""
    if not Path(folder).is_dir():
        return
    files = load_dataset_builder(folder, name).config.data_files or {}
    for file in chain.from_iterable(files.values()):
        if file.endswith(".parquet") and names_of_ids(pq.read_schema(file), label) not in (names, None):
            raise UserError(
                f"{source}: {file} names the ids of {label!r} otherwise than the first file of the folder, whose names "
                "would be taken for all: give the file itself, in place of hub:"
            )


def _check_columns(where: str, columns: list[str], wanted: dict[str, str | None]) -> None:
    for key, name in wanted.items():
        if name is not None and name not in columns:
            known = ", ".join(repr(column) for column in columns)
            raise UserError(f"{where}: no column {name!r} (data.{key}){nearest(name, columns)}; columns: {known}")


def _text(values: dict[str, Any], column: str) -> str:
    if column not in values:
        raise _RowError(f"no field {column!r}")
    text = values[column]
    if not isinstance(text, str):
        raise _RowError(f"{column!r} is {'null' if text is None else type(text).__name__}, not a string")
    if not text.strip():
        raise _RowError(f"{column!r} is empty")
    return _whole(text, column)


def _label(values: dict[str, Any], column: str, own_names: list[str] | None) -> str:
    """A label's name, or its index as a string."""
    try:
        return _whole(value_name(values.get(column), own_names), column)
    except ValueError as error:
        raise _RowError(f"{error} in {column!r}") from None


def _whole(text: str, column: str) -> str:
    """`text`, unless it holds half of a surrogate pair, which JSON allows and UTF-8 does not."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _RowError(f"{column!r} holds half a character at position {error.start}") from None
    return text


def _text_hash(texts: list[str]) -> int:
    words = "\0".join(re.sub(r"\W+", "", text.lower()) or text for text in texts)
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")


def _write(arrow_file: Path, rows: Iterable[tuple[Any, ...]], has_pair: bool) -> None:
    texts = ["text", "text_pair"] if has_pair else ["text"]
    schema = pa.schema([("row", pa.int64()), *((name, pa.string()) for name in texts), ("label", pa.string())])
    with pa.OSFile(str(arrow_file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in _batched(rows):
            columns = [list(column) for column in zip(*batch, strict=True)]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _batched(rows: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    batch: list[tuple[Any, ...]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == ARROW_BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch
