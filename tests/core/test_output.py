"""Where results go: files whole or not at all, streams in full or not with status 0, and never what is read."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.core.output import check_output, opened_output
from tests.support.devices import device
from tests.support.processes import HANG_SECONDS


def put(output: Path | str, *parts: str) -> None:
    with opened_output(str(output)) as write:
        for part in parts:
            write(part)


def python(code: str, **options: object) -> subprocess.Popen[str]:
    """Runs `code` with the module's names, as the command line runs a command."""
    start = "import os, sys, time\nfrom pipeline.core.output import *\n"
    return subprocess.Popen([sys.executable, "-c", start + code], text=True, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]


def test_a_file_appears_whole_and_with_its_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        put(tmp_path / "new" / "out", "a\n", "b\n")
    finally:
        os.umask(before)
    out = tmp_path / "new" / "out"
    assert out.read_text() == "a\nb\n" and stat.S_IMODE(out.stat().st_mode) == 0o640
    out.chmod(0o604)
    with opened_output(str(out)) as write:
        write("c\n")
        assert out.read_text() == "a\nb\n", "the old one, until all is done"
    assert out.read_text() == "c\n" and stat.S_IMODE(out.stat().st_mode) == 0o604
    with pytest.raises(ZeroDivisionError), opened_output(str(out)) as write:
        write(str(1 / 0))
    assert out.read_text() == "c\n" and os.listdir(tmp_path / "new") == ["out"]


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("second")
    (tmp_path / "second").symlink_to("far/file")
    for text in ("new", "replaced"):
        put(tmp_path / "link", text)
        assert (tmp_path / "far" / "file").read_text() == text
        assert (tmp_path / "link").is_symlink() and (tmp_path / "second").is_symlink()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError):
        put(tmp_path / "loop", "x")
    assert (tmp_path / "loop").is_symlink()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_named_pipe_gets_each_part_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    got: list[str] = []

    def read() -> None:
        with open(tmp_path / "pipe") as pipe:
            got.extend(iter(pipe.readline, ""))

    reader = threading.Thread(target=read)
    reader.start()
    with opened_output(str(tmp_path / "pipe")) as write:
        write("first\n")
        until(lambda: got)
        assert got == ["first\n"]
        write("second\n")
    reader.join()
    assert got == ["first\n", "second\n"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and os.listdir(tmp_path) == ["pipe"]


def broken(write: Callable[[str], None], reader: int) -> None:
    write("first\n")
    os.close(reader)
    write("second\n")


def test_a_pipe_whose_reader_goes_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with (
        pytest.raises(UserError, match=r"cannot write .*pipe' \(Broken pipe"),
        opened_output(f"{tmp_path}/pipe") as write,
    ):
        broken(write, reader)


def test_devices_stay_devices(tmp_path: Path) -> None:
    null, full = device(tmp_path, "null"), device(tmp_path, "full")
    (tmp_path / "link").symlink_to(null)
    with null.open("w") as opened:
        for place in (
            null,
            tmp_path / "link",
            f"/dev/fd/{opened.fileno()}",
            f"/proc/{os.getpid()}/fd/{opened.fileno()}",
        ):
            put(place, "a", "b")
            assert stat.S_ISCHR(null.lstat().st_mode) and (tmp_path / "link").is_symlink()
        program = "with opened_output('/dev/stdout') as write: write('a')"
        assert python(program, stdout=opened).wait() == 0 and stat.S_ISCHR(null.lstat().st_mode)
    with pytest.raises(UserError, match=r"cannot write '.*/full' \(No space left on device\)"):
        put(full, "a")
    with pytest.raises(UserError, match=r"cannot write '/dev/fd/999' \(Bad file descriptor\)"):
        put("/dev/fd/999", "a")


def test_a_descriptor_is_written_on_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before\n")
    for place in ("/dev/fd/{}", "/proc/self/fd/{}"):
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND)
        number = file.stat().st_ino
        put(place.format(descriptor), "behind\n")
        os.close(descriptor)
        assert file.stat().st_ino == number
    assert file.read_text() == "before\nbehind\nbehind\n"
    (tmp_path / "link").symlink_to("/dev/stdout")
    with open(file, "a") as opened:
        for place in ("/dev/stdout", tmp_path / "link"):
            assert python(f"with opened_output('{place}') as write: write('out\\n')", stdout=opened).wait() == 0
    assert file.read_text() == "before\nbehind\nbehind\nout\nout\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_temporary_file_and_the_old_output(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "out").write_text("old")
    as_usual = f"import signal\nsignal.signal({int(number)}, signal.SIG_DFL)\n"  # under nohup it is ignored
    code = (
        as_usual + f"with ended_by_signals(), opened_output('{tmp_path}/out') as write:\n write('new')\n time.sleep(60)"
    )
    process = python(code)
    until(lambda: len(os.listdir(tmp_path)) == 2)
    process.send_signal(number)
    assert process.wait(HANG_SECONDS) == 128 + number
    assert os.listdir(tmp_path) == ["out"] and (tmp_path / "out").read_text() == "old"


