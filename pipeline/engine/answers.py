"""What is written for each text: a JSON object, or a row of a Parquet file."""

import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.escapes import visible
from pipeline.core.templates import TEXTS
from pipeline.data.rows import Row
from pipeline.engine.loaded_adapter import Prediction

FIELDS = ("text", "text_pair", "truncated", "label", "scores", "probabilities", "line", "row", "error")
"""Of an answer."""
OF_LABELS = ("score/", "probability/")
"""What the names of columns with a label's numbers start with."""


@dataclass(frozen=True)
class Answer:
    """To one row of the input: a prediction, or what is wrong with it."""

    row: Row
    kept: Mapping[str, Any]
    """Columns of the input."""
    texts: Sequence[str] = ()
    """The text, or the two of a pair."""
    prediction: Prediction | None = None
    fault: str | None = None

    def record(self) -> dict[str, Any]:
        """Kept columns, text, [text_pair], [truncated], label, scores, probabilities; of a faulty row line (or row)
        and error."""
        if self.prediction is None:
            place = {"row": self.row.number} if self.row.line is None else {"line": self.row.line}
            return {**(self.kept if self.row.values else {}), **place, "error": self.fault}
        return {
            **self.kept,
            **dict(zip(TEXTS, self.texts, strict=False)),
            **({"truncated": True} if self.prediction.truncated else {}),
            "label": self.prediction.label,
            "scores": _rounded(self.prediction.scores),
            "probabilities": _rounded(self.prediction.probabilities),
        }

    def line(self) -> str:
        """The record as a line of JSON."""
        text = visible(_json(self.record())) + "\n"
        return _utf8(text)  # half a character, which JSON may have, as it writes it


@dataclass(frozen=True)
class AnswerTable:
    """How answers become Parquet files that all have one schema."""

    labels: Sequence[str]
    text_count: int
    """2 for pairs"""
    kept: Mapping[str, pa.DataType | None]
    """Columns of the input; of those whose source has no types, text stays as it is, and all else is JSON."""

    @property
    def schema(self) -> pa.Schema:
        """row (of the input, from 1), kept columns, text, [text_pair], truncated, label, score/LABEL,
        probability/LABEL, error."""
        return pa.schema(
            [("row", pa.int64())]
            + [(name, kind or pa.string()) for name, kind in self.kept.items()]
            + [(name, pa.string()) for name in TEXTS[: self.text_count]]
            + [("truncated", pa.bool_()), ("label", pa.string())]
            + [(f"score/{name}", pa.float32()) for name in self.labels]
            + [(f"probability/{name}", pa.float64()) for name in self.labels]
            + [("error", pa.string())]
        )

    def write(self, answers: Sequence[Answer], file: Path) -> None:
        """Writes a Parquet file with all digits of the scores."""
        found = [answer.prediction for answer in answers]
        columns: list[list[Any]] = [[answer.row.number for answer in answers]]
        columns += [[_kept(answer.kept.get(name), kind) for answer in answers] for name, kind in self.kept.items()]
        columns += [[_text(answer.texts, place) for answer in answers] for place in range(self.text_count)]
        columns += [[each and each.truncated for each in found], [each and each.label for each in found]]
        columns += [[each and each.scores[name] for each in found] for name in self.labels]
        columns += [[each and each.probabilities[name] for each in found] for name in self.labels]
        columns += [[answer.fault for answer in answers]]
        schema = self.schema
        arrays = [pa.array(values, kind) for values, kind in zip(columns, schema.types, strict=True)]
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file)


def kept_types(names: Sequence[str], schema: pa.Schema | None) -> dict[str, pa.DataType | None]:
    """The types of these columns in a source's schema, as far as there is one."""
    found = {} if schema is None else {name: schema.field(name).type for name in names}
    return {name: _plain_type(found[name]) if name in found else None for name in names}


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _kept(value: Any, kind: pa.DataType | None) -> Any:
    if kind is not None or value is None:
        return value
    if isinstance(value, str):
        return _utf8(value)
    return _utf8(_json(value))


def _text(texts: Sequence[str], place: int) -> str | None:
    return _utf8(texts[place]) if texts else None


def _utf8(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _rounded(values: dict[str, float]) -> dict[str, float]:
    """Six significant digits: what float32 arithmetic is good for."""
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def _json(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, default=_without_json)


def _without_json(value: Any) -> str:
    """What stands for a value that JSON has no form for: base64 for bytes, the words for a date or a decimal."""
    return b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    """The same without NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return list(map(_plain, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
