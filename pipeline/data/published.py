"""From published files to the three tables of a data set, with no text in two of them."""

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from pipeline.core.errors import UserError
from pipeline.data.public_sets import Form, PublicSet
from pipeline.data.shares import parts_of_rows

Row = tuple[str, ...]
"""text, text_pair if there is one, label"""
LONGEST = 2000
"""Characters of a news text that are kept, to the last blank before."""
TOPICS = ("World", "Sports", "Business", "Sci/Tech")


def read_published(content: bytes, form: Form, name: str) -> list[Row]:
    """The rows of a published file. UserError where it is not what is expected: `name` says which it is."""
    try:
        text = content.decode("utf-8")
        rows = [tuple(" ".join(part.split()) for part in row) for row in _READERS[form](text)]
    except (UnicodeDecodeError, csv.Error, ValueError, LookupError) as error:
        raise UserError(f"{name} is not the published file ({error}): remove it, and fetch it again") from error
    if not rows or not all(all(row) for row in rows):
        raise UserError(f"{name} is not the published file (a row lacks something): remove it, and fetch it again")
    return rows


def split_rows(given: PublicSet, files: Sequence[list[Row]]) -> dict[str, list[Row]]:
    """Split -> its rows. A text of two splits stays in test, else in validation; one that is there twice stays once.

    Test files are never thinned. Equal: by letters, digits and underscores alone.
    """
    found: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for source, rows in zip(given.files, files, strict=True):
        found[source.split] += rows
    seen = set(map(_form, found["test"]))
    if given.cut:
        rest = _unseen(found["train"], seen)
        found["train"], found["validation"] = _cut(rest, given)
    else:
        found["validation"] = _unseen(found["validation"], seen)
        found["train"] = _unseen(found["train"], seen)
    return found


def _unseen(rows: list[Row], seen: set[str]) -> list[Row]:
    kept = []
    for row in rows:
        if (form := _form(row)) not in seen:
            seen.add(form)
            kept.append(row)
    return kept


def _form(row: Row) -> str:
    return re.sub(r"\W", "", " ".join(row[:-1]).lower())


def _cut(rows: list[Row], given: PublicSet) -> tuple[list[Row], list[Row]]:
    """Each label keeps its share; rows with one first text (a premise) stay together."""
    _, labels = np.unique([row[-1] for row in rows], return_inverse=True)
    texts = np.array([int(hashlib.sha256(row[0].encode()).hexdigest()[:16], 16) for row in rows], dtype=np.uint64)
    parts = parts_of_rows(labels, texts, [given.cut / len(rows)])
    return tuple([row for row, part in zip(rows, parts, strict=True) if part == wanted] for wanted in (0, 1))  # type: ignore[return-value]


def _plain(text: str) -> Iterator[list[str]]:
    """Fields between tabs; a quote is a character."""
    return (line.split("\t") for line in text.splitlines() if line.strip())


def _headed(text: str, delimiter: str = ",") -> Iterator[dict[str, str]]:
    return iter(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))


def _sst2(text: str) -> Iterator[Row]:
    for sentence, label in _plain(text):
        yield sentence, {"0": "negative", "1": "positive"}[label]


def _cola(text: str) -> Iterator[Row]:
    for _, label, _, sentence in _plain(text):
        yield sentence, {"0": "unacceptable", "1": "acceptable"}[label]


def _rte(text: str) -> Iterator[Row]:
    lines = _plain(text)
    if next(lines, None) != ["index", "sentence1", "sentence2", "label"]:
        raise ValueError("its header is another")
    for _, first, second, label in lines:
        yield first, second, {"entailment": "entailment", "not_entailment": "not entailment"}[label]


def _agnews(text: str) -> Iterator[Row]:
    for topic, title, description in csv.reader(io.StringIO(text, newline="")):
        yield f"{title} {description}".replace("\\", " "), TOPICS[int(topic) - 1]


def _agnews_sample(text: str) -> Iterator[Row]:
    for row in _headed(text):
        yield row["text"].replace("\\", " "), TOPICS[int(row["label"])]


def _banking77(text: str) -> Iterator[Row]:
    for row in _headed(text):
        yield row["text"], row["category"].replace("_", " ").replace("?", "")


def _masakhanews(text: str) -> Iterator[Row]:
    for row in _headed(text, "\t"):
        whole = " ".join(f"{row['headline']} {row['text']}".split())
        yield (whole if len(whole) <= LONGEST else whole[:LONGEST].rpartition(" ")[0]), row["category"]


_READERS: dict[Form, Callable[[str], Iterator[Row]]] = {
    "sst2": _sst2,
    "cola": _cola,
    "rte": _rte,
    "agnews": _agnews,
    "agnews_sample": _agnews_sample,
    "banking77": _banking77,
    "masakhanews": _masakhanews,
}
