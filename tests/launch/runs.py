"""Tiny runs that real launchers train in processes of their own."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from pipeline.config import RunConfig
from pipeline.stages.encode_labels import encode_labels
from pipeline.stages.preprocess import preprocess
from tests.support.tiny_run import tiny_config

REPOSITORY = Path(__file__).resolve().parents[2]
SLOW = Path(__file__).parent / "slow"
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def prepared_run(folder: Path, **train: Any) -> RunConfig:
    """A run directory, folder/run, that is ready to train; its config is folder/config.yaml."""
    config = tiny_config(
        folder,
        method={"dropout": 0.1},
        train={"max_steps": 12, "batch_size": 4, "learning_rate": 0.01, "log_every": 1, "eval_every": 6} | train,
        logging={"trackers": ["jsonl"]},
        engine={"threads": 1},
    )
    # As a user would write it: only what differs from the defaults. (JSON is YAML.)
    (folder / "config.yaml").write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    preprocess(config)
    encode_labels(config)
    return config


def copy_of_run(folder: Path, name: str) -> list[str]:
    """Another run directory like folder/run; the arguments that make a stage use it."""
    shutil.copytree(folder / "run", folder / name)
    return ["--config", str(folder / "config.yaml"), f"run.dir={folder / name}"]


def environment(slow_while: Path | None = None) -> dict[str, str]:
    """Without what engines started in this process have left in it; `slow_while`: see slow/sitecustomize.py."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHER and "ACCELERATE" not in name}
    kept |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
    if slow_while is not None:
        kept |= {"PYTHONPATH": f"{SLOW}:{REPOSITORY}", "SLOW_STEPS_WHILE": str(slow_while)}
    return kept


def start(command: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
    """A command in the repository, with its output added to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=environment() | variables, stdout=file, stderr=subprocess.STDOUT
        )


def statuses(*processes: subprocess.Popen[bytes], timeout_seconds: float = 400) -> list[int]:
    """How commands end. One that does not end in time fails the test, and is killed with all it has started."""
    try:
        return [process.wait(timeout_seconds) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                for each in (*psutil.Process(process.pid).children(recursive=True), process):
                    each.kill()


def wait_until(
    condition: Callable[[], object], what: str, timeout_seconds: float = 400, *, pause_seconds: float = 0.1
) -> None:
    """Returns when `condition` holds, looked at after each pause; fails after the timeout."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds} s: {what}"
        time.sleep(pause_seconds)


def steps_logged(run: Path) -> int:
    """The last step in metrics.jsonl."""
    file = run / "logs" / "metrics.jsonl"
    lines = file.read_bytes().splitlines() if file.is_file() else []
    return json.loads(lines[-1])["step"] if lines else 0


def adapter_files(run: Path) -> dict[str, bytes]:
    """What training leaves, byte for byte, but for the model card, to which evaluate adds its figures, and the sums."""
    files = [file for folder in (run / "adapter", run / "adapter-final") for file in folder.iterdir()]
    later = ("README.md", "SHA256SUMS")
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files if file.name not in later}
