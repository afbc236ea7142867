"""The run directory: artefacts are written whole or not at all, whatever ends the writer.

covers core/artefact, core/run_dir
"""

import os
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_dir, atomic_file, read_json, read_json_lines, write_json, write_text
from pipeline.core.ownership import MARK
from pipeline.core.run_dir import RunDir
from tests.support.devices import device

FILES = ("one", "two", "deep/three")


def fill(folder: Path, text: str) -> None:
    (folder / "adapter_config.json").write_text('{"backbone": {}}')
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def content(folder: Path) -> set[str]:
    return {(folder / name).read_text() for name in FILES}


def names_in(run: Path) -> list[str]:
    """What is in a run directory beside the mark."""
    return sorted(set(os.listdir(run)) - {MARK})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    RunDir(tmp_path / "run").create()
    with atomic_dir(tmp_path / "run" / "adapter") as temporary:
        fill(temporary, "old")
    return tmp_path / "run" / "adapter"


def test_a_folder_is_made_and_replaced(folder: Path) -> None:
    assert content(folder) == {"old"}
    with atomic_dir(folder) as temporary:
        fill(temporary, "new")
        (temporary / "extra").write_text("")
        assert content(folder) == {"old"}
    assert content(folder) == {"new"} and (folder / "extra").is_file()
    assert names_in(folder.parent) == ["adapter"]
    assert folder.stat().st_mode & 0o777 == 0o755, "others may read it, unlike what mkdtemp makes"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_error_leaves_the_old_folder(folder: Path, error: BaseException) -> None:
    expected = UserError if isinstance(error, OSError) else type(error)

    def write() -> None:
        with atomic_dir(folder) as temporary:
            fill(temporary, "new")
            raise error

    with pytest.raises(expected) as raised:
        write()
    if expected is UserError:
        assert str(raised.value) == (
            f"cannot write '{folder}' (No space left on device): free space or choose another place"
        )
    assert content(folder) == {"old"} and names_in(folder.parent) == ["adapter"]


def test_a_folder_that_cannot_be_made_is_the_users_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "run" / "adapter"
    for writer in (atomic_dir, atomic_file):
        with pytest.raises(UserError, match="cannot write"), writer(path):
            pass
    with pytest.raises(UserError, match=r"run\.dir .* cannot be written \(Not a directory\): choose another run\.dir"):
        RunDir(path).create()


