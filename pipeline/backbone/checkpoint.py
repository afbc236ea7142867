"""Reading safetensors checkpoints tensor by tensor and row by row, after checking that they are whole.

The format is a length, a JSON header and the plain bytes of each tensor, so the wanted rows are read with read calls.
The safetensors library (0.8) either maps files, where a disk error ends the process with SIGBUS instead of an error, or
(backend pread) reads whole tensors to cut slices from them.
"""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from transformers.utils import cached_file

from pipeline.backbone.config import BackboneConfig
from pipeline.errors import UserError
from pipeline.paths import is_plain_name

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
DTYPES = FLOATS | INTEGERS | {"BOOL": torch.bool}
SAMPLES, SAMPLE_BYTES = 16, 4096
LONGEST_HEADER = 100_000_000
"""Bytes; safetensors has the same bound."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what it is; `dtype` is safetensors' name for it, `offset` is from the file's start."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Checkpoint:
    """The safetensors files of a model; `tensors` by the name they are stored under."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.tensors: dict[str, StoredTensor] = {}
        for file in files:
            entries, raw = _read_header(file)
            for name, entry in entries.items():
                offset = 8 + len(raw) + entry["data_offsets"][0]
                self.tensors[name] = StoredTensor(file, entry["dtype"], tuple(entry["shape"]), offset)

    @property
    def stored_bytes(self) -> int:
        """Size of all the files."""
        return sum(file.stat().st_size for file in self.files)

    def read_rows(self, name: str, first: int, last: int, transposed: bool = False) -> Tensor:
        """Rows [first, last) of a tensor (a scalar is one row), or columns of a matrix, transposed to rows.

        Reads those bytes only. Raises UserError naming the file when it cannot be read.
        """
        stored = self.tensors[name]
        dtype, shape = DTYPES[stored.dtype], stored.shape or (1,)
        width = math.prod(shape[1:]) * dtype.itemsize
        try:
            with stored.file.open("rb", buffering=0) as stream:
                if not transposed:
                    rows = torch.empty((last - first, *shape[1:]), dtype=dtype)
                    _read_into(stream, stored.offset + first * width, rows)
                    return rows
                columns = torch.empty((shape[0], last - first), dtype=dtype)
                for row in range(shape[0]):
                    _read_into(stream, stored.offset + row * width + first * dtype.itemsize, columns[row])
                return columns.t()
        except OSError as error:
            raise UserError(f"{stored.file}: cannot read {name}: {error}") from error


def open_checkpoint(config: BackboneConfig) -> Checkpoint:
    """The model's checkpoint, local or from the hub (or its cache), with every file present and whole.

    Raises UserError: no safetensors, an index naming a missing file or tensor, a truncated or damaged file.
    """
    if _find(config, WEIGHTS) is not None:
        return Checkpoint([_required(config, WEIGHTS)])
    index = _find(config, INDEX)
    if index is None:
        raise UserError(_no_weights(config))
    placed = _read_index(index)
    checkpoint = Checkpoint([_required(config, name) for name in sorted(set(placed.values()))])
    if absent := sorted(set(placed) - set(checkpoint.tensors)):
        raise UserError(
            f"{index}: names tensors that its files do not hold: {shortened(absent)}; fetch the files again"
        )
    return checkpoint


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file beside the index."""
    try:
        placed: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{index}: not a safetensors index ({error}); fetch it again") from error
    if foreign := [name for name in placed.values() if not is_plain_name(name)]:
        raise UserError(
            f"{index}: names the file {foreign[0]!r}, which is not beside it; put all files into one folder"
        )
    return placed


def fingerprint(config: BackboneConfig, checkpoint: Checkpoint) -> dict[str, str]:
    """Identity of config.json and of each weights file: size and a hash of its header and of a few samples of its data.

    The samples tell two fine-tunings of one model apart, whose headers are equal, without reading it all.
    """
    described = _required(config, "config.json")
    parts = {described.name: hashlib.sha256(described.read_bytes()).hexdigest()}
    for file in checkpoint.files:
        size = file.stat().st_size
        digest = hashlib.sha256(_read_header(file)[1])
        with file.open("rb") as stream:
            for sample in range(SAMPLES):
                stream.seek(sample * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE_BYTES))
        parts[file.name] = f"{size} bytes, {digest.hexdigest()}"
    return parts


def shortened(names: list[str], limit: int = 8) -> str:
    """`a, b, c and 12 more`"""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _read_into(stream: BinaryIO, offset: int, target: Tensor) -> None:
    view = memoryview(target.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # arrays are buffers
    while view:
        count = os.preadv(stream.fileno(), [view], offset)
        if count == 0:
            raise OSError("the file ended early")
        view, offset = view[count:], offset + count


def _find(config: BackboneConfig, filename: str) -> Path | None:
    try:
        found = cached_file(
            config.location,
            filename,
            revision=config.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{no_model(config)} ({first_line(error)})") from error
    return None if found is None else Path(found)


def _required(config: BackboneConfig, filename: str) -> Path:
    found = _find(config, filename)
    if found is None:
        raise UserError(f"{config.name_or_path}: {filename} is missing; fetch the model again")
    return found


def _no_weights(config: BackboneConfig) -> str:
    if any(_find(config, name) is not None for name in PICKLES):
        return (
            f"{config.name_or_path} has only .bin weights, which are pickles and are not read; convert them once with "
            "AutoModel.from_pretrained(...).save_pretrained(folder) and set backbone.name_or_path to that folder"
        )
    return f"{no_model(config)} (no {WEIGHTS} or {INDEX} found)"


def no_model(config: BackboneConfig) -> str:
    """What to say when there is nothing under the model's name."""
    return (
        f"backbone.name_or_path {config.name_or_path!r}: no such folder or hub model, or it is not in the hub cache "
        "and the hub cannot be reached; check the name"
    )


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return str(error).strip().partition("\n")[0]


def _read_header(file: Path) -> tuple[dict[str, dict], bytes]:
    """The header (name -> dtype, shape, data_offsets) and its bytes; refuses a file that is not as long as it says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            raw = stream.read(length) if length <= min(size - 8, LONGEST_HEADER) else b"{}"
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        misfit = next((name for name, entry in entries.items() if not _fits(entry)), None)
        expected = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({first_line(error)}); fetch it again") from error
    if misfit is not None:
        raise UserError(f"{file}: {misfit} has not the bytes that its type and shape take; fetch it again")
    if size != expected:
        raise UserError(f"{file}: has {size} bytes where its header wants {expected}, so it is cut off; fetch it again")
    return entries, raw


def _fits(entry: dict) -> bool:
    """Whether a tensor's bytes are as many as its type and shape take. (Unknown types are refused later.)"""
    (first, last), shape = entry["data_offsets"], entry["shape"]
    if not all(type(number) is int and number >= 0 for number in (first, last, *shape)):
        return False
    dtype = DTYPES.get(entry["dtype"])
    return last - first == math.prod(shape) * dtype.itemsize if dtype else first <= last
