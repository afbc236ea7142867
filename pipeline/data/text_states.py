"""Text states: the frozen backbone's reading of each text alone, made once, kept in files and mapped into memory.

texts/states.json                what each split's states were made from, and whether all of them are there
texts/SPLIT-NNNNN.safetensors    states [rows, H] of one chunk of the split's rows, in order
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.core.files import atomic_file, read_json, write_json
from pipeline.core.settings import Settings

STATES_FILE = "states.json"
TENSOR = "states"


class StatesOfSplit(Settings):
    """What states.json says of one split."""

    rows: int = Field(ge=1)
    chunk_rows: int = Field(ge=1)
    """Of every file but the last."""
    fingerprint: dict[str, str]
    complete: bool

    @property
    def chunks(self) -> int:
        return -(-self.rows // self.chunk_rows)

    def rows_of(self, chunk: int) -> range:
        """The rows in this chunk's file."""
        return range(chunk * self.chunk_rows, min(self.rows, (chunk + 1) * self.chunk_rows))


class _StatesFile(Settings):
    """states.json"""

    version: Literal[1] = 1
    splits: dict[str, StatesOfSplit] = {}


@dataclass(frozen=True)
class TextStates:
    """Pooled states of a split's texts, in the backbone's compute dtype."""

    chunks: list[Tensor]
    """[rows, H] each, mapped: read from disk as they are used"""
    chunk_rows: int

    def __len__(self) -> int:
        return sum(map(len, self.chunks))

    def take(self, rows: NDArray) -> Tensor:
        """States [B, H] of these rows [B]."""
        return torch.stack([self.chunks[row // self.chunk_rows][row % self.chunk_rows] for row in rows.tolist()])

    def whole(self) -> Tensor:
        """All of them, [rows, H] float32, in memory."""
        return torch.cat([chunk.float() for chunk in self.chunks])


def check_finite(states: Tensor) -> None:
    """UserError where a backbone's states of texts, of any shape, are not finite."""
    if not all(torch.isfinite(part).all() for part in states):
        raise UserError(
            "the backbone's states of the texts are not finite: check its weights, or set backbone.dtype=float32"
        )


def chunk_file(folder: Path, split: str, chunk: int) -> Path:
    return folder / f"{split}-{chunk:05d}.safetensors"


def write_chunk(folder: Path, split: str, chunk: int, states: Tensor) -> None:
    """Writes states [rows, H] whole or not at all."""
    with atomic_file(chunk_file(folder, split, chunk)) as temporary:
        temporary.write_bytes(safetensors.torch.save({TENSOR: states.contiguous()}))


def read_states_file(folder: Path) -> dict[str, StatesOfSplit]:
    """What there is, by split. UserError for a damaged file; nothing where there is none."""
    file = folder / STATES_FILE
    if not file.is_file():
        return {}
    try:
        return _StatesFile.model_validate(read_json(file)).splits
    except ValidationError as error:
        raise UserError(f"'{file}' is damaged ({error.errors()[0]['msg']}): run encode-texts again") from error


def write_states_file(folder: Path, splits: Mapping[str, StatesOfSplit]) -> None:
    values: dict[str, Any] = {name: found.model_dump(mode="json") for name, found in splits.items()}
    write_json(folder / STATES_FILE, {"version": 1, "splits": values})


def load_text_states(folder: Path, split: str) -> TextStates:
    """Maps the states of a split. UserError where they are missing or unfinished. (SHA256SUMS: see `check_sums`.)"""
    found = read_states_file(folder).get(split)
    if found is None or not found.complete:
        raise UserError(f"'{folder}' does not hold the states of all {split} texts: run encode-texts first")
    chunks = [
        _load_chunk(chunk_file(folder, split, number), len(found.rows_of(number))) for number in range(found.chunks)
    ]
    if len({(chunk.shape[1], chunk.dtype) for chunk in chunks}) != 1:
        raise UserError(f"'{folder}': its {split} files do not belong together: run encode-texts again")
    return TextStates(chunks, found.chunk_rows)


def _load_chunk(file: Path, rows: int) -> Tensor:
    try:
        states = safetensors.torch.load_file(file)[TENSOR]
    except (OSError, SafetensorError, LookupError, ValueError, RuntimeError) as error:
        raise UserError(f"'{file}' is missing or damaged ({error}): run encode-texts again") from error
    if states.ndim != 2 or len(states) != rows or not states.dtype.is_floating_point:
        raise UserError(f"'{file}' does not belong to '{STATES_FILE}' beside it: run encode-texts again")
    return states
