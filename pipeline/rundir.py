"""The run directory: where everything one run reads and writes lies, and how it is written whole or not at all."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.integrity import write_sums
from pipeline.launcher import rank
from pipeline.ownership import (
    ARTEFACTS,
    CHECKPOINTS,
    CONFIG,
    MARK,
    Kind,
    cannot_be_written,
    check_ours,
    mark_of,
    temporary_of,
)

ADDED_LATER = frozenset({"weights", "label states: weights"})
"""Parts that fingerprints of older versions lack. Their lack makes nothing stale; the other parts are compared."""


class RunDir:
    """Paths inside one run directory (the layout is a stable surface, see README)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / CONFIG
        self.preempted = self.path / "PREEMPTED"
        self.data = self.path / "data"
        self.manifest_file = self.data / "manifest.json"
        self.labels = self.path / "labels"
        self.checkpoints = self.path / CHECKPOINTS
        self.adapter = self.path / "adapter"
        self.adapter_final = self.path / "adapter-final"
        self.summary_file = self.adapter_final / "summary.json"
        self.evaluation = self.path / "evaluation"
        self.metrics_file = self.evaluation / "metrics.json"
        self.predictions_file = self.evaluation / "predictions.parquet"
        self.evaluation_fingerprint_file = self.evaluation / "fingerprint.json"
        self.logs = self.path / "logs"
        self.metrics_log = self.logs / "metrics.jsonl"
        self.cost_file = self.logs / "cost.json"

    @property
    def is_finished(self) -> bool:
        """Does it hold the adapter of a training that came to its end?"""
        return self.summary_file.is_file() and self.adapter.is_dir()

    @property
    def is_trained(self) -> bool:
        """Does it hold anything that training has made, finished or not?"""
        return any(path.exists() for path in (self.adapter, self.adapter_final, self.checkpoints))

    def create(self) -> None:
        """Makes and marks the directory, and ends what a killed process left half done in it; rank 0 does that for all.

        Raises UserError where it is somebody else's (see `ownership`), or cannot be written.
        """
        if rank() == 0:
            claim(self.path, "run")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            if rank() == 0:
                for name in ARTEFACTS:
                    _put_back(self.path / name)
                _remove_temporaries(self.path, _OWN_NAMES)
                self.preempted.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_be_written(self.path, error) from error

    def write_config(self, text: str) -> None:
        """Keeps the resolved config, untouched if it is the same; rank 0 writes it for all."""
        current = self.config_file.read_bytes() if self.config_file.is_file() else None
        if rank() == 0 and current != text.encode():
            write_text(self.config_file, text)

    def remove_training(self) -> None:
        """Takes away what `train` left and what was made from it, so that it starts afresh. One rank calls it.

        In this order: where this is killed in between, there is the finished run, or nothing to go on from or to be
        taken for the new run's. Raises UserError where something cannot be removed.
        """
        for path in (self.evaluation, self.checkpoints, self.adapter, self.adapter_final):
            with _write_faults_told(path):
                if os.path.lexists(path):
                    _condemn(path, path.name)


_OWN_NAMES = {*ARTEFACTS, CHECKPOINTS, CONFIG, MARK, "PREEMPTED"}


def claim(folder: Path, kind: Kind) -> None:
    """Makes the folder and marks it as ours. Raises UserError where it is somebody else's, or cannot be written."""
    if check_ours(folder, kind):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_be_written(folder, error) from error
    write_json(folder / MARK, mark_of(kind))


def _sync_folder(path: Path) -> None:
    """Makes a rename inside `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _write_faults_told(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk, whichever library met it, into a UserError that names `path`."""
    try:
        yield
    except Exception as error:
        if fault := _write_fault(error):
            raise UserError(f"cannot write '{path}' ({fault}): free space or choose another place") from error
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling that takes the place, and the mode, of `path` when the block ends without an error."""
    temporary = path.with_name(f".ltune-{path.name}.{os.getpid()}.tmp")
    try:
        with _write_faults_told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            with suppress(FileNotFoundError):
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
        with _write_faults_told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _put_back(path)
            _remove_temporaries(path.parent, {path.name})
            temporary = _make_temporary(path)
            yield temporary
            if sums:
                write_sums(temporary)
            _sync_tree(temporary)
            temporary.chmod(0o755)
            if os.path.lexists(path):
                os.replace(path, aside)
            os.replace(temporary, path)
            _sync_folder(path.parent)
    finally:
        _put_back(path)
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _aside(path: Path) -> Path:
    """Where the folder that `path` was is kept while the new one takes its place."""
    return path.with_name(f".ltune-{path.name}.old")


def _make_temporary(path: Path) -> Path:
    """An empty folder beside `path`, of a name that `temporary_of` knows."""
    return Path(tempfile.mkdtemp(prefix=f".ltune-{path.name}.", suffix=".tmp", dir=path.parent))


def _put_back(path: Path) -> None:
    """Ends an exchange of folders: the old one comes back where there is no new one, and goes where there is."""
    aside = _aside(path)
    if not os.path.lexists(aside):
        return
    if not os.path.lexists(path):
        os.replace(aside, path)
        return
    with suppress(OSError):
        _condemn(aside, path.name)


def _condemn(path: Path, name: str) -> None:
    """Removes a folder, at once under its own name; of a symbolic link, the link. Raises OSError.

    It goes by the name of a temporary of `name` meanwhile, so that what a kill leaves of it is removed later.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    condemned = _make_temporary(path.with_name(name))
    os.replace(path, condemned)
    shutil.rmtree(condemned)


def _remove_temporaries(folder: Path, names: Set[str]) -> None:
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
    """Why writing failed, if an error tells that: safetensors and Arrow wrap a full disk in errors of their own."""
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


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON. Raises UserError for a missing or damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"'{path}' does not exist: run the stage that writes it first") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read ({error}): delete it and run its stage again") from error


def sha256_of(*parts: str) -> str:
    """Hash of several strings, told apart by their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """What differs between two fingerprints, one readable phrase per part."""
    phrases = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before != after and not (before is None and key in ADDED_LATER):
            phrases.append(f"{key} was {_short(before)}, now {_short(after)}")
    return phrases


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return f"'{value}'" if len(value) <= 60 else f"'{value[:12]}…'"
