"""Reading safetensors checkpoints tensor by tensor and row by row, after checking that they are whole.

The format is a length, a JSON header and the plain bytes of each tensor, so the wanted rows are read with read calls.
The safetensors library (0.8) either maps files, where a disk error ends the process with SIGBUS instead of an error, or
(backend pread) reads whole tensors to cut slices from them.
"""

import hashlib
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

import torch
from torch import Tensor
from transformers.utils import cached_file

from pipeline.backbone.config import BackboneConfig
from pipeline.core.bounds import LARGEST_JSON, read_text
from pipeline.core.errors import UserError, first_line
from pipeline.core.paths import is_plain_name

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
SCALED = {"F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu}
"""Of quantized checkpoints: they mean something beside their scales alone."""
DTYPES = FLOATS | INTEGERS | SCALED | {"BOOL": torch.bool}
LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""
SAMPLES, SAMPLE_BYTES = 16, 4096
WEIGHTS_PART = "weights"
"""The part of a fingerprint that stands for every tensor; artefacts made before it existed lack it."""
TENSOR_SAMPLES, LARGEST_GAP = 64, 4 << 20
"""Samples of each tensor at least, and bytes for which there is at least one."""
READERS = 16
"""Threads that read samples: on a network file system each read waits for an answer."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what it is; `dtype` is safetensors' name for it, `offset` is from the file's start."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    """In bytes."""


class Checkpoint:
    """The safetensors files of a model; `tensors` by the name they are stored under."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.headers: dict[Path, bytes] = {}
        self._versions = list(map(_version, files))
        self.tensors: dict[str, StoredTensor] = {}
        for file in files:
            entries, raw = _read_header(file)
            self.headers[file] = raw
            for name, entry in entries.items():
                first, last = entry["data_offsets"]
                offset = 8 + len(raw) + first
                self.tensors[name] = StoredTensor(file, entry["dtype"], tuple(entry["shape"]), offset, last - first)

    def check_unchanged(self) -> None:
        """UserError where a file was written or replaced since its header was read: its tensors may lie elsewhere."""
        for file, version in zip(self.files, self._versions, strict=True):
            if _version(file) != version:
                raise UserError(f"{file}: changed since this command read its header; run the command again")

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
    location = config.location
    if (only := _find(config, location, WEIGHTS)) is not None:
        return Checkpoint([only])
    if (index := _find(config, location, INDEX)) is None:
        raise UserError(_no_weights(config, location))
    placed = _read_index(index)
    checkpoint = Checkpoint([_required(config, location, name) for name in sorted(set(placed.values()))])
    if absent := sorted(set(placed) - set(checkpoint.tensors)):
        raise UserError(
            f"{index}: names tensors that its files do not hold: {shortened(absent)}; fetch the files again"
        )
    return checkpoint


def _read_index(index: Path) -> dict[str, str]:
    """Tensor name -> file beside the index."""
    try:
        placed: dict[str, str] = dict(json.loads(read_text(index, LARGEST_JSON))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{index}: not a safetensors index ({error}); fetch it again") from error
    if foreign := [name for name in placed.values() if not is_plain_name(name)]:
        raise UserError(
            f"{index}: names the file {foreign[0]!r}, which is not beside it; put all files into one folder"
        )
    return placed


def fingerprint(config: BackboneConfig, checkpoint: Checkpoint) -> dict[str, str]:
    """Identity of config.json, of each weights file, and of the weights as a whole.

    A file's part is its size and a hash of its header and of 16 samples, which leave out most tensors. The part
    "weights" is a hash of samples of every tensor: a tensor of up to 256 KiB is read whole, of a larger one 4 KiB out
    of each 64th part, or out of every 4 MiB where that is less. So a change to a whole tensor is seen, and so is one
    to any two neighbouring 64ths of it, or 8 MiB. A smaller change, such as one word's embedding, can fall between the
    samples: the fingerprint finds mix-ups and damage, and is not a proof against somebody who hides a change.
    """
    described = _required(config, config.location, "config.json")
    parts = {described.name: hashlib.sha256(described.read_bytes()).hexdigest()}
    for file in checkpoint.files:
        size = file.stat().st_size
        digest = hashlib.sha256(checkpoint.headers[file])
        with file.open("rb") as stream:
            for sample in range(SAMPLES):
                stream.seek(sample * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE_BYTES))
        parts[file.name] = f"{size} bytes, {digest.hexdigest()}"
    return parts | {WEIGHTS_PART: _sampled_digest(checkpoint)}


def _sampled_digest(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256()
    with ThreadPoolExecutor(READERS) as pool:
        for part in pool.map(lambda name: _tensor_digest(name, checkpoint.tensors[name]), sorted(checkpoint.tensors)):
            digest.update(part)
    return digest.hexdigest()


def _tensor_digest(name: str, stored: StoredTensor) -> bytes:
    """Hash of a tensor's name, type, shape and samples."""
    digest = hashlib.sha256(f"{name}\0{stored.dtype}\0{stored.shape}\0".encode())
    try:
        with stored.file.open("rb", buffering=0) as stream:
            for first, last in _samples(stored.size, Random(name)):
                digest.update(os.pread(stream.fileno(), last - first, stored.offset + first))
    except OSError as error:
        raise UserError(f"{stored.file}: cannot read {name}: {error}") from error
    return digest.digest()


def _samples(size: int, places: Random) -> list[tuple[int, int]]:
    """Bytes [first, last) of a tensor that its fingerprint reads.

    Each lies at another place within its stretch: at equal distances all might fall into the same columns.
    """
    if size <= TENSOR_SAMPLES * SAMPLE_BYTES:
        return [(0, size)]
    count = max(TENSOR_SAMPLES, math.ceil(size / LARGEST_GAP))
    starts = [index * size // count for index in range(count + 1)]
    firsts = [start + int(places.random() * (end - start - SAMPLE_BYTES)) for start, end in pairwise(starts)]
    return [(first, first + SAMPLE_BYTES) for first in firsts]


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


def _find(config: BackboneConfig, location: str, filename: str) -> Path | None:
    """`location` is the config's, which walks through the folder each time it is asked for."""
    try:
        found = cached_file(
            location,
            filename,
            revision=config.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{no_model(config)} ({first_line(error)})") from error
    return None if found is None else Path(found)


def _required(config: BackboneConfig, location: str, filename: str) -> Path:
    found = _find(config, location, filename)
    if found is None:
        raise UserError(f"{config.name_or_path}: {filename} is missing; fetch the model again")
    return found


def _no_weights(config: BackboneConfig, location: str) -> str:
    if any(_find(config, location, name) is not None for name in PICKLES):
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


def _version(file: Path) -> tuple[int, ...]:
    """What tells a file from one that takes its place, or from itself after a change."""
    try:
        found = file.stat()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); fetch it again") from error
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read_header(file: Path) -> tuple[dict[str, dict[str, Any]], bytes]:
    """The header (name -> dtype, shape, data_offsets) and its bytes.

    UserError where it is not one, where its tensors' sizes are not those of their data, or the file's is not theirs.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            raw = stream.read(length) if length <= min(size - 8, LARGEST_HEADER) else b"{}"
        entries: dict[str, dict[str, Any]] = json.loads(raw)
        entries.pop("__metadata__", None)
        placed = sorted((*entry["data_offsets"], name) for name, entry in entries.items())
        expected = 8 + length + max((end for _, end, _ in placed), default=0)
        faulty = _faulty_tensor(entries, placed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({first_line(error)}); fetch it again") from error
    if size != expected:
        state = "cut off" if size < expected else "damaged"
        raise UserError(f"{file}: has {size} bytes where its header wants {expected}, so it is {state}; fetch it again")
    if faulty is not None:
        raise UserError(f"{file}: {faulty}'s type and shape do not fit the bytes it has in the file; fetch it again")
    return entries, raw


def _faulty_tensor(entries: dict[str, dict[str, Any]], placed: list[tuple[int, int, str]]) -> str | None:
    """The first tensor whose bytes do not follow the one before, or are more or fewer than its type and shape need."""
    end = 0
    for first, last, name in placed:
        dtype, shape = entries[name]["dtype"], entries[name]["shape"]
        counts = [first, last, *shape]
        if any(type(count) is not int or count < 0 for count in counts) or not isinstance(dtype, str):
            return name
        # Types that are not read, such as those of quantized checkpoints, are refused later where they are wanted.
        needed = math.prod(shape) * DTYPES[dtype].itemsize if dtype in DTYPES else last - first
        if first != end or last - first != needed:
            return name
        end = last
    return None
