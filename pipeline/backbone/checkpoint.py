"""Reading safetensors checkpoints tensor by tensor and row by row, after checking that they are whole."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file

from pipeline.backbone.config import BackboneConfig
from pipeline.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SAMPLES, SAMPLE_BYTES = 16, 4096


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what it is; `dtype` is safetensors' name for it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


class Checkpoint:
    """The safetensors files of a model, opened for reading slices; `tensors` by the name they are stored under."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.tensors: dict[str, StoredTensor] = {}
        for file in files:
            for name, entry in _read_header(file)[0].items():
                self.tensors[name] = StoredTensor(file, entry["dtype"], tuple(entry["shape"]))

    @property
    def stored_bytes(self) -> int:
        """Size of all the files."""
        return sum(file.stat().st_size for file in self.files)

    @cached_property
    def _opened(self) -> dict[Path, safe_open]:
        # Read calls, not a memory map: a disk error is then an exception and not a SIGBUS that ends the process.
        return {file: safe_open(file, framework="pt", backend="pread") for file in self.files}

    def read_rows(self, name: str, first: int, last: int, transposed: bool = False) -> Tensor:
        """Rows [first, last) of a tensor, or of its transpose (read as columns, returned as rows).

        Raises UserError naming the file when it cannot be read.
        """
        stored = self.tensors[name]
        try:
            if not stored.shape:
                return self._opened[stored.file].get_tensor(name).reshape(1)
            rows = self._opened[stored.file].get_slice(name)
            return rows[:, first:last].t() if transposed else rows[first:last]
        except (OSError, SafetensorError) as error:
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
    try:
        placed: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: not a safetensors index ({error}); fetch it again") from error
    checkpoint = Checkpoint([_required(config, name) for name in sorted(set(placed.values()))])
    if absent := sorted(set(placed) - set(checkpoint.tensors)):
        raise UserError(
            f"{index}: names tensors that its files do not hold: {shortened(absent)}; fetch the files again"
        )
    return checkpoint


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
    """The header (name -> dtype, shape, data_offsets) and its bytes; refuses a file that is shorter than it says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            raw = stream.read(length) if length <= size - 8 else b"{}"
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        expected = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not a readable safetensors file ({first_line(error)}); fetch it again") from error
    if size != expected:
        raise UserError(f"{file}: has {size} bytes where its header wants {expected}, so it is cut off; fetch it again")
    return entries, raw
