"""The launch scripts with their real launchers: the same adapter from each, and status 85 for a run told to stop."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.distributed.launcher import free_port
from tests.launch.runs import (
    REPOSITORY,
    adapter_files,
    copy_of_run,
    environment,
    start,
    statuses,
    steps_logged,
    wait_until,
)


def script(name: str, *arguments: str) -> list[str]:
    return ["bash", f"launch/{name}.sh", *arguments]


@pytest.mark.parametrize("launcher", ["deepspeed", "accelerate"])
def test_two_nodes_give_the_adapter_of_two_plain_processes(
    launcher: str, folder: Path, by_hand: dict[str, bytes]
) -> None:
    arguments, log = copy_of_run(folder, launcher), folder / f"{launcher}.log"
    shared = ["--nodes", "2", "--processes=1", f"--master=127.0.0.1:{free_port()}"]
    nodes = [start(script(launcher, *shared, "--node-rank", str(rank), "train", *arguments), log) for rank in range(2)]
    assert statuses(*nodes) == [0, 0], log.read_text()
    assert adapter_files(folder / launcher) == by_hand


DEEPSPEED_OF_ANOTHER = """
distributed_type: DEEPSPEED
deepspeed_config: {gradient_accumulation_steps: 4, gradient_clipping: 0.5, offload_optimizer_device: cpu,
  zero3_init_flag: true, zero3_save_16bit_model: true, zero_stage: 3}
mixed_precision: fp16
"""
FSDP_OF_ANOTHER = """
distributed_type: FSDP
dynamo_config: {dynamo_backend: INDUCTOR}
fsdp_config: {fsdp_sharding_strategy: FULL_SHARD, fsdp_version: 1}
mixed_precision: bf16
"""


@pytest.mark.parametrize("settings", [DEEPSPEED_OF_ANOTHER, FSDP_OF_ANOTHER], ids=["deepspeed", "fsdp"])
def test_what_accelerate_config_has_written_for_others_changes_nothing(
    settings: str, request: pytest.FixtureRequest, folder: Path, by_hand: dict[str, bytes]
) -> None:
    """The file that every `accelerate launch` on a machine reads."""
    name = f"configured-{request.node.callspec.id}"
    arguments, log, file = copy_of_run(folder, name), folder / f"{name}.log", folder / f"{name}.yaml"
    file.write_text("compute_environment: LOCAL_MACHINE\nmachine_rank: 0\nnum_machines: 1" + settings)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "--num_processes", "2"]
    port = ["--main_process_port", str(free_port())]
    assert statuses(start([*command, *port, "-m", "pipeline", "train", *arguments], log)) == [0], log.read_text()
    assert adapter_files(folder / name) == by_hand


def test_torchrun_told_to_stop_ends_with_85_and_goes_on(folder: Path, by_hand: dict[str, bytes]) -> None:
    """Only the script gets the signal, as from a supervisor: it hands it on."""
    arguments, log, slow = copy_of_run(folder, "torchrun"), folder / "torchrun.log", folder / "slow"
    slow.touch()
    command = script("torchrun", "--processes", "2", "train", *arguments)
    stopped = start(command, log, **environment(slow_while=slow))
    wait_until(lambda: steps_logged(folder / "torchrun") >= 2, "two steps")
    os.kill(stopped.pid, signal.SIGTERM)
    assert statuses(stopped) == [85], log.read_text()
    assert "the same command goes on from there" in log.read_text()
    assert statuses(start(command, log)) == [0], log.read_text()
    assert "goes on after step" in log.read_text()
    assert adapter_files(folder / "torchrun") == by_hand


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "two", "train"], "error: --processes is 'two', which is not a number"),
        (["--nodes", "2", "train"], "error: --nodes 2 needs --master"),
        (["--processes"], "error: --processes needs a value"),
        (["--processes", "1"], "error: no stage given; see --help"),
        (["--hostfile", "nowhere", "train"], "error: --hostfile: 'nowhere' cannot be read"),
    ],
)
def test_wrong_options_are_refused(arguments: list[str], message: str) -> None:
    ended = subprocess.run(script("torchrun", *arguments), cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith(message)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "accelerate"])
def test_help_is_the_comment_at_the_top(launcher: str) -> None:
    ended = subprocess.run(script(launcher, "--help"), cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0 and launcher in ended.stdout.splitlines()[0]
    assert "--node-rank R" in ended.stdout and "set -euo" not in ended.stdout


@pytest.mark.parametrize("name", ["submit", "sweep"])
def test_a_recipe_may_lie_in_a_folder_that_reads_like_a_key(name: str, tmp_path: Path) -> None:
    """Such as that of a comparison's cell; and the run directory's name may have a %, which sbatch must not read."""
    recipe = tmp_path / "learning_rate=0.01" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text((REPOSITORY / "launch" / "recipes" / "quickstart.yaml").read_text())
    options = [
        "--dry-run",
        f"run.dir={tmp_path}/run%j",
        *(["--methods=lt_prefix", "--seeds=0"] if name == "sweep" else []),
    ]
    shown = subprocess.run(
        script(f"slurm/{name}", str(recipe), *options),
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0 and f"--config {recipe}" in shown.stderr, shown.stderr
    assert f"--output={tmp_path}/run%%j/logs/slurm/" in shown.stderr
