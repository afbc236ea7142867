"""A run directory has one owner, who loses it with its life."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core import run_lock
from pipeline.core.errors import UserError
from pipeline.core.run_lock import RunLock


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 0.5)


@pytest.mark.parametrize("with_child", [False, True])
def test_the_second_process_is_refused_until_the_first_is_dead(
    tmp_path: Path, owner_of: Callable[..., int], with_child: bool
) -> None:
    owner = owner_of(tmp_path / "run", with_child=with_child)
    with pytest.raises(UserError, match=rf"is in use by process {owner} on .*: wait for it to end, or choose another"):
        RunLock(tmp_path / "run").acquire()
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    lock.release()


def test_a_released_lock_is_free_for_others(tmp_path: Path, owner_of: Callable[..., int]) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    lock.release()
    owner_of(tmp_path)


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="cannot be written"):
        RunLock(tmp_path).acquire()
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(*arguments: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", unknown)
    RunLock(tmp_path).acquire()
    assert "cannot be locked" in caplog.text and "let only one command at a time write it" in caplog.text
