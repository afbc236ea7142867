"""Label tuning among many labels and from its start: which labels are read into a text, and what they inject at first.

covers methods/label_tuning
"""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.backbone.injection import Injection
from pipeline.methods.label_tuning import LabelTuning
from tests.methods.test_label_tuning import FACTS, LABEL_TUNING, MASK, K, P, config_of, method_of, states

TEXTS = torch.linspace(-1, 1, 2 * FACTS.hidden_size, dtype=torch.float64).view(2, -1)


@dataclass
class TinyReader:
    """A backbone before two texts, for which an injection is one number per row."""

    begin: Tensor | None = None
    """[K, P, W], what injections start from"""
    alone_only: bool = False

    def __call__(self, injection: Injection | None, copies: int, /) -> Tensor:
        rows = TEXTS.repeat_interleave(copies, 0)
        if injection is not None:
            assert not self.alone_only
            whole = injection.prompt if injection.prefix is None else injection.prefix
            rows = rows + whole.flatten(1).mean(1, keepdim=True).sin()
        return rows.tanh()

    def start(self, labels: Tensor, /) -> Tensor | None:
        return None if self.begin is None else self.begin[labels]

    def likelihood(self, labels: Tensor, /) -> Tensor:
        raise NotImplementedError


read = TinyReader()


def shortlisted(shortlist: int | None, name: str = "lt_prompt") -> LabelTuning:
    """With random parameters, all of which matter."""
    method = method_of(name=name, head="label_aware", shortlist=shortlist)
    torch.manual_seed(2)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    return method


@pytest.mark.parametrize("name", LABEL_TUNING)
@pytest.mark.parametrize("shortlist", [1, 2])
def test_a_shortlist_by_definition(name: str, shortlist: int) -> None:
    """The labels nearest to the text alone are scored by the mean of both readings, the rest by that one."""
    method = shortlisted(shortlist, name)
    # Not all labels, and in another order for each text.
    candidates = torch.tensor([[2, 0, 1], [1, 2, 0]])
    found = method.scores(read, candidates, states(), MASK)
    for text, row in enumerate(candidates):
        texts = TEXTS[text : text + 1].tanh()
        alone = {k: method.score(texts, states()[k : k + 1], MASK[k : k + 1]) for k in row.tolist()}
        nearest = sorted(alone, key=lambda k: -alone[k].item())[:shortlist]
        for place, label in enumerate(row.tolist()):
            part = slice(label, label + 1)
            injected = method.inject(states()[part], MASK[part])
            both = method.score(read(injected.expand(2), 1)[text : text + 1], states()[part], MASK[part])
            expected = (alone[label] + both) / 2 if label in nearest else alone[label]
            torch.testing.assert_close(found[text, place], expected[0])


def test_without_a_shortlist_every_label_is_read_into_the_text() -> None:
    candidates = torch.tensor([[0, 1, 2], [2, 1, 0]])
    method = shortlisted(None)
    found = method.scores(read, candidates, states(), MASK)
    for place in range(K):
        injected = method.inject(states(), MASK).select(candidates[:, place])
        rows = states()[candidates[:, place]], MASK[candidates[:, place]]
        torch.testing.assert_close(found[:, place], method.score(read(injected, 1), *rows))
    # As many labels as the shortlist is long are no choice.
    assert torch.equal(shortlisted(K).scores(read, candidates, states(), MASK), found)


def test_a_score_does_not_depend_on_the_other_candidates_of_a_shortlist() -> None:
    """Pairs in training, and other labels in prediction, are scored as all labels are."""
    method = shortlisted(2)
    pair = method.scores(read, torch.tensor([[0, 1], [0, 1]]), states(), MASK)
    for label in (0, 1):
        alone = method.scores(read, torch.tensor([[label], [label]]), states(), MASK)
        torch.testing.assert_close(alone[:, 0], pair[:, label])


def values_of(injection: Injection) -> Tensor:
    """[K, P, W]"""
    if injection.prompt is not None:
        return injection.prompt
    assert injection.prefix is not None
    return injection.prefix


@pytest.mark.parametrize("keys", [{"pooling": "scores"}, {"pooling": "tokens", "rank": 2}, {"name": "lt_prompt"}])
def test_an_injection_starts_as_the_hypothesis_and_training_adds_to_it(keys: dict[str, Any]) -> None:
    keys = {"name": "lt_prefix", **keys}
    method, form = method_of(start="hypothesis", **keys), config_of(**keys).starts_from
    assert form is not None and form.kind == config_of(**keys).injects
    assert config_of(start="random", **keys).starts_from is None
    start = torch.randn(K, P, form.width(FACTS), dtype=torch.float64)
    injection = method.inject(states(), MASK, start)
    assert torch.equal(values_of(injection), start) and torch.equal(injection.mask, MASK)
    for parameter in method.producer.parameters():
        nn.init.normal_(parameter)
    nothing = torch.zeros_like(start)
    moved = values_of(method.inject(states(), MASK, start))
    assert not torch.allclose(moved, start)
    torch.testing.assert_close(moved, start + values_of(method.inject(states(), MASK, nothing)))


def test_each_label_starts_from_its_own_hypothesis() -> None:
    method = method_of(name="lt_prompt", start="hypothesis", head="label_aware", shortlist=None)
    start = torch.randn(K, P, FACTS.hidden_size, dtype=torch.float64)
    found = method.scores(TinyReader(start), torch.tensor([[2, 0], [2, 0]]), states(), MASK)
    for place, label in enumerate((2, 0)):
        rows = [label, label]
        pooled = read(Injection(mask=MASK[rows], prompt=start[rows]), 1)
        torch.testing.assert_close(found[:, place], method.score(pooled, states()[rows], MASK[rows]))


@pytest.mark.parametrize(("scale", "most"), [("unit", FACTS.hidden_size**0.5), ("raw", math.inf)])
def test_a_step_moves_a_prompt_by_a_few_learning_rates(scale: str, most: float) -> None:
    """Whatever the scale of the backbone's states; with raw ones by as much more as they are larger."""
    rate, moved = 1e-3, []
    for times in (1.0, 1000.0):
        method = method_of(name="lt_prompt", start="hypothesis", label_scale=scale)
        start = torch.zeros(K, P, FACTS.hidden_size, dtype=torch.float64)
        optimizer = torch.optim.Adam(method.parameters(), lr=rate)
        prompt = method.inject(times * states(), MASK, start).prompt
        assert prompt is not None and not prompt.any(), "it begins as the hypothesis"
        (prompt * torch.linspace(-1, 1, prompt.numel(), dtype=torch.float64).view_as(prompt)).sum().backward()
        optimizer.step()
        after = method.inject(times * states(), MASK, start).prompt
        assert after is not None
        moved.append(after.abs().max().item() / rate)
    assert max(moved) <= most
    assert moved[1] == pytest.approx(moved[0] * (1 if scale == "unit" else 1000), rel=1e-3)


def test_rows_that_a_text_takes() -> None:
    assert config_of(name="lt_prefix", shortlist=3).joint_readings(4) == 3
    for keys, labels in (({"shortlist": 3}, 3), ({"shortlist": None}, 99), ({"head": "linear"}, 99)):
        assert config_of(name="lt_prompt", **keys).joint_readings(labels) is None
    assert method_of(name="lt_prefix", head="linear", shortlist=1).shortlist is None
    assert config_of(name="prompt").joint_readings(99) == 1