def test_nohup_is_heeded() -> None:
    code = (
        "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with ended_by_signals(): os.kill(os.getpid(), signal.SIGHUP); print('on', flush=True)"
    )
    process = python(code, stdout=subprocess.PIPE)
    assert process.communicate()[0] == "on\n" and process.returncode == 0


SAME: dict[str, Callable[[Path], str]] = {
    "the same name": lambda folder: f"{folder}/f.csv",
    "another name": lambda folder: f"{folder}/sub/../f.csv",
    "a link": lambda folder: f"{folder}/link",
    "a link to a link": lambda folder: f"{folder}/sub/link",
    "a hard link": lambda folder: f"{folder}/hard",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "f.csv").write_text("text\na goal\n")
    (tmp_path / "link").symlink_to("f.csv")
    (tmp_path / "sub" / "link").symlink_to("../link")
    os.link(tmp_path / "f.csv", tmp_path / "hard")
    return tmp_path


@pytest.mark.parametrize("name", SAME)
def test_what_is_read_is_not_written(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"would overwrite what is read, '.*f\.csv'"):
        check_output(SAME[name](folder), [folder / "other", folder / "f.csv"])
    with pytest.raises(UserError, match="would overwrite what is read"):
        check_output(SAME[name](folder), [folder])


def test_nothing_is_added_to_a_folder_that_is_read(folder: Path) -> None:
    with pytest.raises(UserError, match="would overwrite"):
        check_output(f"{folder}/sub/new", [folder / "sub"])
    (folder / "away").symlink_to("sub")
    with pytest.raises(UserError, match="would overwrite"):
        check_output(f"{folder}/away/new", [folder / "sub"])
    with pytest.raises(UserError, match="is a folder: name a file"):
        check_output(str(folder), [])


def test_what_is_not_read_may_be_written(folder: Path) -> None:
    (folder / "copy").write_bytes((folder / "f.csv").read_bytes())
    for output in ("copy", "new", "sub2/new", "subfolder"):
        check_output(f"{folder}/{output}", [folder / "f.csv", folder / "sub", folder / "none", "hub/name", "-"])
    check_output("/dev/null", ["/dev/null"])
    check_output("-", ["-", folder])


@pytest.mark.parametrize(
    ("output", "source", "redirected"),
    [("/dev/stdin", "-", "<"), ("-", "f.csv", ">>"), ("/dev/stdout", "f.csv", ">>"), ("f.csv", "/dev/stdin", "<")],
)
def test_standard_streams_are_what_they_are_open_on(folder: Path, output: str, source: str, redirected: str) -> None:
    code = f"check_output('{output}', ['{source}'])"
    with open(folder / "f.csv", "r" if redirected == "<" else "a") as file:
        process = python(code, cwd=folder, **{"stdin" if redirected == "<" else "stdout": file})
        assert "would overwrite what is read" in process.communicate()[1]


PRINTED = ("print('x')", "with opened_output('-') as write: write('x')")


def shell(code: str, redirection: str, buffered: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `code` as the command line runs a command, with its output redirected by a shell."""
    script = f"import sys\nfrom pipeline.core.output import *\nwith whole_output(needed=True):\n {code}"
    command = f'"{sys.executable}" -c "$CODE" {redirection}; exit ${{PIPESTATUS[0]}}'
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    env |= {"CODE": script, "PYTHONUNBUFFERED": buffered}
    return subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("code", PRINTED)
@pytest.mark.parametrize(
    ("redirection", "reason"), [("> /dev/full", "No space left on device"), (">&-", "it is closed"), ("| true", "")]
)
def test_no_line_is_lost_on_standard_output_in_silence(
    redirection: str, reason: str, code: str, unbuffered: str
) -> None:
    """Neither with `print` nor with `opened_output`; a reader that goes is told apart."""
    if redirection == "| true":  # only once it has gone
        code = f"import select; end = select.poll(); end.register(1, 0); end.poll()\n {code}"
    done = shell(code, redirection, unbuffered)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    if redirection == "| true":
        assert last == "pipeline.core.output.ReaderGone"
    else:
        assert reason in last


def test_a_pipe_that_breaks_elsewhere_is_no_reader_gone() -> None:
    done = shell("raise BrokenPipeError(32, 'of another rank')", "| cat")
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "BrokenPipeError: [Errno 32] of another rank"


def test_a_file_does_not_get_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    done = shell(f"print(open('{tmp_path}/x', 'w').fileno(), file=sys.stderr)", "<&- >&-")
    assert int(done.stderr) > 2


def test_an_error_line_is_written_in_one_piece() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps writes apart
    program = "from pipeline.core.output import say_error; say_error('error: a'); say_error('error: b')"
    with ours:
        with theirs:
            subprocess.run([sys.executable, "-c", program], stderr=theirs, check=True)
        assert [ours.recv(100) for _ in range(3)] == [b"error: a\n", b"error: b\n", b""]
