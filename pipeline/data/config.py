"""Config keys of the data and of the labels' hypotheses."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from pipeline.core.bounds import LONGEST_TEMPLATE, MOST_HYPOTHESES, MOST_PROCESSES, MOST_ROWS, MOST_TOKENS
from pipeline.core.settings import Distinct, PathSetting, Settings
from pipeline.core.templates import TextTemplate, check_words, checked, filled
from pipeline.data.labels import label_name
from pipeline.data.public_sets import PUBLIC_SETS

SPLITS = ("train", "validation", "test")
UNLABELLED = "unlabelled"
"""What a fourth set of texts is called wherever splits are: it has no labels."""


def public_folder() -> str:
    """Where `fetch-data` puts public sets, and `data.public` finds them."""
    return os.environ.get("LTUNE_DATA", "public_data")


class DataConfig(Settings):
    """Where the labelled texts come from, and how they are read.

    A split is a file (.csv, .tsv, .json, .jsonl, .parquet), ``hub:NAME[@REVISION][:CONFIG]:SPLIT`` (a data set that
    ``datasets`` can load), or ``embedded`` (the small set that ships with this package). `~` and environment variables
    in it are replaced, as in every path of a config.
    """

    public: str | None = None
    """Name of a set fetched by `ltune fetch-data` (sst2, banking77, ...): gives data.train, validation and test, from
    $LTUNE_DATA or public_data. To leave a split out, set it to null."""
    train: PathSetting
    """Training texts: a file, hub:NAME[@REVISION][:CONFIG]:SPLIT, or embedded."""
    validation: PathSetting | None = None
    """Validation texts, for choosing settings, the best checkpoint and early stopping."""
    test: PathSetting | None = None
    """Test texts, for the final metrics only."""
    unlabelled: PathSetting | None = None
    """Texts without labels, for train.self_training: a source like the others, whose label column, if any, is not read.
    Texts that are among the training texts too are left out."""
    split: float | list[float] | None = None
    """Share of the training texts that becomes the validation split, or shares for validation and test, such as
    [0.1, 0.1] (0: none). The same for every seed; each label keeps its share, and equal texts stay together."""
    text: str = "text"
    """Column of the text."""
    text_pair: str | None = None
    """Column of the second text, for tasks on pairs of texts."""
    label: str = "label"
    """Column of the labels. It holds names, ids that the file itself names (ClassLabel), or indices into
    labels.names."""
    quoting: bool | None = None
    """Are fields of csv and tsv files quoted with "? null: csv yes, tsv no (there, " is an ordinary character)."""
    on_error: Literal["stop", "skip"] = "stop"
    """At rows without a text or label, or that cannot be read: stop and name them; or skip: leave them out, count
    them, and list them in data/skipped.jsonl."""
    max_length: int = Field(default=256, ge=2, le=MOST_TOKENS)
    """Tokens kept of each text (pair), special tokens and the words around it included; cuts are counted and
    reported."""
    special_tokens: bool = False
    """true: strings such as </s> or [SEP] in a text become special tokens; false: they are read as plain text."""
    template: TextTemplate | None = None
    """Words around the text, such as "Review: {text}\\nSentiment:"; with data.text_pair {text_pair} too, and both are
    read as one text. Special tokens among the words are tokens. null: the text as it is."""
    chat: bool = False
    """Whether to put the text (in its template) into the chat template of the tokenizer, as a user's message."""
    train_limit: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Train on this many rows only, drawn by run.seed with each label's share kept; null: all rows."""
    train_per_label: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Train on this many rows of every label (of a rarer one on all), drawn by run.seed; null: all rows."""
    validation_limit: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Validate on this many rows only, the same for every seed, with each label's share kept; null: all rows."""
    test_limit: int | None = Field(default=None, ge=1, le=MOST_ROWS)
    """Test on this many rows only, the same for every seed, with each label's share kept; null: all rows."""
    workers: int | None = Field(default=None, ge=1, le=MOST_PROCESSES)
    """Processes that tokenize a large split; null: one per core."""

    @property
    def is_drawn(self) -> bool:
        """Does run.seed choose the training texts?"""
        return self.train_limit is not None or self.train_per_label is not None

    @property
    def shares(self) -> dict[str, float]:
        """Split -> its share of the training texts, for those that data.split makes."""
        values = self.split if isinstance(self.split, list) else [self.split or 0]
        return {name: share for name, share in zip(("validation", "test"), values, strict=False) if share}

    @property
    def splits(self) -> list[str]:
        """All that there are, from sources of their own or cut from the training texts."""
        return [name for name in SPLITS if name in self.shares or getattr(self, name) is not None]

    def origin(self, split: str) -> str:
        """The split whose source has the rows of this one."""
        return "train" if split in self.shares else split

    @model_validator(mode="before")
    @classmethod
    def _name_the_files_of_a_public_set(cls, values: Any) -> Any:
        name = values.get("public") if isinstance(values, dict) else None
        if name is None:
            return values
        if not isinstance(name, str) or name not in PUBLIC_SETS:
            raise ValueError(f"there is no public set {name!r}: take one of {', '.join(PUBLIC_SETS)}")
        if given := [split for split in SPLITS if values.get(split) is not None]:
            named = f"data.public names the files of all splits, and data.{given[0]} is given too"
            raise ValueError(f"{named}: set one of them to null")
        files = {split: str(Path(public_folder(), name, f"{split}.tsv")) for split in SPLITS if split not in values}
        pairs = {"text_pair": "text_pair"} if PUBLIC_SETS[name].has_pairs else {}
        return {**files, **pairs, **values, "public": None}  # what is kept names the files themselves

    @field_validator("split", mode="wrap")
    @classmethod
    def _are_shares(cls, given: Any, read: ValidatorFunctionWrapHandler) -> float | list[float] | None:
        with suppress(ValidationError):  # which would name both types, by keys that nobody wrote
            split: float | list[float] | None = read(given)
            values = split if isinstance(split, list) else [0.5 if split is None else split]
            if len(values) <= 2 and 0 < sum(values) < 1 and all(share >= 0 for share in values):
                return split
        raise ValueError("must be a share such as 0.1, or two such as [0.1, 0.1], of less than 1 in all")

    @model_validator(mode="after")
    def _split_makes_what_is_not_given(self) -> "DataConfig":
        if given := [name for name in self.shares if getattr(self, name) is not None]:
            raise ValueError(
                f"data.split cuts the {given[0]} texts from data.train, but data.{given[0]} is given too: "
                f"set data.{given[0]}=null, or take its share out of data.split"
            )
        return self

    @model_validator(mode="after")
    def _words_fit_the_columns(self) -> "DataConfig":
        check_words(self.template, self.chat, self.text_pair)
        return self

    @model_validator(mode="after")
    def _columns_differ(self) -> "DataConfig":
        """A text that is its own label is learnt without a mistake."""
        columns = {"text": self.text, "text_pair": self.text_pair, "label": self.label}
        for first, second in combinations(columns, 2):
            if columns[first] == columns[second]:
                raise ValueError(f"data.{first} and data.{second} are the same column, {columns[first]!r}: name two")
        return self

    @model_validator(mode="after")
    def _limits_do_not_meet(self) -> "DataConfig":
        if self.train_limit is not None and self.train_per_label is not None:
            raise ValueError("data.train_limit and data.train_per_label exclude each other: give one of them")
        return self


