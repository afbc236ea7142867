"""Interrupted runs end as if they had not been: killed, stopped by a signal, damaged, moved to other ranks.

covers stages/train, training/resume, training/run_state
"""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import launch, run_script
from tests.support.tiny_run import tiny_config

Result = dict[str, Any]


def script(folder: Path) -> Result:
    """All runs of this file, in forked ranks; what the tests look at beside the run directories."""
    config = tiny_config(
        folder,
        method={"dropout": 0.1},
        train={"max_steps": 8, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 0.01}
        | {"eval_every": 3, "save_every": 2, "log_every": 1},
        logging={"trackers": ["jsonl"]},
        engine={"threads": 1},
    )
    (folder / "config.yaml").write_text(config.to_yaml())

    def run(name: str, *overrides: str, command: str = "train", **how: Any) -> list[int]:
        if command == "train" and not (folder / name).exists():
            shutil.copytree(folder / "prepared", folder / name)
        arguments = [command, "--config", str(folder / "config.yaml"), f"run.dir={folder / name}", *overrides]
        return launch(arguments, folder / f"{name}.log", **how)

    prepared = [run("prepared", command=command) for command in ("preprocess", "encode-labels")]
    return {"prepared": prepared} | interrupted(folder, run) | to_two_ranks(folder, run) | refused(folder, run)


def interrupted(folder: Path, run: Callable[..., list[int]]) -> Result:
    return {
        "alone": run("alone"),
        "pair": run("pair", world=2),
        "killed": [
            run("killed", fault="kill_after_step:3"),
            run("killed", fault="kill_in_save:4,files"),
            run("killed", fault="kill_in_save:6,latest"),
            run("killed"),
            run("killed"),
        ],
        "one rank killed": [run("one-killed", world=2, fault="kill_after_step:5"), run("one-killed", world=2)],
        "one rank signalled": [
            run("signalled", world=2, fault="signal_at_step:SIGTERM,4"),
            sorted(os.listdir(folder / "signalled" / "checkpoints")),
            json.loads((folder / "signalled" / "PREEMPTED").read_text()),
            run("signalled", world=2),
        ],
        "moved": [
            run("moved", world=2, fault="kill_after_step:5"),
            run("moved"),
        ],
    }


def to_two_ranks(folder: Path, run: Callable[..., list[int]]) -> Result:
    alone = run("back", "train.keep_checkpoints=3", fault="full_disk:4")
    shutil.rmtree(folder / "back" / "adapter-final")
    shutil.rmtree(folder / "back" / "checkpoints" / "step-000008")
    (folder / "back" / "checkpoints" / "step-000006" / "exp_avg.safetensors").write_bytes(b"short")
    kept = sorted(os.listdir(folder / "back" / "checkpoints"))
    return {"full disk": alone, "kept": kept, "back": run("back", world=2)}


def refused(folder: Path, run: Callable[..., list[int]]) -> Result:
    shutil.copytree(folder / "alone", folder / "refused")
    (folder / "refused" / "adapter-final" / "summary.json").unlink()
    statuses = [
        run("refused", "train.learning_rate=0.02", "train.log_every=3"),
        run("refused", "train.resume=never"),
        run("refused", "train.resume=nowhere"),
        run("refused", "train.batch_size=4"),
        run(
            "refused",
            "train.batch_size=4",
            "train.gradient_accumulation=1",
            "train.eval_every=4",
            f"train.resume={folder}/refused/checkpoints/step-000006",
        ),
        run("refused", "train.learning_rate=0.02"),
        run("refused", "train.learning_rate=0.02", "--overwrite"),
        run("refused", "train.learning_rate=0.03", "--overwrite", world=2),
    ]
    return {"refused": statuses}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def result(folder: Path) -> Result:
    return run_script("tests.stages.test_resume:script", folder, timeout_seconds=400)


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (run / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line.keys() - {"examples_per_second", "seconds"}} for line in found]


def assert_same_run(run: Path, undisturbed: Path) -> None:
    assert lines(run) == lines(undisturbed)
    for adapter in ("adapter", "adapter-final"):
        names = sorted(os.listdir(undisturbed / adapter))
        assert sorted(os.listdir(run / adapter)) == names
        assert all((run / adapter / name).read_bytes() == (undisturbed / adapter / name).read_bytes() for name in names)
    assert not [name for name in os.listdir(run / "checkpoints") if name.startswith(".")], "nothing half-written stays"


