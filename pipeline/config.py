"""The run config: nests the parts' own config classes. Defaults, then the YAML file, then `key=value`; last wins."""

import difflib
import json
import os
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, model_validator

from pipeline.adapter.config import FORMAT_VERSION, AdapterConfig, TextSettings
from pipeline.backbone.config import BackboneConfig
from pipeline.core.config_file import apply_override, read_yaml
from pipeline.core.errors import UserError, about
from pipeline.core.ownership import run_of_config
from pipeline.core.run_dir import RunDir
from pipeline.core.settings import PathSetting, Settings, classes_in, defaults, flat
from pipeline.core.yaml import dump_yaml
from pipeline.data.config import DataConfig, LabelsConfig
from pipeline.engine.config import EngineConfig, LoggingConfig
from pipeline.evaluation.config import EvaluateConfig
from pipeline.methods import METHOD_NAMES, AnyMethodConfig, completed
from pipeline.training.config import TrainConfig

Seed = Annotated[int, Field(ge=0, lt=2**31)]
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
"""Of what may be nested without end: a few YAML anchors make a list of a billion."""


class RunSettings(Settings):
    """The run itself."""

    dir: PathSetting
    """Run directory: everything this run reads and writes. Its own config.yaml leaves it out."""
    seed: Seed = 0
    """Seed of every random choice: initial weights, order of the texts, wrong labels."""


class RunConfig(Settings):
    """The complete configuration of a run."""

    run: RunSettings
    backbone: BackboneConfig
    data: DataConfig
    labels: LabelsConfig = LabelsConfig()
    method: AnyMethodConfig
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    engine: EngineConfig = EngineConfig()
    logging: LoggingConfig = LoggingConfig()

    @model_validator(mode="after")
    def _weights_can_be_trained(self) -> "RunConfig":
        if self.method.trains_backbone and self.backbone.quantization != "none":
            name = self.method.name
            raise ValueError(
                f"method {name} trains the backbone's own weights, which 8-bit ones cannot be: "
                "set backbone.quantization=none, or take method lora"
            )
        return self

    @model_validator(mode="after")
    def _starts_where_steps_are_taken(self) -> "RunConfig":
        if self.train.start_from is not None and not self.method.takes_steps:
            raise ValueError(f"train.start_from has no meaning for method {self.method.name}, which takes no steps")
        return self

    @model_validator(mode="after")
    def _starts_from_what_stays(self) -> "RunConfig":
        if self.train.start_from is None:
            return self
        start, run = Path(self.train.start_from).resolve(), self.run_dir
        replaced = {path.resolve() for path in (run.path, run.adapter, run.adapter_final)}
        # A new adapter would take the place of the one that training is said to have started from.
        if start in replaced or start.is_relative_to(run.sessions.resolve()):
            raise ValueError(
                f"train.start_from={self.train.start_from} is of this run itself, whose adapter training replaces: "
                "choose another run.dir"
            )
        return self

    @model_validator(mode="after")
    def _is_fitted_where_no_step_is_taken(self) -> "RunConfig":
        if self.train.max_steps == 0 and self.method.takes_steps and not self.method.wants_states:
            raise ValueError(
                f"train.max_steps=0 would leave method {self.method.name} as it is drawn: set method.head=fitted, "
                "which begins with a fit, or a number of steps"
            )
        return self

    @model_validator(mode="after")
    def _stops_early_by_something(self) -> "RunConfig":
        if self.train.early_stopping_patience is not None and "validation" not in self.data.splits:
            raise ValueError(
                "train.early_stopping_patience needs validation texts: set data.validation, or data.split to take a "
                "share of the training texts"
            )
        return self

    @model_validator(mode="after")
    def _teaches_itself_with_texts(self) -> "RunConfig":
        if not self.train.self_training:
            return self
        if self.data.unlabelled is None:
            raise ValueError("train.self_training needs texts without labels: set data.unlabelled")
        if "validation" not in self.data.splits:
            raise ValueError(
                "train.self_training needs validation texts to choose a session by: set data.validation or data.split"
            )
        if not self.method.is_trained:
            raise ValueError(f"train.self_training has no meaning for method {self.method.name}, which is not trained")
        return self

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.run.dir)

    def adapter_config(self) -> AdapterConfig:
        """What a run with this config trains."""
        data = TextSettings(**self.data.model_dump(include=set(TextSettings.model_fields)))
        return AdapterConfig(
            version=FORMAT_VERSION, backbone=self.backbone, method=self.method, labels=self.labels, data=data
        )

    def trusted(self, trust_remote_code: bool) -> "RunConfig":
        """The same with this said of `backbone.trust_remote_code`."""
        return self.model_copy(update={"backbone": self.backbone.trusted(trust_remote_code)})

    def to_yaml(self) -> str:
        """The resolved config, every key written out; whether remote code is trusted is not part of it."""
        return dump_yaml(self.model_dump(mode="json"))

    def to_kept_yaml(self) -> str:
        """The same for config.yaml in the run directory, without that directory's place: a copy is a run of its own."""
        values = self.model_dump(mode="json", exclude={"run": {"dir"}})
        checkpoint, folder = Path(self.train.resume).resolve(), self.run_dir.path.resolve()
        if self.train.resume not in ("auto", "never") and checkpoint.is_relative_to(folder):
            values["train"]["resume"] = str(checkpoint.relative_to(folder))
        return dump_yaml(values)


