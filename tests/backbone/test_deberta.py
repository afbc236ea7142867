"""The prefix inside DeBERTa's disentangled attention. (Gradients, padding and checkpointing: test_frozen.)"""

from typing import Any

import pytest
import torch
from transformers import AutoModel, BertConfig, PreTrainedModel

from pipeline.backbone.facts import facts_of
from pipeline.backbone.frozen import FrozenBackbone
from pipeline.backbone.injection import Injection
from pipeline.core.errors import UserError
from tests.support.tiny import tiny_model

IDS = torch.randint(4, 200, (2, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
SIZES = (
    "vocab_size",
    "max_position_embeddings",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)

both_versions = pytest.mark.parametrize("family", ["deberta", "deberta_v2"])


def prefix(model: PreTrainedModel, tokens: int, mask: bool = True) -> Injection:
    facts = facts_of(model.config)
    shape = (len(IDS), tokens, facts.prefix_width())
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    return Injection(torch.full((len(IDS), tokens), mask), prefix=values)


def as_bert(model: PreTrainedModel) -> PreTrainedModel:
    """A BERT with the weights of a DeBERTa v1 or v2 that has no relative attention."""
    names = {key: getattr(model.config, key) for key in SIZES}
    bert = AutoModel.from_config(BertConfig(**names, layer_norm_eps=model.config.layer_norm_eps, pad_token_id=1))
    bert = bert.double().eval()
    state = {}
    for name, value in model.state_dict().items():
        name = name.replace("_proj", "") if "query_proj" in name or "key_proj" in name or "value_proj" in name else name
        state[name] = value
    encoder: Any = model.encoder
    for layer, module in enumerate(encoder.layer):
        start, attention = f"encoder.layer.{layer}.attention.self.", module.attention.self
        if hasattr(attention, "in_proj"):  # v1: rows are (head, q k v, D); keys have no bias
            rows = attention.in_proj.weight.view(model.config.num_attention_heads, 3, -1, model.config.hidden_size)
            for index, name in enumerate(("query", "key", "value")):
                state[f"{start}{name}.weight"] = rows[:, index].flatten(0, 1)
            state |= {f"{start}query.bias": attention.q_bias, f"{start}value.bias": attention.v_bias}
            state[f"{start}key.bias"] = torch.zeros_like(attention.q_bias)
            for name in ("in_proj.weight", "q_bias", "v_bias"):
                del state[start + name]
    missing, unexpected = bert.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {
        "embeddings.token_type_embeddings.weight",
        "pooler.dense.weight",
        "pooler.dense.bias",
    }
    bert.get_parameter("embeddings.token_type_embeddings.weight").data.zero_()
    return bert


@both_versions
def test_without_positions_it_is_berts_prefix(family: str) -> None:
    """With content-to-content attention alone, DeBERTa is BERT, which takes the prefix through a cache."""
    options = {"relative_attention": False, "pos_att_type": [], "position_biased_input": True, "norm_rel_ebd": "none"}
    model = tiny_model(family, **options).double()
    bert = as_bert(model)
    given = prefix(model, 3)
    expected = FrozenBackbone(bert, facts_of(bert.config))(IDS, MASK, given)
    actual = FrozenBackbone(model, facts_of(model.config))(IDS, MASK, given)
    torch.testing.assert_close(actual[MASK.bool()], expected[MASK.bool()], rtol=1e-6, atol=1e-6)


@both_versions
@pytest.mark.parametrize("kinds", [["c2p"], ["p2c"], ["c2p", "p2c"]])
@pytest.mark.parametrize("share", [False, True])
def test_masked_prefix_is_no_prefix(family: str, kinds: list[str], share: bool) -> None:
    """The wrapped attention's text part is the model's own, for every set of position terms."""
    model = tiny_model(family, pos_att_type=kinds, share_att_key=share).double()
    frozen = FrozenBackbone(model, facts_of(model.config))
    without = frozen(IDS, MASK)[MASK.bool()]
    masked = frozen(IDS, MASK, prefix(model, 3, mask=False))[MASK.bool()]
    torch.testing.assert_close(masked, without, rtol=1e-6, atol=1e-6)
    assert (frozen(IDS, MASK, prefix(model, 3))[MASK.bool()] - without).abs().max() > 0.01


@both_versions
def test_order_of_prefix_tokens_does_not_matter(family: str) -> None:
    """Prefix tokens have no position."""
    model = tiny_model(family).double()
    frozen = FrozenBackbone(model, facts_of(model.config))
    given = prefix(model, 3)
    assert given.prefix is not None
    turned = Injection(given.mask, prefix=given.prefix.flip(-2))
    torch.testing.assert_close(frozen(IDS, MASK, turned)[MASK.bool()], frozen(IDS, MASK, given)[MASK.bool()])


def test_talking_heads_are_refused() -> None:
    model = tiny_model("deberta", talking_head=True)
    with pytest.raises(UserError, match="talking_head"):
        FrozenBackbone(model, facts_of(model.config))
