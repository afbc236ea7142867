"""The tokenized splits as training and evaluation read them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk
from numpy.typing import NDArray

from pipeline.core.errors import UserError
from pipeline.core.paths import is_plain_name
from pipeline.distributed.launcher import local_copy


@dataclass(frozen=True)
class Split:
    """One split: Arrow rows on disk, lengths and labels in memory."""

    rows: Dataset
    lengths: NDArray[np.int64]
    """[rows] tokens"""
    labels: NDArray[np.int64]
    """[rows] label indices"""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Tokenized rows ready for `collate`."""
        columns = self.rows[indices]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def load_split(folder: Path) -> Split:
    """Reads data/<split>/. Raises UserError where preprocess has not written it, or has not written it so."""
    try:
        _check_files(Path(local_copy(str(folder))))
        rows = load_from_disk(local_copy(str(folder)))
    except FileNotFoundError as error:
        raise UserError(f"'{folder}' does not exist: run preprocess first") from error
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"'{folder}' is damaged ({error!r}): run preprocess again") from error
    assert isinstance(rows, Dataset)
    lengths, labels = np.asarray(rows["length"]), np.asarray(rows["label"])
    inputs = [name for name in ("input_ids", "token_type_ids", "length") if name in rows.column_names]
    return Split(rows.select_columns(inputs), lengths, labels)


def _check_files(folder: Path) -> None:
    """`datasets` would follow whatever path state.json names."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if not all(is_plain_name(part["filename"]) for part in state["_data_files"]):
        raise UserError(f"'{folder}' names files that are not in it (state.json): run preprocess again")
