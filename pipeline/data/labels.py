"""Label identity: which label a value in a file means. Label names are compared here and nowhere else.

The rule: a value is a name, and an id is first turned into the name that its own file (a ClassLabel) gives it. Two
names are the same label if `label_name` makes them equal. A number is an index only where its file gives no names at
all, and `labels.names` or the training file says what the indices stand for. Everything else is refused, with its rows.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from pipeline.core.errors import UserError, nearest, some
from pipeline.data.rows import Occurrences

NAMES_KEY = "labels.names"

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")
_WHOLE_NUMBER = re.compile(r"-?0\.0+|(-?[1-9][0-9]*)\.0+")
"""What a column of floats leaves in a csv file where the labels were integers."""
_INVISIBLE = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
"""Break opportunities, direction marks and byte-order marks. Joiners (U+200C, U+200D) are kept: they change letters."""


@dataclass
class FileLabels:
    """The labels of one file."""

    source: str
    seen: dict[str, Occurrences]
    """By `value_name`."""
    own_names: list[str] | None = None
    """`label_name` of each id, where the file itself gives names (ClassLabel)."""

    @property
    def gives_names(self) -> bool:
        """A ClassLabel without names (`num_classes`) numbers its ids: that says no more than the ids."""
        return self.own_names is not None and self.own_names != list(map(str, range(len(self.own_names))))


@dataclass(frozen=True)
class Labels:
    """The labels of a classifier."""

    names: list[str]
    """In index order."""
    lists: dict[str, list[str]]
    """What a number may stand for: names by index, by the place where they are listed."""
    trained_on_ids: bool
    """The training file holds ids, so that numbers in another file may be ids too."""

    @property
    def are_numbers(self) -> bool:
        return any(_INTEGER.fullmatch(name) for name in self.names)


@lru_cache(maxsize=4096)
def label_name(text: str) -> str:
    """The form in which label names are compared and kept; empty for a blank name.

    Runs of white space (any of Unicode's) become one space, characters that are never seen are taken out, and the rest
    is NFC: the same characters, composed. Not NFKC, which would also make one of "m²" and "m2". `1.0` is `1`.
    """
    name = unicodedata.normalize("NFC", " ".join(_INVISIBLE.sub("", text).split()))
    number = _WHOLE_NUMBER.fullmatch(name)
    return (number[1] or "0") if number else name


def value_name(value: Any, own_names: Sequence[str] | None) -> str:
    """The name of one row's label. `own_names`: of the ids of its file, as in FileLabels.

    Integers and whole numbers (float, decimal) become digits, booleans True and False.

    Raises:
        ValueError: there is no label, or it is of a kind that cannot be one.
    """
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        value = int(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError("no label")
    if not isinstance(value, str | int):
        raise ValueError(f"the label {value!r} is neither a string nor an integer")
    if own_names is None or isinstance(value, str | bool):
        name = label_name(str(value))
    else:
        name = _name_of_id(value, own_names)
    if not name:
        raise ValueError("no label")
    return name


def known_labels(train: FileLabels, configured: Sequence[str] | None) -> Labels:
    """The labels in index order: `labels.names`, else as the training file numbers them, else its labels, sorted.

    Raises:
        UserError: the training rows have one label only.
    """
    if len(train.seen) < 2:
        raise UserError(
            f"all training texts have the label {next(iter(train.seen))!r}: a classifier needs at least two"
        )
    lists = {NAMES_KEY: list(map(label_name, configured))} if configured else {}
    if train.own_names is not None and train.gives_names:
        lists["the training file's own names"] = train.own_names
    names = lists.get(NAMES_KEY) or _distinct(train.own_names or ()) or _sorted(train.seen)
    return Labels(names, lists, train.own_names is not None)


def label_indices(split: str, file: FileLabels, labels: Labels) -> dict[str, int]:
    """The index of every label that a file has.

    Raises:
        UserError: labels that are not known, numbers that could be more than one label, or a ClassLabel that names what
            `labels.names` lacks.
    """
    if NAMES_KEY in labels.lists and file.gives_names:
        _refuse_unlisted(file, labels.names)
    index = {name: position for position, name in enumerate(labels.names)}
    unknown = [name for name in file.seen if name not in index]
    as_indices = _readings(file, labels)
    if unknown and (not as_indices or labels.are_numbers):
        problem = f"{split} has labels that are neither in training nor listed in {NAMES_KEY}"
        rows, hint = _rows(file, unknown, labels.names), _not_indices(file, labels, unknown)
        raise UserError(f"{file.source}: {problem}: {rows}; known are {_shown(labels.names)}{hint}")
    readings = as_indices if unknown else {"the names themselves": {name: name for name in file.seen}}
    if labels.trained_on_ids:
        readings |= as_indices
    reading, *others = readings.values()
    if any(other != reading for other in others):
        ways = " and another by ".join(readings)
        rows = _rows(file, list(file.seen), ())
        raise UserError(f"{file.source}: {split} has labels that mean one thing by {ways}: {rows}; write them as names")
    return {name: index[meant] for name, meant in reading.items()}


def doubt(split: str, file: FileLabels, labels: Labels) -> str | None:
    """A warning where `label_indices` reads numbers that someone may have meant otherwise."""
    for place, reading in _readings(file, labels).items():
        if all(name in labels.names for name in reading):
            if any(name != meant for name, meant in reading.items()):
                return f"the numbers in {split} are taken as the names in {NAMES_KEY}, not as indices into it"
        elif "0" not in reading:
            return f"{split} has no label 0: its numbers are taken as indices into {place}, which count from 0"
    return None


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ by letter case or by the style of their characters alone (NFKC)."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFKC", name).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _distinct(names: Iterable[str]) -> list[str]:
    """Each name once, in order; ids with a blank name have no label."""
    return [name for name in dict.fromkeys(names) if name]


def _name_of_id(value: Any, own_names: Sequence[str]) -> str:
    if value == -1:
        raise ValueError("no label (-1)")
    if not 0 <= value < len(own_names):
        raise ValueError(f"the label {value} is not one of the {len(own_names)} ids that the file names")
    return own_names[value]


def _sorted(names: Iterable[str]) -> list[str]:
    """Numbers by size, where all are numbers."""
    return sorted(names, key=int if all(_INTEGER.fullmatch(name) for name in names) else None)


def _readings(file: FileLabels, labels: Labels) -> dict[str, dict[str, str]]:
    """By each list of names, what the labels of a file mean as indices; only lists in which all of them are."""
    readings = {}
    for place, listed in labels.lists.items():
        by_number = {str(number): name for number, name in enumerate(listed) if name in labels.names}
        if not file.gives_names and all(name in by_number for name in file.seen):
            readings[place] = {name: by_number[name] for name in file.seen}
    return readings


def _refuse_unlisted(file: FileLabels, names: Sequence[str]) -> None:
    missing = [f"{name!r}{nearest(name, names)}" for name in _distinct(file.own_names or ()) if name not in names]
    if missing:
        raise UserError(
            f"{file.source}: its own label names (ClassLabel) are not all in {NAMES_KEY}: {some(missing)}; add them "
            f"there (labels.texts words a label otherwise); {NAMES_KEY} has {_shown(names)}"
        )


def _rows(file: FileLabels, names: Sequence[str], known: Sequence[str]) -> str:
    """Where labels occur, for a message."""
    return some(
        [
            f"{name!r}{nearest(name, known)} in {file.seen[name].count} rows, first {file.seen[name].places[0]}"
            for name in names
        ]
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")


def _not_indices(file: FileLabels, labels: Labels, unknown: Sequence[str]) -> str:
    """Why numbers among unknown labels were not taken as indices."""
    if file.gives_names or not any(_INTEGER.fullmatch(name) for name in unknown):
        return ""
    if not labels.lists:
        return f"; a number is an index only into {NAMES_KEY}, or where the training file names its ids (ClassLabel)"
    if labels.are_numbers:
        return "; a number is not an index where the names are numbers"
    if all(_INTEGER.fullmatch(name) for name in file.seen):
        return f"; indices go from 0 to {len(labels.names) - 1}"
    return "; a number is an index only where all labels of its file are"
