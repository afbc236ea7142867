"""Labels for unlabelled texts, from a file or standard input to JSON lines, in constant memory."""

import csv
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.adapter.directory import adapter_folder
from pipeline.classifier import LTuningClassifier, Prediction
from pipeline.core.errors import UserError
from pipeline.core.escapes import visible
from pipeline.core.output import check_output, opened_output
from pipeline.data.prediction_input import STANDARD_INPUT, Format, TextRow, check_input, read_texts

log = logging.getLogger(__name__)

CHUNK_TEXTS = 256
"""Texts read, scored and written at a time."""


def predict(
    adapter: str | Path,
    input: str,
    output: str = "-",
    *,
    labels: Sequence[str] | None = None,
    format: Format | None = None,
    device: str | None = None,
    backbone: str | None = None,
    calibrated: bool = False,
    trust_remote_code: bool = False,
) -> int:
    """Writes a JSON object per text: text, [text_pair], [truncated], label, scores, probabilities; returns how many.

    `adapter` is an adapter directory or a run directory. `input` is a file (see `read_texts`) or "-" for standard
    input; `output` a file, which appears only when all is done, or "-" for standard output, which gets each part as it
    is ready, as do devices and pipes. `labels`: score these (see `split_labels`) by their wording, in place of those of
    training. `backbone`: where it is, if moved. `calibrated`: probabilities with the temperature fitted on the
    validation split. `trust_remote_code`: run the Python code that ships with the backbone.
    Raises UserError naming the line of a text that cannot be read, for labels that can be read in two ways, and where
    `output` is something that is read.
    """
    check_input(input, format)
    check_output(output, [input, adapter_folder(adapter)])
    classifier = LTuningClassifier.from_pretrained(
        adapter, device, backbone=backbone, calibrated=calibrated, trust_remote_code=trust_remote_code
    )
    check_output(output, [backbone or classifier.adapter.config.backbone.location])
    if labels:
        classifier = classifier.with_labels(split_labels(labels, classifier.labels))
        log.info("predict: among %s", ", ".join(map(repr, classifier.labels)))
    data = classifier.adapter.config.data
    rows = read_texts(input, data.text, data.text_pair, format, quoted=data.quoting)
    # Someone who types wants the answer to each line.
    chunk = 1 if input == STANDARD_INPUT and sys.stdin.isatty() else CHUNK_TEXTS
    count = 0
    with opened_output(output) as write:
        for part in _chunks(rows, chunk):
            records = map(_record, part, _classify(classifier, part))
            write("".join(visible(json.dumps(record, ensure_ascii=False)) + "\n" for record in records))
            count += len(part)
    return count


def split_labels(values: Sequence[str], trained: Sequence[str]) -> list[str]:
    """The labels that the values list, each one or several between commas; quotes protect a comma, as in a CSV file.

    A value that is a label of training is never split. Raises UserError where one may be meant within a value.
    """
    names = []
    for value in values:
        parts = [value.strip()] if value.strip() in trained else _fields(value)
        for label in trained:
            if "," in label and label in value and label not in parts:
                raise UserError(
                    f"--labels {value!r}: is the label {label!r} meant, or its parts? Put each label in quotes, as in "
                    f'\'"{label}","..."\', or give each a --labels of its own'
                )
        names += parts
    return names


def _fields(value: str) -> list[str]:
    try:
        (fields,) = csv.reader([value], skipinitialspace=True, strict=True)
    except csv.Error as error:
        raise UserError(
            f"--labels {value!r}: {error}; a label with a comma stands in quotes: '\"A, or B\",C'"
        ) from error
    return [field.strip() for field in fields]


def _classify(classifier: LTuningClassifier, part: list[TextRow]) -> list[Prediction]:
    try:
        return classifier.predict([row.inputs for row in part])
    except UserError as error:
        raise UserError(f"lines {part[0].line} to {part[-1].line}: {error}") from error


def _record(row: TextRow, prediction: Prediction) -> dict[str, Any]:
    pair = {} if row.text_pair is None else {"text_pair": row.text_pair}
    return {
        "text": row.text,
        **pair,
        **({"truncated": True} if prediction.truncated else {}),
        "label": prediction.label,
        "scores": _rounded(prediction.scores),
        "probabilities": _rounded(prediction.probabilities),
    }


def _rounded(values: dict[str, float]) -> dict[str, float]:
    """Six significant digits: what float32 arithmetic is good for."""
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def _chunks(rows: Iterable[TextRow], size: int) -> Iterator[list[TextRow]]:
    remaining = iter(rows)
    while part := list(islice(remaining, size)):
        yield part