def load_config(file: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML file and applies `key=value` overrides. Raises UserError that names every fault at once.

    The config.yaml of a run directory is about that directory, unless an override names another.
    """
    file = Path(file)
    with about(f"config file '{file}'"):
        values = read_yaml(file)
    folder = run_of_config(file)
    stated = values["run"].pop("dir", None) if folder and isinstance(values.get("run"), dict) else None
    if folder is not None and "method" in values:
        values["method"] = completed(values["method"])  # it holds every key that there was
    for override in overrides:
        apply_override(values, override)
    if folder is not None and isinstance(run := values.setdefault("run", {}), dict) and "dir" not in run:
        run["dir"] = _own_folder(file, folder, stated)
    return parse_config(values, source=str(file))


def _own_folder(file: Path, folder: Path, stated: object) -> str:
    """The folder a run's config lies in. UserError where it names another, as in a copy that version 0.1 would make."""
    if stated is not None and Path(os.path.expandvars(str(stated))).expanduser().resolve() != folder.resolve():
        raise UserError(
            f"'{file}' lies in run directory '{folder}', but its run.dir is '{stated}': "
            f"say which one is meant, with run.dir={folder} or run.dir={stated}"
        )
    return str(folder)


def parse_config(values: dict[str, Any], source: str = "config") -> RunConfig:
    """Checks a nested dict. Raises UserError that names every fault at once."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        # A default that follows from a faulty key is no fault of its own.
        faults = [fault for fault in error.errors() if fault["type"] != "default_factory_not_called"]
        raise UserError(f"{source}: {'; '.join(_describe(dict(fault)) for fault in faults)}") from error


def unusual(config: AdapterConfig) -> dict[str, Any]:
    """`section.key` -> value, of what is not a run config's default, in what an adapter keeps."""
    kept = config.model_dump(mode="json", include={"backbone", "method", "data", "labels"})
    names = {"backbone": {"name_or_path": "."}, "method": {"name": config.method.name}}
    usual = flat(parse_config({"run": {"dir": "."}, "data": {"train": "."}, **names}).model_dump(mode="json"))
    usual |= {"backbone.name_or_path": None, "method.name": None}
    return {key: value for key, value in flat(kept).items() if value != usual.get(key)}


def _describe(fault: dict[str, Any]) -> str:
    """One fault found by pydantic, in the words of the config file."""
    location = [str(part) for part in fault["loc"]]
    message = fault["msg"].removeprefix("Value error, ")
    if not location:  # of sections that do not go together
        return message
    method = ""
    # A tagged union adds its tag (method.lt_prefix.rank), which the user never wrote.
    if location[0] == "method" and len(location) > 1 and location[1] in METHOD_NAMES:
        method = location.pop(1)
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{key}'{_nearest(key, method)}"
    if fault["type"] == "union_tag_not_found":
        return f"'{key}.name' is missing: take one of {', '.join(METHOD_NAMES)}"
    if fault["type"] == "union_tag_invalid":
        return f"'{key}.name' must be one of {', '.join(METHOD_NAMES)} (got {fault['ctx']['tag']!r})"
    if fault["type"] == "missing":
        return f"'{key}' is missing"
    given = "" if isinstance(fault["input"], dict) else f" (got {_SHORT.repr(fault['input'])})"
    return f"'{key}': {message[0].lower()}{message[1:]}{given}"


def _nearest(key: str, method: str) -> str:
    """A hint for an unknown key: the one that was probably meant, or all there are."""
    known = _known_keys(method)
    section, _, leaf = key.rpartition(".")
    choices = {name.partition(".")[2]: name for name in known if not section or name.startswith(f"{section}.")}
    if not section:  # a mistyped section, or a key whose section was forgotten
        choices |= {name: name for name in RunConfig.model_fields}
    elsewhere = [name for name in known if name.endswith(f".{leaf}")]
    matches = elsewhere or [choices[name] for name in difflib.get_close_matches(leaf, choices, n=1)]
    if matches:
        return f": did you mean '{matches[0]}'?"
    return (
        f" (keys of {section}: {', '.join(choices)})"
        if section
        else f" (sections: {', '.join(RunConfig.model_fields)})"
    )


def _known_keys(method: str) -> list[str]:
    """Every key; once the method is known, its keys alone and not those of other methods."""
    keys = list(dict.fromkeys(name for name, _, _ in config_keys()))
    for part in classes_in(RunConfig.model_fields["method"].annotation):
        if issubclass(part, BaseModel) and part.model_fields["name"].default == method:
            keys = [key for key in keys if not key.startswith("method.")]
            keys += [f"method.{name}" for name in part.model_fields]
    return keys


def config_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Every key with its default and help text: (`section.key`, default, help)."""
    values = defaults(model)
    for name, field in model.model_fields.items():
        nested = [part for part in classes_in(field.annotation) if issubclass(part, BaseModel)]
        if field.exclude:  # given on the command line alone
            continue
        for part in nested:
            yield from config_keys(part, f"{prefix}{name}.")
        if not nested:
            shown = "required" if field.is_required() else json.dumps(values[name])
            yield f"{prefix}{name}", shown, " ".join((field.description or "").split())
