"""Config keys of the evaluate stage."""

from typing import Literal

from pydantic import Field

from pipeline.core.bounds import MOST_TEXTS, MOST_TOKENS_OF_PASS
from pipeline.core.settings import Distinct, Settings

Split = Literal["train", "validation", "test"]


class EvaluateConfig(Settings):
    """What is evaluated, and how much at a time."""

    splits: Distinct[Split] = Field(default=["validation", "test"], min_length=1)
    """Splits to score; those the data does not have are left out."""
    batch_size: int = Field(default=64, ge=1, le=MOST_TEXTS)
    """(text, label) pairs per forward pass and rank."""
    tokens_per_batch: int | None = Field(default=None, ge=1, le=MOST_TOKENS_OF_PASS)
    """Instead: most tokens per forward pass and rank, padding counted, a text once for each label it is read with."""
