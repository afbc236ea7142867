"""Facts hold on the models themselves; what cannot be a backbone is refused."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, DynamicCache

from pipeline.backbone import deberta
from pipeline.backbone.facts import facts_of
from pipeline.core.errors import UserError
from tests.support.tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_are_the_models_own(family: str) -> None:
    """Sizes equal those of a cache that the model filled itself, and of its output."""
    model = tiny_model(family)
    facts = facts_of(model.config)
    cache = DynamicCache()
    cacheless = facts.family in deberta.FAMILIES
    options = {} if cacheless else {"past_key_values": cache}
    hidden = model(input_ids=torch.tensor([[5, 6, 7]]), **options).last_hidden_state
    assert hidden.shape[-1] == facts.hidden_size == model.get_input_embeddings().embedding_dim
    if not cacheless:
        layers: list[Any] = cache.layers
        assert len(layers) == facts.layers
        assert all(layer.keys.shape == (1, facts.kv_heads, 3, facts.head_dim) for layer in layers)


@pytest.mark.parametrize("family", [family for family in FAMILIES if "bloom" != family != "falcon_alibi"])
def test_largest_position_works(family: str) -> None:
    model = tiny_model(family)
    facts = facts_of(model.config)
    assert facts.max_positions == 128
    model(input_ids=torch.full((1, 128), 5))
    if family in ("bert", "roberta", "gpt2", "opt"):  # learned positions: one more does not exist
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 129), 5))


@pytest.mark.parametrize("family", ["bloom", "falcon_alibi"])
def test_alibi_sets_no_bound(family: str) -> None:
    assert facts_of(tiny_model(family).config).max_positions is None


@pytest.mark.parametrize(
    ("model_type", "word"),
    [
        ("t5", "encoder-decoder"),
        ("bart", "encoder-decoder"),
        ("vit", "vision"),
        ("clip", "vision"),
        ("gemma3", "vision"),
        ("mamba", "unknown model type 'mamba'"),
        ("wav2vec2", "unknown model type 'wav2vec2'"),
    ],
)
def test_other_models_are_refused(model_type: str, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        facts_of(AutoConfig.for_model(model_type))
    assert "llama" in str(caught.value) and "\n" not in str(caught.value)
