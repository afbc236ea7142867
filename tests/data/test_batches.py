"""Order, candidates and padding are functions of seed and epoch, whatever the company and the ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.batches import (
    all_candidates,
    collate,
    epoch_batches,
    longest_first,
    pair_candidates,
    rank_slice,
    rank_slice_within,
    sampled_candidates,
    width,
    within_tokens,
    wrong_label,
)

seeds = st.integers(0, 2**31 - 1)
epochs = st.integers(0, 1000)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=400), st.integers(1, 40), seeds, epochs)
def test_every_row_occurs_and_only_the_fill_repeats(lengths, global_batch, seed, epoch):
    batches = epoch_batches(np.array(lengths), global_batch, seed, epoch)
    counts = np.bincount(np.concatenate(batches), minlength=len(lengths))
    assert {len(batch) for batch in batches} == {global_batch}
    assert len(counts) == len(lengths) and counts.min() >= 1
    assert len(batches) == -(-len(lengths) // global_batch)
    assert counts.max() <= -(-len(batches) * global_batch // len(lengths))


@given(seeds, epochs)
def test_order_is_a_function_of_seed_and_epoch(seed, epoch):
    lengths = np.arange(1, 301) % 37
    first, again = (np.concatenate(epoch_batches(lengths, 8, seed, epoch)) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, np.concatenate(epoch_batches(lengths, 8, seed, epoch + 1)))
    assert not np.array_equal(first, np.concatenate(epoch_batches(lengths, 8, seed + 1, epoch)))


def test_global_random_state_is_neither_read_nor_changed():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = np.concatenate(epoch_batches(np.arange(1, 100), 8, 0, 0))
    assert np.array_equal(before, np.random.get_state()[1])
    np.random.seed(2)
    assert np.array_equal(first, np.concatenate(epoch_batches(np.arange(1, 100), 8, 0, 0)))


def test_bucketing_saves_most_of_the_padding():
    lengths = np.random.default_rng(0).geometric(0.03, 5000)
    padded = sum(lengths[batch].max() * len(batch) for batch in epoch_batches(lengths, 16, 0, 0))
    shuffled = np.random.default_rng(1).permutation(lengths)[:4992].reshape(-1, 16)
    assert padded < 1.1 * lengths.sum()
    assert shuffled.max(axis=1).sum() * 16 > 2 * lengths.sum()


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_ranks_slices_make_up_the_global_batch(world, micro_batch, accumulation):
    batch = np.random.default_rng(0).permutation(world * micro_batch * accumulation)
    slices = [rank_slice(batch, rank, world, micro_batch, accumulation) for rank in range(world)]
    assert all(len(mine) == accumulation and all(len(part) == micro_batch for part in mine) for mine in slices)
    assert np.array_equal(np.concatenate([part for mine in slices for part in mine]), batch)


@given(seeds, epochs, st.integers(2, 100), st.data())
def test_wrong_label_is_wrong_in_range_and_independent_of_company(seed, epoch, label_count, data):
    examples = np.array(data.draw(st.lists(st.integers(0, 2**40), min_size=1, max_size=20)))
    truths = np.array(
        data.draw(st.lists(st.integers(0, label_count - 1), min_size=len(examples), max_size=len(examples)))
    )
    wrong = wrong_label(seed, epoch, examples, truths, label_count)
    assert np.all(wrong != truths) and wrong.min() >= 0 and wrong.max() < label_count
    alone = [int(wrong_label(seed, epoch, e, t, label_count)) for e, t in zip(examples, truths, strict=True)]
    assert wrong.tolist() == alone


def test_wrong_labels_are_uniform_over_the_others_and_change_with_every_key():
    examples, truths = np.arange(60_000), np.full(60_000, 2)
    counts = np.bincount(wrong_label(0, 0, examples, truths, 7), minlength=7)
    assert counts[2] == 0
    expected = 10_000
    chi_squared = ((np.delete(counts, 2) - expected) ** 2 / expected).sum()
    assert chi_squared < 25.7  # 99.99 % point of chi-squared with 5 degrees of freedom
    for seed, epoch in [(1, 0), (0, 1)]:
        same = np.mean(wrong_label(seed, epoch, examples, truths, 7) == wrong_label(0, 0, examples, truths, 7))
        assert same == pytest.approx(1 / 6, abs=0.01)


@given(seeds, epochs, st.integers(2, 20), st.integers(1, 64))
def test_pairs_are_half_true_and_slices_of_even_length_agree(seed, epoch, label_count, size):
    generator = np.random.default_rng(size)
    examples, labels = generator.permutation(1000)[:size], generator.integers(label_count, size=size)
    candidates, targets = pair_candidates(examples, labels, seed, epoch, label_count)
    assert candidates.shape == (size, 1) and targets.shape == (size,)
    assert targets.sum() == (size + 1) // 2
    assert np.array_equal(candidates[:, 0] == labels, targets == 1)
    parts = [
        pair_candidates(examples[i : i + 4], labels[i : i + 4], seed, epoch, label_count)[0] for i in range(0, size, 4)
    ]
    assert np.array_equal(np.concatenate(parts), candidates)


@given(seeds, epochs, st.integers(1, 9))
def test_half_of_the_pairs_of_odd_batches_are_wrong_too(seed, epoch, size):
    batches = [np.arange(size) + size * step for step in range(4)]
    targets = [
        pair_candidates(rows, rows % 3, seed, epoch, 3, before=size * step)[1] for step, rows in enumerate(batches)
    ]
    assert np.concatenate(targets).sum() == 2 * size


@given(seeds, epochs, st.integers(2, 30), st.integers(2, 40))
def test_sampled_candidates_are_distinct_and_hold_the_truth(seed, epoch, label_count, sample):
    labels = np.arange(label_count)
    candidates, targets = sampled_candidates(labels + 5, labels, seed, epoch, label_count, sample)
    assert candidates.shape == (label_count, min(sample, label_count))
    assert np.array_equal(np.take_along_axis(candidates, targets[:, None], 1)[:, 0], labels)
    assert all(len(set(row)) == len(row) for row in candidates.tolist())
    assert candidates.min() >= 0 and candidates.max() < label_count


def test_sampled_candidates_take_every_wrong_label_equally_often():
    examples, labels = np.arange(20_000), np.zeros(20_000, dtype=np.int64)
    candidates, _ = sampled_candidates(examples, labels, 0, 0, 11, 3)
    counts = np.bincount(candidates.ravel(), minlength=11)
    assert counts[0] == 20_000
    assert np.all(np.abs(counts[1:] - 4000) < 300)


def test_all_candidates():
    candidates, targets = all_candidates(np.array([2, 0]), 3)
    assert candidates.tolist() == [[0, 1, 2], [0, 1, 2]] and targets.tolist() == [2, 0]


def test_collate_pads_on_the_right():
    rows = [{"input_ids": [5, 6, 7], "token_type_ids": [0, 0, 1]}, {"input_ids": [8], "token_type_ids": [1]}]
    batch = collate(rows, pad_token_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7, *[9] * 5], [8, *[9] * 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, *[0] * 5], [1, *[0] * 7]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1, *[0] * 5], [1, *[0] * 7]]
    plain = collate([{"input_ids": list(range(9))}], pad_token_id=0)
    assert plain["input_ids"].shape == (1, 16) and set(plain) == {"input_ids", "attention_mask"}


def test_texts_in_batches_of_like_length() -> None:
    batches = longest_first(np.array([3, 9, 3, 7, 9]), 2)
    assert [batch.tolist() for batch in batches] == [[1, 4], [3, 0], [2]]


lengths_of_texts = st.lists(st.integers(1, 100), min_size=1, max_size=60)


@given(lengths_of_texts, st.integers(0, 1000))
def test_batches_by_tokens_are_as_large_as_they_may_be(lengths: list[int], tokens: int) -> None:
    lengths = np.array(lengths)
    batches = within_tokens(lengths, tokens)
    assert np.array_equal(np.concatenate(batches), np.concatenate(longest_first(lengths, 7)))
    padded = [len(batch) * width(lengths[batch].max()) for batch in batches]
    assert all(size <= tokens or len(batch) == 1 for size, batch in zip(padded, batches, strict=True))
    for batch in batches[:-1]:
        assert (len(batch) + 1) * width(lengths[batch].max()) > tokens


@given(lengths_of_texts, st.integers(1, 4), st.integers(0, 1000))
def test_ranks_cut_their_shares_by_tokens_into_as_many_parts(lengths: list[int], world: int, tokens: int) -> None:
    lengths = np.array(lengths * world)
    shares = [rank_slice_within(lengths, rank, world, tokens) for rank in range(world)]
    assert len({len(parts) for parts in shares}) == 1, "ZeRO waits for a rank with fewer passes"
    for rank, parts in enumerate(shares):
        [whole] = rank_slice(np.arange(len(lengths)), rank, world, len(lengths) // world, 1)
        assert np.array_equal(np.sort(np.concatenate(parts)), whole)
        assert all(len(part) for part in parts)
        assert all(len(part) * width(lengths[part].max()) <= tokens or len(part) == 1 for part in parts)
