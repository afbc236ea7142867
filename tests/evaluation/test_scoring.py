"""All labels for all texts, against the plain double loop, on one rank and on several.

covers distributed/ranks
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor, nn

from pipeline.core.errors import PassTooLargeError
from pipeline.data.batches import PassSize
from pipeline.data.splits import TokenizedTexts, load_split
from pipeline.distributed.ranks import Ranks
from pipeline.evaluation.scoring import read_with_labels, score, score_own
from tests.support.worlds import run_worlds

CPU = torch.device("cpu")
ALONE = Ranks.alone()


class Toy(nn.Module):
    """Scores that depend on every token and on nothing of the padding; notes what it was to read in each pass."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = nn.Parameter(torch.randn(50, 8, dtype=torch.float64, generator=generator))
        self.labels = nn.Parameter(torch.randn(labels, 8, dtype=torch.float64, generator=generator))
        self.shapes: list[tuple[int, int]] = []
        self.widths: list[int] = []
        self.padding = 0

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, candidates: Tensor, sizes: list[int] | None = None
    ) -> Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.shapes += [(len(candidates), size) for size in sizes or [candidates.shape[1]]]
        self.widths += [input_ids.shape[1]] * len(sizes or [1])
        self.padding += int((attention_mask == 0).sum())
        position = torch.arange(1, input_ids.shape[1] + 1, dtype=torch.float64)
        text = (self.words[input_ids] * (attention_mask * position).unsqueeze(-1)).sum(1).tanh()
        return torch.einsum("bh,bch->bc", text, self.labels[candidates])


def some_texts(count: int) -> list[dict]:
    generator = np.random.default_rng(0)
    return [
        {"input_ids": generator.integers(3, 50, size=generator.integers(1, 40)).tolist(), "row": i + 1, "label": 0}
        for i in range(count)
    ]


def double_loop(model: Toy, texts: list[dict], labels: int) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        return np.array(
            [
                [
                    model(
                        torch.tensor([text["input_ids"]]),
                        torch.ones(1, len(text["input_ids"]), dtype=torch.long),
                        torch.tensor([[label]]),
                    ).item()
                    for label in range(labels)
                ]
                for text in texts
            ]
        )


@pytest.mark.parametrize(("tokens", "readings"), [(1, None), (60, None), (400, None), (5000, None), (400, 3)])
def test_batches_by_tokens_equal_the_double_loop(tokens: int, readings: int | None) -> None:
    texts, model = some_texts(23), Toy(7)
    expected = double_loop(model, texts, 7)
    model.shapes, model.widths = [], []
    found = score(
        model, TokenizedTexts(texts), 7, PassSize(tokens=tokens), ranks=ALONE, pad_token_id=0, device=CPU,
        readings=readings,
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for (count, labels), width in zip(model.shapes, model.widths, strict=True):
        rows = count * (readings or labels)
        assert rows * width <= tokens or (count == 1 and (readings or labels == 1))


@pytest.mark.parametrize("rows", [1, 3, 7, 20, 1000])
def test_equals_the_double_loop(rows: int) -> None:
    texts, model = some_texts(23), Toy(7)
    expected = double_loop(model, texts, 7)
    model.train()
    model.shapes.clear()
    scores = score(model, TokenizedTexts(texts), 7, PassSize(rows), ranks=ALONE, pad_token_id=1, device=CPU)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6)
    assert max(b * c for b, c in model.shapes) <= rows
    assert sum(b * c for b, c in model.shapes) == 23 * 7
    assert model.training, "the mode the model came in is restored"


