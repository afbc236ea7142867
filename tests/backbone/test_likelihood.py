"""How likely a decoder finds what is read behind a text: transformers' own figure, one text at a time.

covers backbone/frozen, backbone/likelihood, backbone/by_length
"""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pipeline.backbone.by_length import PASS_COST
from pipeline.backbone.config import BackboneConfig
from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import NO_TOKEN
from pipeline.backbone.loading import load_backbone
from pipeline.backbone.quantized import QuantizedLinear
from pipeline.core.errors import UserError
from pipeline.distributed.ranks import Ranks
from tests.support.tiny import DECODERS, PAD_ID, save_tiny

TEXTS = [[5, 9, 200, 31, 7], [8], [100, 4, 250, 17, 17, 60, 3]]
CONTINUATIONS = [[40, 41, 42], [43, 300, 44, 45], [46]]
T, Q = 8, 4


def load(path: Path, quantization: str = "none") -> FrozenBackbone:
    config = BackboneConfig(name_or_path=str(path), dtype="float32", quantization=quantization)
    model = load_backbone(config, zero_config=None, device=torch.device("cpu"), ranks=Ranks.alone(), output_layer=True)
    return FrozenBackbone(model, facts_of(model.config))


def likelihood(backbone: FrozenBackbone, side: str, keep: bool = False) -> Tensor:
    """Of all texts at once, padded on one side."""
    ids = torch.full((len(TEXTS), T), PAD_ID)
    mask = torch.zeros_like(ids)
    continuation = torch.full((len(TEXTS), Q), NO_TOKEN)
    for row, (text, behind) in enumerate(zip(TEXTS, CONTINUATIONS, strict=True)):
        places = slice(0, len(text)) if side == "right" else slice(T - len(text), T)
        ids[row, places], mask[row, places] = torch.tensor(text), 1
        continuation[row, : len(behind)] = torch.tensor(behind)
    with torch.no_grad():
        return backbone.likelihood(ids, mask, continuation, backbone.keep(ids, mask) if keep else None)


def plain_likelihood(model: PreTrainedModel) -> Tensor:
    """By the definition, one text at a time, without padding."""
    means = []
    for text, behind in zip(TEXTS, CONTINUATIONS, strict=True):
        with torch.no_grad():
            logs = model(torch.tensor([text + behind]), use_cache=False).logits[0].log_softmax(-1)
        places = range(len(text) - 1, len(text) + len(behind) - 1)
        means.append(sum(logs[place, token] for place, token in zip(places, behind, strict=True)) / len(behind))
    return torch.stack(means)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", DECODERS)
def test_equals_the_definition(tmp_path: Path, family: str, tied: bool) -> None:
    """In float64, from a language model's checkpoint. Scores are rounded to float32."""
    save_tiny(tmp_path, family, AutoModelForCausalLM, tie_word_embeddings=tied)
    backbone = load(tmp_path)
    assert backbone.output is not None
    assert (backbone.output.weight is backbone.model.get_input_embeddings().weight) == tied
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    expected = plain_likelihood(theirs).float()
    backbone.double()
    for side, keep in product(("right", "left"), {False, backbone.keeps_texts}):
        torch.testing.assert_close(likelihood(backbone, side, keep), expected, rtol=1e-6, atol=1e-6)
    assert backbone.keeps_texts == (backbone.facts.sliding_window is None)


@pytest.mark.parametrize("keep", [True, False])
def test_several_behind_each_text_are_as_one_at_a_time(
    tmp_path: Path, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of like length in a pass of their own."""
    monkeypatch.setitem(PASS_COST, "cpu", 0)
    save_tiny(tmp_path, "llama_gqa", AutoModelForCausalLM)
    backbone = load(tmp_path)
    lengths = torch.tensor([[1, 4, 2], [2, 1, 4], [1, 3, 2]])
    words = torch.randint(4, 200, (3, 3, Q)).masked_fill(torch.arange(Q) >= lengths.unsqueeze(2), NO_TOKEN)
    ids, mask = torch.randint(4, 200, (3, T)), torch.arange(T) < torch.tensor([5, 8, 3]).unsqueeze(1)
    with torch.no_grad():
        kept = backbone.keep(ids, mask) if keep else None
        found = backbone.likelihood(ids, mask, words.flatten(0, 1), kept).view(3, 3)
        expected = [backbone.likelihood(ids, mask, column, kept) for column in words.unbind(1)]
    torch.testing.assert_close(found, torch.stack(expected, dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_is_not_quantized(tmp_path: Path, tied: bool) -> None:
    save_tiny(tmp_path, "llama_gqa", AutoModelForCausalLM, tie_word_embeddings=tied)
    plain, int8 = load(tmp_path), load(tmp_path, "int8")
    assert int8.output is not None
    assert torch.equal(plain.output.weight, int8.output.weight)
    assert sum(isinstance(module, QuantizedLinear) for module in int8.modules()) == 14
    exact, near = likelihood(plain, "right"), likelihood(int8, "right")
    assert 0 < (exact - near).abs().max() < 0.1


def test_a_checkpoint_of_the_base_model(tmp_path: Path) -> None:
    """Serves where the output layer is tied to the input embeddings, and is refused where it is missing."""
    save_tiny(tmp_path / "tied", "llama_gqa", tie_word_embeddings=True)
    assert torch.isfinite(likelihood(load(tmp_path / "tied"), "right")).all()
    save_tiny(tmp_path / "untied", "llama_gqa")
    with pytest.raises(UserError, match=r"LlamaForCausalLM needs tensors it lacks: lm_head\.weight"):
        load(tmp_path / "untied")
