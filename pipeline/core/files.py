"""Files and folders that are written whole or not at all."""

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.core.bounds import LARGEST_JSON, check_regular, read_text
from pipeline.core.checksums import write_sums
from pipeline.core.errors import UserError

_WRITERS = {
    "data": "preprocess",
    "labels": "encode-labels",
    "texts": "encode-texts",
    "adapter": "train",
    "adapter-final": "train",
    "evaluation": "evaluate",
}
"""Folder of a run directory -> the stage that writes it."""
_TEMPORARY = re.compile(r"\.ltune-(?P<name>.+?)(\.[a-z0-9_]+\.tmp|\.old)")


def temporary_of(name: str) -> str | None:
    """The name of the file or folder that a file of this name is a temporary of; None where it is not ours."""
    match = _TEMPORARY.fullmatch(name)
    return match["name"] if match else None


def _sync_folder(path: Path) -> None:
    """Makes a rename inside `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def write_faults_named(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk, whichever library met it, into a UserError that names `path`."""
    try:
        yield
    except Exception as error:
        if fault := _write_fault(error):
            raise UserError(f"cannot write '{path}' ({fault}): free space or choose another place") from error
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling that takes the place, and the mode, of `path` when the block ends without an error.

    Raises UserError where `path` is a device, a pipe or a socket: for root a rename would put a file in its place.
    """
    # Not its process id alone: processes of several hosts may write into one folder.
    temporary = path.with_name(f".ltune-{path.name}.{os.getpid()}_{secrets.token_hex(4)}.tmp")
    try:
        with write_faults_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            with suppress(FileNotFoundError):
                if not path.is_symlink():  # a link is replaced, whatever it names
                    check_regular(path)
                shutil.copymode(path, temporary)
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_dir(path: Path, *, sums: bool = False) -> Iterator[Path]:
    """Yields a temporary sibling folder that takes the place of `path` when the block ends without an error.

    `sums` adds SHA256SUMS of all that is in it.

    An older folder is moved aside to `.ltune-NAME.old` first and removed last. A process killed between the two renames
    leaves it there whole: `RunDir.create`, or the next writer of `path`, puts it back. One process writes a path.
    """
    aside = _aside(path)
    temporary: Path | None = None
    try:
        with write_faults_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            put_back(path)
            remove_temporaries(path.parent, {path.name})
            temporary = _make_temporary(path)
            yield temporary
            if sums:
                write_sums(temporary)
            _sync_tree(temporary)
            if os.path.lexists(path):
                os.replace(path, aside)
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        put_back(path)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _aside(path: Path) -> Path:
    """Where the folder that `path` was is kept while the new one takes its place."""
    return path.with_name(f".ltune-{path.name}.old")


def _make_temporary(path: Path) -> Path:
    """An empty folder beside `path`, of a name that `temporary_of` knows; not mkdtemp's, which none but us may read."""
    folder = path.with_name(f".ltune-{path.name}.{secrets.token_hex(8)}.tmp")
    folder.mkdir()
    return folder


def put_back(path: Path) -> None:
    """Finishes an interrupted swap: restores the old folder if there is no new one, else deletes it."""
    aside = _aside(path)
    if not os.path.lexists(aside):
        return
    if not os.path.lexists(path):
        os.replace(aside, path)
        return
    with suppress(OSError):
        condemn(aside, path.name)


def condemn(path: Path, name: str) -> None:
    """Removes a folder, at once under its own name; of a symbolic link, the link. Raises OSError.

    It goes by the name of a temporary of `name` meanwhile, so that what a kill leaves of it is removed later.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    condemned = _make_temporary(path.with_name(name))
    os.replace(path, condemned)
    shutil.rmtree(condemned)


def remove_temporaries(folder: Path, names: Set[str]) -> None:
    """Takes away what killed processes were writing, or removing, under these names."""
    for entry in folder.iterdir():
        if entry.suffix == ".tmp" and temporary_of(entry.name) in names:
            remove(entry)


def remove(path: Path) -> None:
    """Takes away a folder or a file, as far as that can be done; of a symbolic link, the link."""
    with suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    """Makes all files under `folder`, and their names, survive a power cut."""
    for file in (folder, *folder.rglob("*")):
        if file.is_dir():
            _sync_folder(file)
        elif file.is_file():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())


def _write_fault(error: BaseException | None) -> str | None:
    """Why writing failed, if an error says so: safetensors and Arrow wrap a full disk in errors of their own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    full = os.strerror(errno.ENOSPC)
    while error is not None:
        if full in str(error):
            return full
        error = error.__context__
    return None


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def link_or_copy(source: Path, target: Path) -> None:
    """Lets `target`, which is not there yet, have the content of a file that is never changed."""
    with write_faults_named(target):
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            with atomic_file(target) as temporary:
                shutil.copyfile(source, temporary)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; none where there is no such file. UserError for a damaged one."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    try:
        return [dict(json.loads(line)) for line in lines]
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is damaged ({error}): remove it, to go on without what it says") from error


def read_json(path: Path) -> Any:
    """Reads JSON. Raises UserError for a missing or damaged file."""
    try:
        return json.loads(read_text(path, LARGEST_JSON))
    except FileNotFoundError as error:
        raise UserError(f"'{path}' does not exist: run {_writer(path)} first") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read ({error}): delete it and run {_writer(path)} again") from error


def _writer(path: Path) -> str:
    """The stage that writes this file of a run directory."""
    return _WRITERS.get(path.parent.name, "the stage that writes it")
