"""adapter_config.json: what is needed to use an adapter, and the versions of its format."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from pipeline.backbone.config import BackboneConfig
from pipeline.core.bounds import LARGEST_JSON, read_text
from pipeline.core.errors import UserError
from pipeline.core.settings import FOREIGN, Settings, flat
from pipeline.core.templates import TextTemplate, check_words
from pipeline.data.config import LabelsConfig
from pipeline.methods import AdapterMethodConfig, completed

FORMAT_VERSION = 2
"""Raised whenever a file means something else than before, however alike it looks.

1: had four meanings, one after the other. lt_prefix first stored the weight of its token scores as it is used, then
   times sqrt(H); later label tuning got a shortlist, and lost an optional bias. Key and tensor names tell these apart,
   but not the first from the second (`_converted`). An adapter of zero_shot, which stores nothing, is always scored
   as this version does it.
2: the last of these.
"""
LONGEST_TEXT = 1 << 24
"""Tokens; more than any backbone reads, and few enough for every tokenizer's counter."""


class TextSettings(Settings):
    """How texts were read in training."""

    text: str
    """Column of the text."""
    text_pair: str | None
    """Column of the second text."""
    max_length: int = Field(ge=2, le=LONGEST_TEXT)
    """Tokens kept of each text."""
    quoting: bool | None = None
    """Are fields of csv and tsv files quoted; null: csv yes, tsv no."""
    special_tokens: bool = True
    """Is a special token of the backbone in a text read as one; it was in adapters that do not say so."""
    template: TextTemplate | None = None
    """Words around the text."""
    chat: bool = False
    """Is it a user's message in the chat template of the backbone's tokenizer?"""

    @property
    def columns(self) -> list[str]:
        """Those of the text, or of the two of a pair."""
        return [self.text] + ([self.text_pair] if self.text_pair else [])

    @model_validator(mode="after")
    def _words_fit_the_columns(self) -> "TextSettings":
        check_words(self.template, self.chat, self.text_pair)
        return self


class AdapterConfig(Settings):
    """adapter_config.json: what is needed to use the adapter, and nothing of how it was trained."""

    version: int = Field(ge=FORMAT_VERSION, le=FORMAT_VERSION)
    """Of this file format."""
    backbone: BackboneConfig
    method: AdapterMethodConfig
    labels: LabelsConfig
    """Template that words labels which were not in training."""
    data: TextSettings

    def flat(self) -> dict[str, str]:
        """Everything scores depend on, by key. Which backbone it is, its fingerprint says instead, and how labels are
        worded, their hypotheses."""
        # Kernels round otherwise, no more; one that training had may be lacking where its adapter is evaluated.
        aside = {"name_or_path", "revision", "gradient_checkpointing", "attention"}
        # How special tokens are read matters where there are some; the data's fingerprint knows that.
        sections = self.model_dump(
            mode="json", exclude={"version": True, "backbone": aside, "labels": True, "data": {"special_tokens"}}
        )
        return {key: str(value) for key, value in flat(sections).items()}


def read_adapter_config(file: Path) -> AdapterConfig:
    """Reads the file. UserError where it is damaged, of another version, or asks for what no file may ask for."""
    try:
        values = json.loads(read_text(file, LARGEST_JSON))
        version = values.get("version") if isinstance(values, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise UserError(
                f"'{file}' has format version {version}, this program reads up to {FORMAT_VERSION}: update it"
            )
        given = _converted(values, file) if version == 1 else values
        if isinstance(given, dict):
            given = given | {"method": completed(given.get("method"))}
        return AdapterConfig.model_validate(given, context=FOREIGN)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        if key == "backbone.trust_remote_code":
            raise UserError(f"'{file}': {key}: {fault['msg'].removeprefix('Value error, ')}") from error
        raise UserError(f"'{file}' is damaged: {key}: {fault['msg']}; copy the adapter directory again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{file}' cannot be read ({error}); copy the adapter directory again") from error


def _converted(values: dict[str, Any], file: Path) -> dict[str, Any]:
    """Version 1 as version 2, where its meaning is certain."""
    method = dict(values["method"]) if isinstance(values.get("method"), dict) else {}
    if method.get("name") in ("lt_prefix", "lt_prompt"):
        stores_scores = method["name"] == "lt_prefix" and method.get("pooling") != "tokens"
        if method.pop("bias", False) or ("shortlist" not in method and stores_scores):
            raise UserError(f"'{file}' has an early form of format version 1, which has no equivalent: train again")
        method.setdefault("shortlist", None)
    return values | {"version": FORMAT_VERSION, "method": method}
