"""Ranks that were not started alike all end with one line that names what differs; nothing is trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UserError
from pipeline.distributed.launcher import rank
from pipeline.distributed.ranks import Ranks
from pipeline.engine.agreement import check_alike
from tests.support.processes import launch, run_script
from tests.support.tiny_run import tiny_config
from tests.support.worlds import run_worlds

OTHERWISE = {
    "rate": "train.learning_rate=0.02",
    "seed": "run.seed=1",
    "batch": "train.batch_size=2",
    "name": "data.test=null",
    "overwrite": "--overwrite",
}


def script(folder: Path) -> dict[str, Any]:
    """Two real ranks, the second of which is given something else."""
    config = tiny_config(
        folder,
        train={"max_steps": 2, "batch_size": 4, "learning_rate": 0.01},
        logging={"trackers": ["jsonl"]},
        engine={"threads": 1},
    )
    (folder / "config.yaml").write_text(config.to_yaml())

    def run(name: str, command: str = "train", *overrides: str, **how: Any) -> list[int]:
        arguments = [command, "--config", str(folder / "config.yaml"), f"run.dir={folder / name}", *overrides]
        return launch(arguments, folder / f"{name}.log", **how)

    run("alike", "preprocess")
    run("alike", "encode-labels")
    for name in (*OTHERWISE, "deepspeed"):
        shutil.copytree(folder / "alike", folder / name)
    statuses = {
        name: run(name, world=2, fault=f"started_with:{argument}", faulty=[1]) for name, argument in OTHERWISE.items()
    }
    for name, bucket in (("ours", 1_000), ("theirs", 2_000)):
        (folder / name).mkdir()
        shutil.copy("ds_configs/zero3_cpu.json", folder / name / "ds.json")
        values = json.loads((folder / name / "ds.json").read_text())
        values["zero_optimization"]["reduce_bucket_size"] = bucket
        (folder / name / "ds.json").write_text(json.dumps(values))
    fault = f"work_in_own:{folder / 'ours'},{folder / 'theirs'}"
    statuses["deepspeed"] = run("deepspeed", "train", "engine.deepspeed=ds.json", world=2, fault=fault, faulty=[0, 1])
    statuses["alike"] = run("alike", world=2)
    return statuses


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agreement")


@pytest.fixture(scope="module")
def statuses(folder: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = run_script("tests.engine.test_agreement:script", folder, 300)
    return found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rate", "train.learning_rate is 0.01 on rank 0 and 0.02 on rank 1: start every rank with the same command"),
        ("seed", "run.seed is 0 on rank 0 and 1 on rank 1"),
        ("batch", "train.batch_size is 4 on rank 0 and 2 on rank 1"),
        ("name", "test.tsv on rank 0 and None on rank 1"),
        ("overwrite", "--overwrite is False on rank 0 and True on rank 1"),
        ("deepspeed", "the content of ds.json is"),
    ],
)
def test_every_rank_ends_with_the_same_line(folder: Path, statuses: dict[str, list[int]], name: str, said: str) -> None:
    assert statuses[name] == [2, 2]
    errors = [line for line in (folder / f"{name}.log").read_text().splitlines() if "error:" in line]
    assert len(errors) == 2 and all(said in line for line in errors)
    assert not (folder / name / "adapter").exists() and not (folder / name / "checkpoints").exists()


def test_ranks_that_were_started_alike_train(folder: Path, statuses: dict[str, list[int]]) -> None:
    assert statuses["alike"] == [0, 0] and (folder / "alike" / "adapter").is_dir()


def many(folder: Path) -> str:
    """What is said of parts of four ranks."""
    try:
        odd = {f"key {number}": number * (rank() == 2) for number in range(5)} | ({"more": 1} if rank() == 3 else {})
        check_alike({"the same": 7, **odd}, Ranks.joined())
    except UserError as error:
        return str(error)
    return ""


def test_a_message_stays_short(tmp_path: Path) -> None:
    said = run_worlds("tests.engine.test_agreement:many", [4], tmp_path, 300)[4]
    assert len(set(said)) == 1
    assert said[0].startswith(
        "key 1 is 0 on ranks 0, 1, 3 and 1 on rank 2; key 2 is 0 on ranks 0, 1, 3 and 2 on rank 2; "
    )
    assert "; and 2 more: start every rank" in said[0] and "the same" not in said[0].partition(":")[0]


def test_alone_there_is_nothing_to_compare() -> None:
    check_alike({"anything": object()}, Ranks.alone())
