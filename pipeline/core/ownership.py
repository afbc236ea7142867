"""Which folders are ours: what another program or a person put somewhere is never taken over, moved or removed.

A folder that this program writes into holds a mark. One without a mark is taken only if it is new or empty, or if an
older version, which left no mark, has plainly written it.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml.error import YAMLError

from pipeline.core.bounds import LARGEST_CONFIG, LARGEST_JSON, read_text
from pipeline.core.checksums import SUMS
from pipeline.core.errors import UserError
from pipeline.core.files import temporary_of, write_json
from pipeline.core.yaml import load_yaml

Kind = Literal["run", "comparison", "predictions"]

MARK = "ltune.json"
_KEYS: dict[Kind, str] = {"run": "run.dir", "comparison": "dir", "predictions": "--parts"}
"""The key that names such a directory."""
VERSION = 1
"""Of the layout of run and comparison directories."""
CONFIG = "config.yaml"
LOCK = ".lock"
SECTIONS = {"run", "backbone", "data", "labels", "method", "train", "evaluate", "engine", "logging"}
"""Every kept config has them all, since every key is written out. A person's config seldom has."""
ARTEFACTS = {
    "data": ("manifest.json", "fingerprint"),
    "labels": ("labels.json", "fingerprint"),
    "texts": ("states.json", "splits"),
    "adapter": ("adapter_config.json", "backbone"),
    "adapter-final": ("adapter_config.json", "backbone"),
    "evaluation": ("fingerprint.json", "adapter"),
}
"""Folders of a run directory, each with a file by which it is known and a key in that file."""
LINKED = {"data", "labels", "texts"}
"""What several runs may share by symbolic links, as `compare` lets them: it is replaced whole, never written into."""
CHECKPOINTS = "checkpoints"
SESSIONS = "sessions"
"""Of self-training: a run directory each, by their numbers."""
PSEUDO_LABELS = "pseudo_labels.safetensors"
_STEP = re.compile(r"LATEST|step-\d{6,}|\.(LATEST|step-\d{6,})\..+")
"""Names in checkpoints/; with a dot, what a killed writer of version 0.1 left."""


WRITTEN_INTO = {
    "adapter": {"README.md", "calibration.json"},
    "logs": {"cost.json", "memory.json", "reading.json", "reading.svg", "trace.json", "trackers.json"},
}
"""Folder -> files that are written, each whole or not at all, where the folder is there already."""
LOGS = ("logs", "logs/metrics.jsonl", "logs/tensorboard")
OWN_NAMES = {*ARTEFACTS, CHECKPOINTS, SESSIONS, PSEUDO_LABELS, CONFIG, MARK, "PREEMPTED"}
"""All that this program writes at the top of a run directory."""


def mark_of(kind: Kind) -> dict[str, Any]:
    """What the mark says."""
    return {"directory": kind, "version": VERSION}


def cannot_be_written(folder: Path, error: OSError, kind: Kind = "run") -> UserError:
    """The error for an unwritable run or comparison directory."""
    key = _KEYS[kind]
    return UserError(f"{key} '{folder}' cannot be written ({error.strerror or error}): choose another {key}")


def check_ours(folder: Path, kind: Kind) -> bool:
    """Whether the folder is marked; False where it may be marked: it is new, empty, or of an older version.

    Raises UserError where it is somebody else's, or something in it is, and where it cannot be read.
    """
    try:
        return _check_ours(folder, kind)
    except OSError as error:
        raise cannot_be_written(folder, error, kind) from error


def _check_ours(folder: Path, kind: Kind) -> bool:
    entries = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    # After the listing: other processes write the mark first, so what they wrote is only listed where the mark is.
    marked = _is_marked(folder, kind)
    if not marked and not _is_unused(folder, entries) and not _is_of_older_version(folder, kind):
        names = sorted(entries)
        shown = ", ".join(f"'{name}'" for name in names[:3]) + (", ..." if len(names) > 3 else "")
        raise UserError(
            f"{_KEYS[kind]} '{folder}' holds {shown} and is not a {kind} directory: choose a new or an empty folder"
        )
    if kind == "run":
        _check_artefacts(folder)
    return marked


def run_of_config(file: Path) -> Path | None:
    """The run directory whose config.yaml this file is; None where it is another config."""
    folder = file.parent
    if file.name != CONFIG or not file.is_file():
        return None
    known = _is_marked(folder, "run", strict=False) or any(_is_artefact(folder / name) for name in ARTEFACTS)
    return folder if known else None


