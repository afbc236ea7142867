"""Edits of hidden states as a method: where they start, and what they are in other words."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.backbone.facts import facts_of
from pipeline.backbone.sites import Edits
from pipeline.core.errors import UserError
from pipeline.data.batches import collate
from pipeline.methods.edit import Directions, EditTuning, ScaleAndShift, orthonormal_rows
from tests.methods.test_baselines import K, P, config_of, model_of
from tests.support.tiny import PAD_ID, tiny_model

H = 16
KINDS: list[dict[str, Any]] = [
    {"kind": "red"},
    {"kind": "bias"},
    {"kind": "direft", "rank": 2},
    {"kind": "loreft", "rank": 2},
    {"kind": "red", "layers": [1], "ends": 2},
]
FACTS = facts_of(tiny_model("llama_gqa").config)


@pytest.fixture
def texts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": torch.randint(4, 300, (length,), generator=generator).tolist()} for length in (5, 9, 2)]
    return collate(rows, PAD_ID)


@pytest.mark.parametrize("keys", KINDS)
@pytest.mark.parametrize("family", ["llama_gqa", "bert", "deberta_v2"])
def test_sizes_start_and_gradients(keys: dict[str, Any], family: str, texts: dict[str, Tensor]) -> None:
    model = model_of(family, name="edit", **keys)
    expected = {"red": 2 * 2 * H, "bias": 2 * H}.get(keys["kind"], 2 * (2 * 2 * H + 2))
    if "layers" in keys:
        expected = 2 * H
    count = sum(parameter.numel() for parameter in model.method.parameters()) - K * (H + 1)
    assert count == expected == config_of(name="edit", **keys).trainable_count(FACTS, P, K) - K * (H + 1)
    model(**texts, candidates=torch.arange(K).expand(3, K)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.method.parameters())
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


@pytest.mark.parametrize("keys", KINDS)
def test_it_starts_as_a_linear_layer_on_the_untouched_backbone(keys: dict[str, Any], texts: dict[str, Tensor]) -> None:
    model = model_of("llama_gqa", name="edit", **keys)
    method = config_of(name="edit", **keys).build(FACTS, P, K).double()
    assert isinstance(method, EditTuning)
    found = model.backbone(texts["input_ids"], texts["attention_mask"], edits=method.edits)
    expected = model.backbone(texts["input_ids"], texts["attention_mask"])
    mask = texts["attention_mask"].bool()
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-5, atol=1e-5)  # loreft starts in float32


def test_red_is_another_norm_in_bert(texts: dict[str, Tensor]) -> None:
    """s * h + b behind a layer that ends with a norm: its weights times s, its biases times s plus b."""
    model, folded = (model_of("bert", name="edit") for _ in range(2))
    assert isinstance(model.method, EditTuning)
    for layer, edit in zip(folded.backbone.model.encoder.layer, model.method.of_layers, strict=True):
        assert isinstance(edit, ScaleAndShift) and edit.scale is not None
        norm = layer.output.LayerNorm
        norm.weight.data *= 1 + edit.scale.data
        norm.bias.data = norm.bias.data * (1 + edit.scale.data) + edit.shift.data
    folded.method.edits = None
    candidates = torch.arange(K).expand(3, K)
    torch.testing.assert_close(model(**texts, candidates=candidates), folded(**texts, candidates=candidates))


def test_loreft_is_direft_with_what_it_takes_away() -> None:
    torch.manual_seed(0)
    loreft = Directions(H, 3, None, orthonormal=True).double()
    direft = Directions(H, 3, None, orthonormal=False).double()
    for parameter in loreft.parameters():
        parameter.data += torch.randn_like(parameter)
    rows = orthonormal_rows(loreft.directions)
    torch.testing.assert_close(rows @ rows.T, torch.eye(3, dtype=torch.double))
    torch.testing.assert_close(orthonormal_rows(rows), rows)
    hidden, mask = torch.randn(2, 4, H, dtype=torch.double), torch.ones(2, 4, dtype=torch.bool)
    # The paper's own words, token by token: h + R^T (W h + b - R h).
    expected = torch.stack(
        [h + rows.T @ (loreft.weight @ h + loreft.bias - rows @ h) for h in hidden.flatten(0, 1)]
    ).view_as(hidden)
    torch.testing.assert_close(loreft(hidden, mask), expected)
    direft.load_state_dict({"directions": rows, "weight": loreft.weight - rows, "bias": loreft.bias})
    torch.testing.assert_close(direft(hidden, mask), expected)


def test_only_the_ends_are_edited() -> None:
    edit = ScaleAndShift(H, 1, scaled=False)
    edit.shift.data.fill_(1)
    mask = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    found = edit(torch.zeros(3, 6, H), mask)[..., 0]
    assert found.tolist() == [[1, 0, 0, 0, 0, 1], [1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]]  # padding is no matter


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"rank": 2}, ValueError, "only with method.kind=direft or loreft"),
        ({"kind": "loreft", "rank": 17}, UserError, "only 16 directions"),
        ({"layers": [2]}, UserError, "2 is none of the backbone's layers 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(keys: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        config_of(name="edit", **keys).build(FACTS, P, K)


def test_a_method_has_one_set_of_edits() -> None:
    """Requests to a server are told apart by it."""
    method = config_of(name="edit").build(FACTS, P, K)
    assert isinstance(method.edits, Edits) and method.edits is method.edits
