"""Real processes, killed, stopped and robbed of their files, seeded: nothing ends wrong, nothing hangs.

A small part runs with all tests; `bash launch/test.sh --faults` runs the whole and prints what docs/reliability.md
tells.
One chain of kills again: `FAULT_SEEDS=17 bash launch/test.sh --faults -k kills`.

covers distributed/heartbeat
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from tests.faults import damage, elastic, kills, trouble
from tests.faults.runs import Workshop
from tests.support.processes import HANG_SECONDS, run_script

Result = dict[str, Any]
LAUNCH_SECONDS = HANG_SECONDS - 10
"""More than any launch takes that does not hang (those are killed then)."""


def few(folder: Path) -> Result:
    workshop = Workshop(folder)
    found = {"chains": [kills.survive(workshop, kills.chain(0, blows=2))]}
    workshop.copy("undisturbed-fp32-1", "prepared")
    remove_training(folder / "prepared")
    found["second process"] = trouble.second_process(workshop)
    picked = [each for each in damage.damages(1) if each.file in PICKED]
    found["damages"] = [damage.outcome(workshop, each, "undisturbed-fp32-1") for each in picked]
    kills.reference(workshop, "fp32", 2)
    found["struck"] = [trouble.strike_one(workshop, "SIGSTOP", "evaluation", 1, 1)]
    return found | {"seconds": workshop.seconds}


PICKED = {
    "checkpoints/step-000008/exp_avg.safetensors",
    "adapter/adapter_config.json",
    "data/train/data-00000-of-00001.arrow",
    "logs/metrics.jsonl",
}


def remove_training(run: Path) -> None:
    """Leaves what preprocess and encode-labels made."""
    for name in ("checkpoints", "adapter", "adapter-final", "evaluation", "logs"):
        shutil.rmtree(run / name)


def check(found: Result) -> None:
    for chain in found.get("chains", []):
        assert set(chain["last"]) == {0} and not chain["differing"], chain
    for each in found.get("damages", []):
        assert each["outcome"] != "wrong", each
    for each in found.get("struck", []):
        assert each["named"] and set(each["last"]) == {0} and not each["differing"], each
        assert each["seconds"] < trouble.bound_seconds(each["case"].split()[0]), each
        assert 86 in each["statuses"], each
    assert max(found["seconds"]) < LAUNCH_SECONDS, "a launch hung"


def test_a_few_faults_of_each_kind(tmp_path: Path) -> None:
    found = run_script("tests.faults.test_faults:few", tmp_path, timeout_seconds=900)
    check(found)
    assert found["chains"][0]["kills"] > 0
    second = found["second process"]
    assert second["refused"] == [2, 2] and second["after"] == [0]
    assert f"is in use by process {second['owner']} on " in second["said"]


def many_kills(folder: Path) -> Result:
    workshop = Workshop(folder)
    seeds = [int(seed) for seed in os.environ.get("FAULT_SEEDS", " ".join(map(str, range(24)))).split()]
    chains = []
    for seed in seeds:
        chains.append(kills.survive(workshop, kills.chain(seed)))
        with (folder / "chains.jsonl").open("a") as file:
            file.write(json.dumps(chains[-1]) + "\n")
    return {"chains": chains, "seconds": workshop.seconds}


def many_damages(folder: Path) -> Result:
    workshop = Workshop(folder)
    finished = kills.reference(workshop, "fp32", 1)
    found = [damage.outcome(workshop, each, finished) for each in damage.damages()]
    return {"damages": found, "seconds": workshop.seconds}


def all_troubles(folder: Path) -> Result:
    workshop = Workshop(folder)
    for world in (1, 2):
        kills.reference(workshop, "fp32", world)
    workshop.copy("undisturbed-fp32-1", "prepared")
    remove_training(folder / "prepared")
    places = [("load", 1), ("step", 3), ("save", 1), ("evaluation", 1), ("evaluate", 1)]
    struck = [
        trouble.strike_one(workshop, number, phase, call, rank)
        for number in ("SIGSTOP", "SIGKILL")
        for phase, call in places
        for rank in (0, 1)
    ]
    disks = [trouble.full_disk(workshop, policy, spare) for policy in ("warn", "stop") for spare in (0, 200_000)]
    return {
        "struck": struck,
        "disks": disks,
        "read-only": trouble.read_only_disk(workshop),
        "signals": trouble.signals(workshop),
        "recovery": trouble.recovery_seconds(workshop),
        "seconds": workshop.seconds,
    }


def all_moves(folder: Path) -> Result:
    workshop = Workshop(folder)
    moved = [elastic.moved(workshop, world) for world in (1, 3, 4)]
    return {"moved": moved, "refused": elastic.refused(workshop), "seconds": workshop.seconds}


@pytest.fixture
def figures(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture) -> Callable[[Result], None]:
    """Shows what docs/reliability.md tells."""

    def show(values: Result) -> None:
        with capsys.disabled():
            print(f"\n{request.node.name}: {json.dumps(values, indent=1)}")

    return show


@pytest.mark.faults
def test_kills(tmp_path: Path, figures: Callable[[Result], None]) -> None:
    found = run_script("tests.faults.test_faults:many_kills", tmp_path, timeout_seconds=5400)
    survived = sum(chain["kills"] for chain in found["chains"])
    figures({"runs": len(found["chains"]), "kills survived": survived})
    check(found)
    assert survived >= 60 or "FAULT_SEEDS" in os.environ


@pytest.mark.faults
def test_damages(tmp_path: Path, figures: Callable[[Result], None]) -> None:
    found = run_script("tests.faults.test_faults:many_damages", tmp_path, timeout_seconds=3600)
    figures(dict(Counter(each["outcome"] for each in found["damages"])))
    check(found)


@pytest.mark.faults
def test_stopped_ranks_signals_and_disks(tmp_path: Path, figures: Callable[[Result], None]) -> None:
    found = run_script("tests.faults.test_faults:all_troubles", tmp_path, timeout_seconds=3600)
    struck = {each["case"]: round(each["seconds"], 1) for each in found["struck"]}
    disks = {key: found[key] for key in ("disks", "read-only", "signals", "recovery")}
    figures({"seconds until all ranks had ended": struck, "median": median(struck.values())} | disks)
    check(found)
    for disk in found["disks"]:
        if "skipped" not in disk:
            assert disk["warned"] and disk["last"] == [0] and not disk["differing"], disk
            assert disk["full"] in ([0], [2]), disk
    read_only = found["read-only"]
    assert "skipped" in read_only or (read_only["status"] == [2] and "cannot be written" in read_only["said"])
    for each in found["signals"]:
        assert set(each["statuses"]) == {85} and not each["differing"], each


@pytest.mark.faults
def test_other_numbers_of_ranks(tmp_path: Path) -> None:
    found = run_script("tests.faults.test_faults:all_moves", tmp_path, timeout_seconds=3600)
    for each in found["moved"]:
        assert each["last"] == [0, 0] and each["shared"] and each["close"] and each["resumed"] == 2, each
    assert found["refused"]["statuses"] == [2, 2, 2]
    assert "cannot be shared by 3 ranks alike" in found["refused"]["said"]
