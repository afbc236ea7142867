"""Ranks agree on what rank 0 did and on how work failed: every type of exception reaches them as what it is."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from pipeline.core.errors import DivergedError, Preempted, RankFailedError, UserError
from pipeline.distributed.ranks import Ranks
from pipeline.training.checkpoint import DamagedCheckpointError
from tests.support.processes import launch, run_script
from tests.support.tiny_run import tiny_config
from tests.support.worlds import run_worlds

TIMEOUT_SECONDS = 2


class OwnError(Exception):
    """Cannot be made of its message alone, and cannot be pickled."""

    def __init__(self, number: int, handle: Any) -> None:
        super().__init__(f"number {number}")
        self.handle = handle


def fault(name: str) -> Exception:
    return {
        "user": UserError("no such file"),
        "diverged": DivergedError("the loss is nan"),
        "preempted": Preempted("SIGTERM"),
        "damaged": DamagedCheckpointError("cut off"),
        "key": KeyError("key"),
        "bare": AssertionError(),
        "own": OwnError(3, lambda: None),
    }[name]


FAULTS = ("user", "diverged", "preempted", "damaged", "key", "bare", "own")


def outcome(run: Callable[[Callable[[], object]], object], work: Callable[[], object]) -> list[str]:
    try:
        return ["result", str(run(work))]
    except Exception as error:
        return [type(error).__name__, str(error)]


def cause(ranks: Ranks) -> str:
    """Of a defect on rank 0, as each rank knows it."""
    try:
        ranks.on_main(failing("key"))
    except RankFailedError as error:
        return type(error.__cause__).__name__
    return ""


def failing(name: str) -> Callable[[], object]:
    def work() -> object:
        raise fault(name)

    return work


def fine() -> object:
    return {"rows": 3}


def agree(folder: Path) -> dict[str, Any]:
    """What one of two ranks sees."""
    ranks = Ranks.joined()
    second = {name: failing(name) if ranks.rank == 1 else fine for name in FAULTS}
    return {
        "fine": [outcome(ranks.on_main, fine), outcome(ranks.on_every, fine)],
        "on main": {name: outcome(ranks.on_main, failing(name)) for name in FAULTS},
        "on every": {name: outcome(ranks.on_every, second[name]) for name in FAULTS},
        "both": outcome(ranks.on_every, failing("key" if ranks.rank else "diverged")),
        "cause": cause(ranks),
        "again": outcome(ranks.on_main, fine),
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_worlds("tests.distributed.test_ranks:agree", [2], tmp_path_factory.mktemp("ranks"), 120)[2]


def test_results_and_later_work_reach_every_rank(seen: list[dict[str, Any]]) -> None:
    for rank in seen:
        assert rank["fine"] == [["result", "{'rows': 3}"]] * 2
        assert rank["again"] == ["result", "{'rows': 3}"]


SHARED = {
    "user": "UserError: {}no such file",
    "diverged": "DivergedError: {}the loss is nan",
    "preempted": "Preempted: {}SIGTERM",
    "damaged": "UserError: {}cut off",
}
DEFECTS = {
    "key": "RankFailedError: rank {} failed: KeyError: 'key'",
    "bare": "RankFailedError: rank {} failed: AssertionError",
    "own": "RankFailedError: rank {} failed: tests.distributed.test_ranks.OwnError: number 3",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failure_of_rank_0_is_one_of_every_rank(seen: list[dict[str, Any]], name: str) -> None:
    expected = SHARED[name].format("") if name in SHARED else DEFECTS[name].format(0)
    assert [": ".join(rank["on main"][name]) for rank in seen] == [expected] * 2


@pytest.mark.parametrize("name", FAULTS)
def test_a_failure_of_any_rank_is_one_of_every_rank(seen: list[dict[str, Any]], name: str) -> None:
    expected = SHARED[name].format("rank 1: ") if name in SHARED else DEFECTS[name].format(1)
    assert [": ".join(rank["on every"][name]) for rank in seen] == [expected] * 2


def test_of_two_failures_that_of_the_lower_rank_counts(seen: list[dict[str, Any]]) -> None:
    assert [rank["both"] for rank in seen] == [["DivergedError", "rank 0: the loss is nan"]] * 2


def test_the_failed_rank_keeps_what_happened_to_it(seen: list[dict[str, Any]]) -> None:
    assert [rank["cause"] for rank in seen] == ["KeyError", "NoneType"]


def wait_long(folder: Path) -> list[str]:
    """Work on rank 0 that takes longer than an ordinary collective may."""
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    timeout = timedelta(seconds=TIMEOUT_SECONDS)
    dist.init_process_group("gloo", f"file://{folder / 'store'}", timeout, rank=rank, world_size=world)
    ranks = Ranks.joined()

    def slow() -> str:
        time.sleep(2 * TIMEOUT_SECONDS)
        return "done"

    return outcome(ranks.on_main, slow)


def test_work_on_rank_0_may_outlast_the_timeout(tmp_path: Path) -> None:
    assert run_worlds("tests.distributed.test_ranks:wait_long", [2], tmp_path, 120)[2] == [["result", "done"]] * 2


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 4, 6, 7])
def test_in_turns_every_part_is_taken_once_and_all_ranks_take_as_many(count: int, size: int) -> None:
    parts = list(range(count))
    turns = [Ranks(rank, size).turns(parts) for rank in range(size)]
    assert [len(taken) for taken in turns] == [-(-count // size)] * size
    assert [part for turn in zip(*turns, strict=True) for part, is_own in turn if is_own] == parts
    assert all(is_own or part == parts[-1] for taken in turns for part, is_own in taken)


@pytest.mark.parametrize("name", FAULTS)
def test_alone_a_failure_is_what_it_is(name: str) -> None:
    for run in (Ranks.alone().on_main, Ranks.alone().on_every):
        with pytest.raises(type(fault(name))):
            run(failing(name))
    assert Ranks.alone().gather(7) == [7]
    assert not issubclass(RankFailedError, UserError), "the command line exits with status 1"


def preprocess_with_defects(folder: Path) -> dict[str, list[int]]:
    """Exit statuses of two ranks, the first of which fails in the work that it does alone."""
    (folder / "config.yaml").write_text(tiny_config(folder, engine={"threads": 1}).to_yaml())
    command = ["preprocess", "--config", str(folder / "config.yaml")]
    return {
        kind: launch(command, folder / f"{kind}.log", world=2, fault=f"failure:{kind},preprocess")
        for kind in ("KeyError", "UserError")
    }


def test_the_command_line_tells_defects_of_another_rank_from_wrong_input(tmp_path: Path) -> None:
    statuses = run_script("tests.distributed.test_ranks:preprocess_with_defects", tmp_path, 200)
    assert statuses == {"KeyError": [1, 1], "UserError": [2, 2]}
    said = {kind: sorted((tmp_path / f"{kind}.log").read_text().splitlines()[-2:]) for kind in statuses}
    defect = "error: rank 0 failed: KeyError: 'struck'; --debug shows where"
    assert said["KeyError"] == [f"rank {rank}: {defect}" for rank in (0, 1)]
    assert said["UserError"] == [f"rank {rank}: error: struck" for rank in (0, 1)]
