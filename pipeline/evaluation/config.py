"""Config keys of the evaluate stage."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from pipeline.core.bounds import MOST_REWORDINGS, MOST_TEXTS, MOST_TOKENS_OF_PASS
from pipeline.core.settings import Distinct, Settings
from pipeline.core.templates import LabelTemplate

SplitName = Literal["train", "validation", "test"]


def _rewording(given: Any, read: ValidatorFunctionWrapHandler) -> Any:
    try:
        return read(given)
    except ValidationError:  # which would name both types, by keys that nobody wrote
        raise ValueError(
            "must be a template with {label}, or a mapping from labels to their hypotheses (see labels.template)"
        ) from None


Rewording = Annotated[
    LabelTemplate | Annotated[dict[str, str], Field(min_length=1)],
    WrapValidator(_rewording),
]


class EvaluateConfig(Settings):
    """What is evaluated, and how much at a time."""

    splits: Distinct[SplitName] = Field(default=["validation", "test"], min_length=1)
    """Splits to score, of train, validation and test; a split that the data lacks is left out."""
    batch_size: int = Field(default=64, ge=1, le=MOST_TEXTS)
    """(text, label) pairs per forward pass and rank."""
    tokens_per_batch: int | None = Field(default=None, ge=1, le=MOST_TOKENS_OF_PASS)
    """Instead: most tokens per forward pass and rank, padding counted, a text once for each label it is read with."""

    rewordings: Distinct[Rewording] = Field(default=[], max_length=MOST_REWORDINGS)
    """Other hypotheses to score the trained labels with: a template for all labels, or label -> text for some. Metrics
    then also have the mean, worst and spread over them. Hypotheses of training are refused; do not take any either by
    which the training's were chosen."""
