"""What is asked of a server and what it answers: the bodies of requests and responses, as JSON."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.data.config import OneOrSeveral
from pipeline.data.in_memory import Text
from pipeline.engine.loaded_adapter import LoadedAdapter, Prediction

ErrorType = Literal[
    "validation", "unauthorized", "unknown", "too_large", "too_slow", "overloaded", "unavailable", "backend"
]


class Message(BaseModel):
    """A body."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


Parts = Annotated[list[str], Field(min_length=1, max_length=2)]
Pair = Annotated[list[str], Field(min_length=2, max_length=2)]


class ClassifyRequest(Message):
    """Texts to classify."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"texts": ["The bank raised its rate."], "labels": ["business", "sport"]}]}
    )

    model: str | None = None
    """Name of the adapter; needed where several are served."""
    texts: str | list[str | Pair]
    """One text, or a list of texts, or of pairs of texts for an adapter that was trained on pairs."""
    labels: list[str] | dict[str, OneOrSeveral | None] | None = None
    """Other labels than those of training: names, or names with hypotheses (null: the template's); several of one label
    as a list, or as an object with their weights."""

    @property
    def listed(self) -> list[Text]:
        """The texts, pairs as tuples."""
        texts = [self.texts] if isinstance(self.texts, str) else self.texts
        return [text if isinstance(text, str) else (text[0], text[1]) for text in texts]

    @property
    def names(self) -> list[str] | None:
        return None if self.labels is None else list(self.labels)

    @property
    def hypotheses(self) -> dict[str, OneOrSeveral]:
        given = self.labels if isinstance(self.labels, dict) else {}
        return {name: text for name, text in given.items() if text is not None}


class Result(Message):
    """Of one text."""

    label: str
    """The best one."""
    scores: dict[str, float]
    """Larger is more likely, without a fixed scale."""
    probabilities: dict[str, float]
    truncated: bool
    """The text was longer than the adapter reads; its end was not read."""

    @classmethod
    def of(cls, found: Prediction) -> "Result":
        return cls(label=found.label, scores=found.scores, probabilities=found.probabilities, truncated=found.truncated)


class Usage(Message):
    """What the answer took."""

    texts: int
    tokens: int
    """Of the texts, as far as they were read."""


class ClassifyResponse(Message):
    """In the order of the texts."""

    model: str
    results: list[Result]
    usage: Usage


class PredictRequest(Message):
    """The request of Text Embeddings Inference."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [{"inputs": "The bank raised its rate."}]})

    inputs: str | Parts | Annotated[list[Parts], Field(min_length=1)]
    """A text; a pair [text, text]; or a batch [[text], [text, text], ...]."""
    truncate: bool = False
    """Read the beginning of a text that is too long; else it is refused."""
    raw_scores: bool = False
    """Scores instead of probabilities."""
    model: str | None = None
    """Name of the adapter; needed where several are served. Not in the original."""

    @property
    def is_batch(self) -> bool:
        return isinstance(self.inputs, list) and bool(self.inputs) and isinstance(self.inputs[0], list)

    @property
    def listed(self) -> list[Text]:
        """The texts, pairs as tuples."""
        given = self.inputs
        rows = [[given]] if isinstance(given, str) else given
        parts = [row for row in rows if isinstance(row, list)] or [[part for part in rows if isinstance(part, str)]]
        return [row[0] if len(row) == 1 else (row[0], row[1]) for row in parts]


class LabelScore(Message):
    """A label of a text."""

    score: float
    label: str

    @classmethod
    def best_first(cls, found: Prediction, raw: bool) -> list["LabelScore"]:
        values = found.scores if raw else found.probabilities
        order = sorted(values.items(), key=lambda pair: -pair[1])
        return [cls(score=value, label=label) for label, value in order]


class AdapterInfo(Message):
    """An adapter that is served."""

    name: str
    method: str
    labels: list[str]
    open_labels: bool
    """Takes other labels than those."""
    pairs: bool
    """Classifies pairs of texts."""
    max_length: int
    """Tokens of a text that are read."""

    @classmethod
    def of(cls, name: str, loaded: LoadedAdapter) -> "AdapterInfo":
        config = loaded.adapter.config
        return cls(
            name=name,
            method=config.method.name,
            labels=loaded.labels,
            open_labels=config.method.open_labels,
            pairs=config.data.text_pair is not None,
            max_length=config.data.max_length,
        )


class AdapterList(Message):
    """All of them."""

    adapters: list[AdapterInfo]


class PutAdapter(Message):
    """Where an adapter is."""

    path: str
    """An adapter directory, or a run directory, on the server's machine."""


class Health(Message):
    """Of the server."""

    status: Literal["ok", "ending", "failed"]


class Failure(Message):
    """Why a request was not answered."""

    error: str
    """One line."""
    error_type: ErrorType
