"""Tuning methods by name. A new method is one file, pipeline/methods/NAME.py, and its name in the list here."""

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from pipeline.methods.base import MethodConfig, TuningMethod
from pipeline.methods.label_injections import LabelPrefixesConfig, LabelPromptsConfig

METHOD_NAMES = (
    "lt_prefix",
    "lt_prompt",
    "prefix",
    "prompt",
    "p_tuning",
    "decomposed",
    "generated",
    "edit",
    "lora",
    "full",
    "probe",
    "zero_shot",
    "majority",
)


def _config_class(name: str) -> type[MethodConfig]:
    """The class in the method's file whose `name` is the method's."""
    module = import_module(f"pipeline.methods.{name}")
    [found] = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, MethodConfig)
        and "name" in value.model_fields
        and value.model_fields["name"].default == name
    ]
    return found


METHOD_CONFIGS = tuple(map(_config_class, METHOD_NAMES))
EXPORTED_CONFIGS = (LabelPromptsConfig, LabelPrefixesConfig)
"""What an adapter may be, but a run may not: it is exported, never trained."""
BASELINES = {name for name, config in zip(METHOD_NAMES, METHOD_CONFIGS, strict=True) if config.is_baseline}
"""Names of the methods that others are compared with."""

if TYPE_CHECKING:
    AnyMethodConfig = MethodConfig
    AdapterMethodConfig = MethodConfig
else:
    AdapterMethodConfig = Annotated[Union[METHOD_CONFIGS + EXPORTED_CONFIGS], Field(discriminator="name")]  # noqa: UP007
    AnyMethodConfig = Annotated[Union[METHOD_CONFIGS], Field(discriminator="name")]  # noqa: UP007  # built from a list


def completed(section: Any) -> Any:
    """A method's section as a run or an adapter keeps it, with the keys that the method did not have then."""
    if not isinstance(section, dict):
        return section
    came_later = dict(zip(METHOD_NAMES, (kind.came_later for kind in METHOD_CONFIGS), strict=True))
    return {**came_later.get(str(section.get("name")), {}), **section}


__all__ = [
    "BASELINES",
    "METHOD_CONFIGS",
    "METHOD_NAMES",
    "AdapterMethodConfig",
    "AnyMethodConfig",
    "MethodConfig",
    "TuningMethod",
    "completed",
]
