"""Checksums beside the files of an artefact: `sha256sum --check SHA256SUMS` verifies them by hand."""

import hashlib
import logging
from itertools import repeat
from pathlib import Path

from pipeline.errors import UserError
from pipeline.paths import inside

log = logging.getLogger(__name__)

SUMS = "SHA256SUMS"
UNCHECKED = {SUMS, "README.md"}
"""The model card is for people, who may change it."""


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS of all files under a folder."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name not in UNCHECKED)
    lines = [f"{_sha256(file)}  {file.relative_to(folder)}\n" for file in files]
    (folder / SUMS).write_text("".join(lines) + _end(lines), encoding="utf-8")


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


def is_whole(folder: Path, stage: str) -> bool:
    """Whether `check_sums` finds nothing; else a warning that the stage makes the artefact again."""
    try:
        check_sums(folder)
    except UserError as error:
        log.warning("%s: made again, since %s", stage, error)
        return False
    return True


def _end(lines: list[str]) -> str:
    """The last line, so that a file that was cut off is known as such."""
    return f"# {len(lines)} files\n"


def _damaged(folder: Path, line: str) -> str | None:
    """Name of the file on this line, if that is not what was written."""
    digest, _, name = line.rstrip("\n").partition("  ")
    try:
        file = inside(folder, name)
        return None if file.is_file() and _sha256(file) == digest else name
    except (OSError, ValueError):
        return name


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
