"""The base of every config class: typed, frozen, unknown keys refused, documented by field docstrings."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A group of config keys. The string under each field is its help text."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, protected_namespaces=()
    )
