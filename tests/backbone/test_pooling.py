"""The states of a text's tokens as one vector: the right token, and nothing of padding."""

import pytest
import torch

from pipeline.backbone.config import Pooling
from pipeline.backbone.facts import facts_of
from pipeline.backbone.pooling import pool, resolve_pooling
from tests.support.tiny import tiny_model

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0]])
HIDDEN = torch.arange(16, dtype=torch.double).view(4, 4, 1) * torch.tensor([1.0, -1.0], dtype=torch.double)


@pytest.mark.parametrize(
    ("how", "expected"),
    [("last", [3, 5, 11, 14]), ("first", [0, 4, 10, 13]), ("mean", [1.5, 4.5, 10.5, 13.5])],
)
def test_right_token(how: Pooling, expected: list[float]) -> None:
    column = torch.tensor(expected, dtype=torch.double)
    torch.testing.assert_close(pool(HIDDEN, MASK, how), torch.stack([column, -column], dim=1))


def test_statistics_are_the_deviation_and_the_mean() -> None:
    for row, mask, pooled in zip(HIDDEN, MASK, pool(HIDDEN, MASK, "statistics"), strict=True):
        tokens = row[mask.bool()]
        torch.testing.assert_close(pooled, torch.cat([tokens.std(0, correction=0), tokens.mean(0)]))


def test_a_single_token_deviates_by_nothing_and_has_a_gradient() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    pooled = pool(hidden[:1, :1], MASK[:1, :1], "statistics")
    assert torch.equal(pooled, torch.cat([torch.zeros(1, 2), hidden[0, :1]], dim=1))
    (gradient,) = torch.autograd.grad(pooled.sum(), hidden)
    assert torch.equal(gradient[0, 0], torch.ones(2)) and not gradient[1:].any()


@pytest.mark.parametrize("how", ["last", "first", "mean", "statistics"])
def test_padding_reaches_neither_value_nor_gradient(how: Pooling) -> None:
    hidden = HIDDEN.masked_fill(MASK[..., None] == 0, float("nan")).requires_grad_()
    pooled = pool(hidden, MASK, how)
    assert torch.equal(pooled, pool(HIDDEN, MASK, how))
    (gradient,) = torch.autograd.grad(pooled.sum(), hidden)
    assert gradient.isfinite().all() and (gradient[MASK == 0] == 0).all()


def test_mean_and_deviation_of_nothing_are_zero() -> None:
    nothing = torch.zeros_like(MASK)
    assert not pool(HIDDEN, nothing, "mean").any() and not pool(HIDDEN, nothing, "statistics").any()


def test_auto() -> None:
    assert resolve_pooling("auto", facts_of(tiny_model("gpt2").config)) == "last"
    assert resolve_pooling("auto", facts_of(tiny_model("deberta").config)) == "mean"
    assert resolve_pooling("first", facts_of(tiny_model("gpt2").config)) == "first"
