"""Token states that were kept, read on from: equal, bit for bit, to texts that are read anew."""

import pytest
import torch
from torch import Tensor

from pipeline.backbone.facts import Form
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.backbone.text_reader import TextReader, as_kept_texts, keeps_tokens, token_width
from pipeline.backbone.trunk import Trunk
from tests.backbone import test_behind as behind
from tests.backbone import test_trunk as trunk
from tests.support.tiny import DECODERS


def kept(backbone: FrozenBackbone, form: Form, ids: Tensor, mask: Tensor) -> Tensor:
    """As they come back from files: what stood on padding is zero."""
    states = TextReader(backbone, "mean", form)(ids, mask)
    assert states.shape == (*ids.shape, token_width(form, backbone.facts)) and not states.requires_grad
    return states.masked_fill(~mask[..., None], 0)


@trunk.every_family
@trunk.both_kinds
def test_layers_above_read_on_from_kept_states(family: str, kind: str) -> None:
    backbone, form = trunk.backbone_of(family), Form("prompt", 2)
    given = trunk.injection(backbone, kind, 2)
    states = kept(backbone, form, trunk.IDS, trunk.MASK)
    read = backbone.trunk(trunk.IDS, trunk.MASK, 2)
    found, expected = (
        backbone(trunk.IDS, trunk.MASK, given, trunk=each)[trunk.MASK] for each in (Trunk(2, states), read)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", DECODERS)
def test_prompts_are_read_behind_kept_states(family: str) -> None:
    backbone, form = behind.backbone_of(family), Form("prompt", is_behind=True)
    given = Injection(behind.PROMPT_MASK, prompt=behind.prompt_of(backbone))
    states = kept(backbone, form, behind.IDS, behind.MASK)
    texts = backbone.keep(behind.IDS, behind.MASK)
    again = as_kept_texts(states, behind.MASK.long(), backbone.facts)
    assert torch.equal(again.hidden[behind.MASK], texts.hidden[behind.MASK])
    found, expected = (backbone.behind(each, given)[behind.PROMPT_MASK] for each in (again, texts))
    assert torch.equal(found, expected)


def test_forms_before_which_nothing_is_read_keep_nothing() -> None:
    assert not keeps_tokens(None) and not keeps_tokens(Form("prefix")) and not keeps_tokens(Form("prompt"))
    assert keeps_tokens(Form("prefix", 1)) and keeps_tokens(Form("prompt", is_behind=True))
