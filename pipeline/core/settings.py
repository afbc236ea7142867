"""The base of every config class: typed, frozen, unknown keys refused, documented by field docstrings."""

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

from pipeline.core.paths import expanded

T = TypeVar("T")
FOREIGN = "foreign"
"""Validation context of values that somebody else wrote: what they name is not looked up in this user's environment."""


class Settings(BaseModel):
    """A group of config keys. The string under each field is its help text. No number is infinite or NaN."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


def distinct(values: list[T]) -> list[T]:
    """The same list. Raises ValueError where a value stands in it twice."""
    repeated = [value for place, value in enumerate(values) if value in values[:place]]
    if repeated:
        raise ValueError(f"{repeated[0]!r} is given twice")
    return values


Distinct = Annotated[list[T], AfterValidator(distinct)]
"""A list whose values differ."""


def _path(value: str, info: ValidationInfo) -> str:
    return value if info.context == FOREIGN else expanded(value)


PathSetting = Annotated[str, AfterValidator(_path)]
"""A path, or a source that may be one: `~` and environment variables in it are replaced."""
