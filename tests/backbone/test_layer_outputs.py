"""States of several layers, side by side, are those of the models that end at each of them."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AlbertConfig, AlbertModel

from pipeline.backbone.as_injection import AsInjection
from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.every_layer import EveryLayer
from pipeline.backbone.facts import Form, behind_refusal, facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.backbone.loading import load_backbone
from pipeline.core.errors import UserError
from pipeline.distributed.ranks import Ranks
from tests.families.models import tiny_model as family_model
from tests.support.tiny import FAMILIES, save_tiny

LAYERS = (1, 2, 3)
B, T, P = 3, 5, 4
IDS = torch.tensor([[5, 9, 200, 31, 7], [8, 8, 100, 1, 1], [1, 1, 42, 43, 44]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]).bool()
INJECTED = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0]]).bool()

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture
def folder(folders: Path, family: str) -> Path:
    layers = {"n_layer": 3} if family in ("gpt2", "bloom") else {"num_hidden_layers": 3}
    folder = folders / family
    return folder if folder.is_dir() else save_tiny(folder, family, **layers)


@cache  # nothing here changes a backbone
def frozen(path: Path, layers: int | tuple[int, ...], *, checkpointing: bool = False) -> FrozenBackbone:
    given = layers if isinstance(layers, int) else list(layers)
    config = BackboneConfig(name_or_path=str(path), dtype="float32", layers=given)
    model = load_backbone(config, zero_config=None, device=torch.device("cpu"), ranks=Ranks.alone())
    return FrozenBackbone(model, facts_of(model.config, config), gradient_checkpointing=checkpointing).train()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def check(found: Tensor, expected: list[Tensor], mask: Tensor) -> None:
    """found [B, T, M], expected: [B, T, H] of each layer"""
    torch.testing.assert_close(found[mask], torch.cat(expected, dim=-1)[mask], rtol=1e-5, atol=1e-5)


@every_family
def test_of_a_text_alone(folder: Path) -> None:
    found = frozen(folder, LAYERS)
    assert found.facts.layers == 3 and found.facts.state_width == 3 * found.facts.hidden_size
    check(found(IDS, MASK), [frozen(folder, count)(IDS, MASK) for count in LAYERS], MASK)


@pytest.mark.parametrize("family", ["llama_gqa"])
def test_one_in_the_list_is_that_many_layers(folder: Path) -> None:
    assert frozen(folder, (2,)).facts.joined == ()
    torch.testing.assert_close(frozen(folder, (2,))(IDS, MASK)[MASK], frozen(folder, 2)(IDS, MASK)[MASK])


@every_family
def test_of_a_text_with_a_prompt_and_their_gradients(folder: Path) -> None:
    """Kept by checkpoints of layers, as on large backbones."""
    joined = frozen(folder, (1, 3), checkpointing=True)
    prompt = random(B, P, joined.facts.hidden_size).requires_grad_()
    injection = Injection(INJECTED, prompt=prompt)
    found = joined(IDS, MASK, injection)
    expected = [frozen(folder, count)(IDS, MASK, injection) for count in (1, 3)]
    check(found, expected, MASK)
    weights = random(*found.shape)
    gradients = [
        torch.autograd.grad((states * weights)[MASK].sum(), prompt)[0] for states in (found, torch.cat(expected, -1))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert gradients[0].abs().sum() > 0


@every_family
def test_of_a_text_with_a_prefix_also_from_a_trunk(folder: Path, family: str) -> None:
    joined = frozen(folder, LAYERS)
    each = joined.facts.prefix_width() // 3
    prefix = random(B, P, 3 * each)

    def into(first_layer: int, count: int) -> Injection:
        """Into the layers from `first_layer` on of a model of so many."""
        return Injection(INJECTED, prefix=prefix[..., first_layer * each : count * each])

    expected = [frozen(folder, count)(IDS, MASK, into(0, count)) for count in LAYERS]
    check(joined(IDS, MASK, into(0, 3)), expected, MASK)
    if family == "opt_projected":  # cannot be split
        return
    found, second, whole = (
        backbone(IDS, MASK, into(1, backbone.facts.layers), trunk=backbone.trunk(IDS, MASK, 1))
        for backbone in (joined, frozen(folder, 2), frozen(folder, 3))
    )
    check(found, [frozen(folder, 1)(IDS, MASK), second, whole], MASK)


@every_family
def test_of_what_stands_behind_a_text(folder: Path) -> None:
    joined = frozen(folder, (2, 3))
    if behind_refusal(joined.facts) is not None:
        pytest.skip("nothing can be read behind this family's texts")
    injection = Injection(INJECTED, prompt=random(B, P, joined.facts.hidden_size))
    texts = [frozen(folder, count).keep(IDS, MASK) for count in (2, 3)]
    kept = joined.keep(IDS, MASK)
    check(kept.hidden, [one.hidden for one in texts], MASK)
    expected = [frozen(folder, count).behind(one, injection) for count, one in zip((2, 3), texts, strict=True)]
    check(joined.behind(kept, injection), expected, INJECTED)


@pytest.mark.parametrize("family", ["llama_gqa", "bert"])
@pytest.mark.parametrize("form", [None, Form("prompt"), Form("prompt", 1), Form("prefix")])
def test_labels_have_the_states_of_the_last_layer(folder: Path, form: Form | None) -> None:
    given = IDS[:2], MASK[:2].long()
    for found, expected in zip(
        *(AsInjection(frozen(folder, layers), form)(*given) for layers in ((1, 3), 3)), strict=True
    ):
        assert found is expected is None or torch.equal(found, expected)


def test_a_family_that_shows_no_layers_is_refused() -> None:
    config = AlbertConfig(vocab_size=50, embedding_size=8, hidden_size=8, num_attention_heads=2, num_hidden_layers=2)
    model = AlbertModel(config)
    with pytest.raises(UserError, match=r"backbone\.layers: those of albert do not stand in one list"):
        FrozenBackbone(model, facts_of(config, BackboneConfig(name_or_path="a", layers=[1, 2])))
    with pytest.raises(UserError, match="albert"):
        EveryLayer(FrozenBackbone(model, facts_of(config)))
    several = family_model("gemma3n_text")
    with pytest.raises(UserError, match="those of gemma3n_text hand on several states of each token"):
        EveryLayer(FrozenBackbone(several, facts_of(several.config)))
