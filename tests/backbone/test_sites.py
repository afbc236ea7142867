"""Edits of hidden states: equal to weights that have the edit folded in, padding or not, checkpointed or not.

Under ZeRO-3: test_frozen_zero3.py.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.backbone.sites import Edits
from pipeline.core.errors import UserError
from tests.support.tiny import FAMILIES, PAD_ID, tiny_model

B, T, P, H, LAYERS = 3, 5, 2, 16, 2
MASK = torch.arange(T) < torch.tensor([5, 3, 4])[:, None]
IDS = torch.randint(4, 200, (B, T), generator=torch.Generator().manual_seed(1)).where(MASK, PAD_ID)
SHIFTS = torch.randn(LAYERS, H, generator=torch.Generator().manual_seed(2), dtype=torch.double)


class Shift(nn.Module):
    """Adds the same to each token, and keeps what it was called with."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(shift)
        self.masks: list[Tensor] = []

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        self.masks.append(mask)
        return hidden + self.shift


class Whole(nn.Module):
    """Turns each token by the mean of the text: what must not see padding."""

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        mean = (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return hidden + mean.unsqueeze(1).tanh()


def backbone_of(family: str, **options: Any) -> FrozenBackbone:
    model = tiny_model(family).double()
    return FrozenBackbone(model, facts_of(model.config), **options)


def last_bias(layer: Any) -> nn.Parameter:
    """What a layer adds last, before nothing but the residual or, in BERT, as the norm's own."""
    names = ("mlp.c_proj", "mlp.dense_4h_to_h", "fc2", "output.LayerNorm", "mlp.down_proj")
    module = next(layer.get_submodule(name) for name in names if _has(layer, name))
    if module.bias is None:
        module.bias = nn.Parameter(torch.zeros(H, dtype=torch.double))
    return module.bias


def _has(layer: nn.Module, name: str) -> bool:
    return name in dict(layer.named_modules())


@pytest.mark.parametrize("family", ["bert", "roberta", "llama_gqa", "gpt2", "gpt_neox", "bloom", "opt", "qwen3"])
def test_a_shift_behind_each_layer_is_a_bias_of_its_last_weights(family: str) -> None:
    shifts = [Shift(shift.clone()) for shift in SHIFTS]
    found = backbone_of(family)(IDS, MASK, edits=Edits(before={1: shifts[0], 2: shifts[1]}))
    folded = backbone_of(family)
    layers = next(part for part in folded.model.modules() if isinstance(part, nn.ModuleList) and len(part) == LAYERS)
    for layer, shift in zip(layers, SHIFTS, strict=True):
        last_bias(layer).data += shift
    expected = folded(IDS, MASK)
    torch.testing.assert_close(found[MASK], expected[MASK], rtol=1e-6, atol=1e-6)  # as in test_frozen
    assert (found - backbone_of(family)(IDS, MASK))[MASK].abs().max() > 0.01


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "opt_projected"])
@pytest.mark.parametrize("prompted", [False, True])
def test_every_site_is_reached_whatever_the_padding(family: str, prompted: bool) -> None:
    backbone = backbone_of(family)
    prompt = torch.randn(B, P, H, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    given = Injection(torch.ones(B, P, dtype=torch.bool), prompt=prompt) if prompted else None
    plain = backbone(IDS, MASK, given)
    edits = [Edits(embeddings=Whole()), *(Edits(before={site: Whole()}) for site in range(LAYERS + 1))]
    for one in (*edits, Edits(Whole(), {0: Whole(), 2: Whole()})):
        found = backbone(IDS, MASK, given, edits=one)
        assert (found - plain)[MASK].abs().max() > 1e-3
        for row in range(B):
            ids = IDS[row : row + 1, : MASK[row].sum()]
            left = torch.cat([torch.full((1, 3), PAD_ID), ids], dim=1)
            mine = None if given is None else given.select(torch.tensor([row]))
            alone = backbone(left, torch.arange(left.shape[1])[None] >= 3, mine, edits=one)[0, 3:]
            torch.testing.assert_close(found[row][MASK[row]], alone, rtol=1e-6, atol=1e-6)
    assert torch.equal(backbone(IDS, MASK, given), plain)  # none stayed


@pytest.mark.parametrize("family", ["llama_gqa", "bert", "deberta_v2"])
def test_checkpointing_calls_an_edit_once_and_changes_no_gradient(family: str) -> None:
    results, calls = [], []
    for checkpointing in (False, True):
        backbone = backbone_of(family, gradient_checkpointing=checkpointing).train()
        shifts = [Shift(shift.clone()) for shift in (SHIFTS[0], *SHIFTS)]
        hidden = backbone(IDS, MASK, edits=Edits(shifts[0], {0: shifts[1], 1: shifts[2]}))[MASK]
        backbone(IDS.flip(0), MASK.flip(0))  # another call before backward
        results.append((hidden, *torch.autograd.grad(hidden.square().sum(), [shift.shift for shift in shifts])))
        calls.append([len(shift.masks) for shift in shifts])
    assert calls == [[1, 1, 1]] * 2
    for plain, checkpointed in zip(*results, strict=True):
        assert torch.equal(plain, checkpointed) and plain.abs().sum() > 0


def test_an_edit_of_the_embeddings_is_other_embeddings() -> None:
    """And a prompt that joins them is not edited."""
    backbone = backbone_of("llama_gqa")
    edit, prompt = Shift(SHIFTS[0].clone()), torch.randn(B, P, H, dtype=torch.double)
    given = Injection(torch.ones(B, P, dtype=torch.bool), prompt=prompt)
    found = backbone(IDS, MASK, given, edits=Edits(embeddings=edit))
    backbone.model.get_input_embeddings().weight.data += SHIFTS[0]
    torch.testing.assert_close(found[MASK], backbone(IDS, MASK, given)[MASK])
    assert torch.equal(edit.masks[0], MASK)


def without_layers() -> FrozenBackbone:
    backbone = backbone_of("llama")
    backbone.model.layers = nn.ModuleList(list(backbone.model.layers)[:1])
    return backbone


@pytest.mark.parametrize(
    ("made", "reason"),
    [(without_layers, "do not stand in one list"), (lambda: backbone_of("opt_projected"), "have other sizes")],
)
def test_what_cannot_be_edited_says_so(made: Callable[[], FrozenBackbone], reason: str) -> None:
    with pytest.raises(UserError, match=f"cannot be edited.*{reason}"):
        made()(IDS, MASK, edits=Edits(before={1: Whole()}))
