"""Checkpoints on disk: whole or not at all, verified when read. docs/checkpoints.md describes the format."""

import hashlib
import json
import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_dir, remove, temporary_of, write_text
from pipeline.training.optimizer_state import MOMENTS, OptimizerState
from pipeline.training.run_state import Best, LogPosition, RunState

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
STATE, LATEST = "state.json", "LATEST"
PARAMETERS, BEST = "parameters.safetensors", "best.safetensors"
FILES = {PARAMETERS, BEST, *(f"{key}.safetensors" for key in MOMENTS)}


class DamagedCheckpointError(UserError):
    """A checkpoint that is not what was written: cut off, altered, or incomplete."""


def write_checkpoint(folder: Path, state: RunState, keep: int) -> None:
    """Writes step-NNNNNN/ and then LATEST; afterwards only the `keep` newest checkpoints stay. One rank calls it.

    Raises UserError for a full or read-only disk; the older checkpoints are as they were then.
    """
    name = f"step-{state.step:06d}"
    with atomic_dir(folder / name) as temporary:
        _write_files(temporary, state)
    write_text(folder / LATEST, name + "\n")
    _prune(folder, state.step, keep)


def read_checkpoint(path: Path) -> RunState:
    """Reads and verifies one checkpoint. Raises DamagedCheckpointError, or UserError for a newer format."""
    header = _read_header(path)
    try:
        return _state_of(path, header)
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"checkpoint '{path}' is damaged: {STATE} lacks a part ({error!r})") from error


def _state_of(path: Path, header: dict[str, Any]) -> RunState:
    tensors = {name: _read_tensors(path / name, digest) for name, digest in header["files"].items()}
    moments = {key: tensors[f"{key}.safetensors"] for key in MOMENTS}
    best = header["best"] or {}
    return RunState(
        step=header["step"],
        optimizer=OptimizerState(tensors[PARAMETERS], moments, header["optimizer_step"]),
        best=Best(**best, parameters=tensors[BEST]) if best else Best(),
        global_batch=header["global_batch"],
        metrics_log=LogPosition(**header["metrics_log"]),
        evaluation_due=header["evaluation_due"],
        fingerprint=header["fingerprint"],
    )


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; damaged ones are passed over with a warning. None where there is none.

    Checkpoints above the one that LATEST names were left behind when the run went back to an earlier step.
    """
    for path in checkpoints(folder):
        try:
            read_checkpoint(path)
        except DamagedCheckpointError as error:
            log.warning("train: %s; passed over", error)
        else:
            return path
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint directories, whole or not, newest first."""
    steps = _steps(folder)
    try:
        latest = _step_of((folder / LATEST).read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        latest = None
    return [steps[step] for step in sorted(steps, reverse=True) if latest is None or step <= latest]


def _write_files(folder: Path, state: RunState) -> None:
    tensors = {PARAMETERS: state.optimizer.parameters}
    tensors |= {f"{key}.safetensors": state.optimizer.moments[key] for key in MOMENTS}
    if state.best.parameters:
        tensors[BEST] = state.best.parameters
    digests = {}
    for name, content in tensors.items():
        # The hash is of what was meant to be written, not of what is read back.
        data = safetensors.torch.save({key: tensor.contiguous() for key, tensor in content.items()})
        (folder / name).write_bytes(data)
        digests[name] = hashlib.sha256(data).hexdigest()
    best = {key: value for key, value in asdict(state.best).items() if key != "parameters"}
    header = {
        "version": FORMAT_VERSION,
        "step": state.step,
        "optimizer_step": state.optimizer.step,
        "global_batch": state.global_batch,
        "metrics_log": asdict(state.metrics_log),
        "evaluation_due": state.evaluation_due,
        "best": best if state.best.parameters else None,
        "fingerprint": state.fingerprint,
        "files": digests,
    }
    text = json.dumps(header | {"sha256": _digest(header)}, indent=2, ensure_ascii=False) + "\n"
    (folder / STATE).write_text(text, encoding="utf-8")


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads((path / STATE).read_text(encoding="utf-8"))
        digest = header.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedCheckpointError(f"checkpoint '{path}' is damaged: {STATE} cannot be read ({error})") from error
    if digest != _digest(header):
        raise DamagedCheckpointError(f"checkpoint '{path}' is damaged: {STATE} was altered")
    if (version := header.get("version")) != FORMAT_VERSION:
        raise UserError(
            f"checkpoint '{path}' has format version {version}, this program reads {FORMAT_VERSION}: "
            "resume with the version that wrote it"
        )
    assert isinstance(header, dict)
    files = header.get("files")
    if not isinstance(files, dict) or not FILES - {BEST} <= files.keys() <= FILES:
        raise DamagedCheckpointError(f"checkpoint '{path}' is damaged: {STATE} names other files than a checkpoint has")
    return header


def _read_tensors(file: Path, digest: str) -> dict[str, Tensor]:
    try:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise DamagedCheckpointError(f"checkpoint '{file.parent}' is damaged: {file.name} is not what was written")
        return safetensors.torch.load(data)
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpointError(f"checkpoint '{file.parent}' is damaged: {file.name}: {error}") from error


def _digest(header: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _steps(folder: Path) -> dict[int, Path]:
    found = {_step_of(path.name): path for path in folder.glob("step-*") if path.is_dir()}
    return {step: path for step, path in found.items() if step is not None}


def _step_of(name: str) -> int | None:
    match = re.fullmatch(r"step-(\d{6,})", name)
    return int(match[1]) if match else None


def _prune(folder: Path, current: int, keep: int) -> None:
    """Removes older checkpoints, those of steps that the run went back from, and what killed writers left."""
    steps = _steps(folder)
    kept = sorted(step for step in steps if step <= current)[-keep:]
    for path in [path for step, path in steps.items() if step not in kept]:
        remove(path)
    for path in folder.iterdir():
        if (name := temporary_of(path.name)) is not None and _step_of(name) is not None:
            remove(path)