def test_a_run_killed_anywhere_ends_as_the_undisturbed_one(result: Result, folder: Path) -> None:
    assert result["prepared"] == [[0], [0]] and result["alone"] == [0]
    assert result["killed"] == [[-signal.SIGKILL]] * 3 + [[0], [0]]
    assert [line["step"] for line in lines(folder / "alone") if "loss" in line] == list(range(1, 9))
    assert_same_run(folder / "killed", folder / "alone")
    log = (folder / "killed.log").read_text()
    # Step 6 was whole when the run was killed, but LATEST did not name it yet.
    assert [f"goes on after step {step}," in log for step in (2, 4, 6)] == [True, True, False]
    assert f"{folder / 'killed' / 'adapter'} is current" in log


def test_two_ranks_of_which_one_is_killed(result: Result, folder: Path) -> None:
    assert result["pair"] == [0, 0]
    (killed, other), ended = result["one rank killed"]
    assert killed == -signal.SIGKILL and other not in (0, 85) and ended == [0, 0]
    assert_same_run(folder / "one-killed", folder / "pair")


def test_a_signal_to_one_rank_stops_all_at_the_same_step(result: Result, folder: Path) -> None:
    stopped, files, sign, ended = result["one rank signalled"]
    assert stopped == [85, 85] and ended == [0, 0]
    assert sign == {"step": 5, "signal": "SIGTERM"} and not (folder / "signalled" / "PREEMPTED").exists()
    assert files == ["LATEST", "step-000004", "step-000005"], "saved at the step in which the signal came"
    assert (
        "SIGTERM: stopped after step 5; the same command goes on from there" in (folder / "signalled.log").read_text()
    )
    assert_same_run(folder / "signalled", folder / "pair")


def test_from_two_ranks_to_one(result: Result, folder: Path) -> None:
    assert result["moved"][1] == [0]
    log = (folder / "moved.log").read_text()
    assert "1 rank(s) share batches of 8 texts: batch_size 2, gradient_accumulation 4" in log
    assert_close_runs(folder / "moved", folder / "pair")


def test_from_one_rank_to_two_over_a_damaged_checkpoint_and_a_full_disk(result: Result, folder: Path) -> None:
    assert result["full disk"] == [0], "a full disk does not end the run"
    assert result["kept"] == ["LATEST", "step-000002", "step-000006"] and result["back"] == [0, 0]
    log = (folder / "back.log").read_text()
    assert "CHECKPOINT OF STEP 4 NOT WRITTEN: cannot write" in log and "No space left on device" in log
    assert "exp_avg.safetensors is not what was written; passed over" in log and "goes on after step 2," in log
    assert "2 rank(s) share batches of 4 texts: batch_size 2, gradient_accumulation 1" in log
    assert_close_runs(folder / "back", folder / "alone")


def assert_close_runs(run: Path, undisturbed: Path) -> None:
    found, wanted = lines(run), lines(undisturbed)
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for key in ("loss", "validation/log_loss"):
        ours = [line[key] for line in found if key in line]
        assert ours == pytest.approx([line[key] for line in wanted if key in line], rel=1e-4)


def test_what_does_not_fit_is_refused_by_name(result: Result, folder: Path) -> None:
    assert result["refused"] == [[2], [2], [2], [2], [0], [2], [0], [0, 0]]
    log = (folder / "refused.log").read_text()
    assert "train.learning_rate was '0.01', now '0.02': set that back, or give --overwrite" in log
    assert "holds checkpoints and train.resume is never: give --overwrite" in log
    assert "'nowhere' is not a checkpoint directory" in log
    assert "train.batch_size was '2', now '4': set that back" in log
    assert "goes on after step 6, from" in log, "as train.resume said, though step 8 is newer"
    assert "goes on with train.batch_size was '2', now '4'; train.eval_every was '3', now '4'; train.gradient" in log


def test_a_finished_run_with_another_config_is_kept_until_it_is_overwritten(result: Result, folder: Path) -> None:
    log = (folder / "refused.log").read_text()
    assert "refused' holds a finished run, and " in log and "train.learning_rate was '0.01', now '0.02'" in log
    assert lines(folder / "refused")[0]["step"] == 1 and lines(folder / "refused")[-2]["step"] == 8
    assert lines(folder / "refused")[0]["learning_rate"] == 0.03
    assert len(lines(folder / "refused")) == len(lines(folder / "alone"))
