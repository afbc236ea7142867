"""Artefacts are whole: checksums beside their files (`sha256sum --check SHA256SUMS` by hand), and reading one state."""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.errors import UserError
from pipeline.core.paths import inside

Result = TypeVar("Result")

SUMS = "SHA256SUMS"
UNFINISHED = f".{SUMS}"
UNCHECKED = {SUMS, UNFINISHED, "README.md"}
"""The model card is for people, who may change it."""
ATTEMPTS = 200
"""To read a folder that changes meanwhile."""
GAP_SECONDS = 0.3
"""How long an absent folder is waited for: while it is replaced, it is absent for a moment."""


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS of all files under a folder, whole or not at all: others may read the folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in UNCHECKED)
    lines = [f"{sha256_of_file(file)}  {file.relative_to(folder)}\n" for file in files]
    (folder / UNFINISHED).write_text("".join(lines) + _end(lines), encoding="utf-8")
    os.replace(folder / UNFINISHED, folder / SUMS)


def check_sums(folder: Path) -> None:
    """UserError, naming the file, where something is not what was written. A folder without SHA256SUMS passes."""
    path = folder / SUMS
    if not path.is_file():
        return
    *lines, end = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) or [""]
    damaged = [SUMS] if end != _end(lines) else [name for name in map(_damaged, repeat(folder), lines) if name]
    if damaged:
        raise UserError(
            f"'{folder / damaged[0]}' is not what was written ({SUMS}): copy it again, or remove '{folder}' and run "
            "its stage again"
        )


def read_whole(folder: Path, read: Callable[[Path], Result]) -> Result:
    """`read(folder)`, all of whose files are of one state of the folder, even where another process replaces it.

    A reading during which the folder or a file in it was replaced counts for nothing, whether it failed or not, and
    is done again. Raises what `read` raises, and UserError for a folder that does not come to rest.
    """
    for _ in range(ATTEMPTS):
        with _watched(folder) as is_unchanged:
            try:
                result = read(folder)
            except Exception:  # libraries have errors of their own for a file that goes away
                if is_unchanged():
                    raise
            else:
                if is_unchanged():
                    return result
    raise UserError(f"'{folder}' was replaced {ATTEMPTS} times while it was read: stop what writes it, or read a copy")


def sha256_of_file(file: Path) -> str:
    """Of its content. Raises OSError."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def _watched(folder: Path) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether the folder has been the same since, with the same files, or absent."""
    # While a folder is open, no new one gets its inode number.
    descriptor = _opened(folder)
    try:
        before = _state(folder, descriptor)
        yield lambda: before is not None and _state(folder, descriptor) == before
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _opened(folder: Path) -> int | None:
    """A descriptor of the folder; None where there is none, and none comes."""
    patient_until = time.monotonic() + GAP_SECONDS
    while True:
        try:
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            if time.monotonic() > patient_until:
                return None
            time.sleep(GAP_SECONDS / 100)
        except OSError as error:
            raise UserError(f"'{folder}' cannot be read ({error.strerror})") from error


def _state(folder: Path, descriptor: int | None) -> list[Any] | None:
    """What identifies the files of the opened folder; None where it is not the one at this path any more."""
    try:
        if descriptor is None:
            return None if folder.is_dir() else []
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            return None
        with os.scandir(descriptor) as entries:
            return sorted((entry.name, (stat := entry.stat()).st_ino, stat.st_ctime_ns) for entry in entries)
    except OSError:
        return None


def _end(lines: list[str]) -> str:
    """The last line, so that a file that was cut off is known as such."""
    return f"# {len(lines)} files\n"


def _damaged(folder: Path, line: str) -> str | None:
    """Name of the file on this line, if that is not what was written."""
    digest, _, name = line.rstrip("\n").partition("  ")
    try:
        file = inside(folder, name)
        return None if file.is_file() and sha256_of_file(file) == digest else name
    except (OSError, ValueError):
        return name
