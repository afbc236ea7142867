"""Prompts read behind texts that were read once: equal to text and prompt read in one.

covers backbone/frozen, backbone/injection, backbone/by_length, backbone/checkpointing, backbone/padding
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.backbone.by_length import PASS_COST, groups_by_length
from pipeline.backbone.facts import behind_refusal, facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection, common_tokens, put_before
from pipeline.backbone.trunk import layers_of
from tests.support.tiny import DECODERS, PAD_ID, tiny_model

B, T, C, P = 3, 5, 2, 4
MASK = torch.arange(T) < torch.tensor([5, 3, 4])[:, None]
IDS = torch.randint(4, 200, (B, T), generator=torch.Generator().manual_seed(1)).where(MASK, PAD_ID)
PROMPT_MASK = (torch.arange(P) < torch.tensor([4, 2, 3])[:, None]).repeat_interleave(C, 0)
PROMPT_MASK[1, 0] = False  # a hole
close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)


def backbone_of(family: str, **options: Any) -> FrozenBackbone:
    model = tiny_model(family).double()
    return FrozenBackbone(model, facts_of(model.config), **options)


def prompt_of(backbone: FrozenBackbone) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    shape = (B * C, P, backbone.facts.hidden_size)
    return torch.randn(shape, generator=generator, dtype=torch.double).requires_grad_()


def in_one(backbone: FrozenBackbone, prompt: Tensor, mask: Tensor = PROMPT_MASK) -> Tensor:
    """Each text and each prompt behind it as one sequence of embeddings, given to the model itself: [B * C, P, H]."""
    embed, rows = backbone.model.get_input_embeddings(), []
    for row in range(B * C):
        text = embed(IDS[row // C][MASK[row // C]])
        joined = torch.cat([text, prompt[row][mask[row]]]).unsqueeze(0)
        hidden = backbone.model(inputs_embeds=joined, use_cache=False).last_hidden_state[0, len(text) :]
        states = torch.zeros(P, hidden.shape[-1], dtype=hidden.dtype)
        rows.append(states.masked_scatter(mask[row, :, None], hidden))
    return torch.stack(rows)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_equals_text_and_prompt_in_one(family: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one pass, and with prompts of each length in one of their own."""
    monkeypatch.setitem(PASS_COST, "cpu", 0 if checkpointing else 32)
    backbone = backbone_of(family, gradient_checkpointing=checkpointing).train()
    assert behind_refusal(backbone.facts) is None
    prompt = prompt_of(backbone)
    found = backbone.behind(backbone.keep(IDS, MASK), Injection(PROMPT_MASK, prompt=prompt))
    expected = in_one(backbone_of(family), prompt)
    torch.testing.assert_close(found[PROMPT_MASK], expected[PROMPT_MASK], rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(states[PROMPT_MASK].square().sum(), prompt)[0] for states in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize("family", DECODERS)
def test_what_all_prompts_begin_with_is_read_with_the_text(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all prompts behind it, of which one ends there; texts are padded on either side."""
    monkeypatch.setitem(PASS_COST, "cpu", 0)
    backbone, mask = backbone_of(family), PROMPT_MASK.clone()
    prompt = prompt_of(backbone).detach()
    prompt[:, :2], mask[:, :2] = prompt[0, :2], True
    assert (mask.sum(dim=1) == 2).any() and common_tokens(prompt, mask) == 2
    expected = in_one(backbone, prompt, mask)
    order = MASK.int().argsort(dim=1, stable=True)
    for ids, seen in ((IDS, MASK), (IDS.gather(1, order), MASK.gather(1, order))):
        texts = backbone.keep(ids, seen, Injection(mask[:1, :2], prompt=prompt[:1, :2]).expand(B))
        alone = backbone.keep(ids, seen)
        close(texts.hidden[texts.text_mask], alone.hidden[alone.mask])
        close(texts.beginning, expected[::C, :2])
        close(backbone.behind(texts, Injection(mask, prompt=prompt))[mask], expected[mask])


def test_tokens_are_common_up_to_the_first_that_is_not() -> None:
    content, mask = torch.arange(4.0).repeat(3, 1).unsqueeze(-1), torch.ones(3, 4)
    assert common_tokens(content, mask) == 3, "one is left to be read for each row"
    mask[1, 2] = 0
    assert common_tokens(content, mask) == 2
    content[2, 1] += 1
    assert common_tokens(content, mask) == 1
    content[0, 0] += 1
    assert common_tokens(content, mask) == 0


def test_texts_padded_on_the_left_are_the_same() -> None:
    backbone = backbone_of("llama_gqa")
    order = MASK.int().argsort(dim=1, stable=True)
    ids, mask = IDS.gather(1, order), MASK.gather(1, order)
    assert not mask[1, 0] and mask[1, -1]
    injection = Injection(PROMPT_MASK, prompt=prompt_of(backbone))
    kept, other = backbone.keep(IDS, MASK), backbone.keep(ids, mask)
    torch.testing.assert_close(kept.hidden[MASK], other.hidden[MASK])
    found, again = (backbone.behind(texts, injection)[PROMPT_MASK] for texts in (kept, other))
    torch.testing.assert_close(found, again)


def test_a_text_is_read_once_and_each_prompt_costs_its_tokens() -> None:
    backbone = backbone_of("llama_gqa")
    seen: list[tuple[int, ...]] = []
    inner = next(module for module in layers_of(backbone.model)[1][0].modules() if isinstance(module, nn.Linear))
    inner.register_forward_hook(lambda _module, inputs, _output: seen.append(tuple(inputs[0].shape[:2])))
    kept = backbone.keep(IDS, MASK)
    backbone.behind(kept, Injection(PROMPT_MASK, prompt=prompt_of(backbone)))
    assert seen == [(B, T), (B * C, P)]
    assert not kept.hidden.requires_grad and all(not part.requires_grad for layer in kept.layers for part in layer)


def test_prompts_of_like_length_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of("llama_gqa")
    lengths = torch.tensor([[1, 4, 1, 2], [4, 2, 1, 1], [2, 3, 1, 0]])
    mask = torch.arange(P) < lengths.flatten()[:, None]
    prompt = Injection(mask, prompt=torch.randn(B * 4, P, backbone.facts.hidden_size, dtype=torch.double))
    kept = backbone.keep(IDS, MASK)
    expected = backbone.behind(kept, prompt)
    monkeypatch.setitem(PASS_COST, "cpu", 6)
    seen: list[tuple[int, ...]] = []
    inner = next(module for module in layers_of(backbone.model)[1][0].modules() if isinstance(module, nn.Linear))
    inner.register_forward_hook(lambda _module, inputs, _output: seen.append(tuple(inputs[0].shape[:2])))
    close(backbone.behind(kept, prompt)[mask], expected[mask])
    assert seen == [(B * 2, 4), (B * 2, 1)], "a third pass, for what has two tokens, would save no more than six"
    del seen[:]
    close(backbone.behind(kept, prompt, in_one=True)[mask], expected[mask])
    assert seen == [(B * 4, P)]


def test_groups_are_cut_where_another_pass_pays() -> None:
    lengths = [10, 8, 7, 7, 6, 4, 4, 4]

    def tokens(groups: list[slice]) -> int:
        return sum((group.stop - group.start) * lengths[group.start] for group in groups)

    for spare in range(40):
        groups = groups_by_length(lengths, spare)
        assert [place for group in groups for place in range(group.start, group.stop)] == list(range(8))
        assert tokens([slice(0, 8)]) - tokens(groups) >= spare * (len(groups) - 1)
    assert tokens(groups_by_length(lengths, 0)) == sum(lengths)
    assert groups_by_length(lengths, 18) == [slice(0, 8)]
    assert groups_by_length(lengths, 17) == [slice(0, 5), slice(5, 8)]


def test_a_row_before_several_is_not_copied_but_into_the_result() -> None:
    prefix, tokens = torch.randn(2, 3, 4, 5), torch.randn(6, 3, 1, 5)
    expected = torch.cat([prefix.repeat_interleave(3, 0), tokens], dim=-2)
    assert torch.equal(put_before(prefix, tokens), expected)


@pytest.mark.parametrize("family", ["bert", "deberta_v2"])
def test_encoders_cannot(family: str) -> None:
    assert "no decoder" in str(behind_refusal(facts_of(tiny_model(family).config)))
