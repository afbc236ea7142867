"""Turns the checked rows of a split into tokens, in parallel, from Arrow to Arrow."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import (
    Dataset,
    Features,
    List,
    Value,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pipeline.core.errors import SHOWN, UserError, some
from pipeline.core.templates import TEXTS
from pipeline.data.config import DataConfig
from pipeline.data.texts import TextEncoder
from pipeline.data.tokenizer import special_texts

BATCH_ROWS = 256
ROWS_PER_WORKER = 10_000
"""Fewer rows are not worth the start of another process."""


def tokenize(
    rows: Dataset,
    texts: TextEncoder,
    indices: Mapping[str, int],
    workers: int | None,
    arrow_file: Path,
    split: str,
) -> Dataset:
    """Adds the columns input_ids, token_type_ids (pairs only, where the tokenizer gives them), length in tokens and
    truncated; label becomes an index. Written to `arrow_file` and memory-mapped.

    Args:
        rows: columns row, text, text_pair if there is one, label (a string).
        indices: label index by label value.
        workers: at most this many processes; None: one per core this process may use.

    Raises:
        UserError: a text becomes no token at all.
    """
    processes = min(workers or len(os.sched_getaffinity(0)), len(rows) // ROWS_PER_WORKER)
    if processes > 1:  # a forked process must not use the tokenizer's own threads, and warns unless told so
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    encode_batch = partial(_encode, texts=texts, indices=dict(indices))
    result = rows.map(
        encode_batch,
        batched=True,
        batch_size=BATCH_ROWS,
        writer_batch_size=BATCH_ROWS,
        num_proc=processes if processes > 1 else None,
        cache_file_name=str(arrow_file),
        features=_features(rows, encode_batch),
        new_fingerprint=split,  # nothing is cached between runs: the manifest says what is current
        desc=f"tokenizing {split}",
    )
    _refuse_empty(result, split)
    return result


@contextmanager
def without_bars() -> Iterator[None]:
    """`datasets` shows none of its progress bars within the block."""
    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()


def summary(rows: Dataset, names: list[str]) -> dict[str, Any]:
    """Counts of a tokenized split, as the manifest gives them."""
    lengths, labels = column(rows, "length"), column(rows, "label")
    counts = np.bincount(labels[labels >= 0], minlength=len(names)).tolist()
    return {
        "rows": len(rows),
        "tokens": int(lengths.sum()),
        "longest": int(lengths.max()),
        "truncated": int(column(rows, "truncated").sum()),
        "per_label": dict(zip(names, counts, strict=True)),
    }


def rows_with_special_tokens(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many rows of a tokenized split have a special token of the backbone written in a text."""
    found = np.zeros(len(rows), dtype=bool)
    for name in set(TEXTS) & set(rows.column_names):
        for token in special_texts(tokenizer):
            found |= pc.match_substring(rows.data.column(name), token).to_numpy()
    return int(found.sum())


def unknown_warning(rows: Dataset, texts: TextEncoder, split: str) -> str | None:
    """What to say of texts that are unknown tokens alone: of a script, say, that the vocabulary lacks."""
    tokenizer = texts.tokenizer
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    if tokenizer.unk_token_id is None or tokenizer.unk_token_id == tokenizer.eos_token_id:
        return None
    around = len([token for token in texts.around if token not in special | {tokenizer.unk_token_id}])
    found: list[int] = []
    start = 0
    for chunk in rows.data.column("input_ids").chunks:
        ids, ends = chunk.flatten().to_numpy(), np.cumsum(pc.list_value_length(chunk).to_numpy())
        of_row = np.repeat(np.arange(len(chunk)), np.diff(ends, prepend=0))
        words = np.bincount(of_row[~np.isin(ids, list(special))], minlength=len(chunk))
        unknown = np.bincount(of_row[ids == tokenizer.unk_token_id], minlength=len(chunk))
        found += (start + np.flatnonzero((unknown > 0) & (words == unknown + around))).tolist()
        start += len(chunk)
    if not found:
        return None
    places = some([f"row {rows[index]['row']}" for index in found[:SHOWN]], len(found))
    return f"{len(found)} {split} texts are unknown tokens alone, all alike to the backbone: {places}"


def special_token_rows(manifest: Mapping[str, Any], data: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """`rows_with_special_tokens` by split, of data/ and its manifest. Older versions did not count them."""
    if "special_tokens" in manifest:
        return dict(manifest["special_tokens"])
    splits = {split: Dataset.load_from_disk(str(data / split)) for split in manifest["splits"]}
    return {split: rows_with_special_tokens(rows, tokenizer) for split, rows in splits.items()}


def with_special_tokens(fingerprint: dict[str, str], config: DataConfig, counts: Mapping[str, int]) -> dict[str, str]:
    """The fingerprint of tokenized splits of which so many rows have special tokens in a text.

    How these are read is part of it where there are some: all else stays current, whatever version made it.
    """
    read_as = "special" if config.special_tokens else "text"
    return fingerprint | {f"data.{split}.special_tokens": read_as for split, count in counts.items() if count}


def column(rows: Dataset, name: str) -> NDArray[Any]:
    """A column of numbers [rows] of a data set without reading the others."""
    return rows.data.column(name).to_numpy()


def _encode(batch: dict[str, list[Any]], texts: TextEncoder, indices: dict[str, int]) -> dict[str, list[Any]]:
    encoded = texts.encode([batch[name] for name in TEXTS if name in batch])
    return encoded | {
        "label": [indices[value] for value in batch["label"]],
        "length": [len(row) for row in encoded["input_ids"]],
    }


def _features(rows: Dataset, encode_batch: Any) -> Features:
    tokens = {name: List(Value("int32")) for name in encode_batch(rows[:1]) if name.endswith("_ids")}
    kinds = {"label": Value("int64"), **tokens, "length": Value("int32"), "truncated": Value("bool")}
    return Features({**rows.features, **kinds})


def _refuse_empty(rows: Dataset, split: str) -> None:
    empty = np.flatnonzero(pc.equal(rows.data.column("length"), 0).to_numpy(zero_copy_only=False))
    if len(empty):
        places = [f"row {rows[int(index)]['row']}" for index in empty[:SHOWN]]
        raise UserError(f"{split}: {len(empty)} texts become no token at all: {some(places, len(empty))}")
