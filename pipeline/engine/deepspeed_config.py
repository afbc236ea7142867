"""The DeepSpeed JSON: read, completed from the run config, and checked against it before anything starts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.core.bounds import LARGEST_CONFIG, read_text
from pipeline.core.errors import UserError
from pipeline.distributed.zero import zero_faults
from pipeline.engine.config import EngineConfig
from pipeline.training.config import TrainConfig

PACKAGE = Path(__file__).resolve().parents[1]
"""Its ds_configs is a link to the clone's, which an installed package has as files."""


def resolve_deepspeed(engine: EngineConfig, train: TrainConfig, dtype: str, world_size: int) -> dict[str, Any]:
    """The DeepSpeed dict without a single "auto". Raises UserError for a wrong file or a contradiction.

    `dtype`: the backbone's.
    """
    path = engine.deepspeed
    resolved = _read(path)
    for section in ("optimizer", "scheduler"):
        if section in resolved:
            raise UserError(
                f"{path}: drop '{section}'; train.learning_rate, train.schedule and their neighbours set it"
            )
    bfloat16 = dtype == "bfloat16"
    micro, accumulation = train.batch_size, train.gradient_accumulation
    expected = {
        "train_micro_batch_size_per_gpu": (micro, "train.batch_size"),
        "gradient_accumulation_steps": (accumulation, "train.gradient_accumulation"),
        "train_batch_size": (micro * accumulation * world_size, "train.batch_size * gradient_accumulation * ranks"),
        "gradient_clipping": (train.max_grad_norm, "train.max_grad_norm"),
    }
    for key, (value, source) in expected.items():
        _fill(resolved, key, value, source, path)
    _fill(_section(resolved, "bf16", path), "enabled", bfloat16, "backbone.dtype", path)
    if "fp16" in resolved and _section(resolved, "fp16", path).get("enabled", True):
        raise UserError(f"{path}: drop 'fp16'; backbone.dtype is bfloat16 or float32")
    # Our optimizer is torch's AdamW over the L-Tuning parameters alone, also under offload.
    resolved["zero_allow_untested_optimizer"] = True
    resolved["zero_force_ds_cpu_optimizer"] = False
    _check_zero(resolved, path)
    return resolved


def zero_stage(resolved: dict[str, Any]) -> int:
    """0 to 3; from 3 on the backbone is sharded."""
    return int(resolved["zero_optimization"]["stage"])


def deepspeed_file(path: str) -> Path:
    """The file that engine.deepspeed names, in the current folder or in ours. Raises UserError where it is missing."""
    file = next((p for p in (Path(path), PACKAGE / path) if p.exists() and not p.is_dir()), None)
    if file is None:
        fault = "is a folder" if Path(path).is_dir() else "does not exist"
        raise UserError(f"engine.deepspeed '{path}' {fault}: take one of ds_configs/*.json")
    return file


def _read(path: str) -> dict[str, Any]:
    file = deepspeed_file(path)
    try:
        value = json.loads(read_text(file, LARGEST_CONFIG), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"engine.deepspeed '{path}' is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"engine.deepspeed '{path}' must hold a JSON object")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _fill(section: dict[str, Any], key: str, value: Any, source: str, path: str) -> None:
    given = section.get(key, "auto")
    if given != "auto" and given != value:
        raise UserError(f'{path}: {key} is {given!r} but {source} is {value!r}; write "auto" in the JSON')
    section[key] = value


def _section(resolved: dict[str, Any], name: str, path: str) -> dict[str, Any]:
    section = resolved.setdefault(name, {})
    if not isinstance(section, dict):
        raise UserError(f'{path}: {name} is {section!r}; write an object such as {{"enabled": "auto"}}')
    return section


def _check_zero(resolved: dict[str, Any], path: str) -> None:
    zero = _section(resolved, "zero_optimization", path)
    stage = zero.get("stage")
    if not isinstance(stage, int) or isinstance(stage, bool) or not 0 <= stage <= 3:
        raise UserError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3")
    if stage == 0 and resolved["bf16"]["enabled"]:
        # DeepSpeed 0.19.8 keeps no fp32 state there that could be saved.
        raise UserError(f"{path}: zero_optimization.stage 0 needs backbone.dtype=float32; take another stage")
    if zero.get("zero_quantized_nontrainable_weights"):
        raise UserError(f"{path}: use backbone.quantization instead of zero_quantized_nontrainable_weights")
    autos = list(_autos(resolved))
    if autos:
        raise UserError(f'{path}: {autos[0]} is "auto"; write a value (see ds_configs/README.md)')
    if faults := zero_faults(zero):
        raise UserError(f"{path}: zero_optimization: {'; '.join(faults)}")


def _autos(section: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys that are still "auto"."""
    for key, value in section.items():
        if value == "auto":
            yield prefix + key
        elif isinstance(value, dict):
            yield from _autos(value, f"{prefix}{key}.")
