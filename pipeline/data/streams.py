"""Where bytes come from: a file, plain or gzip, a pipe or standard input, opened once and read as it comes."""

import gzip
import io
import os
import select
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.core.errors import UserError
from pipeline.core.output import STANDARD

GZIP = ".gz"
BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class Source:
    """Something to read from start to end."""

    place: str
    """A path, or "-" for standard input."""
    before_wait: Callable[[], None] | None = None
    """Called whenever more is wanted of a stream that has nothing ready: whoever sends it may wait for an answer."""

    @property
    def name(self) -> str:
        return "standard input" if self.place == STANDARD else self.place

    @property
    def is_gzip(self) -> bool:
        return self.place.lower().endswith(GZIP)

    @property
    def suffix(self) -> str:
        """Of the name without .gz, in small letters; none of standard input."""
        path = Path(self.place)
        return (path.with_suffix("") if self.is_gzip else path).suffix.lower()

    @property
    def is_file(self) -> bool:
        """Can all of it be read without waiting for whoever sends it?"""
        return self.place != STANDARD and Path(self.place).is_file()

    @property
    def is_plain_file(self) -> bool:
        """Can its bytes be read in any order?"""
        return self.is_file and not self.is_gzip

    @contextmanager
    def opened(self) -> Iterator[io.BufferedReader]:
        """UserError where it cannot be opened or read, or is not the gzip file that its name promises."""
        with self._raw() as raw:
            if isinstance(raw, io.BufferedReader):
                yield raw
                return
            waiting = _Waiting(raw, self)
            file = gzip.GzipFile(fileobj=waiting) if self.is_gzip else io.BufferedReader(waiting, BUFFER_BYTES)
            try:
                yield cast(io.BufferedReader, file)  # which GzipFile does all of
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise UserError(f"{self.name}: is not a whole gzip file ({error})") from error

    def _raw(self) -> io.FileIO | io.BufferedReader:
        try:
            return io.FileIO(self.place if self.place != STANDARD else os.dup(sys.stdin.fileno()))
        except io.UnsupportedOperation:  # a stream in memory
            stream = sys.stdin.buffer
            return stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, stream))
        except OSError as error:
            raise _unreadable(self, error) from error


class _Waiting(io.RawIOBase):
    """Says when it is about to wait, and which source failed."""

    def __init__(self, raw: io.RawIOBase, source: Source) -> None:
        self._raw, self._source = raw, source
        self._poll = select.poll()
        self._poll.register(raw.fileno(), select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]
        if self._source.before_wait is not None and not self._poll.poll(0):
            self._source.before_wait()
        try:
            return self._raw.readinto(buffer)
        except OSError as error:
            raise _unreadable(self._source, error) from error


def _unreadable(source: Source, error: OSError) -> UserError:
    return UserError(f"{source.name}: cannot be read ({error.strerror or error})")


def first_byte(file: io.BufferedReader) -> bytes:
    """The first byte that is neither white space nor a byte-order mark, of those that are there; it is not taken."""
    return file.peek(4096)[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def decoded_lines(file: BinaryIO, name: str, longest: int, faults: list[str]) -> Iterator[str]:
    """Lines of at most so many bytes; one that is not UTF-8 is given with replacements, and added to `faults`."""
    for number, raw in enumerate(iter(lambda: file.readline(longest + 1), b""), 1):
        if len(raw) > longest:
            raise UserError(f"{name}: line {number} is longer than {longest >> 20} MiB; is this a text file?")
        encoding = "utf-8-sig" if number == 1 else "utf-8"
        try:
            yield raw.decode(encoding)
        except UnicodeDecodeError as error:
            faults.append(f"byte 0x{error.object[error.start]:02x} on line {number} is not UTF-8")
            yield raw.decode(encoding, errors="replace")
