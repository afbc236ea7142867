"""Texts and labels as Python hands them over: lists, arrays and columns."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.core.errors import UserError, some
from pipeline.core.templates import TEXTS
from pipeline.data.columnar import names_of_ids
from pipeline.data.labels import label_name

Text = str | tuple[str, str]
"""One text, or a pair of them."""


def text_columns(texts: Text | Iterable[Text], *, pairs: bool) -> list[list[str]]:
    """The texts by column: one, or two for pairs; none where there is no text. UserError as `predict` says."""
    if pairs and isinstance(texts, tuple) and [isinstance(part, str) for part in texts] == [True, True]:
        texts = [(texts[0], texts[1])]
    wanted = 2 if pairs else 1
    rows = []
    for number, text in enumerate(listed(texts, "text"), start=1):
        parts = text if isinstance(text, list | tuple | np.ndarray) else [text]
        if len(parts) != wanted:
            raise UserError(f"text {number} has {len(parts)} part(s), those of training have {wanted}")
        rows.append([_string(part, f"text {number}") for part in parts])
        if not all(part.strip() for part in rows[-1]):
            raise UserError(f"text {number} is empty")
    return [list(column) for column in zip(*rows, strict=True)]


def strings(values: str | Iterable[str], what: str) -> list[str]:
    """The strings, of which one alone is one. UserError, with its position, for what is not a string."""
    return [_string(value, f"{what} {number}") for number, value in enumerate(listed(values, what), start=1)]


def listed(values: Any, what: str) -> list[Any]:
    """What is in a list, array or column, in its order; a string alone is one thing, not its letters.

    UserError for tables and mappings, of which one would get the names, for sets, which have no order, and for arrays
    without a dimension.
    """
    if isinstance(values, str):
        return [values]
    ordered = isinstance(values, Iterable) and not isinstance(values, Mapping | Set | bytes | bytearray)
    if not ordered or hasattr(values, "columns") or getattr(values, "ndim", 1) == 0:
        raise UserError(f"expected a list of {what}s, got {type(values).__name__}")
    return list(values)


def _string(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{place} is not a string, but of type {type(value).__name__}: {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place} is not Unicode text ({error.reason}): {value!a:.60}") from error
    return str(value)


def are_pairs(texts: Text | Iterable[Text]) -> bool:
    """Is the first of them a pair? UserError for what is not a list of texts."""
    first = listed(texts, "text")[:1]
    return bool(first) and isinstance(first[0], list | tuple | np.ndarray) and len(first[0]) == 2


@dataclass(frozen=True)
class Labelled:
    """Texts with their labels."""

    columns: list[list[str]]
    """The texts by column: one, or two for pairs."""
    labels: NDArray[Any]
    """[rows], as they were given"""

    def indices(self, classes: NDArray[Any]) -> NDArray[np.int64]:
        """[rows] index of each label in `classes`, which are sorted. UserError for a label that is not there."""
        strange = ~np.isin(self.labels, classes)
        if strange.any():
            names = sorted(map(repr, set(self.labels[strange].tolist())))
            raise UserError(f"validation texts have labels that no training text has: {some(names)}")
        return np.searchsorted(classes, self.labels)

    def table(self, classes: NDArray[Any]) -> pa.Table:
        """What a split's Parquet file can be: columns text, text_pair if there is one, and label."""
        from datasets import ClassLabel, Dataset, Features, Value  # slow to import, and `predict` needs none of it

        texts = dict(zip(TEXTS, self.columns, strict=False))
        label = ClassLabel(names=list(map(str, classes.tolist())))
        features = Features({**{name: Value("string") for name in texts}, "label": label})
        # With the labels' names in its schema, where the reader looks for them.
        return Dataset.from_dict({**texts, "label": self.indices(classes)}, features).data.table


def labelled(texts: Iterable[Text], labels: Iterable[Any], *, pairs: bool) -> Labelled:
    """Checks texts and labels. UserError as `text_columns` and `label_array`, and for another number of labels."""
    found = Labelled(text_columns(texts, pairs=pairs), label_array(labels))
    rows = len(found.columns[0]) if found.columns else 0
    if rows != len(found.labels):
        raise UserError(f"there are {rows} texts and {len(found.labels)} labels: give one label for each text")
    return found


def label_array(labels: Iterable[Any]) -> NDArray[Any]:
    """Strings, whole numbers or truth values [rows]. UserError, with its number, for any other label."""
    values = listed(labels, "label")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str | bool | int | np.bool_ | np.integer):
            raise UserError(f"label {number} is not a string or a whole number, but of type {type(value).__name__}")
    kinds = list(dict.fromkeys(map(_kind_of_label, values)))
    if len(kinds) > 1:  # an array would make one kind of them, and of True and 1 one label
        raise UserError(f"some labels are {kinds[0]} and some are {kinds[1]}: give one kind")
    array = np.array(values)
    # Whole numbers that no integer type holds together become floats, in which two of them may be one.
    return np.array(values, dtype=object) if array.dtype.kind == "f" and values else array


def _kind_of_label(value: Any) -> str:
    if isinstance(value, str):
        return "strings"
    return "truth values" if isinstance(value, bool | np.bool_) else "numbers"


def classes_of(labels: NDArray[Any]) -> NDArray[Any]:
    """The distinct labels, sorted. UserError for a blank one, and for two that a file's reader would take for one."""
    classes, by_name = np.unique(labels), dict[str, Any]()
    for label in classes.tolist():
        name = label_name(str(label))
        if not name:
            raise UserError(f"y has a blank label, {label!r}: leave its texts out")
        if name in by_name:
            raise UserError(f"the labels {by_name[name]!r} and {label!r} of y read alike: write them in one way")
        by_name[name] = label
    return classes


def write_table(file: Path, table: pa.Table) -> None:
    """Makes this table a Parquet file, and the file's folder where there is none."""
    file.parent.mkdir(exist_ok=True)
    pq.write_table(table, file)


def holds(file: Path, table: pa.Table) -> bool:
    """Is this table in this Parquet file, with the same names of labels?"""
    if not file.is_file():
        return False
    found = pq.read_table(file)
    names = [names_of_ids(each.schema, "label") for each in (found, table)]  # the columns hold their ids
    return bool(found.equals(table)) and names[0] == names[1]
