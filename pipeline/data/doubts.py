"""Rows that pass every check, and that someone may have meant otherwise all the same: counted, and the first named."""

import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import SHOWN, some
from pipeline.data.rows import Occurrences

if TYPE_CHECKING:
    from datasets import Dataset  # slow to import, and `predict` needs none of it

_UNSEEN = frozenset("\u115f\u1160\u2800\u3164\uffa0")
"""Letters and symbols by name, which are blank: Hangul fillers, the empty Braille pattern."""


@dataclass
class Doubts:
    """What is odd in the rows of one source."""

    fields_in_quotes: bool
    """The format might quote its fields, but its quotes are read as they stand."""
    invisible: Occurrences = field(default_factory=Occurrences)
    quoted: Occurrences = field(default_factory=Occurrences)

    def see(self, place: str, fields: list[str]) -> None:
        """Looks at a row's texts."""
        if any(map(is_invisible, fields)):
            self.invisible.add(place)
        if self.fields_in_quotes and any(len(text) > 1 and text[0] == text[-1] == '"' for text in fields):
            self.quoted.add(place)

    def warnings(self, where: str) -> list[str]:
        """What there is to say of them."""
        found = []
        if self.invisible.count:
            found.append(f"{_counted(self.invisible)} of {where} have texts without a visible character")
        if self.quoted.count:
            found.append(
                f"{_counted(self.quoted)} of {where} have fields that look quoted, whose quotes are taken as part of "
                "the text: set data.quoting=true if they are not"
            )
        return found


def is_invisible(text: str) -> bool:
    """Is nothing to be seen of it: zero-width characters, direction marks, control characters, spaces?"""
    return all(char in _UNSEEN or unicodedata.category(char)[0] in "CZ" for char in text)


def contradictions(rows: "Dataset", text_hashes: NDArray[np.uint64], where: str) -> list[str]:
    """A warning where texts that are the same, letter case and punctuation aside, have different labels.

    Args:
        rows: columns row and label.
        text_hashes: of each row's text (pair) [rows].
    """
    labels = label_codes(rows)
    order = np.lexsort((labels, text_hashes))
    same = text_hashes[order][1:] == text_hashes[order][:-1]
    differ = np.flatnonzero(same & (labels[order][1:] != labels[order][:-1]))
    if not len(differ):
        return []
    pairs = [sorted(rows[int(order[place + step])]["row"] for step in (0, 1)) for place in differ[:SHOWN]]
    count = len(np.unique(text_hashes[order][differ]))
    shown = some([f"rows {first} and {second}" for first, second in pairs], count)
    return [f"{count} texts of {where} are there more than once, with different labels: {shown}"]


def label_codes(rows: "Dataset") -> NDArray[np.int64]:
    """A number [rows] for each row's label, in the order of the labels' names."""
    encoded = rows.data.column("label").dictionary_encode().unify_dictionaries()
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in encoded.chunks])
    return np.argsort(np.argsort(np.array(encoded.chunk(0).dictionary.to_pylist(), dtype=object)))[codes]


def _counted(seen: Occurrences) -> str:
    return f"{seen.count} row(s) ({seen.shown})"
