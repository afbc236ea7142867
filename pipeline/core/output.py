"""Where results go: into a file whole or not at all, or into a stream; never onto what they are made from."""

import errno
import io
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TextIO

from pipeline.core.errors import UserError
from pipeline.core.escapes import visible
from pipeline.core.files import atomic_file

STANDARD = "-"
"""Standard input, as a source; standard output, as a target."""


def check_output(output: str, sources: Iterable[str | Path]) -> None:
    """UserError where to write `output` would change one of `sources`: files and folders that are read, or "-".

    However it is named: by a link, a hard link, a descriptor of this process; and whatever lies in a folder.
    """
    try:
        is_folder = output != STANDARD and Path(output).is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or has a null character
        raise UserError(f"cannot write '{output}' ({getattr(error, 'strerror', None) or error})") from error
    if is_folder:
        raise UserError(f"output '{output}' is a folder: name a file")
    target = _status(output, sys.stdout)
    if target is not None and (stat.S_ISCHR(target.st_mode) or stat.S_ISSOCK(target.st_mode)):
        return  # a terminal, /dev/null: read and written at once without harm
    for source in sources:
        if _is_source(output, target, str(source)):
            raise UserError(f"output '{output}' would overwrite what is read, '{source}': choose another place")


@contextmanager
def opened_output(output: str) -> Iterator[Callable[[str], None]]:
    """Yields a function that writes text at once, to standard output for "-".

    What is not a regular file (a device, a named pipe, a descriptor of this process) is written into. A file appears,
    or is replaced, when the block ends without an error; of a link, its target. Raises UserError for what cannot be
    written, but BrokenPipeError where the reader of standard output has gone.
    """
    descriptor, target = _descriptor(output), _status(output, None)
    if output == STANDARD or descriptor == 1:
        yield _write_standard
    elif descriptor is None and (target is None or stat.S_ISREG(target.st_mode)):
        with atomic_file(Path(os.path.realpath(output))) as temporary, open(temporary, "w", encoding="utf-8") as file:
            yield partial(_write, file)
    else:
        with _stream(output, descriptor) as write:
            yield write


@contextmanager
def _stream(name: str, descriptor: int | None) -> Iterator[Callable[[str], None]]:
    def write(text: str) -> None:
        with _faults_named(name):
            _write(file, text)

    with _faults_named(name):
        place = name if descriptor is None else os.dup(descriptor)
        file = open(place, "w", encoding="utf-8")  # noqa: SIM115 (its end may fail again, which says nothing new)
    try:
        yield write
    finally:
        with suppress(OSError):
            file.close()


@contextmanager
def _faults_named(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write '{name}' ({error.strerror})") from error


def say(text: str) -> None:
    """Prints lines to standard output, harmless for a terminal. UserError where it cannot be written."""
    _write_standard(visible(text, keep="\n") + "\n")


def say_error(line: str) -> None:
    """Writes a line to standard error in one piece, as `print` does not: those of several ranks would run together."""
    if sys.stderr is not None:
        _write(sys.stderr, f"{line}\n")


def _write_standard(text: str) -> None:
    try:
        _write(sys.stdout or ClosedOutput(), text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _lost(error) from error


def _lost(error: OSError) -> UserError:
    return UserError(f"standard output cannot be written ({error.strerror})")


def _write(file: TextIO, text: str) -> None:
    file.write(text)
    file.flush()


class ReaderGone(Exception):  # noqa: N818 (no fault: `predict | head`)
    """Whoever read standard output has closed it: there is nobody to write to."""


class ClosedOutput(io.StringIO):
    """In the place of a standard output that was closed before the start, for which Python has None: print would drop
    everything."""

    def flush(self) -> None:
        if self.getvalue():
            raise OSError(errno.EBADF, "it is closed")


@contextmanager
def whole_output(*, needed: bool) -> Iterator[None]:
    """Lets nothing be lost on standard output in silence: UserError where it cannot be written, ReaderGone where its
    reader has gone.

    `needed`: the block prints results, so that standard output must not be closed.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):
        # A file that is opened must not get the number of a closed stream, to which libraries write.
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives: progress bars write to it)
    if needed and sys.stdout is None:
        sys.stdout = ClosedOutput()
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, UserError) as error:
        nobody_reads = isinstance(error, BrokenPipeError) and _reader_has_gone()
        unwritten = _drop_unwritten()
        if nobody_reads:
            raise ReaderGone from error
        if unwritten is None or isinstance(error, UserError):
            raise
        raise _lost(unwritten) from error


def _drop_unwritten() -> OSError | None:
    """Drops the text that standard output still holds, where it cannot be written; and says why.

    Else Python would try again at its end, and fail with a status of its own.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if isinstance(sys.stdout, ClosedOutput):
            sys.stdout = None
        else:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def _reader_has_gone() -> bool:
    """Is standard output a pipe that nobody reads? Another pipe may have been broken."""
    poll = select.poll()
    poll.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end the block as an exception does, so that no temporary file stays.

    A signal that is ignored (nohup) stays ignored.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # as shells report a process that the signal ended


def _is_source(output: str, target: os.stat_result | None, source: str) -> bool:
    read = _status(source, sys.stdin)
    if read is None:
        return False
    if not stat.S_ISDIR(read.st_mode):
        return target is not None and os.path.samestat(target, read)
    if output != STANDARD and Path(os.path.realpath(output)).is_relative_to(os.path.realpath(source)):
        return True
    if target is None or target.st_nlink < 2:
        return False
    return any(os.path.samestat(target, file.stat()) for file in Path(source).rglob("*") if file.is_file())


def _status(place: str, standard: TextIO | None) -> os.stat_result | None:
    """Of the file, or of the standard stream for "-"; None where there is none."""
    try:
        if place != STANDARD:
            return os.stat(place)
        return None if standard is None else os.fstat(standard.fileno())
    except (OSError, ValueError):  # no file yet; a stream that is not a file
        return None


def _descriptor(path: str) -> int | None:
    """The descriptor of this process that `path` names (/dev/stdout, /dev/fd/3): what it is open on is not replaced."""
    folder = os.path.realpath("/proc/self/fd")
    for _ in range(40):  # as many links as the system follows
        parent, name = os.path.realpath(os.path.dirname(path) or "."), os.path.basename(path)
        if parent == folder and name.isdecimal():
            return int(name)
        if not os.path.islink(path):
            return None
        path = os.path.join(parent, os.readlink(path))
    return None
