"""Reads one split, checks every row, and keeps it as a memory-mapped Arrow table: it may be larger than memory."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
from datasets import Dataset
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.core.errors import UserError
from pipeline.core.progress import is_hidden
from pipeline.core.templates import TEXTS
from pipeline.data.checks import SKIPPED, Checker, check_columns
from pipeline.data.columnar import ARROW_BATCH_ROWS
from pipeline.data.config import UNLABELLED, DataConfig
from pipeline.data.doubts import contradictions
from pipeline.data.hub import open_hub
from pipeline.data.labels import FileLabels
from pipeline.data.public_sets import PUBLIC_SETS
from pipeline.data.readers import open_file
from pipeline.data.rows import Row, Table

EMBEDDED = Path(__file__).parent / "embedded"


@dataclass
class CheckedSplit:
    """One split as read: rows that passed every check."""

    rows: Dataset
    """Columns row, text, text_pair if there is one, and label: its name, or its index as a string; empty of texts
    without labels."""
    labels: FileLabels
    text_hashes: NDArray[np.uint64]
    """64-bit hash [rows] of each normalized text (pair): finds texts in two splits in 8 bytes per row."""
    skipped: int = 0
    """Rows left out (data.on_error=skip)."""
    warnings: list[str] = field(default_factory=list)
    """What is odd in the rows."""


def split_file(source: str, split: str) -> Path | None:
    """The file behind a split's config value; None for a hub data set."""
    if source.startswith("hub:"):
        return None
    return EMBEDDED / f"{split}.tsv" if source == "embedded" else Path(source)


def fetch_hint(file: Path | None) -> str:
    """What to do where a file of a public set is not there."""
    if file is None or file.parent.name not in PUBLIC_SETS or file.exists():
        return ""
    return (
        f": run `ltune fetch-data {file.parent.name}` first, or name the folder of all sets in the variable LTUNE_DATA"
    )


def read_split(source: str, split: str, config: DataConfig, arrow_file: Path) -> CheckedSplit:
    """Reads and checks a split, and writes its rows to `arrow_file`, which stays memory-mapped.

    With data.on_error=skip, rows that are left out are added to the file SKIPPED beside it.

    Raises:
        UserError: the source cannot be read, lacks a column, or has faulty rows (the first few are named).
    """
    where = str(split_file(source, split) or source)
    texts = _text_columns(config)
    table = check_source(source, split, config)
    with open(arrow_file.parent / SKIPPED, "a", encoding="utf-8") as log:
        skip = partial(_skip, log, split) if config.on_error == "skip" else None
        checker = Checker(where, texts, _label_column(split, config), table, skip)
        shown = tqdm(table.rows, f"reading {split}", unit=" rows", disable=is_hidden())
        _write(arrow_file, checker.good_rows(shown), len(texts) == 2)
    checker.finish()
    rows, hashes = Dataset.from_file(str(arrow_file)), np.frombuffer(checker.hashes, dtype=np.uint64)
    warnings = [*checker.warnings(), *contradictions(rows, hashes, where)]
    return CheckedSplit(rows, checker.labels, hashes, checker.faults.count, warnings)


def _skip(log: TextIO, split: str, row: Row, fault: str) -> None:
    record = {"split": split, "row": row.number, "line": row.line, "reason": fault}
    log.write(json.dumps(record, ensure_ascii=False) + "\n")


def check_source(source: str, split: str, config: DataConfig) -> Table:
    """The source, opened, of which the head alone has been read. UserError where it cannot be, or lacks a column."""
    file = split_file(source, split)
    if hint := fetch_hint(file):
        raise UserError(f"data.{split}: {file} does not exist{hint}")
    table = _open(source, split, config)
    if table.columns is not None:
        read = TEXTS if split == UNLABELLED else (*TEXTS, "label")
        keys = {getattr(config, key): f"data.{key}" for key in read}
        where = str(split_file(source, split) or source)
        check_columns(where, table.columns, {name: key for name, key in keys.items() if name is not None})
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


def _text_columns(config: DataConfig) -> list[str]:
    return [config.text] + ([config.text_pair] if config.text_pair else [])


def _label_column(split: str, config: DataConfig) -> str | None:
    return None if split == UNLABELLED else config.label


def _open(source: str, split: str, config: DataConfig) -> Table:
    file, texts, label = split_file(source, split), _text_columns(config), _label_column(split, config)
    if file is not None:
        return open_file(file, config.quoting, texts, label)
    return open_hub(source, texts if label is None else [*texts, label], config.quoting, label)


def _write(arrow_file: Path, rows: Iterable[tuple[Any, ...]], has_pair: bool) -> None:
    texts = TEXTS if has_pair else TEXTS[:1]
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
