"""The run config: nests the parts' own config classes. Defaults, then the YAML file, then `key=value`; last wins."""

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError

from pipeline.backbone.config import BackboneConfig
from pipeline.data.config import DataConfig, LabelsConfig
from pipeline.engine.config import EngineConfig, LoggingConfig, TrainConfig
from pipeline.errors import UserError
from pipeline.evaluation_config import EvaluateConfig
from pipeline.methods import METHOD_NAMES, AnyMethodConfig
from pipeline.rundir import RunDir
from pipeline.settings import Settings


class RunSettings(Settings):
    """The run itself."""

    dir: str
    """Run directory: everything this run reads and writes."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of every random choice: initial weights, order of the texts, wrong labels."""


class RunConfig(Settings):
    """Everything one run is told."""

    run: RunSettings
    backbone: BackboneConfig
    data: DataConfig
    labels: LabelsConfig = LabelsConfig()
    method: AnyMethodConfig
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    engine: EngineConfig = EngineConfig()
    logging: LoggingConfig = LoggingConfig()

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.run.dir)

    def to_yaml(self) -> str:
        """The resolved config, every key written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(file: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML file and applies `key=value` overrides. Raises UserError that names every fault at once."""
    values = _read_yaml(Path(file))
    for override in overrides:
        _apply(values, override)
    return parse_config(values, source=str(file))


def parse_config(values: dict[str, Any], source: str = "config") -> RunConfig:
    """Checks a nested dict. Raises UserError that names every fault at once."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_describe(dict(fault)) for fault in error.errors())
        raise UserError(f"{source}: {faults}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config file '{path}' cannot be read: {reason}") from error
    if not isinstance(values, dict):
        raise UserError(f"config file '{path}' holds no 'section: {{key: value}}' mapping")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    """Sets `a.b=value` in a nested dict; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is no override: write section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"the value of '{key}' is no YAML: {text}") from error
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[last] = value


def _describe(fault: dict[str, Any]) -> str:
    """One fault found by pydantic, in the words of the config file."""
    location = [str(part) for part in fault["loc"]]
    # A tagged union adds its tag (method.lt_prefix.rank), which the user never wrote.
    if location[0] == "method" and len(location) > 1 and fault["loc"][1] in METHOD_NAMES:
        del location[1]
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest(key)}"
    if fault["type"] == "missing":
        return f"'{key}' is missing"
    message = fault["msg"].removeprefix("Value error, ")
    given = "" if isinstance(fault["input"], dict) else f" (got {fault['input']!r})"
    return f"'{key}': {message[0].lower()}{message[1:]}{given}"


def _nearest(key: str) -> str:
    known = list(dict.fromkeys(name for name, _, _ in config_keys()))
    matches = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not matches:
        section = key.split(".")[0]
        inside = [name.split(".", 1)[1] for name in known if name.startswith(f"{section}.")]
        return f" (keys of {section}: {', '.join(inside)})" if inside else ""
    return f": did you mean '{matches[0]}'?"


def config_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every key with its default and help text: (`section.key`, default, help)."""
    for name, field in model.model_fields.items():
        nested = [part for part in _classes(field.annotation) if issubclass(part, BaseModel)]
        for part in nested:
            yield from config_keys(part, f"{prefix}{name}.")
        if not nested:
            default = field.get_default(call_default_factory=True)
            shown = "required" if field.is_required() else json.dumps(default)
            yield f"{prefix}{name}", shown, " ".join((field.description or "").split())


def _classes(annotation: Any) -> Iterator[type]:
    """The classes inside a type annotation, through unions and Annotated."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        for part in get_args(annotation):
            yield from _classes(part)
    elif isinstance(annotation, type) and get_origin(annotation) is None:
        yield annotation