def _is_marked(folder: Path, kind: Kind, *, strict: bool = True) -> bool:
    """UserError, if `strict`, for a mark that says something else."""
    file = folder / MARK
    if not file.is_file():
        return False
    mark = _read(file)
    if mark == mark_of(kind):
        return True
    if not strict:
        return False
    if not isinstance(mark, dict) or "version" not in mark:
        raise UserError(f"'{file}' is damaged: remove it if '{folder}' is a {kind} directory, or choose another folder")
    if mark["version"] != VERSION:
        raise UserError(
            f"'{folder}' has layout version {mark['version']}, this program writes {VERSION}: "
            "use the version that made it, or choose another folder"
        )
    raise UserError(f"'{folder}' is a {mark.get('directory')} directory, not a {kind} directory: choose another folder")


def _is_unused(folder: Path, entries: set[str]) -> bool:
    """Nothing is there but what comes before the mark: a lock, temporaries of ours, the log of a batch job."""
    rest = {name for name in entries if name != LOCK and temporary_of(name) is None}
    if "logs" in rest and {file.name for file in (folder / "logs").glob("*")} == {"slurm"}:
        rest.remove("logs")
    return not rest


def _is_of_older_version(folder: Path, kind: Kind) -> bool:
    """What version 0.1 wrote, without a mark."""
    if kind == "run":
        return _is_kept_config(folder / CONFIG) or _is_artefact(folder / "data")
    if kind == "predictions":
        return False
    if not any(file.name != LOCK for file in folder.rglob("*") if file.is_file()):
        return True  # killed before its first cell
    cells = folder.glob(f"runs/*/*/*/*/*/seed-*/{CONFIG}")
    return any(map(_is_kept_config, cells)) or any(map(_is_artefact, folder.glob("shared/*/*/*/data")))


def _check_artefacts(folder: Path) -> None:
    """UserError where one of our names in a run directory is taken by something else."""
    for name in (*ARTEFACTS, CHECKPOINTS, SESSIONS, CONFIG, LOCK, *LOGS):
        path = folder / name
        if path.is_symlink() and not (name in LINKED and (_is_artefact(path) or not path.exists())):
            raise UserError(
                f"'{path}' is a symbolic link: put what it names in its place, or let run.dir itself be the link"
            )
    looks_like: dict[str, Callable[[Path], bool]] = {CHECKPOINTS: _is_checkpoints, SESSIONS: _is_sessions}
    for name in (*ARTEFACTS, CHECKPOINTS, SESSIONS):
        path = folder / name
        if path.exists() and not looks_like.get(name, _is_artefact)(path):
            raise UserError(f"'{path}' was not written by this program: move it away, or choose another run.dir")
    if _is_somebodys_config(folder / CONFIG):
        raise UserError(
            f"'{folder / CONFIG}' is not a config that this program wrote: move it away, or choose another run.dir"
        )


def _is_artefact(path: Path) -> bool:
    """A folder of ours by its name, though some of its files may be damaged; or an empty one."""
    file, key = ARTEFACTS[path.name]
    found = _read(path / file)
    if isinstance(found, dict) and key in found:
        return True
    try:
        lines = (path / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return path.is_dir() and not any(path.iterdir())
    return any(line.endswith(f"  {file}") for line in lines)


def _is_checkpoints(path: Path) -> bool:
    """Steps and LATEST alone, and one of them as we write it; or an empty folder."""
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir() if temporary_of(entry.name) is None}
    ours = not names or "LATEST" in names or any((path / name / "state.json").is_file() for name in names)
    return ours and all(map(_STEP.fullmatch, names))


def _is_sessions(path: Path) -> bool:
    """Run directories alone, or those that were about to be."""
    sessions = list(path.iterdir()) if path.is_dir() else []
    return path.is_dir() and all(
        one.name.isdecimal() and (_is_marked(one, "run", strict=False) or _is_unused(one, set(os.listdir(one))))
        for one in sessions
        if temporary_of(one.name) is None
    )


def _is_kept_config(file: Path) -> bool:
    values = _read_yaml(file)
    return isinstance(values, dict) and values.keys() >= SECTIONS


def _is_somebodys_config(file: Path) -> bool:
    """A config, but not one that we kept. What cannot be read at all is a damaged one of ours."""
    values = _read_yaml(file)
    return isinstance(values, dict) and not values.keys() >= SECTIONS


def _read_yaml(file: Path) -> Any:
    try:
        return load_yaml(read_text(file, LARGEST_CONFIG))
    except (OSError, ValueError, YAMLError):
        return None


def _read(file: Path) -> Any:
    try:
        return json.loads(read_text(file, LARGEST_JSON))
    except (OSError, ValueError, RecursionError):
        return None


def claim(folder: Path, kind: Kind) -> None:
    """Makes the folder and marks it as ours. Raises UserError where it is somebody else's, or cannot be written."""
    if check_ours(folder, kind):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_be_written(folder, error, kind) from error
    write_json(folder / MARK, mark_of(kind))
