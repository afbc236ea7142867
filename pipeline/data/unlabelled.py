"""Texts to classify: which input they come from, and which of its columns go along."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.core.errors import UserError
from pipeline.core.output import STANDARD
from pipeline.data.checks import SEPARATOR, check_columns
from pipeline.data.columnar import refuse_stream
from pipeline.data.hub import hub_arguments, open_hub
from pipeline.data.readers import FORMATS, Format, open_table
from pipeline.data.rows import Row, Table
from pipeline.data.streams import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Input:
    """What `predict` reads: whatever training reads, or lines of text; a file may be plain, gzip or a stream."""

    place: str
    """A path, "-" for standard input, or hub:NAME:SPLIT."""
    format: Format | None = None
    """None: by the file's ending; standard input is txt."""
    keep: Sequence[str] = ()
    """Columns to put beside the answers."""
    on_error: Literal["stop", "skip"] = "stop"
    """At a faulty row: stop, or answer with what is wrong with it and go on."""

    def check(self, taken: Sequence[str]) -> None:
        """UserError for an input that cannot be opened or has an unknown format, and for columns that cannot be kept.

        Cheap, and a pipe is not opened: that can be done once. `taken`: names that an answer has already.
        """
        source = Source(self.place)
        format = self.resolved_format()
        if self.is_hub:
            hub_arguments(self.place)
        elif self.place == STANDARD:
            if sys.stdin is None:
                raise UserError("standard input is closed: give a file as input")
        elif not os.access(self.place, os.R_OK) or Path(self.place).is_dir():
            why = "it is a folder" if Path(self.place).is_dir() else "no such file, or no right to read it"
            raise UserError(f"input '{self.place}' cannot be read ({why})")
        if format == "parquet" and not self.is_hub:
            refuse_stream(source)
        if self.keep and format == "txt":
            raise UserError("--keep: lines of text have no columns; give the input's --format if it has some")
        for name in self.keep:
            if name in taken:
                raise UserError(f"--keep {name}: the output has a field of that name: rename the input's column")

    def check_rereadable(self) -> None:
        """UserError for what can be read only once, and by one process."""
        if not self.is_hub and (self.place == STANDARD or not Path(self.place).is_file()):
            raise UserError(f"{Source(self.place).name}: --parts reads its input again to go on: give a file")

    @property
    def is_hub(self) -> bool:
        return self.place.startswith("hub:")

    def resolved_format(self) -> Format:
        """UserError for a file whose ending says nothing. A data set of the hub has what Parquet has."""
        if self.is_hub:
            return "parquet"
        if self.format is not None:
            return self.format
        if self.place == STANDARD:
            return "txt"
        try:
            return FORMATS[Source(self.place).suffix]
        except KeyError:
            known = ", ".join(dict.fromkeys(FORMATS.values()))
            raise UserError(f"input '{self.place}': unknown ending; give the --format: {known}") from None

    def table(self, texts: Sequence[str], quoting: bool | None, before_wait: Callable[[], None]) -> Table:
        """Opens the input; its rows hold the columns of the texts and those to keep. `before_wait`: see `Source`."""
        source = Source(self.place, before_wait)
        if self.is_hub:
            table = open_hub(self.place, [*texts, *self.keep], quoting)
        else:
            table = open_table(source, self.resolved_format(), quoting, texts, others=self.keep)
        if table.columns is not None:
            wanted = dict.fromkeys(self.keep, "--keep") | dict.fromkeys(texts, "the adapter's data.text")
            # Of a stream no more can be waited for than the first object, which need not have all keys.
            is_first_alone = self.resolved_format() in ("json", "jsonl") and not source.is_file
            where = f"{source.name}, by its first object" if is_first_alone else source.name
            check_columns(where, table.columns, wanted)
        if self.format is None and self.resolved_format() == "txt":
            return replace(table, rows=_doubted(table.rows, texts[0], source.name))
        return table

    def kept(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The columns to keep of a row."""
        return {name: values.get(name) for name in self.keep}


def _doubted(lines: Iterator[Row], column: str, name: str) -> Iterator[Row]:
    """The same lines of text; a warning where the first one looks like the header of a table."""
    for line in lines:
        text = str(line.values.get(column))
        fields = [field.strip().strip('"') for field in SEPARATOR.split(text)]
        if line.number == 1 and len(fields) > 1 and column in fields:
            log.warning("%s is read as a text per line, but starts like a table: give its --format if it is one", name)
        yield line