@pytest.mark.parametrize("readings", [1, 3])
def test_labels_scored_in_one_go_take_as_many_rows_as_is_said(readings: int) -> None:
    texts, model = some_texts(23), Toy(7)
    expected = double_loop(model, texts, 7)
    model.shapes.clear()
    scores = score(
        model, TokenizedTexts(texts), 7, PassSize(6), ranks=ALONE, pad_token_id=1, device=CPU, readings=readings
    )
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6)
    assert max(model.shapes) == (6 // readings, 7) and {labels for _, labels in model.shapes} == {7}


def test_a_stored_data_set_gives_the_same(tmp_path: Path) -> None:
    texts = some_texts(9)
    stored = Dataset.from_list([text | {"length": len(text["input_ids"])} for text in texts])
    stored.save_to_disk(tmp_path / "split")
    from_disk = load_split(tmp_path / "split")
    expected = score(Toy(3), TokenizedTexts(texts), 3, PassSize(8), ranks=ALONE, pad_token_id=1, device=CPU)
    np.testing.assert_array_equal(
        score(Toy(3), from_disk, 3, PassSize(8), ranks=ALONE, pad_token_id=1, device=CPU), expected
    )


def test_texts_of_like_length_share_a_batch() -> None:
    texts, model = some_texts(64), Toy(2)
    score(model, TokenizedTexts(texts), 2, PassSize(16), ranks=ALONE, pad_token_id=1, device=CPU)
    lengths = [len(text["input_ids"]) for text in texts]
    unsorted = sum(max(lengths[i : i + 8]) * 8 - sum(lengths[i : i + 8]) for i in range(0, 64, 8))
    assert model.padding < unsorted / 2


def one_rank(folder: Path) -> None:
    ranks = Ranks.joined()
    for count in (11, 2):
        model = Toy(5)
        scores = score(
            model, TokenizedTexts(some_texts(count)), 5, PassSize(10), ranks=ranks, pad_token_id=1, device=CPU
        )
        np.savez(folder / f"{count}-{dist.get_rank()}.npz", scores=scores, forwards=len(model.shapes))
    own, model = TokenizedTexts(some_texts(9)[dist.get_rank() * 6 :]), Toy(5)
    scores = score_own(model, own, 5, PassSize(tokens=48), ranks=ranks, pad_token_id=1, device=CPU)
    np.savez(folder / f"own-{dist.get_rank()}.npz", scores=scores, forwards=len(model.shapes))


def test_two_ranks_share_the_work_and_agree_with_one(tmp_path: Path) -> None:
    run_worlds("tests.evaluation.test_scoring:one_rank", [2], tmp_path, 120)
    # 11 texts in batches of 2 are 6 batches, 3 for each rank; 2 texts are one batch, so that one rank has none.
    for count, forwards in ((11, 3), (2, 1)):
        expected = score(
            Toy(5), TokenizedTexts(some_texts(count)), 5, PassSize(10), ranks=ALONE, pad_token_id=1, device=CPU
        )
        for rank in range(2):
            result = np.load(tmp_path / f"{count}-{rank}.npz")
            np.testing.assert_array_equal(result["scores"], expected)
            assert int(result["forwards"]) == forwards
    own = [np.load(tmp_path / f"own-{rank}.npz") for rank in range(2)]
    assert own[0]["forwards"] == own[1]["forwards"], "ZeRO-3 would hang"
    for rank, found in enumerate(own):
        texts = TokenizedTexts(some_texts(9)[rank * 6 :])
        expected = score(Toy(5), texts, 5, PassSize(), ranks=ALONE, pad_token_id=1, device=CPU)
        np.testing.assert_allclose(found["scores"], expected, rtol=1e-6, atol=1e-6)


class Short(nn.Module):
    """Has no memory for any text."""

    def forward(self, **inputs: Tensor) -> Tensor:
        raise MemoryError


@pytest.mark.parametrize("count", [1, 3])
def test_a_pass_with_labels_that_memory_is_too_short_for_is_named(count: int) -> None:
    texts = TokenizedTexts([{"input_ids": [3] * 9, "row": 1, "label": 0}] * count)
    with pytest.raises(PassTooLargeError) as found:
        read_with_labels(
            Short(), texts, np.arange(count), torch.zeros(count, 2).long(), PassSize(),
            ranks=ALONE, pad_token_id=0, device=CPU,
        )  # fmt: skip
    assert found.value.limit == count * 2 * 16 // 2 and found.value.can_shrink == (count > 1)
    assert f"{count} text(s)" in str(found.value) and found.value.__context__ is None, "which would hold the memory"
