"""One command at a time writes a run directory."""

import fcntl
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from pipeline.core.errors import UserError
from pipeline.core.ownership import LOCK, cannot_be_written

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 3.0
"""A process that was just killed may need a moment to be gone, and with it its lock."""


class RunLock:
    """A lock that ends with the process that holds it, however that ends.

    It is a POSIX record lock, which also network file systems know, and which forked children do not inherit: a worker
    that outlives its killed parent keeps nothing locked. The file stays, with host and process of its last owner.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """UserError where another process holds it. Where the file system knows no locks, only a warning."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / LOCK, "a+", encoding="utf-8", opener=_open_no_link)  # noqa: SIM115
        except OSError as error:
            raise cannot_be_written(self.folder, error) from error
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"run.dir '{self.folder}' is in use by {owner}: wait for it to end, or choose another run.dir"
            ) from error
        except OSError as error:
            log.warning("'%s' cannot be locked (%s): let only one command at a time write it", self.folder, error)
        with suppress(OSError):  # a full disk: the lock holds, only nobody can read whose it is
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        self._file = file

    def release(self) -> None:
        """Lets others in. (To close the file is to unlock it.)"""
        if self._file is not None:
            self._file.close()
            self._file = None


def _open_no_link(path: str, flags: int) -> int:
    """What a link leads to may be a file of the user, in a directory that somebody else has made."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _lock(file: TextIO) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
