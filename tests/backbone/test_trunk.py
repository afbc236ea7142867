"""Layers below an injection, run once: equal to the whole model, whose lower layers never saw the injection."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from pipeline.backbone.as_injection import AsInjection
from pipeline.backbone.facts import Form, facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.backbone.trunk import check_split, layers_of
from pipeline.core.errors import UserError
from tests.support.tiny import FAMILIES, PAD_ID, tiny_model

B, T, P, LAYERS = 3, 5, 4, 3
MASK = torch.arange(T) < torch.tensor([5, 3, 4])[:, None]
IDS = torch.randint(4, 200, (B, T), generator=torch.Generator().manual_seed(1)).where(MASK, PAD_ID)
every_family = pytest.mark.parametrize("family", [family for family in FAMILIES if family != "opt_projected"])
both_kinds = pytest.mark.parametrize("kind", ["prompt", "prefix"])


def backbone_of(family: str, **options: Any) -> FrozenBackbone:
    layers = "n_layer" if family in ("gpt2", "bloom") else "num_hidden_layers"
    model = tiny_model(family, **{layers: LAYERS}).double()
    facts = facts_of(model.config)
    assert facts.layers == LAYERS
    return FrozenBackbone(model, facts, **options)


def injection(backbone: FrozenBackbone, kind: str, first_layer: int) -> Injection:
    facts, mask = backbone.facts, torch.arange(P) < torch.tensor([4, 4, 2])[:, None]
    generator = torch.Generator().manual_seed(2)
    if kind == "prompt":
        prompt = torch.randn(B, P, facts.hidden_size, generator=generator, dtype=torch.double)
        return Injection(mask, prompt=prompt.requires_grad_())
    shape = (B, P, facts.prefix_width(first_layer))
    return Injection(mask, prefix=torch.randn(shape, generator=generator, dtype=torch.double).requires_grad_())


def by_hand(family: str, given: Injection, first_layer: int) -> Tensor:
    """Reads with the injection from the lowest layer on, but gives layer `first_layer` what it would get without."""
    backbone, got = backbone_of(family), []
    layer = layers_of(backbone.model)[1][first_layer]

    def place(hooked: Any) -> Any:
        return layer.register_forward_pre_hook(hooked, with_kwargs=True)

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        got.append(args[0] if args else kwargs["hidden_states"])

    def put(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = got[0]
        if given.prompt is not None:  # real tokens first, as the backbone has them
            seen = torch.cat([given.mask, MASK], dim=1)
            order = seen.logical_not().int().argsort(dim=1, stable=True)[..., None]
            joined = torch.cat([given.prompt, states], dim=1)
            states = joined.gather(1, order.expand(-1, -1, joined.shape[-1]))
        return ((states, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": states})

    with torch.no_grad():
        handle = place(see)
        backbone(IDS, MASK)
        handle.remove()
    place(put)
    if given.prefix is not None:
        width = backbone.facts.prefix_width() // LAYERS
        below = given.prefix[..., :width].repeat(1, 1, first_layer)  # seen by layers whose result is dropped
        given = given._replace(prefix=torch.cat([below, given.prefix], dim=-1))
    return backbone(IDS, MASK, given)


@every_family
@both_kinds
@pytest.mark.parametrize("checkpointing", [False, True])
def test_equals_the_whole_model_whose_lower_layers_see_no_injection(
    family: str, kind: str, checkpointing: bool
) -> None:
    backbone = backbone_of(family, gradient_checkpointing=checkpointing).train()
    for first_layer in (1, 2):
        given = injection(backbone, kind, first_layer)
        trunk = backbone.trunk(IDS, MASK, first_layer)
        assert trunk.states.shape == (B, T, backbone.facts.hidden_size) and not trunk.states.requires_grad
        found, expected = backbone(IDS, MASK, given, trunk=trunk), by_hand(family, given, first_layer)
        torch.testing.assert_close(found[MASK], expected[MASK], rtol=1e-6, atol=1e-6)  # as in test_frozen
        leaf = given.prefix if given.prompt is None else given.prompt
        assert leaf is not None
        gradients = [torch.autograd.grad(output[MASK].square().sum(), leaf)[0] for output in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
        assert gradients[0].abs().sum() > 0


@every_family
def test_without_an_injection_it_is_the_model_bit_for_bit(family: str) -> None:
    backbone = backbone_of(family)
    expected = backbone(IDS, MASK)
    for first_layer in (1, 2):
        assert torch.equal(backbone(IDS, MASK, trunk=backbone.trunk(IDS, MASK, first_layer))[MASK], expected[MASK])
    assert torch.equal(backbone(IDS, MASK)[MASK], expected[MASK])


@every_family
def test_a_model_that_has_run_no_layer_reads_on_from_states_that_were_kept(family: str) -> None:
    expected, trunk = backbone_of(family)(IDS, MASK), backbone_of(family).trunk(IDS, MASK, 2)
    assert torch.equal(backbone_of(family)(IDS, MASK, trunk=trunk)[MASK], expected[MASK])


@pytest.mark.parametrize("family", ["llama_gqa", "bert", "deberta_v2"])
def test_lower_layers_run_once_and_upper_ones_once_per_label(family: str) -> None:
    backbone = backbone_of(family)
    ran: list[int] = []
    for index, layer in enumerate(layers_of(backbone.model)[1]):
        inner = next(module for module in layer.modules() if isinstance(module, nn.Linear))
        inner.register_forward_hook(lambda *_, index=index: ran.append(index))
    trunk = backbone.trunk(IDS, MASK, 2)
    assert set(ran) == {0, 1}
    ran.clear()
    backbone(IDS.repeat_interleave(2, 0), MASK.repeat_interleave(2, 0), trunk=trunk.repeat(2))
    assert set(ran) == {2}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_does_not_matter(side: str) -> None:
    backbone = backbone_of("llama_gqa")
    given = injection(backbone, "prefix", 1)
    alone = [
        backbone(ids, mask, given.select(torch.tensor([row])), trunk=backbone.trunk(ids, mask, 1))
        for row in range(B)
        for ids, mask in [(IDS[row : row + 1, : MASK[row].sum()], MASK[row : row + 1, : MASK[row].sum()])]
    ]
    ids, mask = (IDS, MASK) if side == "right" else (IDS.flip(1), MASK.flip(1))
    if side == "left":  # the same texts, each in its own order, behind its padding
        ids = torch.stack([torch.cat([IDS[row][~MASK[row]], IDS[row][MASK[row]]]) for row in range(B)])
    together = backbone(ids, mask, given, trunk=backbone.trunk(ids, mask, 1))
    for row in range(B):
        torch.testing.assert_close(together[row][mask[row]], alone[row][0])


@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "opt"])
def test_decoders_start_as_behind_the_hypothesis_in_the_upper_layers(family: str) -> None:
    """A prompt that starts from the hypothesis is its states where the first layer with an injection gets them."""
    backbone, ids = backbone_of(family), torch.tensor([[11, 12, 13, 14]]).expand(B, -1)
    states, start = AsInjection(backbone, Form("prompt", 1))(ids, torch.ones_like(ids))
    assert torch.equal(states, backbone(ids, torch.ones_like(ids)))
    assert start is not None and torch.equal(start, backbone.trunk(ids, torch.ones_like(ids), 1).states)
    _, start = AsInjection(backbone, Form("prefix", 2))(ids, torch.ones_like(ids))
    _, whole = AsInjection(backbone, Form("prefix"))(ids, torch.ones_like(ids))
    assert start is not None and whole is not None
    assert torch.equal(start, whole[..., -start.shape[-1] :]) and start.shape[-1] * 3 == whole.shape[-1]


def test_what_cannot_be_split_says_so() -> None:
    shared = tiny_model("llama_gqa")
    shared.config.num_kv_shared_layers = 1
    for model, reason in ((shared, "keys and values of layers below"), (tiny_model("opt_projected"), "are wider")):
        with pytest.raises(UserError, match=reason):
            FrozenBackbone(model, facts_of(model.config)).trunk(IDS, MASK, 1)
    for kind in ("t5", "mpnet"):
        with pytest.raises(UserError, match=f"first_layer: {kind} cannot be split .its first layer alone knows"):
            check_split(AutoConfig.for_model(kind))
    check_split(AutoConfig.for_model("umt5"))  # each of its layers knows
    with pytest.raises(UserError, match=r"first_layer=3: the backbone has only layers 0 to 2"):
        Form("prefix", 3).width(backbone_of("bert").facts)
