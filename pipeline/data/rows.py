"""What readers give: a table's columns and its rows one by one, with a row's fault in place of its values."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.core.bounds import MOST_COLUMNS
from pipeline.core.errors import SHOWN, UserError, some


class Row(NamedTuple):
    """One data row: its values by column name, or what is wrong with it."""

    number: int
    """1 for the first data row; a header does not count."""
    line: int | None
    """1 for the first line of the file; None for formats without lines."""
    values: dict[str, Any]
    fault: str | None = None
    ends: bool = False
    """Nothing behind this fault can be read, so that it is more than one row that is lost."""
    blank_lines: int = 0
    """Before it, which are no rows: who counts lines counts them too."""

    @property
    def place(self) -> str:
        return f"row {self.number}" if self.line is None else f"row {self.number} (line {self.line})"


@dataclass
class Occurrences:
    """How often something occurs in a source, and where first."""

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        self.count += 1
        if self.count <= SHOWN:
            self.places.append(place)

    @property
    def shown(self) -> str:
        """The first places, and how many more there are."""
        return some(self.places, self.count)


@dataclass
class Table:
    """An opened source."""

    columns: list[str] | None
    """Column names; None if no row near the start of a JSON file could be read."""
    rows: Iterator[Row]
    label_names: list[str] | None = None
    """`label_name` of each id, where the source itself gives names (ClassLabel)."""
    plain_quotes: bool = False
    """A format that may quote its fields, whose quotes are read as they stand."""
    schema: pa.Schema | None = None
    """Types of the columns, where the source has them."""


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
