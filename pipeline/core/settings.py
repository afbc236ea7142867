"""The base of every config class: typed, frozen, unknown keys refused, documented by field docstrings."""

from collections.abc import Hashable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

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

    @model_validator(mode="before")
    @classmethod
    def _switches_are_no_numbers(cls, values: Any) -> Any:
        """Pydantic takes `true` for the number 1, in a list too. No key has a list of switches."""
        for name, value in values.items() if isinstance(values, Mapping) else ():
            field = cls.model_fields.get(name)
            given = value if isinstance(value, list) else [value]
            if field and any(isinstance(one, bool) for one in given) and bool not in classes_in(field.annotation):
                raise ValueError(f"{name} cannot be true or false")
        return values

    @field_validator("*", mode="after")
    @classmethod
    def _has_no_null(cls, value: Any) -> Any:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("a null character cannot stand in it")
        return value


def classes_in(annotation: Any) -> Iterator[type]:
    """The classes inside a type annotation, through unions and Annotated."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from classes_in(part)
    elif isinstance(annotation, type) and get_origin(annotation) is None:
        yield annotation


def defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Key -> default, of the keys that have one, which may follow from those of the keys before."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if not field.is_required():
            found[name] = field.get_default(call_default_factory=True, validated_data=found)
    return found


def flat(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`section.key` -> value."""
    return {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}


def distinct(values: list[T]) -> list[T]:
    """The same list. Raises ValueError where a value stands in it twice."""
    seen: set[Any] = set()
    for value in values:
        key = value if isinstance(value, Hashable) else repr(value)
        if key in seen:
            raise ValueError(f"{value!r} is given twice")
        seen.add(key)
    return values


Distinct = Annotated[list[T], AfterValidator(distinct)]
"""A list whose values differ."""


def _path(value: str, info: ValidationInfo) -> str:
    return value if info.context == FOREIGN else expanded(value)


PathSetting = Annotated[str, Field(min_length=1), AfterValidator(_path)]
"""A path, or a source that may be one: `~` and environment variables in it are replaced."""
