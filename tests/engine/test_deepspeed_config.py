"""The DeepSpeed JSON: completed from the run config, and refused where the two contradict each other."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig, parse_config
from pipeline.core.errors import UserError
from pipeline.engine.deepspeed_config import resolve_deepspeed, zero_stage


def config_of(path: Path | str, **train: Any) -> RunConfig:
    return parse_config(
        {
            "run": {"dir": "runs/x"},
            "backbone": {"name_or_path": "m", "dtype": train.pop("dtype", "bfloat16")},
            "data": {"train": "t.tsv"},
            "method": {"name": "lt_prefix"},
            "train": train,
            "engine": {"deepspeed": str(path)},
        }
    )


def resolved_for(config: RunConfig, world_size: int) -> dict[str, Any]:
    return resolve_deepspeed(config.engine, config.train, config.backbone.dtype, world_size)


def written(folder: Path, **keys: Any) -> Path:
    path = folder / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}} | keys))
    return path


@pytest.mark.parametrize("auto", [False, True], ids=["absent", "auto"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_autos_and_absent_keys_are_filled_from_the_run(tmp_path: Path, dtype: str, auto: bool) -> None:
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    given = dict.fromkeys(keys, "auto") | {"bf16": {"enabled": "auto"}} if auto else {}
    path = written(tmp_path, steps_per_print=7, **given)
    config = config_of(path, dtype=dtype, batch_size=3, gradient_accumulation=5, max_grad_norm=0.5)
    resolved = resolved_for(config, world_size=4)
    assert [resolved[key] for key in keys] == [60, 3, 5, 0.5]
    assert resolved["bf16"] == {"enabled": dtype == "bfloat16"}
    assert resolved["steps_per_print"] == 7 and zero_stage(resolved) == 3
    # torch's AdamW on the CPU too, and not DeepSpeed's, which has to be compiled.
    assert resolved["zero_allow_untested_optimizer"] and not resolved["zero_force_ds_cpu_optimizer"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train_batch_size", 64, "train_batch_size is 64 but train.batch_size * gradient_accumulation * ranks is 32"),
        ("train_micro_batch_size_per_gpu", 8, "train_micro_batch_size_per_gpu is 8 but train.batch_size is 16"),
        ("gradient_accumulation_steps", 2, "is 2 but train.gradient_accumulation is 1"),
        ("gradient_clipping", 0.3, "gradient_clipping is 0.3 but train.max_grad_norm is 1.0"),
        ("bf16", {"enabled": False}, "enabled is False but backbone.dtype is True"),
        ("bf16", True, "bf16 is True; write an object"),
        ("fp16", {"enabled": True}, "drop 'fp16'"),
        ("fp16", {"enabled": "auto"}, "drop 'fp16'"),
        ("fp16", {}, "drop 'fp16'"),
        ("optimizer", {"type": "Adam"}, "drop 'optimizer'; train.learning_rate"),
        ("scheduler", {}, "drop 'scheduler'; train.learning_rate"),
        ("zero_optimization", None, "zero_optimization is None"),
        ("zero_optimization", {}, "stage must be 0, 1, 2 or 3"),
        ("zero_optimization", {"stage": 4}, "stage must be 0, 1, 2 or 3"),
        ("zero_optimization", {"stage": "3"}, "stage must be 0, 1, 2 or 3"),
        ("zero_optimization", {"stage": True}, "stage must be 0, 1, 2 or 3"),
        ("zero_optimization", {"stage": 3, "zero_quantized_nontrainable_weights": True}, "use backbone.quantization"),
        (
            "zero_optimization",
            {"stage": 3, "reduce_bucket_size": "auto"},
            'zero_optimization.reduce_bucket_size is "auto"',
        ),
        ("zero_optimization", {"stage": 3, "offload_param": {"device": "auto"}}, "offload_param.device"),
        ("zero_optimization", {"stage": 3, "stage3_prefetch": 5}, "stage3_prefetch: Extra inputs are not permitted"),
        ("zero_optimization", {"stage": 3, "reduce_bucket_size": "big"}, "reduce_bucket_size: Input should be"),
        ("steps_per_print", "auto", 'steps_per_print is "auto"'),
    ],
)
def test_contradictions_and_what_is_not_ours_are_refused(tmp_path: Path, key: str, value: Any, words: str) -> None:
    path = written(tmp_path, **{key: value})
    with pytest.raises(UserError) as fault:
        resolved_for(config_of(path), world_size=2)
    assert words in str(fault.value) and str(path) in str(fault.value) and "\n" not in str(fault.value)


def test_what_agrees_may_be_written_out(tmp_path: Path) -> None:
    path = written(tmp_path, train_batch_size=32, gradient_clipping=1, fp16={"enabled": False})
    assert resolved_for(config_of(path), world_size=2)["train_batch_size"] == 32


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "does not exist"), (b"", "not JSON"), (b"{", "not JSON"), (b"[]", "a JSON object"), (b"\xff", "not JSON")],
)
def test_files_that_are_no_deepspeed_config(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "ds.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        resolved_for(config_of(path), world_size=1)


def test_a_folder_is_no_deepspeed_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder: take one of"):
        resolved_for(config_of(tmp_path), world_size=1)


def test_presets_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert zero_stage(resolved_for(config_of("ds_configs/zero2_int8.json"), world_size=1)) == 2
