"""Data order, candidates and padding: pure functions of (seed, epoch), the same on every rank and for every world size.

Nothing here draws from a global random state, so a resumed run, or one on another number of ranks, sees the same
batches with the same wrong labels (the published L-Tuning collator drew them from an unseeded generator).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]

WINDOW_BATCHES = 50
"""Batches among which rows are sorted by length: little padding, and still a near-random order."""

WIDTH_STEP = 8
"""Texts are padded to multiples of so many tokens."""


class PassSize(NamedTuple):
    """How much one forward pass holds, at most."""

    rows: int = 64
    """(text, label) pairs"""
    tokens: int | None = None
    """In their place: tokens, padding counted, a text once for each label that it is read with."""


USUAL_PASS = PassSize()


def epoch_batches(lengths: NDArray[np.integer], global_batch: int, seed: int, epoch: int) -> list[Ints]:
    """Row indices of every global batch of one epoch; all batches have `global_batch` rows.

    Rows are shuffled, sorted by length within windows of `WINDOW_BATCHES` batches, cut into batches, and the batches
    and the rows in each are shuffled again. Every row occurs; the last batch is filled from the start of the order.

    Args:
        lengths: tokens of each row, [rows], rows > 0.
    """
    assert len(lengths) > 0 and global_batch > 0
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    batch_count = -(-len(order) // global_batch)
    order = np.resize(order, batch_count * global_batch)
    window = WINDOW_BATCHES * global_batch
    batches: list[Ints] = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches.extend(generator.permuted(rows.reshape(-1, global_batch), axis=1))
    return [batches[index] for index in generator.permutation(len(batches))]


def longest_first(lengths: NDArray[np.integer], size: int) -> list[Ints]:
    """Places of texts in batches of like length, longest first: if memory is short, it shows at once.

    Args:
        lengths: tokens of each text, [rows], rows > 0.
    """
    order = np.argsort(-lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]


def within_tokens(lengths: NDArray[np.integer], tokens: int) -> list[Ints]:
    """The same in batches of at most `tokens` tokens with their padding; of one text where that alone has more."""
    order = np.argsort(-lengths, kind="stable")
    batches: list[Ints] = []
    start = 0
    while start < len(order):
        size = max(1, tokens // width(int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def width(longest: int) -> int:
    """Tokens to which `collate` pads the texts of a batch."""
    return -(-longest // WIDTH_STEP) * WIDTH_STEP


def rank_slice(batch: Ints, rank: int, world: int, micro_batch: int, accumulation: int) -> list[Ints]:
    """The rows of a global batch that one rank works on: `accumulation` micro-batches of `micro_batch` rows each.

    Slices are contiguous, so the ranks' rows put one after the other are the global batch.
    """
    assert len(batch) == world * micro_batch * accumulation and 0 <= rank < world
    share = len(batch) // world
    mine = batch[rank * share : (rank + 1) * share]
    return [mine[start : start + micro_batch] for start in range(0, share, micro_batch)]


def rank_slice_within(lengths: NDArray[np.integer], rank: int, world: int, tokens: int) -> list[Ints]:
    """Places in a global batch that one rank works on, as in `rank_slice`, in micro-batches of at most `tokens` tokens.

    They are those of `within_tokens`. All ranks have the same number of them, as ZeRO needs it: that of the rank which
    needs most; another halves its largest until it has as many.

    Args:
        lengths: tokens of each text of the global batch, [rows], rows a multiple of `world`.
    """
    shares = np.arange(len(lengths)).reshape(world, -1)
    cuts = [within_tokens(lengths[share], tokens) for share in shares]
    mine = cuts[rank]
    while len(mine) < max(map(len, cuts)):
        largest = max(range(len(mine)), key=lambda index: len(mine[index]))
        mine[largest : largest + 1] = np.array_split(mine[largest], 2)
    return [shares[rank][part] for part in mine]


def wrong_label(seed: int, epoch: int, example: ArrayLike, truth: ArrayLike, label_count: int) -> Ints:
    """A label other than `truth` for each example, uniform over the `label_count` - 1 others.

    Args:
        example: row indices [B] (or one); with `seed` and `epoch` they are all that the draw depends on.
        truth: label indices, as `example`.
    """
    assert label_count >= 2
    true_labels = np.asarray(truth, dtype=np.int64)
    draws = _keyed_draws(seed, epoch, np.asarray(example, dtype=np.int64))
    step = (draws % np.uint64(label_count - 1)).astype(np.int64) + 1
    return (true_labels + step) % label_count


def pair_candidates(
    examples: Ints, labels: Ints, seed: int, epoch: int, label_count: int, before: int = 0
) -> tuple[Ints, NDArray[np.float32]]:
    """One (text, label) pair per row: every second one gets its true label, the others a wrong one (paper, A.3).

    Slices of even length give the same pairs as slicing the result for the whole batch.

    Args:
        examples: row indices [B]. labels: their true label indices [B].
        before: rows of the batches before. Of batches of an odd size every second one begins with a wrong label, or a
            batch of one row would never have any.

    Returns:
        candidates [B, 1] and targets [B], 1 for true and 0 for wrong.
    """
    is_true = (before + np.arange(len(examples))) % 2 == 0
    wrong = wrong_label(seed, epoch, examples, labels, label_count)
    return np.where(is_true, labels, wrong)[:, None], is_true.astype(np.float32)


def all_candidates(labels: Ints, label_count: int) -> tuple[Ints, Ints]:
    """Every label for every row: candidates [B, K] and the index [B] of the true one among them."""
    candidates = np.broadcast_to(np.arange(label_count), (len(labels), label_count)).copy()
    return candidates, np.asarray(labels, dtype=np.int64)


def sampled_candidates(
    examples: Ints, labels: Ints, seed: int, epoch: int, label_count: int, sample: int
) -> tuple[Ints, Ints]:
    """The true label and `sample` - 1 distinct wrong ones for every row, in index order.

    Returns:
        candidates [B, C] with C = min(sample, K), and the index [B] of the true label among them.
    """
    assert sample >= 2
    if sample >= label_count:
        return all_candidates(labels, label_count)
    keys = _keyed_draws(seed, epoch, examples[:, None], np.arange(label_count)[None, :])
    keys[np.arange(len(labels)), labels] = 0
    candidates = np.sort(np.argsort(keys, axis=1, kind="stable")[:, :sample], axis=1)
    return candidates, np.argmax(candidates == labels[:, None], axis=1)


def batch_candidates(labels: Ints) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """The labels of the batch for every row, so that those of the other rows are its wrong ones.

    Returns:
        candidates [B, C] in index order, the index [B] of the true label among them, and for each label the logarithm
        of how often it stands in the batch [C].
    """
    present, true, counts = np.unique(labels, return_inverse=True, return_counts=True)
    candidates = np.broadcast_to(present, (len(labels), len(present))).copy()
    return candidates, true.reshape(-1), np.log(counts).astype(np.float32)


def by_row(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """What is given by column, row by row."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def collate(rows: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Pads tokenized rows on the right to the longest, rounded up to a multiple of `WIDTH_STEP` tokens.

    Returns:
        input_ids [B, T], attention_mask [B, T] of 0 and 1, and token_type_ids [B, T] if the rows have them; all long.
    """
    padded = width(max(len(row["input_ids"]) for row in rows))
    columns = [("input_ids", pad_token_id)] + [("token_type_ids", 0)] * ("token_type_ids" in rows[0])
    batch = {name: torch.full((len(rows), padded), fill, dtype=torch.long) for name, fill in columns}
    batch["attention_mask"] = torch.zeros((len(rows), padded), dtype=torch.long)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        batch["attention_mask"][index, :length] = 1
        for name, _ in columns:
            batch[name][index, :length] = torch.as_tensor(row[name])
    return batch


def _keyed_draws(*keys: int | Ints) -> NDArray[np.uint64]:
    """One 64-bit draw per element of the broadcast keys: a counter-based generator.

    Folds the keys in turn through the SplitMix64 finaliser (Steele, Lea and Flood, OOPSLA 2014), whose increment
    keeps a key of 0 from being a fixed point.
    """
    state = np.zeros((), dtype=np.uint64)
    for key in keys:
        state = state ^ np.asarray(key, dtype=np.int64).astype(np.uint64)
        # 1-d at least: numpy warns on scalar overflow, and wrapping round is what is meant here.
        state = np.atleast_1d(state) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state if np.broadcast_shapes(*(np.shape(key) for key in keys)) else state[0]
