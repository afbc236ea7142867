"""Checkpoint files: what is read is what was written, or nothing.

covers training/optimizer_state, training/run_state, training/adapter_writer
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.core.errors import UserError
from pipeline.training.checkpoint import (
    BEST,
    STATE,
    DamagedCheckpointError,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from pipeline.training.optimizer_state import MOMENTS, OptimizerState
from pipeline.training.run_state import Best, LogPosition, RunState

FILES = [STATE, "parameters.safetensors", "exp_avg.safetensors", "exp_avg_sq.safetensors", BEST]


def state_of(step: int, **changes: Any) -> RunState:
    generator = torch.Generator().manual_seed(step)

    def tensors() -> dict[str, torch.Tensor]:
        return {"head.weight": torch.randn(2, 5, generator=generator), "head.log_scale": torch.tensor([1 / 3])}

    best = Best(0.1 + 0.2, 3, 1, {"accuracy": 0.1 + 0.2, "confusion": [[1, 0], [0, 2]]}, tensors())
    values: dict[str, Any] = {
        "step": step,
        "optimizer": OptimizerState(tensors(), {key: tensors() for key in MOMENTS}, step),
        "best": best,
        "global_batch": 32,
        "metrics_log": LogPosition(1234, "ab12"),
        "evaluation_due": step % 2 == 0,
        "fingerprint": {"train.learning_rate": "0.01", "label states: labels": "größe"},
    }
    return RunState(**values | changes)


def assert_equal(first: RunState, second: RunState) -> None:
    def tensors(state: RunState) -> list[dict[str, torch.Tensor]]:
        return [state.optimizer.parameters, *state.optimizer.moments.values(), state.best.parameters]

    for ours, theirs in zip(tensors(first), tensors(second), strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    plain = ("step", "global_batch", "metrics_log", "evaluation_due", "fingerprint")
    assert [getattr(first, name) for name in plain] == [getattr(second, name) for name in plain]
    of_best = ("value", "step", "evaluations_since", "figures", "value_of_steps")
    assert [getattr(first.best, name) for name in of_best] == [getattr(second.best, name) for name in of_best]
    assert first.optimizer.step == second.optimizer.step


def test_round_trip(tmp_path: Path) -> None:
    state = state_of(200)
    write_checkpoint(tmp_path, state, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-000200"]
    assert (tmp_path / "LATEST").read_text() == "step-000200\n"
    assert_equal(read_checkpoint(tmp_path / "step-000200"), state)
    size = sum(file.stat().st_size for file in (tmp_path / "step-000200").iterdir())
    assert size < 4 * 4 * 11 + 4000, "parameters, two moments, best parameters, and little beside them"


def test_before_the_first_evaluation(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state_of(5, best=Best()), keep=1)
    assert not (tmp_path / "step-000005" / BEST).exists()
    assert read_checkpoint(tmp_path / "step-000005").best == Best()


@pytest.mark.parametrize("name", FILES)
def test_every_damage_to_every_file_is_found(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    for step in (10, 20):
        write_checkpoint(tmp_path, state_of(step), keep=3)
    file = tmp_path / "step-000020" / name
    whole = file.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole) - 1, 17)]
    for damage in (b"", whole[: len(whole) // 2], whole[:-2], b"\0" * len(whole), *flipped):
        file.write_bytes(damage)
        with pytest.raises(DamagedCheckpointError, match="is damaged"):
            read_checkpoint(tmp_path / "step-000020")
    file.unlink()
    assert newest_checkpoint(tmp_path) == tmp_path / "step-000010"
    assert "step-000020' is damaged" in caplog.text and "passed over" in caplog.text


def test_a_newer_format_is_refused_and_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, state_of(10), keep=3)
    monkeypatch.setattr("pipeline.training.checkpoint.FORMAT_VERSION", 3)
    write_checkpoint(tmp_path, state_of(20), keep=3)
    monkeypatch.undo()
    with pytest.raises(UserError, match="format version 3"):
        newest_checkpoint(tmp_path)


def test_only_the_newest_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    for step in (1, 2, 3, 9):
        write_checkpoint(tmp_path, state_of(step), keep=2)
    assert newest_checkpoint(tmp_path) == tmp_path / "step-000009"
    (tmp_path / ".ltune-step-000007.abc.tmp").mkdir()
    # The run went back to step 3 and on from there: step 9 belongs to a past that did not happen.
    write_checkpoint(tmp_path, state_of(4), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LATEST", "step-000003", "step-000004"]


def test_latest_decides_between_two_pasts(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write_checkpoint(tmp_path, state_of(step), keep=3)
    (tmp_path / "LATEST").write_text("step-000020\n")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-000020"
    for unreadable in (b"", b"\xff", b"step-x"):
        (tmp_path / "LATEST").write_bytes(unreadable)
        assert newest_checkpoint(tmp_path) == tmp_path / "step-000030"
    shutil.rmtree(tmp_path / "step-000030")
    (tmp_path / "LATEST").write_text("step-000030\n")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-000020"
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_a_place_that_cannot_be_written_leaves_the_older_checkpoints(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run", state_of(10), keep=1)
    before = {file.name: file.read_bytes() for file in (tmp_path / "run" / "step-000010").iterdir()}
    # A file where the directory should go: works as root too, whom no permission stops.
    (tmp_path / "run" / "step-000020").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        write_checkpoint(tmp_path / "run" / "step-000020", state_of(20), keep=1)
    assert {file.name: file.read_bytes() for file in (tmp_path / "run" / "step-000010").iterdir()} == before
    assert newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "step-000010"


def test_the_state_file_is_plain_json(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state_of(7), keep=1)
    header = json.loads((tmp_path / "step-000007" / STATE).read_text())
    assert header["version"] == 2 and header["step"] == 7 and set(header["files"]) == set(FILES) - {STATE}