def killed_at(call: int, after: bool, work: Callable[[], None]) -> bool:
    """Runs `work` in a process that dies just before or after its n-th change of the file system; False if it ended."""
    pid = os.fork()
    if pid == 0:
        calls = 0

        def dying(change: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **keywords: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == call and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                mine = calls
                try:
                    return change(*arguments, **keywords)
                finally:
                    if mine == call:
                        os.kill(os.getpid(), signal.SIGKILL)

            return wrapped

        for name in ("replace", "mkdir", "chmod", "unlink", "rmdir", "fsync"):
            setattr(os, name, dying(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_any_instant_leaves_the_old_folder_or_the_new(folder: Path, after: bool) -> None:
    def write() -> None:
        with atomic_dir(folder) as temporary:
            fill(temporary, "new")

    seen = []
    for call in range(1, 100):
        if not killed_at(call, after, write):
            break
        # A second kill, while the first one's traces are cleared away.
        killed_at(1 + call % 4, after, RunDir(folder.parent).create)
        RunDir(folder.parent).create()
        seen.append(content(folder))
        assert seen[-1] in ({"old"}, {"new"})
        assert not (folder.parent / ".ltune-adapter.old").exists()
        with atomic_dir(folder) as temporary:
            assert len(names_in(folder.parent)) == 2, "what the killed one left is gone"
            fill(temporary, "old")
    assert {"old"} in seen and {"new"} in seen and len(seen) > 10


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_while_training_is_removed_leaves_the_finished_run_or_nothing_to_go_on_from(
    tmp_path: Path, after: bool
) -> None:
    run = RunDir(tmp_path)
    run.create()

    def whole(path: Path) -> bool:
        return sorted(os.listdir(path)) == ["a", "b"] if path.exists() else False

    seen = set()
    for call in range(1, 100):
        for path in (run.evaluation, run.checkpoints, run.adapter, run.adapter_final):
            path.mkdir(exist_ok=True)
            for name in ("a", "b"):
                (path / name).write_text("")
        if not killed_at(call, after, run.remove_training):
            break
        paths = (run.evaluation, run.checkpoints, run.adapter, run.adapter_final)
        assert all(whole(path) or not path.exists() for path in paths)
        left = [path.exists() for path in paths]
        assert left == sorted(left), "in this order"
        seen.add(sum(left))
    assert seen == {0, 1, 2, 3, 4}


def test_the_next_writer_puts_the_old_folder_back(folder: Path) -> None:
    """As a kill between the two renames leaves it, where nobody called RunDir.create."""
    folder.rename(folder.with_name(".ltune-adapter.old"))
    with pytest.raises(ValueError, match="x"), atomic_dir(folder):
        raise ValueError("x")
    assert content(folder) == {"old"} and names_in(folder.parent) == ["adapter"]


def test_a_failed_second_rename_puts_the_old_folder_back(folder: Path) -> None:
    with pytest.raises(UserError, match="cannot write"), atomic_dir(folder) as temporary:
        temporary.rmdir()
    assert content(folder) == {"old"}


def test_a_run_directory_is_cleared_up_and_keeps_its_config(folder: Path) -> None:
    folder.rename(folder.with_name(".ltune-adapter.old"))
    RunDir(folder.parent).create()
    RunDir(folder.parent).write_config("x")
    assert content(folder) == {"old"} and RunDir(folder.parent).config_file.read_text() == "x"
    before = RunDir(folder.parent).config_file.stat()
    RunDir(folder.parent).write_config("x")
    assert RunDir(folder.parent).config_file.stat() == before, "what is the same is not written again"


def test_a_file_is_made_and_replaced_and_survives_errors_and_kills(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "metrics.json"
    write_json(path, {"a": "é"})
    assert read_json(path) == {"a": "é"} and "é" in path.read_text(encoding="utf-8")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert read_json(path) == {"a": "é"} and os.listdir(path.parent) == [path.name]
    for after in (False, True):
        call = 1
        while killed_at(call, after, lambda: write_text(path, "2")):
            assert path.read_text() in ('{\n  "a": "é"\n}\n', "2")
            call += 1
        assert call > 2 and path.read_text() == "2"
        write_json(path, {"a": "é"})


@pytest.mark.parametrize("file", ["adapter/README.md", "adapter/calibration.json", "logs/cost.json"])
def test_what_a_kill_leaves_within_a_folder_is_cleared_away(tmp_path: Path, file: str) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    write_json(run.adapter / "adapter_config.json", {"backbone": {}})
    call, left = 1, 0
    while killed_at(call, False, lambda: write_text(run.path / file, "x")):
        left += any(".ltune" in path.name for path in run.path.rglob("*"))
        run.create()
        assert not [path for path in run.path.rglob("*") if ".ltune" in path.name]
        call += 1
    assert left, "no kill left anything"


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    null = device(tmp_path, "null")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(null)
    for path, kind in ((null, "device"), (tmp_path / "pipe", "pipe")):
        before = path.lstat()
        with pytest.raises(UserError, match=f"cannot write .*it is a {kind}, not a file"):
            write_text(path, "x")
        assert path.lstat().st_ino == before.st_ino
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").read_text() == "x" and stat.S_ISCHR(null.lstat().st_mode)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".ltune")]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 64 KiB."""
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=64k tmpfs {folder} 2>/dev/null"):
            pytest.skip("a small tmpfs can be mounted by root only")
        yield Path(folder)
        os.system(f"umount -l {folder}")  # Arrow may still have a file of it mapped


def test_a_full_disk_leaves_the_old_artefacts(small_disk: Path) -> None:
    write_text(small_disk / "file", "old")
    with atomic_dir(small_disk / "folder") as temporary:
        fill(temporary, "old")
    with pytest.raises(UserError, match=r"cannot write .*file' \(No space left on device\)"):
        write_text(small_disk / "file", "x" * 100_000)
    with pytest.raises(UserError, match=r"No space left on device"), atomic_dir(small_disk / "folder") as temporary:
        (temporary / "one").write_text("x" * 100_000)
    with pytest.raises(UserError, match=r"No space left on device"), atomic_dir(small_disk / "folder") as temporary:
        save_file({"x": torch.zeros(100_000)}, temporary / "one")
    rows = Dataset.from_dict({"x": list(range(100_000))})
    with pytest.raises(UserError, match=r"No space left on device"), atomic_dir(small_disk / "folder") as temporary:
        rows.map(lambda row: row, cache_file_name=str(temporary / "cache.arrow"))
    assert (small_disk / "file").read_text() == "old" and content(small_disk / "folder") == {"old"}
    assert sorted(os.listdir(small_disk)) == ["file", "folder"]


@pytest.mark.parametrize("damage", ["", "{", "\xff\xfe"])
def test_damaged_json_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "labels.json"
    with pytest.raises(UserError, match="does not exist: run the stage that writes it first"):
        read_json(path)
    with pytest.raises(UserError, match="does not exist: run encode-texts first"):
        read_json(tmp_path / "texts" / "states.json")
    path.write_text(damage, encoding="latin-1")
    with pytest.raises(UserError, match=r"labels\.json' cannot be read"):
        read_json(path)


def test_create_takes_away_what_a_killed_process_left_half_written_and_nothing_else(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create()
    (run.path / ".ltune-data.x1y2.tmp" / "train").mkdir(parents=True)
    (run.path / ".ltune-config.yaml.77.tmp").write_text("half")
    others = [".data.x1y2.tmp", ".notes.old", ".adapter.old", "x.tmp", ".ltune-out.jsonl.77.tmp", ".ltune-notes.old"]
    for name in others:
        (run.path / name).write_text("somebody else's")
    run.create()
    assert names_in(run.path) == sorted(others)


def test_a_line_that_is_cut_off_is_named_with_its_file(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_json_lines(file) == []
    file.write_text('{"step": 1}\n{"step": 2}\n')
    assert read_json_lines(file) == [{"step": 1}, {"step": 2}]
    for rest in ('{"ste', "\xff"):
        file.write_bytes(b'{"step": 1}\n' + rest.encode("latin-1"))
        with pytest.raises(UserError, match=r"metrics\.jsonl' is damaged \(.*: remove it"):
            read_json_lines(file)
