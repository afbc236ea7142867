"""What must hold for every row of a source, labelled or not."""

import hashlib
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pipeline.core.bounds import LONGEST_LABEL
from pipeline.core.errors import UserError, nearest
from pipeline.data.doubts import Doubts
from pipeline.data.labels import FileLabels, value_name
from pipeline.data.rows import Occurrences, Row, Table

MAX_LABELS = 10_000
SEPARATOR = re.compile(r"[,;|\t]")
"""What may stand between the columns of a table, in some file or other."""
SKIPPED = "skipped.jsonl"
"""In data/: the rows that data.on_error=skip leaves out."""


def check_columns(where: str, columns: list[str], wanted: Mapping[str, str]) -> None:
    """UserError that names all columns that are not there. `wanted`: by column, which key or option names it."""
    missing = [name for name in wanted if name not in columns]
    if missing:
        faults = ", ".join(f"no column {name!r} ({wanted[name]}){nearest(name, columns)}" for name in missing)
        known = ", ".join(repr(column) for column in columns)
        joined = any(name in SEPARATOR.split(column) for name in missing for column in columns)
        hint = ": a csv has commas between its columns, a tsv has tabs" if joined else ""
        raise UserError(f"{where}: {faults}; columns: {known}{hint}")


def text_of(values: dict[str, Any], column: str) -> str:
    """A row's text. ValueError where there is none, it is empty or no text."""
    if column not in values:
        raise ValueError(f"no field {column!r}")
    text = values[column]
    if not isinstance(text, str):
        raise ValueError(f"{column!r} is {'null' if text is None else type(text).__name__}, not a string")
    if not text.strip():
        raise ValueError(f"{column!r} is empty")
    return _whole(text, column)


def _label_of(values: dict[str, Any], column: str, own_names: list[str] | None) -> str:
    """A label's name, or its index as a string."""
    try:
        name = value_name(values.get(column), own_names)
    except ValueError as error:
        raise ValueError(f"{error} in {column!r}") from None
    return _whole(name, column)


def _whole(text: str, column: str) -> str:
    """`text`, unless it holds half of a surrogate pair, which JSON allows and UTF-8 does not."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{column!r} holds half a character at position {error.start}") from None
    return text


def _text_hash(texts: list[str]) -> int:
    words = "\0".join(re.sub(r"\W+", "", text.lower()) or text for text in texts)
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")


class Checker:
    """Passes good rows on, and gathers the faults of the others, or leaves these out."""

    def __init__(
        self, where: str, texts: list[str], label: str | None, table: Table, skip: Callable[[Row, str], None] | None
    ) -> None:
        """`texts` and `label` are columns; None: there are no labels. `skip` is given each row that is left out, and
        why; None: faults stop."""
        self.where, self.text_columns, self.label_column, self.skip = where, texts, label, skip
        self.labels = FileLabels(where, {}, table.label_names)
        self.doubts = Doubts(table.plain_quotes)
        self.hashes = array("Q")
        self.row_count = 0
        self.faults = Occurrences()

    def good_rows(self, rows: Iterable[Row]) -> Iterator[tuple[Any, ...]]:
        """(row number, text, [text_pair], label as a string, empty if there are none) of every row without a fault."""
        for row in rows:
            self.row_count += 1
            try:
                texts, label = self._checked(row)
            except ValueError as fault:
                self._fault(row, str(fault))
                continue
            if self.label_column is not None:
                self._count(label, row.place)
            self.doubts.see(row.place, texts)
            self.hashes.append(_text_hash(texts))
            yield row.number, *texts, label

    def finish(self) -> None:
        """UserError where there are faults, or no good rows."""
        if self.faults.count and self.skip is None:
            raise UserError(f"{self._summary()}; mend them, or leave them out with data.on_error=skip")
        if self.faults.count == self.row_count:
            raise UserError(self._summary() if self.faults.count else f"{self.where}: no rows")

    def warnings(self) -> list[str]:
        """What was left out, and what is odd."""
        skipped = [f"{self._summary()}; they are left out, and listed in data/{SKIPPED}"] if self.faults.count else []
        return skipped + self.doubts.warnings(self.where)

    def _fault(self, row: Row, fault: str) -> None:
        self.faults.add(f"{row.place}: {fault}")
        if self.skip is None:
            return
        if row.ends:
            raise UserError(
                f"{self.where}: {row.place}: {fault}; what is behind it cannot be read, so it is not skipped"
            )
        self.skip(row, fault)

    def _summary(self) -> str:
        return f"{self.where}: {self.faults.count} of {self.row_count} rows are faulty: {self.faults.shown}"

    def _checked(self, row: Row) -> tuple[list[str], str]:
        if row.fault:
            raise ValueError(row.fault)
        texts = [text_of(row.values, column) for column in self.text_columns]
        if self.label_column is None:
            return texts, ""
        return texts, _label_of(row.values, self.label_column, self.labels.own_names)

    def _count(self, label: str, place: str) -> None:
        if len(label) > LONGEST_LABEL:
            raise UserError(
                f"{self.where}: {place}: the label in {self.label_column!r} has {len(label):,} characters, at most "
                f"{LONGEST_LABEL:,} are taken: set data.label to the column of the labels"
            )
        self.labels.seen.setdefault(label, Occurrences()).add(place)
        if len(self.labels.seen) > MAX_LABELS:
            raise UserError(
                f"{self.where}: column {self.label_column!r} has more than {MAX_LABELS} different values; "
                "set data.label to the column of the labels"
            )
