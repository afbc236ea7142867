"""Starting the engine: alone, again in the same process, and on two ranks.

covers distributed/ranks
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pipeline.cli import main
from pipeline.core.errors import UserError
from pipeline.engine.startup import leave, start
from tests.support.tiny_run import tiny_config
from tests.support.worlds import run_worlds


def test_another_config_in_the_same_process_starts_afresh(tmp_path: Path) -> None:
    first, _ = start(tiny_config(tmp_path, train={"batch_size": 2}, backbone={"dtype": "float32"}))
    assert first.mixed_precision == "no" and first.num_processes == 1
    assert first.state.deepspeed_plugin.deepspeed_config["train_batch_size"] == 2
    second, _ = start(
        tiny_config(
            tmp_path,
            train={"batch_size": 6, "gradient_accumulation": 2},
            backbone={"dtype": "bfloat16"},
            engine={"deepspeed": "ds_configs/zero2_int8.json", "threads": 1},
        )
    )
    assert second.mixed_precision == "bf16" and second.gradient_accumulation_steps == 2
    resolved = second.state.deepspeed_plugin.deepspeed_config
    assert (resolved["train_batch_size"], resolved["zero_optimization"]["stage"]) == (12, 2)
    assert torch.get_num_threads() == 1 and torch.distributed.is_initialized()


def test_commands_may_follow_each_other_in_one_process(tmp_path: Path) -> None:
    """A command leaves the process group as it ends; the next one joins a new one."""
    config = tiny_config(tmp_path)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    arguments = ["--config", str(tmp_path / "config.yaml")]
    assert main(["preprocess", *arguments]) == 0
    for template in ("One {label}.", "Two {label}."):
        assert main(["encode-labels", *arguments, f"labels.template={template}"]) == 0
        assert not torch.distributed.is_initialized()
    accelerator, ranks = start(config)
    assert accelerator.num_processes == ranks.size == 1 and torch.distributed.is_initialized()


def test_alone_no_address_of_another_program_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave()
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "node7.invalid", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "-1")  # without it accelerate joins no group
    assert start(tiny_config(tmp_path))[1].size == 1 and torch.distributed.is_initialized()


def test_settings_of_accelerate_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {
        "ACCELERATE_CONFIG_DS_FIELDS": "deepspeed_config_file,zero_stage,mixed_precision",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "7",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "ACCELERATE_USE_FSDP": "true",
    }
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_LOG_LEVEL", "ERROR")
    accelerator, _ = start(tiny_config(tmp_path, train={"gradient_accumulation": 2}))
    assert accelerator.gradient_accumulation_steps == 2
    assert accelerator.state.dynamo_plugin.backend == "NO" and accelerator.distributed_type == "DEEPSPEED"
    assert os.environ["ACCELERATE_LOG_LEVEL"] == "ERROR"


def test_the_seed_decides_random_numbers(tmp_path: Path) -> None:
    draws = []
    for seed in (0, 1, 0):
        start(tiny_config(tmp_path, run={"seed": seed}))
        draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])
    assert torch.are_deterministic_algorithms_enabled()


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    for name in ("wandb", "mlflow"):
        if find_spec(name) is None:
            with pytest.raises(UserError, match=f"logging.trackers names {name}, which is not installed"):
                start(tiny_config(tmp_path, logging={"trackers": [name]}))


def test_alone_errors_are_raised_as_they_are(tmp_path: Path) -> None:
    _, ranks = start(tiny_config(tmp_path))
    assert ranks.on_main(lambda: 3) == ranks.on_every(lambda: 3) == 3

    def fail() -> None:
        raise KeyError("key")

    with pytest.raises(KeyError):
        ranks.on_main(fail)
    with pytest.raises(KeyError):
        ranks.on_every(fail)
    assert os.environ["WORLD_SIZE"] == "1"


def test_the_ranks_are_made_once_for_a_process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)  # of the engines started above in this process
    first, second = run_worlds("tests.support.main_process:main_process", [2], tmp_path, 300)[2]
    assert first["world"] == [2, 2, 0, 2, 0] and second["world"] == [2, 2, 1, 2, 1]
    assert first["calls"] == 2 and second["calls"] == 0
    for rank in (first, second):
        assert rank["results"] == [{"rows": 3}] * 2
        assert rank["same ranks"] and rank["groups made"] == 0, "one control group for all that the process group does"
