"""The base of every config class: typed, frozen, unknown keys refused, documented by field docstrings."""

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict

T = TypeVar("T")


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