def weighted(wordings: str | list[str] | dict[str, float]) -> dict[str, float]:
    """Each of one or several wordings, and its weight."""
    if isinstance(wordings, str):
        return {wordings: 1.0}
    return wordings if isinstance(wordings, dict) else dict.fromkeys(wordings, 1.0)


def _one_or_several(given: Any, read: ValidatorFunctionWrapHandler) -> Any:
    with suppress(ValidationError):  # which would name all three types
        found = read(given)
        if 0 < len(weighted(found)) <= MOST_HYPOTHESES:
            return found
    raise ValueError(
        f"must be a string; or, where a label has several hypotheses, a list of 1 to {MOST_HYPOTHESES} different ones, "
        "or a mapping from each to its weight, a number above 0"
    )


Weight = Annotated[float, Field(gt=0, le=1e6)]
OneOrSeveral = Annotated[str | Distinct[str] | dict[str, Weight], WrapValidator(_one_or_several)]
"""Hypotheses: one, a list of several, or several with their weights."""


class LabelsConfig(Settings):
    """Which labels there are, and the hypothesis of each."""

    template: OneOrSeveral = "This text is about {label}."
    """Hypothesis of a label; {label} is replaced by the label's name. Several: a list, or a mapping to their weights. A
    label's score is then the weighted mean of theirs."""
    texts: dict[str, OneOrSeveral] = Field(default={})
    """Hypotheses of single labels, by name, where the template does not read well; several as for the template."""
    names: list[str] | None = None
    """Label names in index order; null: as the training file numbers them (ClassLabel), else all it has, sorted."""

    @property
    def most_hypotheses(self) -> int:
        """Of one label."""
        return max(len(weighted(wordings)) for wordings in (self.template, *self.texts.values()))

    def hypotheses(self, name: str) -> dict[str, float]:
        """Each template with this label's name in the place of each {label}, and its weight; {{ and }} are braces."""
        return {filled(template, {"label": name}): weight for template, weight in weighted(self.template).items()}

    @field_validator("template")
    @classmethod
    def _have_one_field(cls, template: OneOrSeveral) -> OneOrSeveral:
        for one in weighted(template):
            if len(one) > LONGEST_TEMPLATE:
                raise ValueError(f"a template has at most {LONGEST_TEMPLATE} characters, this one {len(one)}")
            checked(one, ("label",))
        return template

    @field_validator("texts")
    @classmethod
    def _are_not_blank(cls, texts: dict[str, OneOrSeveral]) -> dict[str, OneOrSeveral]:
        check_texts(texts)
        return texts

    @field_validator("names")
    @classmethod
    def _are_distinct(cls, names: list[str] | None) -> list[str] | None:
        if names is None:
            return None
        if len(names) < 2:
            raise ValueError(f"a classifier needs at least two labels, got {names}")
        if any(not label_name(name) for name in names):
            raise ValueError("a label name is empty")
        _refuse_repeated(names)
        return names


def check_texts(texts: Mapping[str, OneOrSeveral]) -> None:
    """ValueError for a label whose hypothesis is blank, and for one that is named twice, in two spellings."""
    blank = [name for name, wordings in texts.items() if not all(text.strip() for text in weighted(wordings))]
    if blank:
        raise ValueError(f"the text of {blank[0]!r} is empty")
    _refuse_repeated(texts)


def _refuse_repeated(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in map(label_name, names):
        if name in seen:
            raise ValueError(f"{name!r} is named twice")
        seen.add(name)
