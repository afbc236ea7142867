"""Text and token states: the frozen backbone's reading of texts alone, made once, kept in files, mapped into memory.

texts/states.json                            what each set of states was made from, and whether all of them are there
texts/SPLIT-NNNNN.safetensors                text states [rows, M] of one chunk of the split's rows, in order
texts/SPLIT-tokens-FORM-NNNNN.safetensors    token states [tokens, W] of a chunk's rows, one text behind the other
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
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
    """What states.json says of one set of states of a split."""

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
    """[rows, M] each, mapped: read from disk as they are used"""

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __add__(self, others: "TextStates") -> "TextStates":
        """These, and the others behind them."""
        return TextStates([*self.chunks, *others.chunks])

    def take(self, rows: NDArray) -> Tensor:
        """States [B, M] of these rows [B]."""
        chunks = np.searchsorted(self._ends, rows, side="right")
        from_end = rows - self._ends[chunks]  # places below zero, which count from the end of the chunk
        return torch.stack([self.chunks[n][place] for n, place in zip(chunks, from_end.tolist(), strict=True)])

    def whole(self) -> Tensor:
        """All of them, [rows, M] float32, in memory."""
        return torch.cat([chunk.float() for chunk in self.chunks])

    @cached_property
    def _ends(self) -> NDArray[np.integer]:
        """[chunks] rows up to the end of each chunk"""
        return np.cumsum([len(chunk) for chunk in self.chunks])


@dataclass(frozen=True)
class TokenStates:
    """States of each token of a split's texts, in the backbone's compute dtype."""

    chunks: list[Tensor]
    """[tokens, W] each, mapped: read from disk as they are used"""
    lengths: NDArray[np.integer]
    """[rows] tokens of each text"""
    chunk_of: NDArray[np.integer]
    """[rows] the chunk that each text is in"""
    starts: NDArray[np.integer]
    """[rows] place of each text's first token in its chunk"""

    def __add__(self, others: "TokenStates") -> "TokenStates":
        """These, and the others behind them."""
        chunk_of = np.concatenate([self.chunk_of, others.chunk_of + len(self.chunks)])
        lengths = np.concatenate([self.lengths, others.lengths])
        starts = np.concatenate([self.starts, others.starts])
        return TokenStates([*self.chunks, *others.chunks], lengths, chunk_of, starts)

    def take(self, rows: NDArray, padded: int) -> Tensor:
        """States [B, T, W] of these rows [B], zero behind their ends; T = `padded`."""
        first = self.chunks[0]
        taken = first.new_zeros(len(rows), padded, first.shape[1])
        for place, row in enumerate(rows.tolist()):
            start, length = int(self.starts[row]), int(self.lengths[row])
            taken[place, :length] = self.chunks[self.chunk_of[row]][start : start + length]
        return taken


def check_finite(states: Tensor) -> None:
    """UserError where a backbone's states of texts, of any shape, are not finite."""
    if not all(torch.isfinite(part).all() for part in states):
        raise UserError(
            "the backbone's states of the texts are not finite: check its weights, or set backbone.dtype=float32"
        )


def chunk_file(folder: Path, name: str, chunk: int) -> Path:
    return folder / f"{name}-{chunk:05d}.safetensors"


def write_chunk(folder: Path, name: str, chunk: int, states: Tensor) -> None:
    """Writes states [rows, M] or [tokens, W] whole or not at all."""
    with atomic_file(chunk_file(folder, name, chunk)) as temporary:
        temporary.write_bytes(safetensors.torch.save({TENSOR: states.contiguous()}))


def read_states_file(folder: Path) -> dict[str, StatesOfSplit]:
    """What there is, by name of the set. UserError for a damaged file; nothing where there is none."""
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
    found = _complete(folder, split)
    sizes = [len(found.rows_of(number)) for number in range(found.chunks)]
    return TextStates(_load_chunks(folder, split, sizes))


def load_token_states(folder: Path, name: str, lengths: NDArray[np.integer]) -> TokenStates:
    """The same of a set of token states; `lengths` [rows]: tokens of the split's texts."""
    found = _complete(folder, name)
    starts, sizes = token_places(lengths, found)
    chunk_of = np.arange(len(lengths)) // found.chunk_rows
    return TokenStates(_load_chunks(folder, name, sizes), lengths, chunk_of, starts)


def token_places(lengths: NDArray[np.integer], states: StatesOfSplit) -> tuple[NDArray[np.integer], list[int]]:
    """[rows] where each text begins in its chunk, and the tokens of each chunk; `lengths` [rows] tokens."""
    ends = [np.cumsum(lengths[rows.start : rows.stop]) for rows in map(states.rows_of, range(states.chunks))]
    return np.concatenate(ends) - lengths, [int(end[-1]) for end in ends]


def _complete(folder: Path, name: str) -> StatesOfSplit:
    found = read_states_file(folder).get(name)
    if found is None or not found.complete:
        raise UserError(f"'{folder}' does not hold the states of all {name} texts: run encode-texts first")
    return found


def _load_chunks(folder: Path, name: str, sizes: list[int]) -> list[Tensor]:
    chunks = [_load_chunk(chunk_file(folder, name, number), size) for number, size in enumerate(sizes)]
    if len({(chunk.shape[1], chunk.dtype) for chunk in chunks}) != 1:
        raise UserError(f"'{folder}': its {name} files do not belong together: run encode-texts again")
    return chunks


def _load_chunk(file: Path, size: int) -> Tensor:
    try:
        states = safetensors.torch.load_file(file)[TENSOR]
    except (OSError, SafetensorError, LookupError, ValueError, RuntimeError) as error:
        raise UserError(f"'{file}' is missing or damaged ({error}): run encode-texts again") from error
    if states.ndim != 2 or len(states) != size or not states.dtype.is_floating_point:
        raise UserError(f"'{file}' does not belong to '{STATES_FILE}' beside it: run encode-texts again")
    return states
