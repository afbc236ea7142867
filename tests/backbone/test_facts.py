"""Facts hold on the models themselves; what cannot be a backbone is refused."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, DynamicCache

from pipeline.backbone.facts import DEBERTA, facts_of
from pipeline.core.errors import UserError
from tests.families.models import tiny_model as family_model
from tests.support.tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_facts_are_the_models_own(family: str) -> None:
    """Sizes equal those of a cache that the model filled itself, and of its output."""
    model = tiny_model(family)
    facts = facts_of(model.config)
    cache = DynamicCache()
    cacheless = facts.family in DEBERTA
    options = {} if cacheless else {"past_key_values": cache}
    hidden = model(input_ids=torch.tensor([[5, 6, 7]]), **options).last_hidden_state
    assert hidden.shape[-1] == facts.hidden_size == model.get_input_embeddings().embedding_dim
    if not cacheless:
        layers: list[Any] = cache.layers
        assert len(layers) == facts.layers
        for shape, layer in zip(facts.prefix_layers, layers, strict=True):
            assert layer.keys.shape == (1, shape.heads, 3, shape.key_dim)
            assert layer.values.shape == (1, shape.heads, 3, shape.value_dim)


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


def test_the_table_of_distances_of_mpt_ends() -> None:
    model = family_model("mpt")
    assert facts_of(model.config).max_positions == 128
    model(input_ids=torch.full((1, 128), 5))
    with pytest.raises(RuntimeError, match="must match"):
        model(input_ids=torch.full((1, 129), 5))


YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [3.0, 9.0], "factor": 16.0}


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        ({"rope_type": "default"}, 128),
        ({"rope_type": "linear", "factor": 2.0}, 256),
        ({"rope_type": "dynamic", "factor": 2.5}, 320),
        (YARN, 512),
        (YARN | {"original_max_position_embeddings": 64}, 256),
        (YARN | {"original_max_position_embeddings": 32}, 128),  # max_position_embeddings is scaled already
        (LLAMA3 | {"original_max_position_embeddings": 16}, 128),
        (LONG | {"original_max_position_embeddings": 8}, 128),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_scaled_rotary_positions_reach_further(rope: dict[str, Any], positions: int, key: str) -> None:
    model = tiny_model("llama_gqa", **{key: rope | {"rope_theta": 10000.0}})
    assert facts_of(model.config).max_positions == positions
    found = model(input_ids=torch.full((1, positions), 5)).last_hidden_state
    assert found.shape[1] == positions and found.isfinite().all()


def test_the_kind_of_layer_that_reaches_least_decides_and_learned_positions_are_not_scaled() -> None:
    linear, plain = ({"rope_type": name, "factor": 8.0, "rope_theta": 10000.0} for name in ("linear", "default"))
    ropes = {"full_attention": linear, "sliding_attention": plain}
    assert facts_of(tiny_model("gemma3", rope_parameters=ropes).config).max_positions == 128
    assert facts_of(tiny_model("gpt2", rope_scaling=linear).config).max_positions == 128


@pytest.mark.parametrize(
    ("model_type", "word"),
    [
        ("bart", "encoder-decoder"),
        ("vit", "vision"),
        ("clip", "vision"),
        ("gemma3", "vision"),
        ("wav2vec2", r"\(wav2vec2\) does not read a plain text"),
    ],
)
def test_what_does_not_read_text_is_refused(model_type: str, word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        facts_of(AutoConfig.for_model(model_type))
    assert "docs/backbones.md" in str(caught.value) and "\n" not in str(caught.value)
