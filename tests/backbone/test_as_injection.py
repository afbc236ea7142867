"""A hypothesis as an injection: a text behind it is read as the second half of one sequence."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.backbone.as_injection import AsInjection
from pipeline.backbone.facts import Form, facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection, split_prefix
from tests.support.tiny import DECODERS, ENCODERS, tiny_model

LENGTHS = (4, 2)
"""Of two hypotheses, padded to the first."""
MASK = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
HYPOTHESES = torch.tensor([[11, 12, 13, 14], [21, 22, 1, 1]])
TEXT = torch.tensor([[31, 32, 33, 34, 35]]).expand(2, -1)
PROJECTIONS = {"key", "key_proj", "in_proj"}
"""What makes the keys in the attention of encoders."""


def backbone_of(family: str) -> FrozenBackbone:
    network = tiny_model(family).double()
    return FrozenBackbone(network, facts_of(network.config))


def read_behind(backbone: FrozenBackbone, kind: Any) -> Tensor:
    _, start = AsInjection(backbone, Form(kind))(HYPOTHESES, MASK)
    return backbone(TEXT, torch.ones_like(TEXT), Injection(MASK, **{kind: start}))


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_decoders_read_a_text_as_behind_the_hypothesis(family: str, kind: str) -> None:
    backbone = backbone_of(family)
    assert backbone.facts.is_decoder
    # Eager attention takes the softmax in float32, which rounds otherwise where other tokens stand beside.
    bounds = (1e-5, 1e-6) if tiny_model(family).config._attn_implementation == "eager" else (1e-9, 1e-9)
    with torch.no_grad():
        found = read_behind(backbone, kind)
        for row, length in enumerate(LENGTHS):
            both = torch.cat([HYPOTHESES[row, :length], TEXT[row]])[None]
            expected = backbone(both, torch.ones_like(both))[0, length:]
            torch.testing.assert_close(found[row], expected, rtol=bounds[0], atol=bounds[1])
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_keep_the_keys_of_the_hypothesis_read_alone(family: str) -> None:
    backbone, made = backbone_of(family), []
    assert not backbone.facts.is_decoder
    with torch.no_grad():
        states, start = AsInjection(backbone, Form("prefix"))(HYPOTHESES, MASK)
        expected_states = backbone(HYPOTHESES, MASK)
        for name, module in backbone.named_modules():
            if name.rsplit(".", 1)[-1] in PROJECTIONS and isinstance(module, nn.Linear):
                module.register_forward_hook(lambda _, __, output: made.append(output))
        backbone(HYPOTHESES, MASK)
    assert torch.equal(states, expected_states) and start.shape == (2, 4, Form("prefix").width(backbone.facts))
    facts = backbone.facts
    layers = split_prefix(start, facts.prefix_layers)
    made = [output for output in made if len(output) == 2]  # not DeBERTa's, of its relative positions
    assert len(made) == facts.layers
    for (keys, _), output in zip(layers, made, strict=True):
        if output.shape[-1] != facts.hidden_size:  # DeBERTa v1: query, key and value of each head side by side
            output = output.unflatten(2, (keys.shape[1], 3, keys.shape[3]))[:, :, :, 1].flatten(2)
        torch.testing.assert_close(keys.transpose(1, 2).flatten(2), output)


def test_nothing_is_kept_where_nothing_is_wanted() -> None:
    backbone = backbone_of("bert")
    states, start = AsInjection(backbone, None)(HYPOTHESES, MASK)
    assert start is None and torch.equal(states, backbone(HYPOTHESES, MASK))
