"""The tokenized splits as training and evaluation read them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.errors import UserError
from pipeline.core.paths import is_plain_name
from pipeline.data.batches import Ints, by_row, collate
from pipeline.data.text_states import TextStates, TokenStates
from pipeline.distributed.launcher import local_copy

if TYPE_CHECKING:
    from datasets import Dataset  # slow to import, and `predict` needs none of it

    from pipeline.data.pseudo_labels import Targets


class Texts(Protocol):
    """What is scored: N texts, in any form that a model reads."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] tokens"""

    def batch(self, rows: NDArray[np.int64], pad_token_id: int) -> dict[str, Tensor]:
        """The model's inputs for these rows [B]."""


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts that were just tokenized; each row has `input_ids` and whatever else `collate` reads."""

    rows: Sequence[dict[str, Any]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array([len(row["input_ids"]) for row in self.rows], dtype=np.int64)

    def batch(self, rows: NDArray[np.int64], pad_token_id: int) -> dict[str, Tensor]:
        """input_ids, attention_mask, token_type_ids [B, T] of these rows [B]."""
        return collate([self.rows[row] for row in rows.tolist()], pad_token_id)


@dataclass(frozen=True)
class Split:
    """One split: Arrow rows on disk, lengths and labels in memory."""

    rows: "Dataset"
    lengths: NDArray[np.int64]
    """[rows] tokens"""
    labels: NDArray[np.int64]
    """[rows] label indices"""
    states: TextStates | None = None
    """The backbone's reading of each text alone, where it is kept."""
    token_states: TokenStates | None = None
    """What it made of each token before an injection comes, where that is kept."""
    targets: "Targets | None" = None
    """Weights and soft labels, where some of the texts have no labels of their own."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def epoch_rows(self) -> Ints:
        """The rows that an epoch reads."""
        return np.arange(len(self)) if self.targets is None else self.targets.epoch_rows

    @property
    def true_labels(self) -> NDArray[np.int64]:
        """Of the texts that have labels of their own, which come first."""
        return self.labels if self.targets is None else self.labels[: self.targets.labelled]

    def digest(self) -> str:
        """Hash of all its tokens, in order."""
        digest = hashlib.sha256()
        for name in sorted({"input_ids", "token_type_ids"} & set(self.rows.column_names)):
            for chunk in self.rows.data.column(name).chunks:
                digest.update(pc.list_value_length(chunk).to_numpy().tobytes())
                digest.update(chunk.flatten().to_numpy().tobytes())
        return digest.hexdigest()

    def batch(self, rows: NDArray[np.int64], pad_token_id: int) -> dict[str, Tensor]:
        """input_ids, attention_mask, token_type_ids [B, T] of these rows [B].

        Also, where they are kept, `alone` [B, M] and `token_states` [B, T, W].
        """
        batch = collate(by_row(self.rows[rows]), pad_token_id)
        if self.states is not None:
            batch["alone"] = self.states.take(rows)
        if self.token_states is not None:
            batch["token_states"] = self.token_states.take(rows, batch["input_ids"].shape[1])
        return batch


@dataclass(frozen=True)
class ReadTexts:
    """Texts as their stored states alone."""

    states: TextStates

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.ones(len(self.states), dtype=np.int64)

    def batch(self, rows: NDArray[np.int64], pad_token_id: int) -> dict[str, Tensor]:
        """`alone` [B, M]: the states of these rows [B]."""
        return {"alone": self.states.take(rows)}


def load_split(folder: Path) -> Split:
    """Reads data/<split>/. Raises UserError where preprocess has not written it, or has not written it so."""
    from datasets import Dataset, load_from_disk

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
