"""Whole runs: a GPU's as the CPU's beside it, by every launcher, killed and taken up, served and predicted."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from pipeline.classifier import LTuningClassifier
from tests.support.tiny_run import tiny_config

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "ds_configs"
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
EXACT, ROUNDED = 2e-3, 0.1
"""Most that a score (a logit) may differ after training, in float32; with activations in 8 bits, numbers on an edge
fall to either side."""
ROUNDINGS = 3
"""How many times as far apart as bfloat16 and float32 are on the CPU alone, bfloat16 may be on the two devices."""


def ltune(*arguments: str, launcher: tuple[str, ...] = (sys.executable, "-m", "pipeline"), **variables: str) -> str:
    """A command in a process of its own, which must succeed; what it says."""
    kept = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [*launcher, *arguments],
        cwd=REPOSITORY,
        env=os.environ | kept | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert found.returncode == 0, found.stdout[-6000:]
    return found.stdout


def written(folder: Path, **sections: Any) -> list[str]:
    """`folder`/config.yaml, of a run with a backbone wide enough for every kernel; its arguments."""
    train = {"max_steps": 6, "batch_size": 4, "learning_rate": 1e-3, "eval_every": 3, "save_every": 3, "log_every": 1}
    sections["train"] = train | sections.get("train", {})
    config = tiny_config(folder, **sections)
    (folder / "config.yaml").write_text(json.dumps(config.model_dump(mode="json", exclude_unset=True)))
    return ["--config", str(folder / "config.yaml")]


def losses(run: Path) -> list[float]:
    """Of the training steps."""
    lines = [json.loads(line) for line in (run / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def scores(run: Path) -> torch.Tensor:
    table = pq.read_table(run / "evaluation" / "predictions.parquet").to_pydict()
    return torch.tensor([column for name, column in table.items() if name.startswith("score/")])


def largest_difference(a: Path, b: Path) -> float:
    """Of the scores of two runs."""
    return float((scores(a) - scores(b)).abs().max())


METHODS: dict[str, dict[str, Any]] = {
    "lt_prefix": {"head": "label_aware"},
    "lt_prompt": {"head": "label_aware"},
    "lora": {},
    "edit": {},
    "prompt": {},
    "full": {},
}
CASES = [
    ("lt_prefix", "float32", "none", "zero2_int8"),
    ("lt_prefix", "float32", "none", "zero3_bf16"),
    ("lt_prefix", "float32", "int8", "zero3_int8"),
    ("lt_prefix", "bfloat16", "none", "zero3_bf16"),
    ("lt_prefix", "bfloat16", "int8", "zero3_int8"),
    ("lt_prefix", "bfloat16", "int8", "zero2_int8"),
    ("lt_prefix", "bfloat16", "int4", "zero3_int8"),
    ("lt_prefix", "bfloat16", "none", "zero3_offload"),
    ("lt_prompt", "float32", "none", "zero3_bf16"),
    ("lt_prompt", "bfloat16", "int8", "zero3_int8"),
    ("lora", "float32", "none", "zero3_bf16"),
    ("edit", "float32", "none", "zero3_bf16"),
    ("prompt", "float32", "none", "zero3_bf16"),
    ("full", "float32", "none", "zero3_bf16"),
]


@pytest.mark.parametrize(("method", "dtype", "quantization", "zero"), CASES)
def test_a_run_is_the_cpus(method: str, dtype: str, quantization: str, zero: str, tmp_path: Path) -> None:
    """All stages, by the DeepSpeed config for GPUs here and the one for CPUs there."""
    arguments = written(
        tmp_path,
        method={"name": method} | METHODS[method],
        backbone={"dtype": dtype, "quantization": quantization},
    )
    there, here, exact = (tmp_path / name for name in ("there", "here", "exact"))
    commands = [
        ([f"run.dir={there}", f"engine.deepspeed={CONFIGS / f'{zero}.json'}"], {}),
        ([f"run.dir={here}"], ON_CPU),
    ]
    if dtype == "bfloat16":
        commands.append(([f"run.dir={exact}", "backbone.dtype=float32"], ON_CPU))
    with ThreadPoolExecutor() as processes:
        runs = [
            processes.submit(ltune, "run", *arguments, *overrides, **variables) for overrides, variables in commands
        ]
        for run in runs:
            run.result()
    bound = EXACT if quantization == "none" else ROUNDED
    if dtype == "bfloat16":
        bound = ROUNDINGS * largest_difference(here, exact)
    difference = largest_difference(there, here)
    assert difference < bound, f"losses of the steps: {losses(there)}, on the CPU {losses(here)}"
    assert scores(here).std() > 0.01, "else any two would be alike"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on the GPU, in one piece, and one as it stood before training."""
    folder = tmp_path_factory.mktemp("prepared")
    sections = {"backbone": {"dtype": "bfloat16", "quantization": "int8"}, "method": {"dropout": 0.1}}
    arguments = written(folder, **sections, engine={"deepspeed": str(CONFIGS / "zero3_int8.json")})
    for stage in ("preprocess", "encode-labels"):
        ltune(stage, *arguments)
    shutil.copytree(folder / "run", folder / "before")
    for stage in ("train", "evaluate"):
        ltune(stage, *arguments)
    return folder


def adapter_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter.safetensors")


def assert_same(found: Path, expected: Path) -> None:
    """Bit for bit."""
    there, here = adapter_of(found), adapter_of(expected)
    assert there.keys() == here.keys()
    assert [name for name in here if not torch.equal(there[name], here[name])] == []


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "accelerate"])
def test_every_launcher_trains_the_same(launcher: str, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "before", tmp_path / "run")
    script = ("bash", str(REPOSITORY / "launch" / f"{launcher}.sh"))
    ltune("train", "--config", str(prepared / "config.yaml"), f"run.dir={tmp_path / 'run'}", launcher=script)
    assert_same(tmp_path / "run", prepared / "run")


def test_an_interrupted_run_ends_as_if_it_had_not_been(prepared: Path, tmp_path: Path) -> None:
    """Its last checkpoint and its adapter are lost; it goes on from the one before."""
    shutil.copytree(prepared / "run", run := tmp_path / "run")
    checkpoints = sorted(run.glob("checkpoints/step-*"))
    assert len(checkpoints) > 1
    shutil.rmtree(checkpoints[-1])
    shutil.rmtree(run / "adapter")
    said = ltune("train", "--config", str(prepared / "config.yaml"), f"run.dir={run}")
    assert "goes on after step 3" in said, said
    assert_same(run, prepared / "run")


def test_an_adapter_of_the_gpu_predicts_there_and_on_the_cpu(prepared: Path) -> None:
    texts = ["a goal in the last minute", "shares fell on monday", "the probe reached the moon"]
    answers = [
        LTuningClassifier.from_pretrained(prepared / "run" / "adapter", device=device).predict_proba(texts)
        for device in ("cuda", "cpu")
    ]
    assert answers[0] == pytest.approx(answers[1], abs=0.03)
